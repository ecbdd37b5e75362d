"""Schedules against factors worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.factory import build
from mnist_jax.learning import schedules

# Name, fields, and the factor after a number of epochs, for a run of 10 epochs.
POINTS = [
    ('constant', {}, {0: 1, 3.7: 1, 10: 1}),
    ('cosine', {}, {0: 1, 2.5: (1 + math.sqrt(0.5)) / 2, 5: 0.5, 10: 0}),
    ('cosine', {'warmup': 2.0, 'final': 0.1}, {0: 0, 1: 0.5, 2: 1, 6: 0.55, 10: 0.1}),
    ('one_cycle', {'rise': 0.4, 'initial': 0.2, 'final': 0.0}, {0: 0.2, 2: 0.6, 4: 1, 7: 0.5, 10: 0}),
    ('step_decay', {'every': 4.0, 'factor': 0.5}, {0: 1, 3.99: 1, 4: 0.5, 8: 0.25, 10: 0.25}),
]


@pytest.mark.parametrize(('name', 'fields', 'points'), POINTS)
def test_factors_by_hand(name, fields, points):
    schedule = schedules.SCHEDULES[name](**fields)
    factors = [float(schedule(jnp.float32(epoch), 10)) for epoch in points]
    np.testing.assert_allclose(factors, list(points.values()), atol=1e-6)


def test_every_schedule_is_tested():
    assert {name for name, *_ in POINTS} == set(schedules.SCHEDULES)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'name': 'one_cycle', 'rise': 2.0}, 'schedule.rise must be a number from 0 to 1, got 2.0'),
        ({'name': 'step_decay', 'every': 0.0}, 'schedule.every must be a finite number from 1e-09, got 0.0'),
        ({'name': 'cosine', 'warmup': 'long'}, "schedule.warmup must be of type float, got 'long'"),
    ],
)
def test_values_out_of_range_are_errors(config, message):
    with pytest.raises(UserError) as error:
        build('schedule', schedules.SCHEDULES, config)
    assert str(error.value) == message


@pytest.mark.parametrize('steps_per_epoch', [141, 188, 235])
@pytest.mark.parametrize('every', [1.0, 3.0])
def test_the_rate_decays_with_the_first_update_of_an_epoch(steps_per_epoch, every):
    schedule = schedules.step_decay(every)
    updates = jnp.arange(40 * steps_per_epoch)
    factors = jax.jit(jax.vmap(lambda done: schedule(jnp.float32(done) / steps_per_epoch, 40)))(updates)
    np.testing.assert_array_equal(factors, 0.5 ** (updates // (int(every) * steps_per_epoch)))
