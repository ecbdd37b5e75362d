"""EarlyStopping and ReduceLROnPlateau, epoch by epoch, against the documentation and the behavior of Keras 3.15."""

import math

import pytest

from mnist_jax.errors import UserError
from mnist_jax.factory import construct
from mnist_jax.learning.callbacks import Callbacks, EarlyStopping, ReduceLROnPlateau

EARLY = {'monitor': 'validation_accuracy', 'mode': 'auto', 'min_delta': 0.0, 'patience': 2, 'restore_best': False}
REDUCE = {
    'monitor': 'validation_loss',
    'mode': 'auto',
    'min_delta': 1e-4,
    'patience': 2,
    'factor': 0.5,
    'cooldown': 0,
    'min_lr': 0.0,
}


def row(monitor, epoch, value):
    return {monitor: value, 'step': 10 * epoch}


def stopped_and_best(values, **fields):
    """Returns the epoch after which training stops, or None, and the best epoch. Epochs count from 1."""
    early = EarlyStopping(**{**EARLY, **fields})
    state = early.init()
    for epoch, value in enumerate(values, start=1):
        state = early.update(state, row(early.monitor, epoch, value))
        if early.stops(state):
            return epoch, state.best_step // 10
    return None, state.best_step // 10


@pytest.mark.parametrize(
    ('values', 'fields', 'expected'),
    [
        # Two epochs without an improvement follow the best one, the third.
        ([0.1, 0.2, 0.3, 0.3, 0.2, 0.9], {}, (5, 3)),
        # An improvement resets the count.
        ([0.1, 0.0, 0.2, 0.1, 0.3, 0.1, 0.2], {}, (7, 5)),
        ([0.1, 0.2, 0.3, 0.4], {}, (None, 4)),
        # An equal value is not an improvement, so the first epoch remains the best.
        ([0.5, 0.5, 0.5], {}, (3, 1)),
        # A rise of at most min_delta does not count; it is measured from the last value that counted.
        ([0.5, 0.54, 0.58, 0.59, 0.62], {'min_delta': 0.05, 'patience': 3}, (None, 3)),
        ([0.5, 0.54, 0.55, 0.56], {'min_delta': 0.0625, 'patience': 3}, (4, 1)),
        # With patience 1, the first epoch without an improvement stops the run.
        ([0.1, 0.2, 0.2], {'patience': 1}, (3, 2)),
        # Patience 0 never stops the run; the best epoch is still tracked.
        ([0.3, 0.2, 0.1, 0.0], {'patience': 0}, (None, 1)),
        # 'auto' minimizes a loss.
        ([3.0, 2.0, 2.5, 2.1], {'monitor': 'validation_loss'}, (4, 2)),
        ([3.0, 2.0, 2.5, 2.1], {'monitor': 'train_loss', 'mode': 'min'}, (4, 2)),
        ([3.0, 4.0, 2.5, 2.1], {'monitor': 'train_loss', 'mode': 'max'}, (4, 2)),
        # Unlike in Keras, NaN and infinity never are the best value, not even in the first epoch.
        ([math.nan, 3.0, math.nan, 2.5, 2.6, 2.7], {'monitor': 'validation_loss'}, (6, 4)),
        ([math.inf, 3.0, 2.0], {'monitor': 'validation_loss'}, (None, 3)),
        ([3.0, -math.inf, math.nan, 2.0], {'monitor': 'validation_loss'}, (3, 1)),
        ([math.nan, math.nan], {'monitor': 'validation_loss', 'mode': 'max'}, (2, -1)),
    ],
)
def test_early_stopping(values, fields, expected):
    assert stopped_and_best(values, **fields) == expected


def learning_rates(values, **fields):
    """Returns the learning rate after each epoch, starting at 1.0."""
    reduce = ReduceLROnPlateau(**{**REDUCE, **fields})
    state, rate, rates = reduce.init(), 1.0, []
    for epoch, value in enumerate(values, start=1):
        state, rate = reduce.update(state, row(reduce.monitor, epoch, value), rate)
        rates.append(rate)
    return rates


@pytest.mark.parametrize(
    ('values', 'fields', 'expected'),
    [
        # Halved after every two epochs without an improvement.
        ([5, 4, 4, 4, 4, 4], {}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ([5, 4, 4, 3, 3, 2, 2], {}, [1, 1, 1, 1, 1, 1, 1]),
        # min_delta is 1e-4: a smaller fall does not count.
        ([5, 4.99995, 4.99991], {}, [1, 1, 0.5]),
        ([5, 4.9998, 4.9996], {}, [1, 1, 1]),
        # Two epochs of cooldown follow a reduction; counting resumes with the second one.
        ([5, 5, 5, 5, 5, 5, 5, 5], {'cooldown': 2}, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
        # An improvement during the cooldown sets the best value.
        ([5, 5, 5, 4, 4.5, 4.5], {'cooldown': 1}, [1, 1, 0.5, 0.5, 0.5, 0.25]),
        # Reduced to min_lr, but never below it.
        ([5, 5, 5, 5, 5], {'patience': 1, 'min_lr': 0.3}, [1, 0.5, 0.3, 0.3, 0.3]),
        ([5, 5, 5], {'patience': 0}, [1, 1, 1]),
        ([1, 2, 2, 2], {'monitor': 'validation_accuracy'}, [1, 1, 1, 0.5]),
        ([1, 2, 2, 2], {'monitor': 'validation_macro_f1'}, [1, 1, 1, 0.5]),
        # NaN and infinity are no improvement, and the next finite value is compared with the last one.
        ([math.nan, math.inf, 5, math.nan, 5], {}, [1, 0.5, 0.5, 0.5, 0.25]),
    ],
)
def test_reduce_lr_on_plateau(values, fields, expected):
    assert learning_rates(values, **fields) == expected


def test_an_accuracy_whose_loss_is_not_finite_is_no_improvement():
    early = EarlyStopping(**EARLY)
    first = early.update(early.init(), {'validation_accuracy': 0.5, 'validation_loss': 1.0, 'step': 10})
    diverged = {'validation_accuracy': 0.9, 'validation_loss': math.nan, 'train_loss': 1.0, 'step': 20}
    second = early.update(first, diverged)
    assert (second.best, second.best_step, second.wait) == (0.5, 10, 1)
    reduce = ReduceLROnPlateau(**{**REDUCE, 'monitor': 'validation_accuracy', 'patience': 1})
    assert reduce.update(reduce.init(), diverged, 1.0)[1] == 0.5
    assert early.update(first, {**diverged, 'validation_loss': 2.0, 'train_loss': math.nan}).best == 0.9


def test_missing_validation_metrics_change_nothing_but_monitoring_them_is_an_error():
    early, reduce = EarlyStopping(**EARLY), ReduceLROnPlateau(**REDUCE)
    missing = {'validation_accuracy': None, 'validation_loss': None, 'step': 10}
    assert early.update(early.init(), missing) == early.init() and early.init().best_step == -1
    assert reduce.update(reduce.init(), missing, 0.1) == (reduce.init(), 0.1)
    with pytest.raises(
        UserError, match=r"config.early_stopping.monitor='validation_accuracy' needs validation examples"
    ):
        Callbacks(early, reduce).check_monitors(validated=False)
    with pytest.raises(UserError, match=r"config.reduce_lr.monitor='validation_loss' needs validation examples"):
        Callbacks(EarlyStopping(**{**EARLY, 'patience': 0}), reduce).check_monitors(validated=False)
    Callbacks(early, reduce).check_monitors(validated=True)
    Callbacks(EarlyStopping(**{**EARLY, 'monitor': 'train_loss'}), ReduceLROnPlateau(**{**REDUCE, 'patience': 0}))


@pytest.mark.parametrize(
    ('make', 'fields', 'message'),
    [
        (
            EarlyStopping,
            {**EARLY, 'monitor': 'val_loss'},
            'early_stopping.monitor must be one of train_accuracy, train_loss, validation_accuracy, '
            "validation_balanced_accuracy, validation_loss, validation_macro_f1, got 'val_loss'",
        ),
        (EarlyStopping, {**EARLY, 'mode': 'best'}, "early_stopping.mode must be one of auto, max, min, got 'best'"),
        (
            EarlyStopping,
            {**EARLY, 'patience': -1},
            'early_stopping.patience must be an integer from 0 to 2147483647, got -1',
        ),
        (
            EarlyStopping,
            {**EARLY, 'min_delta': -0.1},
            'early_stopping.min_delta must be a number from 0 to 1e+30, got -0.1',
        ),
        (ReduceLROnPlateau, {**REDUCE, 'factor': 1.0}, 'reduce_lr.factor must be at least 0 and less than 1, got 1.0'),
        (
            ReduceLROnPlateau,
            {**REDUCE, 'cooldown': -1},
            'reduce_lr.cooldown must be an integer from 0 to 2147483647, got -1',
        ),
        (
            EarlyStopping,
            {**EARLY, 'min_delta': math.inf},
            'early_stopping.min_delta must be a number from 0 to 1e+30, got inf',
        ),
        (
            ReduceLROnPlateau,
            {**REDUCE, 'min_lr': math.nan},
            'reduce_lr.min_lr must be a number from 0 to 1e+30, got nan',
        ),
    ],
)
def test_wrong_fields_are_errors(make, fields, message):
    section = 'early_stopping' if make is EarlyStopping else 'reduce_lr'
    with pytest.raises(UserError) as error:
        construct(section, make, fields)
    assert str(error.value).startswith(message)
