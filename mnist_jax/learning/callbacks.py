"""Decisions after each epoch, based on a metric: which epoch is best, when to stop, when to reduce the learning rate.

The rules are those of Keras (https://keras.io/api/callbacks/early_stopping, .../reduce_lr_on_plateau), written as pure
functions from one state to the next. Unlike in Keras, an epoch whose metric or loss is NaN or infinite is never an
improvement, not even the first one. The states are part of every checkpoint.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import flax.struct

from mnist_jax.errors import UserError
from mnist_jax.factory import Count, Finite, Rate

ValidationMetric = Literal[
    'validation_loss', 'validation_accuracy', 'validation_balanced_accuracy', 'validation_macro_f1'
]
MetricName = Literal['train_loss', 'train_accuracy', ValidationMetric]
VALIDATION_METRICS: tuple[ValidationMetric, ...] = get_args(ValidationMetric)
MetricsRow = Mapping[str, float | None]
"""The metrics of an epoch by name, and its last 'step'. Validation metrics are None if the run is not validated."""


@dataclasses.dataclass(frozen=True)
class _Monitor:
    """The metric that a callback watches.

    Attributes:
      monitor: Its name.
      mode: Whether the 'min' or the 'max' is best; 'auto' is 'min' for a loss and 'max' for all others.
      min_delta: The minimum change that counts as an improvement.
    """

    monitor: MetricName
    mode: Literal['auto', 'min', 'max']
    min_delta: Finite

    @property
    def _maximizes(self) -> bool:
        return self.mode == 'max' or (self.mode == 'auto' and not self.monitor.endswith('loss'))

    @property
    def worst(self) -> float:
        """The worst possible value: every other value improves on it."""
        return -math.inf if self._maximizes else math.inf

    def value(self, row: MetricsRow) -> float | None:
        """Returns the metric in `row`; NaN if the loss on the same examples is not finite, None if it is missing."""
        loss = row.get(f'{self.monitor.partition("_")[0]}_loss')
        # The predictions of a model whose outputs are NaN are all the first class, so their accuracy means nothing.
        return row[self.monitor] if loss is None or math.isfinite(loss) else math.nan

    def improves(self, value: float, best: float) -> bool:
        """Returns whether `value` is better than `best` by more than `min_delta`; NaN and infinity never are."""
        if not math.isfinite(value) or not math.isfinite(best):
            return math.isfinite(value)
        return value > best + self.min_delta if self._maximizes else value < best - self.min_delta


@flax.struct.dataclass
class EarlyStoppingState:
    """The state of `EarlyStopping` after an epoch."""

    best: float
    best_step: int  # the last step of the best epoch; -1 before the first epoch with a finite metric
    wait: int  # epochs since the best one


@dataclasses.dataclass(frozen=True)
class EarlyStopping(_Monitor):
    """Tracks the best epoch, and stops after `patience` epochs without an improvement.

    Attributes:
      patience: Epochs without an improvement before training stops; 0 disables early stopping.
      restore_best: Whether the run ends with the parameters of the best epoch instead of the last one.
    """

    patience: Count
    restore_best: bool

    @property
    def needed(self) -> bool:
        """Whether the run depends on the monitored metric."""
        return self.patience > 0 or self.restore_best

    def init(self) -> EarlyStoppingState:
        """Returns the state before the first epoch."""
        return EarlyStoppingState(self.worst, -1, 0)

    def update(self, state: EarlyStoppingState, row: MetricsRow) -> EarlyStoppingState:
        """Returns the state after an epoch with the metrics `row`."""
        value, step = self.value(row), row['step']
        if value is None or step is None:
            return state
        if self.improves(value, state.best):
            return EarlyStoppingState(value, int(step), 0)
        return dataclasses.replace(state, wait=state.wait + 1)

    def stops(self, state: EarlyStoppingState) -> bool:
        """Returns whether training stops here."""
        return 0 < self.patience <= state.wait


@flax.struct.dataclass
class ReduceLRState:
    """The state of `ReduceLROnPlateau` after an epoch."""

    best: float
    wait: int  # epochs since the best one or the last reduction
    cooldown: int  # remaining epochs that do not count


@dataclasses.dataclass(frozen=True)
class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by `factor` after `patience` epochs without an improvement.

    Attributes:
      patience: Epochs without an improvement before a reduction; 0 disables reductions.
      factor: Multiplies the learning rate at each reduction.
      cooldown: Epochs to wait after a reduction before counting again.
      min_lr: Lower bound on the learning rate.
    """

    patience: Count
    factor: Rate
    cooldown: Count
    min_lr: Finite

    @property
    def needed(self) -> bool:
        """Whether the run depends on the monitored metric."""
        return self.patience > 0

    def init(self) -> ReduceLRState:
        """Returns the state before the first epoch."""
        return ReduceLRState(self.worst, 0, 0)

    def update(self, state: ReduceLRState, row: MetricsRow, learning_rate: float) -> tuple[ReduceLRState, float]:
        """Returns the state and the learning rate after an epoch with the metrics `row`."""
        value = self.value(row)
        if value is None or not self.needed:
            return state, learning_rate
        best, wait, cooldown = state.best, state.wait, state.cooldown
        if cooldown > 0:
            cooldown, wait = cooldown - 1, 0
        if self.improves(value, best):
            best, wait = value, 0
        elif cooldown == 0:
            wait += 1
            # The learning rate is a float32, which may lie slightly above a minimum that it has reached.
            if wait >= self.patience and learning_rate > self.min_lr * (1 + 1e-6):
                learning_rate = max(learning_rate * self.factor, self.min_lr)
                wait, cooldown = 0, self.cooldown
        return ReduceLRState(best, wait, cooldown), learning_rate


class CallbackStates(NamedTuple):
    """The states of both callbacks."""

    early_stopping: EarlyStoppingState
    reduce_lr: ReduceLRState


class Callbacks(NamedTuple):
    """Both callbacks; fields are named like the config sections."""

    early_stopping: EarlyStopping
    reduce_lr: ReduceLROnPlateau

    def init(self) -> CallbackStates:
        """Returns the states before the first epoch."""
        return CallbackStates(self.early_stopping.init(), self.reduce_lr.init())

    def update(self, states: CallbackStates, row: MetricsRow, learning_rate: float) -> tuple[CallbackStates, float]:
        """Returns the states and the learning rate after an epoch with the metrics `row`."""
        reduce_lr, learning_rate = self.reduce_lr.update(states.reduce_lr, row, learning_rate)
        return CallbackStates(self.early_stopping.update(states.early_stopping, row), reduce_lr), learning_rate

    def check_monitors(self, validated: bool) -> None:
        """Raises a UserError if a callback needs a validation metric but the run is not `validated`."""
        for section, callback in (('early_stopping', self.early_stopping), ('reduce_lr', self.reduce_lr)):
            if callback.needed and not validated and callback.monitor.startswith('validation'):
                raise UserError(
                    f'config.{section}.monitor={callback.monitor!r} needs validation examples: '
                    "set config.dataset.validation_fraction=0.1, or config.dataset.train='train[:90%]' and "
                    "config.dataset.validation='train[90%:]'"
                )
