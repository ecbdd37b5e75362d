"""Builds the parts of a run from its config; no other module does."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnist_jax.config import ConfigDict
from mnist_jax.config_checks import check_config, check_layer_counts
from mnist_jax.data import batches
from mnist_jax.data.builder import Description
from mnist_jax.data.records import Examples, Split
from mnist_jax.data.source import SOURCES, Source
from mnist_jax.distributed.devices import Replicas, batch_layout, start_backend
from mnist_jax.distributed.stored_programs import stored
from mnist_jax.errors import UserError, check_range
from mnist_jax.factory import build, choose, construct
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning import model_checks, step, transfer
from mnist_jax.learning.callbacks import Callbacks, EarlyStopping, ReduceLROnPlateau
from mnist_jax.learning.losses import LOSSES, Loss
from mnist_jax.learning.optimizers import OPTIMIZERS, Optimizer
from mnist_jax.learning.schedules import SCHEDULES
from mnist_jax.learning.step import Data, StepParts, Sums, TrainState, Variables
from mnist_jax.models.architectures import CNN, MLP, MODELS, is_own_model
from mnist_jax.models.layer_table import format_table, list_layers
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

ON_NONFINITE = {'stop': False, 'skip': True}
DTYPES = {'float32': jnp.dtype('float32'), 'bfloat16': jnp.dtype('bfloat16')}
# With config.steps_per_call=0, a call makes STEPS_PER_CALL updates on an accelerator, and on a CPU if a step has fewer
# than SHORT_STEP multiply-adds, because such steps are too short to dispatch one by one. If the examples are on the
# devices, a call makes all updates of an epoch, up to LONG_CALL multiply-adds: a few seconds.
STEPS_PER_CALL, SHORT_STEP, LONG_CALL = 32, 100e6, 1e13
# Batches per call when evaluating on an accelerator: dispatching a batch takes longer than computing it.
EVAL_STEPS_PER_CALL = 16
DEVICE_MEMORY_FRACTION = 0.25  # of a device's memory, for examples that are kept on it automatically

HostBatch = dict[str, np.ndarray]
"""A batch in host memory, with a leading axis of the devices of this process."""


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

    def infer(self, variables: PyTree, image_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the logits BxK; see `step.infer`."""
        return step.infer(variables, image_BxHxWxC, self.model, self.source.normalization, self.dtype)

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
        return functools.partial(step.create_state, self.model, self.optimizer, self.source.image_shape)

    def program_key(self, name: str) -> str | None:
        """Returns what determines the compiled program `name` besides the code; None if it must not be stored.

        A program with a part that is the user's own must not, because its code is not that of this package.
        """
        tables: dict[str, Mapping[str, Callable]] = {
            **{'model': MODELS, 'loss': LOSSES},
            **{'optimizer': OPTIMIZERS, 'schedule': SCHEDULES},
        }
        for field, table in tables.items():
            if not table[self.config[field].name].__module__.startswith('mnist_jax.'):
                return None
        fields = {field: value for field, value in self.config.to_dict().items() if field != 'seed'}
        data = (self.source.image_shape, len(self.source.class_names), self.source.normalization)
        return f'{name} {json.dumps(fields, sort_keys=True, default=repr)} {data}'

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
    source, model = _source_and_model(config, description)
    options = config.optimizer.to_dict()
    base_learning_rate = options.pop('learning_rate', None)
    if not isinstance(base_learning_rate, float | int):
        raise UserError(f'config.optimizer.learning_rate must be of type float, got {base_learning_rate!r}')
    check_range('config.optimizer.learning_rate', base_learning_rate, 0.0, math.inf)
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
    plan = Plan(
        config=config,
        source=source,
        model=model,
        loss=build('config.loss', LOSSES, config.loss),
        optimizer=transfer.with_rates(
            build('config.optimizer', OPTIMIZERS, options), config.init.freeze, config.init.rates
        ),
        base_learning_rate=base_learning_rate,
        callbacks=callbacks,
        dtype=choose('config.dtype', config.dtype, DTYPES),
    )
    if config.init.freeze or config.init.rates:
        variables = plan.abstract_snapshot.state.variables
        transfer.check_patterns('config.init.freeze', config.init.freeze, variables)
        transfer.check_patterns('config.init.rates', [pattern for pattern, _ in config.init.rates], variables)
    return plan


def _source_and_model(config: ConfigDict, description: Description | None = None) -> tuple[Source, nn.Module]:
    check_config(config)
    fold = (config.fold, config.folds) if config.folds else None
    source = build('config.dataset', SOURCES, config.dataset, fold=fold, description=description)
    return source, make_model(config.model, len(source.class_names))


def make_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the model that the config section `config` describes; raises a UserError for an invalid field."""
    model = build('config.model', MODELS, config, num_classes=num_classes)
    model_checks.check_interface(model)
    if isinstance(model, MLP | CNN):
        check_layer_counts(vars(model))
    return model


def model_summary(config: ConfigDict) -> str:
    """Returns the layer table of the model that `config` describes; needs no data and runs nothing."""
    source, model = _source_and_model(config)
    return format_table(model, source.image_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Plan):
    """All parts of a run, and its steps compiled for the devices."""

    replicas: Replicas
    parts: StepParts
    eval_parts: StepParts
    on_device: bool  # whether the examples are in the memory of the devices
    schedule: Callable[[jax.Array, int], jax.Array]  # maps updates so far and epochs of the run to a learning rate
    steps_per_epoch: int
    steps_per_call: int
    padded_batch_size: int  # examples and padding of a global batch
    eval_batch_size: int  # examples
    padded_eval_batch_size: int
    eval_steps_per_call: int

    def train_step(self, state: TrainState, batch: HostBatch) -> tuple[TrainState, Sums]:
        """Makes one update on all devices; `state` is donated. See `step.train_step`."""
        return self._compiled_train_step(state, batch, self._seed, self._train_data)

    def train_steps(self, state: TrainState, group: Sequence[HostBatch]) -> tuple[TrainState, Sums]:
        """Makes one update per batch of `group` in one call; with several, the sums have a leading axis of steps."""
        if len(group) == 1:
            return self._compiled_train_step(state, group[0], self._seed, self._train_data)
        return self._compiled_train_steps(state, _stack(group), self._seed, self._train_data)

    def eval_steps(
        self, variables: Variables, group: Sequence[HostBatch], data: Data | None = None
    ) -> tuple[Sums, jax.Array]:
        """Evaluates the batches of `group` in one call on all devices; see `step.eval_step`.

        Args:
          variables: What to evaluate.
          group: At most `eval_steps_per_call` batches.
          data: What `on_devices` returns for their split.

        Returns:
          The results of one batch if `eval_steps_per_call` is 1; else they have a leading axis of `eval_steps_per_call`
          batches, and those beyond the group are empty.
        """
        if self.eval_steps_per_call == 1:
            return self._compiled_eval_step(variables, group[0], data)
        empty = {name: np.zeros_like(column) for name, column in group[0].items()}
        padding = [empty] * (self.eval_steps_per_call - len(group))  # so that there is one program for all splits
        return self._compiled_eval_steps(variables, _stack([*group, *padding]), data)

    def on_devices(self, split: Examples) -> Data | None:
        """Returns a split in the memory of every device, or None if `on_device` is False."""
        if not self.on_device:
            return None
        if id(split) not in self._splits:
            assert isinstance(split, Split)  # `Source` permits `on_device` only in memory.
            self._splits[id(split)] = split, self.replicas.replicate(split._asdict())
        return self._splits[id(split)][1]

    @functools.cached_property
    def _splits(self) -> dict[int, tuple[Split, Data]]:
        return {}

    @functools.cached_property
    def _train_data(self) -> Data | None:
        return self.on_devices(self.source.split('train'))

    @functools.cached_property
    def _seed(self) -> np.ndarray:
        return np.array(self.config.seed, np.int32)

    def program_key(self, name: str) -> str | None:
        """Returns what determines a compiled program; see `Plan.program_key`."""
        key = super().program_key(name)
        sizes = (self.steps_per_epoch, self.parts.chunk_size, self.eval_parts.chunk_size)
        return None if key is None else f'{key} {sizes}'

    @functools.cached_property
    def _compiled_train_step(self) -> Callable:
        return self._compile_train(step.train_step)

    @functools.cached_property
    def _compiled_train_steps(self) -> Callable:
        return self._compile_train(step.train_steps)

    def _compile_train(self, function: Callable) -> Callable:
        bound = functools.partial(function, parts=self.parts, all_sum=self.replicas.all_sum)
        key = self.program_key(function.__name__)
        return self.replicas.compile(bound, constants=2, donate=True, key=key)

    @functools.cached_property
    def _compiled_eval_step(self) -> Callable:
        return self._compile_eval(step.eval_step)

    @functools.cached_property
    def _compiled_eval_steps(self) -> Callable:
        return self._compile_eval(step.eval_steps)

    def _compile_eval(self, function: Callable) -> Callable:
        bound = functools.partial(
            function, parts=self.eval_parts, all_sum=self.replicas.all_sum, all_rows=self.replicas.all_rows
        )
        return self.replicas.compile(bound, constants=1, key=self.program_key(function.__name__))

    def learning_rate(self, updates: int) -> float:
        """Returns the scheduled learning rate of the update that follows `updates` updates."""
        return float(self.parts.learning_rate(jnp.int32(updates)))

    def learning_rates(self, updates: int, epochs: int) -> np.ndarray:
        """Returns the scheduled learning rates of the first `updates` updates of a run of `epochs` epochs."""
        return np.asarray(jax.vmap(lambda done: self.schedule(done, epochs))(jnp.arange(updates, dtype=jnp.int32)))

    def train_indices(self, epoch: int, step_in_epoch: int) -> np.ndarray:
        """Returns the indices in the training split of the examples of a batch; both arguments count from 0."""
        size = self.config.batch_size
        order = batches.permutation(self.config.seed, epoch, self.source.count('train'))
        return order[step_in_epoch * size :][:size]

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[HostBatch]:
        """Yields the batches of an epoch, starting with its step `first`."""
        config, size = self.config, self.padded_batch_size
        rows, split = self.replicas.local_rows(size), self.source.split('train')
        return map(
            self.replicas.shard,
            batches.train_batches(split, config.seed, epoch, config.batch_size, size, rows, first, self.on_device),
        )

    def train_calls(self, epoch: int, first: int = 0) -> Iterator[list[HostBatch]]:
        """Yields the batches of an epoch in groups of `steps_per_call`, each for one call of `train_steps`."""
        return _groups(self.train_batches(epoch, first), self.steps_per_call)

    def eval_batches(self, split: Examples) -> Iterator[HostBatch]:
        """Yields the batches of a split, in order."""
        size = self.padded_eval_batch_size
        rows = self.replicas.local_rows(size)
        return map(self.replicas.shard, batches.eval_batches(split, self.eval_batch_size, size, rows, self.on_device))

    def eval_calls(self, split: Examples) -> Iterator[list[HostBatch]]:
        """Yields the batches of a split, in order, in groups of `eval_steps_per_call`, each for one `eval_steps`."""
        return _groups(self.eval_batches(split), self.eval_steps_per_call)


def make_experiment(config: ConfigDict) -> Experiment:
    """Checks `config` and builds all parts; starts the JAX backend, and prepares the dataset if necessary."""
    plan = make_plan(config)
    source = plan.source
    schedule = build('config.schedule', SCHEDULES, config.schedule)
    if config.schedule.get('warmup', 0) > config.epochs > 0:
        logging.warning(
            'config.schedule.warmup=%g is longer than the run, config.epochs=%d: the learning rate only rises',
            config.schedule.warmup,
            config.epochs,
        )
    skip_nonfinite = choose('config.on_nonfinite', config.on_nonfinite, ON_NONFINITE)
    multiply_adds = sum(layer.multiply_adds for layer in list_layers(plan.model, source.image_shape))
    model_checks.check_model(plan.model, plan.abstract_snapshot.state, source.image_shape, len(source.class_names))
    replicas = start_backend(config.devices, plan.xla_products, plan.own_model, config.deterministic)
    if plan.own_model:  # The models of this package do not mix examples.
        model_checks.check_independence(plan.model, plan.create_state(), source.image_shape)
    source.data.prepare()
    train_size, test_size = source.count('train'), source.count('test')
    if train_size < config.batch_size:
        raise UserError(
            f'config.batch_size must be at most the number of training examples, {train_size:,} '
            f'(config.dataset.train={config.dataset.train!r}'
            f'{" without validation examples" if source.validated else ""}), got {config.batch_size}'
        )
    steps_per_epoch = batches.steps_per_epoch(train_size, config.batch_size)
    on_device = _fits_on_device(source, replicas)
    steps_per_call = config.steps_per_call or _automatic_steps_per_call(
        config, replicas.on_cpu, on_device, config.batch_size * multiply_adds
    )
    eval_batch_size = min(config.eval_batch_size, test_size)
    chunk_size, padded_batch_size = batch_layout(config.batch_size, config.chunks, len(replicas))
    eval_chunk_size, padded_eval_batch_size = batch_layout(eval_batch_size, config.chunks, len(replicas))

    def learning_rate(updates: jax.Array, epochs: int = config.epochs) -> jax.Array:
        return plan.base_learning_rate * schedule(jnp.float32(updates) / steps_per_epoch, epochs)

    parts = StepParts(
        model=plan.model,
        loss=plan.loss,
        optimizer=plan.optimizer,
        learning_rate=learning_rate,
        normalization=source.normalization,
        dtype=plan.dtype,
        skip_nonfinite=skip_nonfinite,
        chunk_size=chunk_size,
        frozen=config.init.freeze,
    )
    return Experiment(
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)},
        replicas=replicas,
        parts=parts,
        eval_parts=dataclasses.replace(parts, chunk_size=eval_chunk_size),
        on_device=on_device,
        schedule=learning_rate,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=min(steps_per_call, steps_per_epoch),
        padded_batch_size=padded_batch_size,
        eval_batch_size=eval_batch_size,
        padded_eval_batch_size=padded_eval_batch_size,
        eval_steps_per_call=1 if replicas.on_cpu else EVAL_STEPS_PER_CALL,
    )


def _groups(remaining: Iterator[HostBatch], size: int) -> Iterator[list[HostBatch]]:
    while group := list(itertools.islice(remaining, size)):
        yield group


def _stack(group: Sequence[HostBatch]) -> HostBatch:
    """Returns the batches with a second axis of steps, after that of the devices."""
    return {name: np.stack([batch[name] for batch in group], axis=1) for name in group[0]}


def _fits_on_device(source: Source, replicas: Replicas) -> bool:
    """Returns whether the examples are to be kept in the memory of the devices; see `config.dataset.on_device`."""
    if source.on_device != 'auto':
        return source.on_device == 'on'
    examples = sum(source.count(name) for name in source.split_names)
    return examples * math.prod(source.image_shape) < DEVICE_MEMORY_FRACTION * replicas.memory


def _automatic_steps_per_call(config: ConfigDict, on_cpu: bool, on_device: bool, multiply_adds: int) -> int:
    """Returns the number of updates per call, given the multiply-adds of one update; see `STEPS_PER_CALL`."""
    if on_cpu:
        steps = STEPS_PER_CALL if multiply_adds < SHORT_STEP else 1
    else:
        steps = max(1, int(LONG_CALL / max(1, multiply_adds))) if on_device else STEPS_PER_CALL
    return min(steps, config.checkpoint_every_steps or steps)
