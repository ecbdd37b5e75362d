"""Builds all parts of a run from its config, together with `plan.py`; no other module does."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnist_jax.config import ConfigDict
from mnist_jax.data import batches
from mnist_jax.data.builder import Description
from mnist_jax.data.records import Examples, Split
from mnist_jax.distributed.devices import Replicas, batch_layout, start_backend
from mnist_jax.errors import UserError
from mnist_jax.factory import build, choose, package_name
from mnist_jax.learning import model_checks, step
from mnist_jax.learning.augmentation import AUGMENTATIONS, MIXING, make_augmentation
from mnist_jax.learning.losses import LOSSES
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.schedules import SCHEDULES, cosine
from mnist_jax.learning.state import TrainState, Variables
from mnist_jax.learning.step import Data, RunNumbers, StepParts, Sums
from mnist_jax.models.layer_table import list_layers
from mnist_jax.training import calls
from mnist_jax.training.calls import HostBatch
from mnist_jax.training.plan import Plan, make_plan

ON_NONFINITE = {'stop': False, 'skip': True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Plan):
    """All parts of a run, and its steps compiled for the devices."""

    replicas: Replicas
    parts: StepParts
    eval_chunk_size: int  # examples per chunk of an evaluation
    on_device: bool  # whether the examples are in the memory of the devices
    schedule: Callable[[jax.Array, int], jax.Array]  # maps updates so far and epochs of the run to a factor
    steps_per_epoch: int
    steps_per_call: int
    padded_batch_size: int  # examples and padding of a global batch
    eval_batch_size: int  # examples
    padded_eval_batch_size: int
    eval_steps_per_call: int
    teacher: np.ndarray | None = None  # float32 NxK: targets of the training examples, besides their labels

    @property
    def eval_parts(self) -> StepParts:
        """The parts of the evaluation step."""
        return dataclasses.replace(self.parts, chunk_size=self.eval_chunk_size)

    def train_step(self, state: TrainState, batch: HostBatch) -> tuple[TrainState, Sums]:
        """Makes one update on all devices; `state` is donated. See `step.train_step`."""
        return self._compiled_train_step(state, batch, self._numbers, self._train_data)

    def train_steps(self, state: TrainState, group: Sequence[HostBatch]) -> tuple[TrainState, Sums]:
        """Makes one update per batch of `group` in one call; with several, the sums have a leading axis of steps."""
        if len(group) == 1:
            return self._compiled_train_step(state, group[0], self._numbers, self._train_data)
        return self._compiled_train_steps(state, calls.stack(group), self._numbers, self._train_data)

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
        return self._compiled_eval_steps(variables, calls.stack([*group, *padding]), data)

    def augment(self, images: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """Returns training images, float32 NxHxWxC, with the indices `index`, as the step changes them in an epoch."""
        label, mask = jnp.zeros(len(images), jnp.int32), jnp.ones(len(images))
        chunk = {'image': jnp.asarray(images), 'label': label, 'mask': mask, 'index': jnp.asarray(index)}
        return np.asarray(step.augment(chunk, self.config.seed, epoch, self.parts)['image'], np.float32)

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
    def _numbers(self) -> RunNumbers:
        with np.errstate(over='ignore'):  # If it is too large, the first update is not finite.
            return RunNumbers(np.array(self.config.seed, np.int32), np.array(self.base_learning_rate, np.float32))

    def program_key(self, name: str) -> str | None:
        """Returns what determines a compiled program; see `Plan.program_key`."""
        key = super().program_key(name)
        sizes = (self.steps_per_epoch, self.parts.chunk_size, self.eval_chunk_size)
        weights = self.source.class_weights
        return None if key is None else f'{key} {sizes} {None if weights is None else weights.tolist()}'

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
        return float(self._numbers.learning_rate * self.parts.schedule(jnp.int32(updates)))

    def learning_rates(self, updates: int, epochs: int) -> np.ndarray:
        """Returns the scheduled learning rates of the first `updates` updates of a run of `epochs` epochs."""
        factors = jax.vmap(lambda done: self.schedule(done, epochs))(jnp.arange(updates, dtype=jnp.int32))
        return np.asarray(self._numbers.learning_rate * factors)

    def train_indices(self, epoch: int, step_in_epoch: int) -> np.ndarray:
        """Returns the indices in the training split of the examples of a batch; both arguments count from 0."""
        size = self.config.batch_size
        return self.source.train_order(self.config.seed, epoch)[step_in_epoch * size :][:size]

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[HostBatch]:
        """Yields the batches of an epoch, starting with its step `first`.

        Raises:
          UserError: the config has teachers, and `teacher` is None.
        """
        if self.config.distillation.workdirs and self.teacher is None:
            raise UserError(
                'config.distillation.workdirs must be empty, or the experiment must have the probabilities of the '
                f'teachers as its field teacher, got {self.config.distillation.workdirs!r}; mnist_jax.train adds them'
            )
        config, size = self.config, self.padded_batch_size
        rows, split = self.replicas.local_rows(size), self.source.split('train')
        order = self.source.train_order(config.seed, epoch)
        replaced = self.source.replaces and self.parts.augment is not None
        examples = batches.train_batches(split, order, config.batch_size, size, rows, first, self.on_device, replaced)
        if self.teacher is not None:
            teacher = self.teacher
            examples = ({**batch, 'teacher': teacher[batch['index']]} for batch in examples)
        return map(self.replicas.shard, examples)

    def train_calls(self, epoch: int, first: int = 0) -> Iterator[list[HostBatch]]:
        """Yields the batches of an epoch in groups of `steps_per_call`, each for one call of `train_steps`."""
        return calls.groups(self.train_batches(epoch, first), self.steps_per_call)

    def eval_batches(self, split: Examples) -> Iterator[HostBatch]:
        """Yields the batches of a split, in order."""
        size = self.padded_eval_batch_size
        rows = self.replicas.local_rows(size)
        return map(self.replicas.shard, batches.eval_batches(split, self.eval_batch_size, size, rows, self.on_device))

    def eval_calls(self, split: Examples) -> Iterator[list[HostBatch]]:
        """Yields the batches of a split, in order, in groups of `eval_steps_per_call`, each for one `eval_steps`."""
        return calls.groups(self.eval_batches(split), self.eval_steps_per_call)


def make_experiment(
    config: ConfigDict, description: Description | None = None, fewer_devices: bool = False
) -> Experiment:
    """Checks `config` and builds all parts; starts the JAX backend, and prepares the dataset if necessary.

    Args:
      config: The config of the run.
      description: The description of its dataset if its workdir has one already.
      fewer_devices: See `start_backend`.
    """
    plan = make_plan(config, description)
    source = plan.source
    schedule = build('config.schedule', SCHEDULES, config.schedule)
    augment = make_augmentation(config.augmentation, source.max_pixel)
    if SCHEDULES[config.schedule.name] is cosine and config.schedule.get('warmup', 0) >= config.epochs > 0:
        logging.warning(
            'config.schedule.warmup=%g is at least as long as the run, config.epochs=%d: the learning rate only rises',
            config.schedule.warmup,
            config.epochs,
        )
    skip_nonfinite = choose('config.on_nonfinite', config.on_nonfinite, ON_NONFINITE)
    multiply_adds = sum(layer.multiply_adds for layer in list_layers(plan.model, source.image_shape))
    in_lockstep = model_checks.check_model(
        plan.model, plan.abstract_snapshot.state, source.image_shape, len(source.class_names)
    )
    # Before this call, nothing may be computed by JAX.
    replicas = start_backend(config.devices, plan.xla_products, plan.own_model, config.deterministic, fewer_devices)
    accumulate = config.optimizer.get('accumulate', 1)
    if package_name(OPTIMIZERS[config.optimizer.name]) is None:
        model_checks.check_optimizer(plan.optimizer, plan.abstract_snapshot.state, accumulate)
    if plan.own_model:  # The models of this package do not mix examples.
        model_checks.check_independence(plan.model, plan.create_state(), source.image_shape)
    if package_name(LOSSES[config.loss.name]) is None:
        model_checks.check_loss(plan.loss, len(source.class_names))
    source.data.prepare()
    train_size = source.count('train')
    if train_size < config.batch_size:
        raise UserError(
            f'config.batch_size must be at most the number of training examples, {train_size:,} '
            f'(config.dataset.train={config.dataset.train!r}'
            f'{" without validation examples" if source.validated else ""}), got {config.batch_size}'
        )
    steps_per_epoch = batches.steps_per_epoch(train_size, config.batch_size)
    if accumulate > config.epochs * steps_per_epoch > 0:
        raise UserError(
            f'config.optimizer.accumulate must be at most the number of batches of the run, '
            f'{config.epochs * steps_per_epoch:,}, got {accumulate}'
        )
    on_device = calls.keeps_on_devices(source, replicas)
    steps_per_call = config.steps_per_call or calls.automatic_steps_per_call(
        config, replicas.on_cpu, on_device, config.batch_size * multiply_adds
    )
    evaluated = (source.count(name) for name in source.split_names if name != 'train')
    eval_batch_size = min(config.eval_batch_size, max(evaluated))
    chunk_size, padded_batch_size = batch_layout(config.batch_size, config.chunks, len(replicas))
    mixing = [step['name'] for step in config.augmentation if step['name'] in MIXING]
    own_steps = [step for step in config.augmentation if package_name(AUGMENTATIONS[step['name']]) is None]
    for own_step in own_steps:
        own_augment = make_augmentation([{**own_step, 'probability': 1.0}], source.max_pixel)
        assert own_augment is not None
        if model_checks.check_augmentation(own_augment, source.image_shape):
            mixing.append(own_step['name'])
    if mixing and chunk_size == 1:
        raise UserError(
            f'config.batch_size must be greater than config.chunks={config.chunks} if config.augmentation has '
            f'{mixing[0]!r}, which mixes the images of a chunk, got {config.batch_size}'
        )
    eval_chunk_size, padded_eval_batch_size = batch_layout(eval_batch_size, config.chunks, len(replicas))

    def factor(updates: jax.Array, epochs: int = config.epochs) -> jax.Array:
        return schedule(jnp.float32(updates) / steps_per_epoch, epochs)

    parts = StepParts(
        model=plan.model,
        loss=plan.loss,
        optimizer=plan.optimizer,
        schedule=factor,
        normalization=source.normalization,
        dtype=plan.dtype,
        skip_nonfinite=skip_nonfinite,
        chunk_size=chunk_size,
        frozen=config.init.freeze,
        augment=augment,
        steps_per_epoch=steps_per_epoch,
        averaging=plan.averaging,
        sam_radius=plan.sam_radius,
        distillation=(config.distillation.weight, config.distillation.temperature),
        class_weights=source.class_weights,
        in_lockstep=in_lockstep,
    )
    return Experiment(
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)},
        replicas=replicas,
        parts=parts,
        eval_chunk_size=eval_chunk_size,
        on_device=on_device,
        schedule=factor,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=min(steps_per_call, steps_per_epoch),
        padded_batch_size=padded_batch_size,
        eval_batch_size=eval_batch_size,
        padded_eval_batch_size=padded_eval_batch_size,
        eval_steps_per_call=1 if replicas.on_cpu else calls.EVAL_STEPS_PER_CALL,
    )
