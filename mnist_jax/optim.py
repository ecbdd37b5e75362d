"""Optimizers, each with the meaning and the defaults that Keras gives to the same name."""

import math

import optax

from mnist_jax.errors import check_range


def rmsprop(learning_rate: float, rho: float = 0.9, epsilon: float = 1e-7) -> optax.GradientTransformation:
    """v = rho v + (1 - rho) g^2; w = w - learning_rate g / sqrt(v + epsilon): epsilon is inside the root."""
    check_range('optimizer.learning_rate', learning_rate, 0.0, math.inf)
    check_range('optimizer.rho', rho, 0.0, 1.0)
    check_range('optimizer.epsilon', epsilon, 0.0, math.inf)
    return optax.rmsprop(learning_rate, decay=rho, eps=epsilon, eps_in_sqrt=True, initial_scale=0.0)


OPTIMIZERS = {'rmsprop': rmsprop}
