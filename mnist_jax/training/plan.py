"""Builds the parts of a run that need no data from its config; `experiment.py` adds the others."""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.config import ConfigDict, config_fields
from mnist_jax.config_checks import check_attributes, check_config
from mnist_jax.data.builder import Description
from mnist_jax.data.source import SOURCES, Source
from mnist_jax.distributed.stored_programs import stored
from mnist_jax.errors import MAX_INT, UserError, check_integer, check_range
from mnist_jax.factory import build, choose, code_sha256, construct, defaults, package_name, takes_any
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning import model_checks, step, transfer
from mnist_jax.learning.augmentation import AUGMENTATIONS
from mnist_jax.learning.averaging import AVERAGES, Averaging
from mnist_jax.learning.callbacks import Callbacks, EarlyStopping, ReduceLROnPlateau
from mnist_jax.learning.losses import LOSSES, Loss
from mnist_jax.learning.optimizers import OPTIMIZERS, Optimizer, with_accumulation, with_clipping, with_nonfinite
from mnist_jax.learning.state import TrainState, create_state
from mnist_jax.models.architectures import MODELS, is_own_model
from mnist_jax.models.layer_table import format_table, list_layers
from mnist_jax.workdir.config_sections import SECTIONS
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot
from mnist_jax.workdir.trackers import TRACKERS

EVALUATES_AVERAGE = {'average': True, 'last': False}
# Fields that no compiled program depends on; the first two are arguments of the train step.
NOT_COMPILED = ('seed', 'optimizer.learning_rate', 'population', 'trackers', 'checkpoint_min_seconds')
MOMENTA = ('momentum', 'beta_1')  # arguments of optimizers
DTYPES = {'float32': jnp.dtype('float32'), 'bfloat16': jnp.dtype('bfloat16')}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts of a run that depend only on its config: enough to restore and apply a model without the dataset."""

    config: ConfigDict
    source: Source
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    base_learning_rate: float  # the schedule multiplies it
    callbacks: Callbacks
    dtype: jnp.dtype  # the compute dtype
    averaging: Averaging | None = None
    evaluates_average: bool = True  # if there is one
    sam_radius: float = 0.0

    def infer(self, variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the logits BxK; see `step.infer`."""
        return step.infer(variables, image_BxHxWxC, self.model, self.source.normalization, self.dtype)

    def layer_table(self) -> str:
        """Returns the layer table of the model as text."""
        return _layer_table(self.config, self.source, self.model)

    def create_state(self) -> TrainState:
        """Returns the state before the first step."""
        # On a CPU, optimizing a program that runs once and draws random numbers takes seconds.
        options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
        compiled = jax.jit(self._create_state, compiler_options=options)
        create_state = stored(compiled, self.program_key('create_state'), jax.local_devices()[:1])
        # The seed is an argument, so that runs with different seeds share their compiled programs.
        return create_state(np.array(self.config.seed, np.int32))

    @functools.cached_property
    def _create_state(self) -> Callable[[int | jax.Array], TrainState]:
        evaluated = None if self.averaging is None else self.evaluates_average
        return functools.partial(
            create_state, self.model, self.optimizer, self.source.image_shape, average_evaluated=evaluated
        )

    def program_key(self, name: str) -> str | None:
        """Returns what determines the compiled program `name` besides the code; None if it must not be stored.

        A program with a part that is the user's own must not, because its code is not that of this package.
        """
        if None in self._part_names:
            return None
        fields = {name: value for name, value in config_fields(self.config) if name not in NOT_COMPILED}
        data = (self.source.image_shape, len(self.source.class_names), self.source.normalization)
        return f'{name} {self._part_names} {json.dumps(fields, sort_keys=True, default=repr)} {data}'

    @property
    def _parts(self) -> dict[str, Callable | None]:
        """The constructors of the parts of compiled programs, by the fields that select them."""
        parts: dict[str, Callable | None] = {}
        for section in SECTIONS:
            if section != 'dataset':
                name = self.config[section].name
                parts[f'config.{section}.name={name}'] = SECTIONS[section].table[name]
        for augmentation in self.config.augmentation:
            # A run can be loaded without the steps that it was trained with.
            parts[f'config.augmentation: {augmentation["name"]}'] = AUGMENTATIONS.get(augmentation['name'])
        return parts

    @property
    def _part_names(self) -> list[str | None]:
        """The names of the parts of compiled programs; None for each that is not of this package."""
        return [package_name(part) for part in self._parts.values()]

    @functools.cached_property
    def own_code(self) -> dict[str, str]:
        """The digests of the code of the parts that are not of this package, by the fields that select them."""
        own = {field: part for field, part in self._parts.items() if part is not None and package_name(part) is None}
        return {field: digest for field, part in own.items() if (digest := code_sha256([part]))}

    @property
    def of_package(self) -> bool:
        """Whether all parts come with this package, so that another process has them, too."""
        dataset = [type(self.source), self.source.data.make_builder]
        trackers = [TRACKERS.get(name) for name in self.config.trackers]
        return None not in [*self._part_names, *map(package_name, [*dataset, *trackers])]

    def first_snapshot(self) -> Snapshot:
        """Returns the snapshot before the first step."""
        return Snapshot(self.create_state(), self.callbacks.init(), EpochProgress())

    @functools.cached_property
    def abstract_snapshot(self) -> Snapshot:
        """The structure, shapes and dtypes of a snapshot."""
        return Snapshot(jax.eval_shape(self._create_state, self.config.seed), self.callbacks.init(), EpochProgress())

    def stopped_early(self, snapshot: Snapshot) -> bool:
        """Returns whether early stopping has ended the run."""
        return self.callbacks.early_stopping.stops(snapshot.callbacks.early_stopping)

    def finished(self, snapshot: Snapshot) -> bool:
        """Returns whether all epochs of the run are trained, or early stopping has ended it."""
        return snapshot.epoch.number >= self.config.epochs or self.stopped_early(snapshot)

    @functools.cached_property
    def xla_products(self) -> bool:
        """Whether XLA computes matrix products of the model, also on a CPU that has the kernels."""
        if self.dtype != DTYPES['float32']:
            return True
        return self.own_model and model_checks.has_products(
            self.model, self.abstract_snapshot.state, self.source.image_shape
        )

    @property
    def own_model(self) -> bool:
        """Whether the model is not one of this package."""
        return is_own_model(self.model)


def make_plan(config: ConfigDict, description: Description | None = None) -> Plan:
    """Checks `config` and builds the parts that need no data.

    Args:
      config: The config of the run.
      description: The description of its dataset, from its workdir. Without it, a dataset whose image shape and classes
        depend on its raw files is prepared now.
    """
    check_config(config)
    config = config.copy_and_resolve_references().lock()  # The caller may change it later.
    source, model = _source_and_model(config, description)
    options = config.optimizer.to_dict()
    base_learning_rate = options.pop('learning_rate', None)
    if not isinstance(base_learning_rate, float | int):
        raise UserError(f'config.optimizer.learning_rate must be of type float, got {base_learning_rate!r}')
    check_range('config.optimizer.learning_rate', base_learning_rate, 0.0, math.inf)
    clip = {field: options.pop(field, 0.0) for field in ('clip_norm', 'clip_value')}
    for field, limit in clip.items():
        check_range(f'config.optimizer.{field}', limit, 0.0, math.inf)
    sam_radius, accumulate = options.pop('sam_radius', 0.0), options.pop('accumulate', 1)
    check_range('config.optimizer.sam_radius', sam_radius, 0.0, 1e6)
    check_integer('config.optimizer.accumulate', accumulate, 1, MAX_INT)
    average = config.average.to_dict()
    evaluates_average = choose('config.average.evaluated', average.pop('evaluated', 'average'), EVALUATES_AVERAGE)
    callbacks = Callbacks(
        construct('config.early_stopping', EarlyStopping, config.early_stopping),
        construct('config.reduce_lr', ReduceLROnPlateau, config.reduce_lr),
    )
    callbacks.check_monitors(source.validated)
    if callbacks.reduce_lr.needed and config.schedule.name != 'constant':
        raise UserError(
            f"config.schedule.name must be 'constant' if config.reduce_lr.patience={config.reduce_lr.patience} is set, "
            f'got {config.schedule.name!r}: only one of them may change the learning rate'
        )
    optimizer = optax.with_extra_args_support(
        build('config.optimizer', OPTIMIZERS, options, reserved=SECTIONS['optimizer'].shared)
    )
    if package_name(OPTIMIZERS[config.optimizer.name]) is None:
        optimizer = with_nonfinite(optimizer)
    optimizer = with_clipping(optimizer, **clip)
    averaging = build('config.average', AVERAGES, average, reserved=SECTIONS['average'].shared)
    interpolates = averaging is not None and averaging.interpolation > 0
    if interpolates and config.schedule.name != 'constant':
        raise UserError(
            f"config.schedule.name must be 'constant' if config.average.name={config.average.name!r} is set, got "
            f'{config.schedule.name!r}'
        )
    momenta = {name: {**defaults(OPTIMIZERS[config.optimizer.name]), **options}.get(name) for name in MOMENTA}
    if interpolates and any(momenta.values()):
        name = next(name for name, value in momenta.items() if value)
        raise UserError(
            f'config.optimizer.{name} must be 0 if config.average.name={config.average.name!r} is set: its '
            f'interpolation replaces momentum; got {momenta[name]}'
        )
    if config.average.name == 'swa' and config.average.get('start', 0) >= config.epochs > 0:
        raise UserError(
            f'config.average.start must be less than config.epochs={config.epochs}, so that at least one epoch counts, '
            f'got {config.average.start}'
        )
    plan = Plan(
        config=config,
        source=source,
        model=model,
        loss=_make_loss(config.loss, len(source.class_names)),
        optimizer=transfer.with_rates(
            with_accumulation(optimizer, accumulate), config.init.freeze, rates(config, model, source)
        ),
        base_learning_rate=base_learning_rate,
        callbacks=callbacks,
        dtype=choose('config.dtype', config.dtype, DTYPES),
        averaging=averaging,
        evaluates_average=evaluates_average,
        sam_radius=sam_radius,
    )
    if config.init.freeze or config.init.skip or config.init.rates:
        variables = plan.abstract_snapshot.state.variables
        transfer.check_patterns('config.init.freeze', config.init.freeze, variables)
        transfer.check_patterns('config.init.skip', config.init.skip, variables)
        rated = [pattern for pattern, _ in config.init.rates]
        transfer.check_patterns('config.init.rates', rated, {'params': variables.params})
    return plan


def rates(config: ConfigDict, model: nn.Module, source: Source) -> list[tuple[str, float]]:
    """Returns the factors of the learning rates of parameters, those of `config.init.rates` last."""
    layers = list_layers(model, source.image_shape) if config.init.layer_decay != 1 else []
    return [*transfer.layer_rates(layers, config.init.layer_decay), *config.init.rates]


def _make_loss(config: ConfigDict, num_classes: int) -> Loss:
    """Returns the loss that a config section describes; raises a UserError if it is not one number per example."""
    loss = build('config.loss', LOSSES, config)
    probes = model_checks.PROBES
    logits_BxK = jax.ShapeDtypeStruct((probes, num_classes), jnp.float32)
    result = jax.eval_shape(loss, logits_BxK, jax.ShapeDtypeStruct((probes,), jnp.int32))
    if getattr(result, 'shape', None) != (probes,):
        raise UserError(
            f'config.loss.name={config.name!r} must select a loss that returns one number per example, of shape '
            f'{(probes,)} for {probes} examples, got {result}'
        )
    return loss


def _source_and_model(config: ConfigDict, description: Description | None = None) -> tuple[Source, nn.Module]:
    fold = (config.fold, config.folds) if config.folds else None
    source = build('config.dataset', SOURCES, config.dataset, fold=fold, description=description)
    return source, make_model(config.model, len(source.class_names))


def make_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the model that the config section `config` describes; raises a UserError for an invalid field."""
    name = config.get('name')
    if isinstance(name, str) and name in MODELS:  # else, `build` reports the name
        signature = inspect.signature(MODELS[name])
        if not takes_any(MODELS[name]) and 'num_classes' not in signature.parameters:
            raise UserError(f'the model must have an attribute num_classes, got {config.name}{signature}')
    model = build('config.model', MODELS, config, num_classes=num_classes)
    model_checks.check_interface(model)
    if not is_own_model(model):
        check_attributes(vars(model))
    return model


def model_summary(config: ConfigDict) -> str:
    """Returns the layer table of the model that `config` describes; needs no data and runs nothing."""
    check_config(config)
    source, model = _source_and_model(config)
    return _layer_table(config, source, model)


def _layer_table(config: ConfigDict, source: Source, model: nn.Module) -> str:
    is_frozen = functools.partial(transfer.matches, patterns=config.init.freeze)
    return format_table(model, source.image_shape, is_frozen)
