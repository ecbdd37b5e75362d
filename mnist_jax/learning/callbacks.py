"""What is decided after each epoch from one of its metrics: which is the best, when to stop, when to slow down.

The rules are Keras's (https://keras.io/api/callbacks/early_stopping, .../reduce_lr_on_plateau), as pure functions from
a state to the next; the states are part of every checkpoint.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct

from mnist_jax.errors import UserError, check_fraction, check_integer, check_range
from mnist_jax.factory import choose

MONITORS = {name: name for name in ('train_loss', 'train_accuracy', 'validation_loss', 'validation_accuracy')}


def _maximum(monitor: str) -> bool:
    return monitor.endswith('accuracy')


# Whether the greater value is the better one.
MODES = {'auto': _maximum, 'max': lambda monitor: True, 'min': lambda monitor: False}

LARGEST = 1e30  # of a number that is to be finite


class Metric:
    """A metric of an epoch, and when one value of it is better than another."""

    def __init__(self, field: str, monitor: str, mode: str, min_delta: float):
        self.name = choose(f'{field}.monitor', monitor, MONITORS)
        self._maximise = choose(f'{field}.mode', mode, MODES)(monitor)
        check_range(f'{field}.min_delta', min_delta, 0.0, LARGEST)
        self._min_delta = min_delta

    @property
    def worst(self) -> float:
        """The value that every other one is better than."""
        return -math.inf if self._maximise else math.inf

    def better(self, value: float, best: float) -> bool:
        """Whether `value` is better than `best` by more than min_delta."""
        if self._maximise:
            return value > best + self._min_delta
        return value < best - self._min_delta


@flax.struct.dataclass
class EarlyStoppingState:
    """What EarlyStopping knows after an epoch."""

    best: float
    best_step: int  # the step at that epoch's end; -1 before the first
    wait: int  # epochs since the best one


class EarlyStopping:
    """Knows the best epoch, and stops when the last `patience` were not better.

    Args:
      monitor: one of `MONITORS`.
      mode: whether the 'min' or the 'max' is best; 'auto': max for an accuracy.
      min_delta: what is not better by more than this is not better.
      patience: epochs; 0 for never to stop.
      restore_best: whether the run ends with the best epoch's parameters instead of the last one's.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float, patience: int, restore_best: bool):
        self.monitor = Metric('early_stopping', monitor, mode, min_delta)
        check_integer('early_stopping.patience', patience)
        self.patience = patience
        self.restore_best = restore_best

    @property
    def needed(self) -> bool:
        """Whether the run cannot do without the monitored metric."""
        return self.patience > 0 or self.restore_best

    def init(self) -> EarlyStoppingState:
        """The state before the first epoch."""
        return EarlyStoppingState(self.monitor.worst, -1, 0)

    def update(self, state: EarlyStoppingState, row: Mapping[str, Any]) -> EarlyStoppingState:
        """The state after an epoch with the metrics `row`."""
        value = row[self.monitor.name]
        if value is None:
            return state
        if state.best_step < 0 or self.monitor.better(value, state.best):
            return EarlyStoppingState(value, row['step'], 0)
        return state.replace(wait=state.wait + 1)

    def stops(self, state: EarlyStoppingState) -> bool:
        """Whether training ends here."""
        return 0 < self.patience <= state.wait


@flax.struct.dataclass
class ReduceLRState:
    """What ReduceLROnPlateau knows after an epoch."""

    best: float
    wait: int  # epochs since the best one or the last reduction
    cooldown: int  # epochs left in which nothing is counted


class ReduceLROnPlateau:
    """Multiplies the learning rate by `factor` when the last `patience` epochs were not better.

    Args:
      monitor, mode, min_delta: as for EarlyStopping.
      patience: epochs; 0 for never.
      factor: from 0 to below 1.
      cooldown: epochs after a reduction that are not counted.
      min_lr: no reduction goes below it.
    """

    def __init__(
        self, monitor: str, mode: str, min_delta: float, patience: int, factor: float, cooldown: int, min_lr: float
    ):
        self.monitor = Metric('reduce_lr', monitor, mode, min_delta)
        check_integer('reduce_lr.patience', patience)
        check_fraction('reduce_lr.factor', factor)
        check_integer('reduce_lr.cooldown', cooldown)
        check_range('reduce_lr.min_lr', min_lr, 0.0, LARGEST)
        self.patience, self.factor, self.cooldown, self.min_lr = patience, factor, cooldown, min_lr

    @property
    def needed(self) -> bool:
        """Whether the run cannot do without the monitored metric."""
        return self.patience > 0

    def init(self) -> ReduceLRState:
        """The state before the first epoch."""
        return ReduceLRState(self.monitor.worst, 0, 0)

    def update(self, state: ReduceLRState, row: Mapping[str, Any], learning_rate: float) -> tuple[ReduceLRState, float]:
        """The state and the learning rate after an epoch with the metrics `row`."""
        value = row[self.monitor.name]
        if value is None or not self.needed:
            return state, learning_rate
        best, wait, cooldown = state.best, state.wait, state.cooldown
        if cooldown > 0:
            cooldown, wait = cooldown - 1, 0
        if self.monitor.better(value, best):
            best, wait = value, 0
        elif cooldown == 0:
            wait += 1
            # The learning rate is a float32, which may lie a little above a minimum that it has reached.
            if wait >= self.patience and learning_rate > self.min_lr * (1 + 1e-6):
                learning_rate = max(learning_rate * self.factor, self.min_lr)
                wait, cooldown = 0, self.cooldown
        return ReduceLRState(best, wait, cooldown), learning_rate


class CallbackStates(NamedTuple):
    """The states of both."""

    early_stopping: EarlyStoppingState
    reduce_lr: ReduceLRState


class Callbacks(NamedTuple):
    """All that is decided after an epoch."""

    early_stopping: EarlyStopping
    reduce_lr: ReduceLROnPlateau

    def init(self) -> CallbackStates:
        """The states before the first epoch."""
        return CallbackStates(self.early_stopping.init(), self.reduce_lr.init())

    def update(
        self, states: CallbackStates, row: Mapping[str, Any], learning_rate: float
    ) -> tuple[CallbackStates, float]:
        """The states and the learning rate after an epoch with the metrics `row`."""
        reduce_lr, learning_rate = self.reduce_lr.update(states.reduce_lr, row, learning_rate)
        return CallbackStates(self.early_stopping.update(states.early_stopping, row), reduce_lr), learning_rate

    def check_monitors(self, validated: bool) -> None:
        """Raise a UserError where a metric is needed that this run has not, being not validated."""
        for field, callback in self._asdict().items():
            name = callback.monitor.name
            if callback.needed and not validated and name.startswith('validation'):
                raise UserError(
                    f'{field}.monitor={name!r} needs validation examples: set dataset.validation_fraction=0.1, '
                    "or dataset.train='train[:90%]' and dataset.validation='train[90%:]'"
                )
