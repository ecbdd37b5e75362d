"""EarlyStopping and ReduceLROnPlateau, epoch by epoch, as Keras's documentation says and as Keras 3.15 does."""

import math

import pytest

from mnist_jax.errors import UserError
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
    """The epoch after which training stops, from 1, or None; and the best epoch."""
    early = EarlyStopping(**{**EARLY, **fields})
    state = early.init()
    for epoch, value in enumerate(values, start=1):
        state = early.update(state, row(early.monitor.name, epoch, value))
        if early.stops(state):
            return epoch, state.best_step // 10
    return None, state.best_step // 10


@pytest.mark.parametrize(
    ('values', 'fields', 'expected'),
    [
        # Two epochs without improvement after the best, the third.
        ([0.1, 0.2, 0.3, 0.3, 0.2, 0.9], {}, (5, 3)),
        # The count of epochs begins anew with an improvement.
        ([0.1, 0.0, 0.2, 0.1, 0.3, 0.1, 0.2], {}, (7, 5)),
        ([0.1, 0.2, 0.3, 0.4], {}, (None, 4)),
        # Equal is not better, and the first of equals is the best.
        ([0.5, 0.5, 0.5], {}, (3, 1)),
        # A rise of min_delta or less is not one; steps are measured from the best value that counted.
        ([0.5, 0.54, 0.58, 0.59, 0.62], {'min_delta': 0.05, 'patience': 3}, (None, 3)),
        ([0.5, 0.54, 0.55, 0.56], {'min_delta': 0.0625, 'patience': 3}, (4, 1)),
        # Patience 1 stops at the first epoch that is not better.
        ([0.1, 0.2, 0.2], {'patience': 1}, (3, 2)),
        # Patience 0 never stops here, and the best epoch is still known.
        ([0.3, 0.2, 0.1, 0.0], {'patience': 0}, (None, 1)),
        # A loss falls; 'auto' knows.
        ([3.0, 2.0, 2.5, 2.1], {'monitor': 'validation_loss'}, (4, 2)),
        ([3.0, 2.0, 2.5, 2.1], {'monitor': 'train_loss', 'mode': 'min'}, (4, 2)),
        ([3.0, 4.0, 2.5, 2.1], {'monitor': 'train_loss', 'mode': 'max'}, (4, 2)),
    ],
)
def test_early_stopping(values, fields, expected):
    assert stopped_and_best(values, **fields) == expected


def learning_rates(values, **fields):
    """The learning rate after each epoch, from 1.0 on."""
    reduce = ReduceLROnPlateau(**{**REDUCE, **fields})
    state, rate, found = reduce.init(), 1.0, []
    for epoch, value in enumerate(values, start=1):
        state, rate = reduce.update(state, row(reduce.monitor.name, epoch, value), rate)
        found.append(rate)
    return found


@pytest.mark.parametrize(
    ('values', 'fields', 'expected'),
    [
        # Halved after each two epochs without improvement.
        ([5, 4, 4, 4, 4, 4], {}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ([5, 4, 4, 3, 3, 2, 2], {}, [1, 1, 1, 1, 1, 1, 1]),
        # min_delta is 1e-4: less of a fall than that is none.
        ([5, 4.99995, 4.99991], {}, [1, 1, 0.5]),
        ([5, 4.9998, 4.9996], {}, [1, 1, 1]),
        # After a reduction, two epochs of cooldown: the second of them, and all that follow, count again.
        ([5, 5, 5, 5, 5, 5, 5, 5], {'cooldown': 2}, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
        # An improvement in the cooldown sets the best value.
        ([5, 5, 5, 4, 4.5, 4.5], {'cooldown': 1}, [1, 1, 0.5, 0.5, 0.5, 0.25]),
        # Not below min_lr, which is itself reached.
        ([5, 5, 5, 5, 5], {'patience': 1, 'min_lr': 0.3}, [1, 0.5, 0.3, 0.3, 0.3]),
        ([5, 5, 5], {'patience': 0}, [1, 1, 1]),
        ([1, 2, 2, 2], {'monitor': 'validation_accuracy'}, [1, 1, 1, 0.5]),
    ],
)
def test_reduce_lr_on_plateau(values, fields, expected):
    assert learning_rates(values, **fields) == expected


def test_without_validation_nothing_is_known_and_nothing_happens():
    early, reduce = EarlyStopping(**EARLY), ReduceLROnPlateau(**REDUCE)
    missing = {'validation_accuracy': None, 'validation_loss': None, 'step': 10}
    assert early.update(early.init(), missing) == early.init() and early.init().best_step == -1
    assert reduce.update(reduce.init(), missing, 0.1) == (reduce.init(), 0.1)
    with pytest.raises(UserError, match=r"early_stopping.monitor='validation_accuracy' needs validation examples"):
        Callbacks(early, reduce).check_monitors(validated=False)
    with pytest.raises(UserError, match=r"reduce_lr.monitor='validation_loss' needs validation examples"):
        Callbacks(EarlyStopping(**{**EARLY, 'patience': 0}), reduce).check_monitors(validated=False)
    Callbacks(early, reduce).check_monitors(validated=True)
    Callbacks(EarlyStopping(**{**EARLY, 'monitor': 'train_loss'}), ReduceLROnPlateau(**{**REDUCE, 'patience': 0}))


@pytest.mark.parametrize(
    ('make', 'fields', 'told'),
    [
        (EarlyStopping, {**EARLY, 'monitor': 'val_loss'}, "early_stopping.monitor='val_loss' is unknown"),
        (EarlyStopping, {**EARLY, 'mode': 'best'}, "early_stopping.mode='best' is unknown; the choices are: auto, max"),
        (EarlyStopping, {**EARLY, 'patience': -1}, 'early_stopping.patience=-1 is wrong: a whole number from 0'),
        (EarlyStopping, {**EARLY, 'min_delta': -0.1}, 'early_stopping.min_delta=-0.1 is wrong'),
        (ReduceLROnPlateau, {**REDUCE, 'factor': 1.0}, 'reduce_lr.factor=1.0 is wrong'),
        (ReduceLROnPlateau, {**REDUCE, 'cooldown': -1}, 'reduce_lr.cooldown=-1 is wrong'),
        (EarlyStopping, {**EARLY, 'min_delta': math.inf}, 'early_stopping.min_delta=inf is wrong'),
        (ReduceLROnPlateau, {**REDUCE, 'min_lr': math.nan}, 'reduce_lr.min_lr=nan is wrong'),
    ],
)
def test_wrong_fields_are_told(make, fields, told):
    with pytest.raises(UserError) as error:
        make(**fields)
    assert str(error.value).startswith(told)
