"""Averages of the variables: against numbers worked out by hand, and against optax."""

import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from mnist_jax.learning.averaging import AVERAGES, Average, Progress
from mnist_jax.learning.optimizers import sgd


def averages(averaging, values, steps_per_epoch=2, learning_rates=None):
    """Returns the average after each of `values`, the first of which is that before the first update."""
    average = Average(jnp.float32(values[0]), jnp.float32(0), True)
    means = []
    for updates, value in enumerate(values[1:], 1):
        rate = 0.1 if learning_rates is None else learning_rates[updates - 1]
        average = averaging.update(
            average, jnp.float32(value), Progress(jnp.int32(updates), steps_per_epoch, jnp.float32(rate))
        )
        means.append(float(average.variables))
    return means


def test_moving_average():
    ema = AVERAGES['ema'](decay=0.75, warmup=False)
    assert averages(ema, [8, 4, 0, 16]) == [7, 5.25, 7.9375]


def test_moving_average_with_warmup():
    # The decays are 2 / 11 and 3 / 12, and at most 0.3, though 4 / 13 is more.
    ema = AVERAGES['ema'](decay=0.3)
    first = 2 / 11 * 8 + 9 / 11 * 4
    second = 0.25 * first + 0.75 * 1
    np.testing.assert_allclose(averages(ema, [8, 4, 1, 2]), [first, second, 0.3 * second + 0.7 * 2], rtol=1e-6)


def test_stochastic_weight_averaging():
    # Two updates per epoch: those of the epochs 2, 3 and 4 count, which end with 4, 7 and 10.
    swa = AVERAGES['swa'](start=1)
    assert averages(swa, [0.1, 1, 2, 3, 4, 5, 7, 9, 10]) == [1, 2, 3, 4, 4, 5.5, 5.5, 7]


def test_schedule_free_sgd_equals_that_of_optax():
    rates = [0.02, 0.05, 0.1, 0.1, 0.1]

    def gradient(weight):
        return jnp.array([1.0, 10.0]) * weight - 2

    rates_array = jnp.array(rates)
    theirs = optax.contrib.schedule_free(
        optax.sgd(lambda step: rates_array[step]),
        learning_rate=lambda step: rates_array[step - 1],  # It counts from 1.
        b1=0.8,
    )
    y = jnp.array([3.0, -1.0])
    theirs_state = theirs.init(y)
    optimizer, averaging = sgd(), AVERAGES['schedule_free'](interpolation=0.8)
    params, average = y, Average(y, jnp.float32(0), True)
    for updates, rate in enumerate(rates, 1):
        change, theirs_state = theirs.update(gradient(y), theirs_state, y)
        y = optax.apply_updates(y, change)
        point = averaging.gradient_point(params, average.variables)
        change, _ = optimizer.update(gradient(point), optimizer.init(params), point, learning_rate=jnp.float32(rate))
        params = params + change
        average = averaging.update(average, params, Progress(jnp.int32(updates), 2, jnp.float32(rate)))
        expected = optax.contrib.schedule_free_eval_params(theirs_state, y)
        np.testing.assert_allclose(average.variables, expected, rtol=1e-5)
        np.testing.assert_allclose(averaging.gradient_point(params, average.variables), y, rtol=1e-5)


@pytest.mark.parametrize('name', [name for name in AVERAGES if name != 'none'])
def test_an_average_of_equal_values_is_that_value(name):
    assert averages(AVERAGES[name](), [0.3] * 5) == [np.float32(0.3)] * 4


@pytest.mark.parametrize('name', ['ema', 'schedule_free'])
def test_steps_that_only_accumulate_a_gradient_do_not_count(name):
    averaging = AVERAGES[name]()
    values, rates = (4.0, 1.0, 2.0), (0.1, 0.3, 0.2)
    expected = averages(averaging, [8.0, *values], learning_rates=rates)
    average, means = Average(jnp.float32(8), jnp.float32(0), True), []
    for step in range(1, 7):
        # The first step of each pair changes nothing, and has another learning rate.
        updates, updated = jnp.int32(step // 2), jnp.bool_(step % 2 == 0)
        value, rate = (values[step // 2 - 1], rates[step // 2 - 1]) if updated else ([8.0, *values][step // 2], 0.7)
        progress = Progress(jnp.int32(step), 2, jnp.float32(rate), updates, updated)
        average = averaging.update(average, jnp.float32(value), progress)
        means.append(float(average.variables))
    assert means[1::2] == expected and means[2::2] == expected[:-1]


@pytest.mark.parametrize('name', ['ema', 'swa'])
def test_a_counter_is_not_averaged(name):
    average = Average({'mean': jnp.float32(8), 'batches': jnp.int32(0)}, jnp.float32(0), True)
    new = {'mean': jnp.float32(4), 'batches': jnp.int32(1)}
    moved = AVERAGES[name]().update(average, new, Progress(jnp.int32(1), 2, jnp.float32(0.1))).variables
    assert moved['batches'].dtype == jnp.int32 and moved['batches'] == 1 and moved['mean'].dtype == jnp.float32
