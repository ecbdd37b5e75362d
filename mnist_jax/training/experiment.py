"""The one place that turns a config into the parts of a run."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.config import ConfigDict, check_config
from mnist_jax.data import batches
from mnist_jax.data.records import Examples
from mnist_jax.data.source import SOURCES, Source
from mnist_jax.distributed.devices import Replicas, batch_layout, start_backend
from mnist_jax.errors import UserError, check_range
from mnist_jax.factory import build, choose, construct
from mnist_jax.learning import losses, schedules
from mnist_jax.learning.callbacks import Callbacks, EarlyStopping, ReduceLROnPlateau
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.step import Sums, TrainState, create_state, eval_step, train_step, train_steps
from mnist_jax.models.architectures import make_model
from mnist_jax.models.layer_table import format_table, list_layers
from mnist_jax.workdir.snapshot import EpochProgress, Snapshot

ON_NONFINITE = {'stop': False, 'skip': True}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Updates in one call where a step is too short to start each by itself: always on an accelerator, and on a CPU below
# so many multiply-adds a step.
STEPS_PER_CALL, SHORT_STEP = 32, 100e6


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config alone says of a run: enough to restore and to apply it, without its data set."""

    config: ConfigDict
    source: Source
    model: nn.Module
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    optimizer: optax.GradientTransformationExtraArgs
    peak: float  # the learning rate that the schedule multiplies
    callbacks: Callbacks

    @functools.cached_property
    def inference(self) -> dict[str, Any]:
        """The arguments of `step.infer` beside variables and images."""
        dtype = choose('config.dtype', self.config.dtype, DTYPES)
        return {'model': self.model, 'max_pixel': self.source.max_pixel, 'dtype': dtype}

    def create_state(self) -> TrainState:
        """The state before the first step."""
        # The seed is an argument, so that runs of several seeds share their compiled programs.
        return self._create_state(np.array(self.config.seed, np.int32))

    @functools.cached_property
    def _create_state(self) -> Callable[[np.ndarray], TrainState]:
        return jax.jit(functools.partial(create_state, self.model, self.optimizer, self.source.image_shape))

    def first_snapshot(self) -> Snapshot:
        """What there is before the first step."""
        return Snapshot(self.create_state(), self.callbacks.init(), EpochProgress())

    @functools.cached_property
    def abstract_snapshot(self) -> Snapshot:
        """The structure, shapes and types of a snapshot."""
        return Snapshot(jax.eval_shape(self.create_state), self.callbacks.init(), EpochProgress())


def make_plan(config: ConfigDict) -> Plan:
    """Check `config` and build what needs no data; reads none, computes nothing."""
    source, model = _source_and_model(config)
    loss = build('loss', losses.LOSSES, config.loss)
    callbacks = _callbacks(config, source)
    optimizer, peak = _optimizer(config)
    return Plan(config, source, model, loss, optimizer, peak, callbacks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Plan):
    """All parts of a run; what they need of the devices is compiled into its steps."""

    replicas: Replicas
    # One update, or where `steps_per_call` is more than 1 several; gives up the state it is given.
    train_step: Callable[[TrainState, Any], tuple[TrainState, Sums]]
    eval_step: Callable[[TrainState, Any], tuple[Sums, jax.Array]]
    learning_rate: Callable[[Any], jax.Array]  # of the update that follows a step, unscaled
    steps_per_epoch: int
    steps_per_call: int
    train_layout: tuple[int, int]  # chunk size and padded batch size, examples
    eval_layout: tuple[int, int]
    eval_batch_size: int  # examples

    def train_indices(self, epoch: int, step: int) -> np.ndarray:
        """The places in the training split of the examples of a batch; epochs and their steps count from 0."""
        size = self.config.batch_size
        return batches.permutation(self.config.seed, epoch, self.source.count('train'))[step * size :][:size]

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """The sharded batches of an epoch, from its step `first` on: what `train_step` takes, one after the other."""
        config = self.config
        size = self.train_layout[1]
        order = (self.source.split('train'), config.seed, epoch, config.batch_size, size)
        sharded = map(self.replicas.shard, batches.train_batches(*order, self.replicas.local_rows(size), first))
        return sharded if self.steps_per_call == 1 else _stacked(sharded, self.steps_per_call)

    def eval_batches(self, split: Examples) -> Iterator[Any]:
        """The sharded batches of a split, in order."""
        size = self.eval_layout[1]
        order = (split, self.eval_batch_size, size, self.replicas.local_rows(size))
        return map(self.replicas.shard, batches.eval_batches(*order))


def make_experiment(config: ConfigDict) -> Experiment:
    """Check `config` and build its parts; starts the JAX backend and prepares the data set where that is to do."""
    plan = make_plan(config)
    source, model, peak = plan.source, plan.model, plan.peak
    schedule = build('schedule', schedules.SCHEDULES, config.schedule)
    multiply_adds = config.batch_size * sum(layer.multiply_adds for layer in list_layers(model, source.image_shape))
    replicas = start_backend(config.devices, config.dtype)
    source.data.prepare()
    train_size, test_size = source.count('train'), source.count('test')
    if train_size < config.batch_size:
        raise UserError(
            f'batch_size={config.batch_size} is larger than the number of training examples, {train_size:,}: '
            f'dataset.train={config.dataset.train!r}' + (', less those that validate' if source.validated else '')
        )
    steps_per_epoch = batches.steps_per_epoch(train_size, config.batch_size)
    layout = functools.partial(batch_layout, chunks=config.chunks, devices=len(replicas))
    eval_batch_size = min(config.eval_batch_size, test_size)
    train_layout, eval_layout = layout(config.batch_size), layout(eval_batch_size)
    parts = {**plan.inference, 'loss': plan.loss}
    several = not replicas.on_cpu or multiply_adds < SHORT_STEP
    steps_per_call = config.steps_per_call or (STEPS_PER_CALL if several else 1)

    def learning_rate(step: Any) -> jax.Array:
        return peak * schedule(jnp.float32(step) / steps_per_epoch, config.epochs)

    update = functools.partial(
        train_step if steps_per_call == 1 else train_steps,
        **parts,
        optimizer=plan.optimizer,
        learning_rate=learning_rate,
        skip_nonfinite=choose('config.on_nonfinite', config.on_nonfinite, ON_NONFINITE),
        chunk_size=train_layout[0],
    )
    evaluate = functools.partial(eval_step, **parts, chunk_size=eval_layout[0])
    return Experiment(
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)},
        replicas=replicas,
        train_step=replicas.compile(update, donate=True, seed=np.array(config.seed, np.int32)),
        eval_step=replicas.compile(evaluate, by_example=True),
        learning_rate=learning_rate,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=steps_per_call,
        train_layout=train_layout,
        eval_layout=eval_layout,
        eval_batch_size=eval_batch_size,
    )


def _stacked(sharded: Iterator[Any], count: int) -> Iterator[Any]:
    """So many sharded batches in one, along a second axis after that of the devices; the last one may have fewer."""
    while group := list(itertools.islice(sharded, count)):
        yield {name: np.stack([batch[name] for batch in group], axis=1) for name in group[0]}


def model_summary(config: ConfigDict) -> str:
    """The layer table of the model that `config` describes, as text; computes and prepares nothing."""
    source, model = _source_and_model(config)
    return format_table(model, source.image_shape)


def _optimizer(config: ConfigDict) -> tuple[optax.GradientTransformationExtraArgs, float]:
    """The optimizer, and the learning rate that the schedule multiplies."""
    fields = config.optimizer.to_dict()
    learning_rate = fields.pop('learning_rate', None)
    if not isinstance(learning_rate, float | int):
        raise UserError(f'optimizer.learning_rate={learning_rate!r} is wrong: its type is float')
    check_range('optimizer.learning_rate', learning_rate, 0.0, math.inf)
    return build('optimizer', OPTIMIZERS, fields), learning_rate


def _callbacks(config: ConfigDict, source: Source) -> Callbacks:
    callbacks = Callbacks(
        construct('early_stopping', EarlyStopping, config.early_stopping),
        construct('reduce_lr', ReduceLROnPlateau, config.reduce_lr),
    )
    callbacks.check_monitors(source.validated)
    if callbacks.reduce_lr.needed and config.schedule.name != 'constant':
        raise UserError(
            f"reduce_lr.patience={config.reduce_lr.patience} needs schedule.name='constant', not "
            f'{config.schedule.name!r}: one of them alone may set the learning rate'
        )
    return callbacks


def _source_and_model(config: ConfigDict) -> tuple[Source, nn.Module]:
    check_config(config)
    fold = (config.fold, config.folds) if config.folds else None
    source = build('dataset', SOURCES, config.dataset, fold=fold)
    return source, make_model(config.model, len(source.class_names))
