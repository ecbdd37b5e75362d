"""Loss functions: each makes a function of logits and labels that gives one loss per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mnist_jax.errors import check_range

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Softmax cross-entropy in nats; `label_smoothing` of the target is spread evenly over all classes."""
    check_range('loss.label_smoothing', label_smoothing, 0.0, 1.0)

    def loss(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
        if not label_smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B)
        target_BxK = optax.smooth_labels(jax.nn.one_hot(label_B, logits_BxK.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits_BxK, target_BxK)

    return loss


def mean_squared_error() -> Loss:
    """The mean over the classes of the squared difference between softmax and one-hot label, as Keras has it."""

    def loss(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
        # `nn.softmax` divides by the sum; in its gradient, XLA multiplies by 1/sum or not, by what else a program does.
        softmax_BxK = jnp.exp(jax.nn.log_softmax(logits_BxK))
        difference_BxK = softmax_BxK - jax.nn.one_hot(label_B, logits_BxK.shape[-1])
        return jnp.mean(jnp.square(difference_BxK), axis=-1)

    return loss


LOSSES = {'cross_entropy': cross_entropy, 'mean_squared_error': mean_squared_error}
