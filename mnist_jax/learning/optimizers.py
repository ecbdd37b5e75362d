"""Optimizers, each with the meaning and the defaults that Keras 3 gives to the same name.

Each is a gradient transformation whose `update` takes the learning rate as a keyword, so that a schedule and
ReduceLROnPlateau are the train step's business and not an optimizer's.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mnist_jax.errors import check_range

Transformation = optax.GradientTransformationExtraArgs


def _by_learning_rate() -> Transformation:
    """Updates times minus the learning rate that `update` is given."""

    def update(
        updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        del params, extra
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return Transformation(lambda params: optax.EmptyState(), update)


def _check(decays: dict[str, float] | None = None, sizes: dict[str, float] | None = None) -> None:
    for name, value in (decays or {}).items():
        check_range(f'optimizer.{name}', value, 0.0, 1.0)
    for name, value in (sizes or {}).items():
        check_range(f'optimizer.{name}', value, 0.0, math.inf)


def sgd(momentum: float = 0.0, nesterov: bool = False) -> Transformation:
    """m = momentum m - learning_rate g; w = w + m, or with Nesterov w + momentum m - learning_rate g."""
    _check(decays={'momentum': momentum})
    if not momentum:
        return _by_learning_rate()
    return optax.chain(_by_learning_rate(), optax.trace(momentum, nesterov))


def rmsprop(rho: float = 0.9, epsilon: float = 1e-7) -> Transformation:
    """v = rho v + (1 - rho) g^2; w = w - learning_rate g / sqrt(v + epsilon): epsilon is inside the root."""
    _check(decays={'rho': rho}, sizes={'epsilon': epsilon})
    return optax.chain(optax.scale_by_rms(rho, epsilon, initial_scale=0.0, eps_in_sqrt=True), _by_learning_rate())


class _AdamState(NamedTuple):
    count: jax.Array
    mean: optax.Updates
    square: optax.Updates


def _scale_by_adam(beta_1: float, beta_2: float, epsilon: float) -> optax.GradientTransformation:
    """m sqrt(1 - beta_2^t) / (1 - beta_1^t) / (sqrt(v) + epsilon): epsilon is added before the bias correction.

    That is the 'epsilon hat' formulation below algorithm 1 of Kingma and Ba 2015, which Keras uses and optax does not.
    """

    def init(params: Any) -> _AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: Any, state: _AdamState, params: Any = None) -> tuple[Any, _AdamState]:
        del params
        count = state.count + 1
        mean = optax.tree.update_moment(grads, state.mean, beta_1, 1)
        square = optax.tree.update_moment(grads, state.square, beta_2, 2)
        correction = jnp.sqrt(1 - beta_2**count) / (1 - beta_1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon), mean, square)
        return updates, _AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def adam(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Transformation:
    """Adam, Kingma and Ba 2015."""
    _check(decays={'beta_1': beta_1, 'beta_2': beta_2}, sizes={'epsilon': epsilon})
    return optax.chain(_scale_by_adam(beta_1, beta_2, epsilon), _by_learning_rate())


def adamw(
    beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7, weight_decay: float = 0.004
) -> Transformation:
    """Adam with decoupled weight decay, Loshchilov and Hutter 2019: w also shrinks by learning_rate weight_decay w."""
    _check(decays={'beta_1': beta_1, 'beta_2': beta_2}, sizes={'epsilon': epsilon, 'weight_decay': weight_decay})
    return optax.chain(
        _scale_by_adam(beta_1, beta_2, epsilon), optax.add_decayed_weights(weight_decay), _by_learning_rate()
    )


def adadelta(rho: float = 0.95, epsilon: float = 1e-7) -> Transformation:
    """Adadelta, Zeiler 2012, its update times the learning rate."""
    _check(decays={'rho': rho}, sizes={'epsilon': epsilon})
    return optax.chain(optax.scale_by_adadelta(rho, epsilon), _by_learning_rate())


def adagrad(initial_accumulator_value: float = 0.1, epsilon: float = 1e-7) -> Transformation:
    """a = a + g^2; w = w - learning_rate g / sqrt(a + epsilon)."""
    _check(sizes={'initial_accumulator_value': initial_accumulator_value, 'epsilon': epsilon})
    return optax.chain(optax.scale_by_rss(initial_accumulator_value, epsilon), _by_learning_rate())


def lamb(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Transformation:
    """LAMB, You et al. 2020: Adam's update, scaled in each layer to the norm of its weights."""
    _check(decays={'beta_1': beta_1, 'beta_2': beta_2}, sizes={'epsilon': epsilon})
    return optax.chain(optax.scale_by_adam(beta_1, beta_2, epsilon), optax.scale_by_trust_ratio(), _by_learning_rate())


OPTIMIZERS = {
    'sgd': sgd,
    'rmsprop': rmsprop,
    'adam': adam,
    'adamw': adamw,
    'adadelta': adadelta,
    'adagrad': adagrad,
    'lamb': lamb,
}
