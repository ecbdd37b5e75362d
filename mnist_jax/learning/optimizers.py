"""Optimizers with the update rules and defaults of those of the same name in Keras 3; `muon` is Jordan's.

Each one is an optax gradient transformation whose `update` takes the learning rate as a keyword argument, so that the
schedule and `ReduceLROnPlateau` are handled by the train step, not by the optimizer. `from_optax` adapts any other one.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mnist_jax.factory import Fraction, NonNegative, PositiveInt
from mnist_jax.kernels import ops
from mnist_jax.kernels.sums import PyTree, ordered_sum

Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
Decayed: TypeAlias = Literal['kernels', 'all']
"""What weight decay shrinks: kernels (see `_is_kernel`), or all parameters."""
NOT_KERNELS = ('bias', 'scale')  # names of parameters that may have several dimensions, such as those of attention


def _is_kernel(path: tuple, param: jax.Array) -> bool:
    """Returns whether a parameter has at least two dimensions, and is neither a bias nor a scale."""
    return param.ndim > 1 and jax.tree_util.keystr(path[-1:], simple=True) not in NOT_KERNELS


def _scale_by_learning_rate() -> Optimizer:
    """Multiplies the updates by minus the learning rate that `update` is called with."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, learning_rate: jax.Array, **extra: object
    ) -> tuple[PyTree, PyTree]:
        del params, extra
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def from_optax(transformation: optax.GradientTransformation) -> Optimizer:
    """Returns an optimizer of this package that multiplies the updates of `transformation` by minus the learning rate.

    Args:
      transformation: A transformation that does not scale by a learning rate, such as `optax.scale_by_lion()`.
    """
    return optax.chain(transformation, _scale_by_learning_rate())


def with_decay(optimizer: Optimizer, weight_decay: float, decayed: Decayed) -> Optimizer:
    """Returns `optimizer` with decoupled weight decay: w also shrinks by learning_rate weight_decay w.

    See Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    if not weight_decay:
        return optimizer

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, *, learning_rate: jax.Array, **extra: object
    ) -> tuple[PyTree, PyTree]:
        def shrink(path: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
            is_decayed = decayed == 'all' or _is_kernel(path, param)
            return update - learning_rate * weight_decay * param if is_decayed else update

        updates, state = optimizer.update(grads, state, params, learning_rate=learning_rate, **extra)
        return jax.tree_util.tree_map_with_path(shrink, updates, params), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def global_norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm of all numbers of a pytree."""
    squares = [ops.separate(jnp.square(leaf).ravel()) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(ordered_sum(jnp.stack(list(map(ordered_sum, squares)))))


def with_accumulation(optimizer: Optimizer, steps: int) -> Optimizer:
    """Returns `optimizer`, but it makes an update only after every `steps` gradients, with their mean."""
    if steps == 1:
        return optimizer
    accumulating = optax.MultiSteps(optimizer, steps).gradient_transformation()

    def update(grads: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> tuple[PyTree, PyTree]:
        return accumulating.update(grads, state, params, **extra)

    # A gradient of NaN must be noticed in its own step, not when the mean is used.
    return with_nonfinite(optax.GradientTransformationExtraArgs(accumulating.init, update))


def with_nonfinite(optimizer: Optimizer) -> Optimizer:
    """Returns `optimizer`, but with an update that is not finite wherever the gradient is not, for the train step."""

    def update(grads: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(grads, state, params, **extra)
        return jax.tree.map(lambda update, grad: update + 0.0 * grad, updates, grads), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def accumulated_updates(state: optax.OptState) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Returns the number of updates so far, and whether the last gradient made one; None if every gradient does."""
    if isinstance(state, optax.MultiStepsState):
        return state.gradient_step, state.mini_step == 0
    return None, None


def with_clipping(optimizer: Optimizer, clip_norm: float, clip_value: float) -> Optimizer:
    """Returns `optimizer`, but with gradients that are limited.

    Args:
      optimizer: The optimizer.
      clip_norm: Gradients whose norm over all parameters is larger are scaled to it (Pascanu et al. 2013); 0: no limit.
      clip_value: The largest absolute value of an element, to which larger ones are cut first; 0: no limit.
    """
    if not clip_norm and not clip_value:
        return optimizer

    def update(grads: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> tuple[PyTree, PyTree]:
        if clip_value:
            # An infinite gradient must not become a finite update.
            grads = jax.tree.map(
                lambda grad: jnp.where(jnp.isfinite(grad), jnp.clip(grad, -clip_value, clip_value), jnp.nan), grads
            )
        if clip_norm:
            norm = global_norm(grads)
            # If the square of a finite gradient overflows, the update must not silently become 0.
            factor = jnp.where(jnp.isfinite(norm), clip_norm / jnp.maximum(norm, clip_norm), jnp.nan)
            grads = jax.tree.map(lambda grad: grad * factor, grads)
        return optimizer.update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


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
    beta_1: Fraction = 0.9,
    beta_2: Fraction = 0.999,
    epsilon: NonNegative = 1e-7,
    weight_decay: NonNegative = 0.004,
    decayed: Decayed = 'all',
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019): w also shrinks by learning_rate weight_decay w."""
    if decayed == 'kernels':
        return with_decay(adam(beta_1, beta_2, epsilon), weight_decay, decayed)
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


def lion(beta_1: Fraction = 0.9, beta_2: Fraction = 0.99) -> Optimizer:
    """Lion (Chen et al. 2023): w moves by learning_rate against the sign of beta_1 m + (1 - beta_1) g."""
    lion = optax.scale_by_lion(beta_1, beta_2)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        signs, state = lion.update(grads, state, params)
        # The sign of an infinite gradient is finite, but the update must not be.
        return jax.tree.map(lambda sign, grad: sign + 0.0 * grad, signs, grads), state

    return from_optax(optax.GradientTransformation(lion.init, update))


class _NadamState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # as in `_AdamState`
    product: jax.Array  # of the momenta of all updates so far
    mean: optax.Updates
    square: optax.Updates


def nadam(beta_1: Fraction = 0.9, beta_2: Fraction = 0.999, epsilon: NonNegative = 1e-7) -> Optimizer:
    """Adam with Nesterov momentum u_t = beta_1 (1 - 0.96^t / 2) in update t (Dozat 2016)."""

    def init(params: optax.Params) -> _NadamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _NadamState(jnp.zeros((), jnp.int32), jnp.ones(()), zeros, zeros)

    def update(grads: optax.Updates, state: _NadamState, params: PyTree = None) -> tuple[optax.Updates, _NadamState]:
        del params
        count = state.count + 1
        momentum, next_momentum = (beta_1 * (1 - 0.5 * 0.96 ** jnp.float32(t)) for t in (count, count + 1))
        product = state.product * momentum
        mean = optax.tree.update_moment(grads, state.mean, beta_1, 1)
        square = optax.tree.update_moment(grads, state.square, beta_2, 2)
        of_mean, of_gradient = next_momentum / (1 - product * next_momentum), (1 - momentum) / (1 - product)
        correction = 1 / (1 - beta_2**count)
        updates = jax.tree.map(
            lambda m, g, v: (of_mean * m + of_gradient * g) / (jnp.sqrt(correction * v) + epsilon), mean, grads, square
        )
        return updates, _NadamState(count, product, mean, square)

    return from_optax(optax.GradientTransformation(init, update))


def muon(
    momentum: Fraction = 0.95,
    nesterov: bool = True,
    steps: PositiveInt = 5,
    adam_rate: NonNegative = 0.1,
    beta_1: Fraction = 0.9,
    beta_2: Fraction = 0.999,
    epsilon: NonNegative = 1e-7,
) -> Optimizer:
    """Muon (Jordan 2024): momentum with singular values of about 1 for kernels; Adam for vectors and biases.

    The kernel of a convolution is a matrix with one column per feature. The update of a matrix with more columns
    (outputs) than rows (inputs) is multiplied by the square root of their ratio.

    Args:
      momentum: The weight of the old momentum.
      nesterov: Whether to use Nesterov momentum.
      steps: The number of Newton-Schulz iterations.
      adam_rate: The learning rate of Adam as a multiple of that of the kernels.
      beta_1, beta_2, epsilon: The arguments of Adam.
    """
    transformations = {
        'muon': optax.chain(
            optax.trace(momentum, nesterov),
            optax.stateless(lambda updates, _: jax.tree.map(functools.partial(_orthogonalize, steps=steps), updates)),
        ),
        'adam': optax.chain(_scale_by_adam(beta_1, beta_2, epsilon), optax.scale(adam_rate)),
    }

    def label(path: tuple, param: jax.Array) -> str:
        return 'muon' if _is_kernel(path, param) else 'adam'

    return from_optax(optax.partition(transformations, lambda params: jax.tree_util.tree_map_with_path(label, params)))


def _orthogonalize(update: jax.Array, steps: int) -> jax.Array:
    """Returns a matrix with the singular vectors of `update`, seen as a matrix, and singular values of about 1."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return ops.dense(a, b, jnp.zeros(b.shape[-1]), relu=False)

    matrix = update.reshape(-1, update.shape[-1])
    transposed = len(matrix) > matrix.shape[1]  # The Gram matrix x x^T is smaller if x has fewer rows than columns.
    x = matrix.T if transposed else matrix
    norm = global_norm(x)
    # If the square of a finite gradient overflows, the update must not silently become 0.
    x = x / jnp.where(jnp.isfinite(norm), norm + 1e-7, jnp.nan)
    for _ in range(steps):
        gram = product(x, x.T)
        x = 3.4445 * x + product(-4.7750 * gram + 2.0315 * product(gram, gram), x)
    x = x.T if transposed else x
    return x.reshape(update.shape) * max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5


def _decaying(constructor: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Adds the arguments `weight_decay` and `decayed` of `with_decay` to the constructor of an optimizer."""

    @functools.wraps(constructor)
    def construct(*arguments: Any, weight_decay: float = 0.0, decayed: Decayed = 'kernels', **fields: Any) -> Optimizer:
        return with_decay(constructor(*arguments, **fields), weight_decay, decayed)

    signature = inspect.signature(constructor, eval_str=True)
    construct.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *signature.parameters.values(),
            inspect.Parameter('weight_decay', inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=NonNegative),
            inspect.Parameter('decayed', inspect.Parameter.KEYWORD_ONLY, default='kernels', annotation=Decayed),
        ]
    )
    return construct


OPTIMIZERS = {
    'sgd': _decaying(sgd),
    'rmsprop': _decaying(rmsprop),
    'adam': _decaying(adam),
    'adamw': adamw,
    'adadelta': _decaying(adadelta),
    'adagrad': _decaying(adagrad),
    'lamb': _decaying(lamb),
    'lion': _decaying(lion),
    'nadam': _decaying(nadam),
    'muon': _decaying(muon),
}
