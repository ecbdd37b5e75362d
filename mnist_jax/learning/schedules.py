"""Learning-rate schedules: a factor of the optimizer's learning rate, from the epochs that are done.

Each makes a function of `epoch`, the number of epochs done as a real number, and `epochs`, how many the run has.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnist_jax.errors import check_range

Schedule = Callable[[jax.Array, float], jax.Array]


def constant() -> Schedule:
    """The learning rate as it is."""
    return lambda epoch, epochs: jnp.ones_like(epoch)


def cosine(warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Up from 0 in a line over `warmup` epochs, then half a cosine down to `final` (Loshchilov and Hutter 2017)."""
    check_range('schedule.warmup', warmup, 0.0, math.inf)
    check_range('schedule.final', final, 0.0, 1.0)

    def factor(epoch: jax.Array, epochs: float) -> jax.Array:
        rising = epoch / max(warmup, 1e-9)
        falling = _half_cosine((epoch - warmup) / max(epochs - warmup, 1e-9), 1.0, final)
        return jnp.where(epoch < warmup, rising, falling)

    return factor


def one_cycle(rise: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> Schedule:
    """Half a cosine up from `initial` over the share `rise` of the run, then one down to `final` (Smith 2018).

    The defaults are those of PyTorch's OneCycleLR: 1/25, and 1e-4 of that.
    """
    check_range('schedule.rise', rise, 0.0, 1.0)
    check_range('schedule.initial', initial, 0.0, 1.0)
    check_range('schedule.final', final, 0.0, 1.0)

    def factor(epoch: jax.Array, epochs: float) -> jax.Array:
        done = epoch / epochs
        rising = _half_cosine(done / max(rise, 1e-9), initial, 1.0)
        falling = _half_cosine((done - rise) / max(1 - rise, 1e-9), 1.0, final)
        return jnp.where(done < rise, rising, falling)

    return factor


def step_decay(every: float = 1.0, factor: float = 0.5) -> Schedule:
    """Times `factor` after each `every` epochs."""
    check_range('schedule.every', every, 1e-9, math.inf)
    check_range('schedule.factor', factor, 0.0, 1.0)
    return lambda epoch, epochs: factor ** jnp.floor(epoch / every)


def _half_cosine(share: jax.Array, start: float, end: float) -> jax.Array:
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1))) / 2


SCHEDULES = {'constant': constant, 'cosine': cosine, 'one_cycle': one_cycle, 'step_decay': step_decay}
