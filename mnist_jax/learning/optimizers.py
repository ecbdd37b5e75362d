"""Optimizers with the update rules and defaults of those of the same name in Keras 3.

Each one is an optax gradient transformation whose `update` takes the learning rate as a keyword argument, so that the
schedule and `ReduceLROnPlateau` are handled by the train step, not by the optimizer.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mnist_jax.factory import Fraction, NonNegative
from mnist_jax.kernels.sums import PyTree

Optimizer: TypeAlias = optax.GradientTransformationExtraArgs


def _scale_by_learning_rate() -> Optimizer:
    """Multiplies the updates by minus the learning rate that `update` is called with."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, learning_rate: jax.Array, **extra: object
    ) -> tuple[PyTree, PyTree]:
        del params, extra
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def sgd(momentum: Fraction = 0.0, nesterov: bool = False) -> Optimizer:
    """m = momentum m - learning_rate g; w = w + m, or with Nesterov w + momentum m - learning_rate g."""
    if not momentum:
        return _scale_by_learning_rate()
    return optax.chain(_scale_by_learning_rate(), optax.trace(momentum, nesterov))


def rmsprop(rho: Fraction = 0.9, epsilon: NonNegative = 1e-7) -> Optimizer:
    """v = rho v + (1 - rho) g^2; w = w - learning_rate g / sqrt(v + epsilon), with epsilon inside the square root."""
    return optax.chain(optax.scale_by_rms(rho, epsilon, initial_scale=0.0, eps_in_sqrt=True), _scale_by_learning_rate())


class _AdamState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # optax uses this name too; it hides tuple.count
    mean: optax.Updates
    square: optax.Updates


def _scale_by_adam(beta_1: float, beta_2: float, epsilon: float) -> optax.GradientTransformation:
    """m sqrt(1 - beta_2^t) / (1 - beta_1^t) / (sqrt(v) + epsilon): epsilon is added before the bias correction.

    This is the 'epsilon hat' formulation below algorithm 1 of Kingma and Ba 2015, which Keras uses and optax does not.
    """

    def init(params: optax.Params) -> _AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: optax.Updates, state: _AdamState, params: PyTree = None) -> tuple[optax.Updates, _AdamState]:
        del params
        count = state.count + 1
        mean = optax.tree.update_moment(grads, state.mean, beta_1, 1)
        square = optax.tree.update_moment(grads, state.square, beta_2, 2)
        correction = jnp.sqrt(1 - beta_2**count) / (1 - beta_1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon), mean, square)
        return updates, _AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def adam(beta_1: Fraction = 0.9, beta_2: Fraction = 0.999, epsilon: NonNegative = 1e-7) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return optax.chain(_scale_by_adam(beta_1, beta_2, epsilon), _scale_by_learning_rate())


def adamw(
    beta_1: Fraction = 0.9, beta_2: Fraction = 0.999, epsilon: NonNegative = 1e-7, weight_decay: NonNegative = 0.004
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019): w also shrinks by learning_rate weight_decay w."""
    return optax.chain(
        _scale_by_adam(beta_1, beta_2, epsilon), optax.add_decayed_weights(weight_decay), _scale_by_learning_rate()
    )


def adadelta(rho: Fraction = 0.95, epsilon: NonNegative = 1e-7) -> Optimizer:
    """Adadelta (Zeiler 2012); its update is multiplied by the learning rate."""
    return optax.chain(optax.scale_by_adadelta(rho, epsilon), _scale_by_learning_rate())


def adagrad(initial_accumulator_value: NonNegative = 0.1, epsilon: NonNegative = 1e-7) -> Optimizer:
    """a = a + g^2; w = w - learning_rate g / sqrt(a + epsilon)."""
    return optax.chain(optax.scale_by_rss(initial_accumulator_value, epsilon), _scale_by_learning_rate())


def lamb(beta_1: Fraction = 0.9, beta_2: Fraction = 0.999, epsilon: NonNegative = 1e-7) -> Optimizer:
    """LAMB (You et al. 2020): Adam's update, scaled for each parameter array to the norm of its values."""
    return optax.chain(
        optax.scale_by_adam(beta_1, beta_2, epsilon), optax.scale_by_trust_ratio(), _scale_by_learning_rate()
    )


OPTIMIZERS = {
    'sgd': sgd,
    'rmsprop': rmsprop,
    'adam': adam,
    'adamw': adamw,
    'adadelta': adadelta,
    'adagrad': adagrad,
    'lamb': lamb,
}
