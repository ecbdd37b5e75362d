"""Schedules: their factors at points worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning import schedules

# Name, fields, and for a run of 10 epochs the factor after so many of them.
POINTS = [
    ('constant', {}, {0: 1, 3.7: 1, 10: 1}),
    ('cosine', {}, {0: 1, 2.5: (1 + math.sqrt(0.5)) / 2, 5: 0.5, 10: 0}),
    ('cosine', {'warmup': 2.0, 'final': 0.1}, {0: 0, 1: 0.5, 2: 1, 6: 0.55, 10: 0.1}),
    ('one_cycle', {'rise': 0.4, 'initial': 0.2, 'final': 0.0}, {0: 0.2, 2: 0.6, 4: 1, 7: 0.5, 10: 0}),
    ('step_decay', {'every': 4.0, 'factor': 0.5}, {0: 1, 3.99: 1, 4: 0.5, 8: 0.25, 10: 0.25}),
]


@pytest.mark.parametrize(('name', 'fields', 'points'), POINTS)
def test_factors(name, fields, points):
    schedule = schedules.SCHEDULES[name](**fields)
    found = [float(schedule(jnp.float32(epoch), 10)) for epoch in points]
    np.testing.assert_allclose(found, list(points.values()), atol=1e-6)


def test_every_schedule_is_tested():
    assert {name for name, *_ in POINTS} == set(schedules.SCHEDULES)


def test_values_out_of_range_are_told():
    with pytest.raises(UserError, match=r'schedule.rise=2.0 is wrong: a number from 0 to 1 is wanted'):
        schedules.one_cycle(rise=2.0)
    with pytest.raises(UserError, match=r'schedule.every=0.0 is wrong'):
        schedules.step_decay(every=0.0)
