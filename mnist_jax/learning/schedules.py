"""Learning-rate schedules: factors by which the optimizer's learning rate is multiplied.

Each constructor returns a function of `epoch`, the number of completed epochs as a real number, and `epochs`, the
length of the run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnist_jax.factory import Fraction, NonNegative, Positive

Schedule = Callable[[jax.Array, float], jax.Array]


def constant() -> Schedule:
    """Always 1."""
    return lambda epoch, epochs: jnp.ones_like(epoch)


def cosine(warmup: NonNegative = 0.0, final: Fraction = 0.0) -> Schedule:
    """Rises linearly from 0 over `warmup` epochs, then falls to `final` by half a cosine (Loshchilov, Hutter 2017)."""

    def factor(epoch: jax.Array, epochs: float) -> jax.Array:
        rising = epoch / max(warmup, 1e-9)
        falling = _half_cosine((epoch - warmup) / max(epochs - warmup, 1e-9), 1.0, final)
        return jnp.where(epoch < warmup, rising, falling)

    return factor


def one_cycle(rise: Fraction = 0.3, initial: Fraction = 0.04, final: Fraction = 4e-6) -> Schedule:
    """Rises from `initial` along half a cosine over the fraction `rise` of the run, then falls to `final` (Smith 2018).

    The defaults are those of PyTorch's OneCycleLR: 1/25, and 1e-4 of that.
    """

    def factor(epoch: jax.Array, epochs: float) -> jax.Array:
        done = epoch / epochs
        rising = _half_cosine(done / max(rise, 1e-9), initial, 1.0)
        falling = _half_cosine((done - rise) / max(1 - rise, 1e-9), 1.0, final)
        return jnp.where(done < rise, rising, falling)

    return factor


def step_decay(every: Positive = 1.0, factor: Fraction = 0.5) -> Schedule:
    """Multiplies by `factor` after every `every` epochs."""
    # Without this margin, a whole number of epochs that is rounded down would decay one update late: XLA multiplies by
    # the rounded reciprocal of the number of updates in an epoch. After 2**21 updates, it decays one update early.
    return lambda epoch, epochs: factor ** jnp.floor(epoch / every * (1 + 2**-21))


def _half_cosine(fraction: jax.Array, start: float, end: float) -> jax.Array:
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0, 1))) / 2


SCHEDULES = {'constant': constant, 'cosine': cosine, 'one_cycle': one_cycle, 'step_decay': step_decay}
