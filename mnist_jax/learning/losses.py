"""Loss functions: each constructor returns a function of logits BxK and labels B that gives one loss per example."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.factory import Fraction, NonNegative
from mnist_jax.kernels import ops

Loss = Callable[[jax.Array, jax.Array], jax.Array]
WEIGHTING_FIELDS = ('dataset.balance', 'dataset.class_weights')  # config fields that weight the losses of the examples


def cross_entropy(label_smoothing: Fraction = 0.0) -> Loss:
    """Softmax cross-entropy in nats; `label_smoothing` spreads this fraction of the target evenly over all classes."""

    def loss(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
        if not label_smoothing:
            return jax.lax.platform_dependent(
                logits_BxK, label_B, cpu=optax.softmax_cross_entropy_with_integer_labels, default=_cross_entropy
            )
        target_BxK = optax.smooth_labels(jax.nn.one_hot(label_B, logits_BxK.shape[-1]), label_smoothing)
        return _cross_entropy_of(target_BxK, jax.nn.log_softmax(logits_BxK))

    return loss


def _cross_entropy_of(target_BxK: jax.Array, log_softmax_BxK: jax.Array) -> jax.Array:
    """Returns the cross-entropy between target probabilities and those of the model.

    Its products are rounded before they are added, so that calls of one and of several updates have the same bits.
    """
    return -ops.separate(target_BxK * ops.separate(log_softmax_BxK)).sum(-1)


def _cross_entropy(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
    """Selects the logit of the label by a comparison: the gradient of an index is a scatter, which is slow on a GPU."""
    is_label_BxK = jax.nn.one_hot(label_B, logits_BxK.shape[-1], dtype=bool)
    return jax.nn.logsumexp(logits_BxK, axis=-1) - jnp.where(is_label_BxK, logits_BxK, 0).sum(-1)


def mean_squared_error() -> Loss:
    """Squared difference between softmax and one-hot label, averaged over the classes, as in Keras."""

    def loss(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
        # In the gradient of `jax.nn.softmax`, XLA divides by the sum or multiplies by its reciprocal, depending on the
        # rest of the program. This form leaves it no choice, so the bits do not depend on the number of devices.
        softmax_BxK = jnp.exp(jax.nn.log_softmax(logits_BxK))
        difference_BxK = softmax_BxK - jax.nn.one_hot(label_B, logits_BxK.shape[-1])
        return jnp.mean(jnp.square(difference_BxK), axis=-1)

    return loss


def focal(gamma: NonNegative = 2.0, label_smoothing: Fraction = 0.0) -> Loss:
    """Focal loss (Lin et al. 2017): the cross-entropy of each class times (1 - p)^gamma, so easy examples count less.

    As in Keras's CategoricalFocalCrossentropy with alpha=1; `config.dataset.class_weights` weights the classes.
    """

    def loss(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
        log_softmax_BxK = jax.nn.log_softmax(logits_BxK)
        # The gradient of a power below 1 is infinite at 0.
        others_BxK = jnp.maximum(-jnp.expm1(log_softmax_BxK), 1e-7)
        target_BxK = optax.smooth_labels(jax.nn.one_hot(label_B, logits_BxK.shape[-1]), label_smoothing)
        return _cross_entropy_of(target_BxK * others_BxK**gamma, log_softmax_BxK)

    return loss


def weighted(loss: Loss, weights_K: np.ndarray | None) -> Loss:
    """Returns `loss` multiplied by the weight of the label of each example; None means that all weights are 1."""
    if weights_K is None:
        return loss
    return lambda logits_BxK, label_B: loss(logits_BxK, label_B) * jnp.asarray(weights_K)[label_B]


def of_mixture(loss: Loss) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns a function of logits BxK, labels BxM and weights BxM: the weighted sum of the losses of the labels."""

    def mixture(logits_BxK: jax.Array, labels_BxM: jax.Array, weights_BxM: jax.Array) -> jax.Array:
        terms = [
            weights_B * loss(logits_BxK, label_B)
            for label_B, weights_B in zip(labels_BxM.T, weights_BxM.T, strict=True)
        ]
        return functools.reduce(operator.add, map(ops.separate, terms))

    return mixture


def distillation(logits_BxK: jax.Array, target_BxK: jax.Array, temperature: float) -> jax.Array:
    """Returns the cross-entropy between two softmaxes, multiplied by the square of `temperature`.

    The logits of both softmaxes are divided by `temperature`. The square keeps the size of the gradient (Hinton et al.
    2015, https://arxiv.org/abs/1503.02531).

    Args:
      logits_BxK: The logits of the model.
      target_BxK: The probabilities of the teacher, without a temperature.
      temperature: The temperature.
    """
    target_logits_BxK = jnp.log(jnp.maximum(target_BxK, np.finfo(np.float32).tiny)) / temperature
    cross_entropy_B = _cross_entropy_of(jax.nn.softmax(target_logits_BxK), jax.nn.log_softmax(logits_BxK / temperature))
    return temperature**2 * cross_entropy_B


LOSSES = {'cross_entropy': cross_entropy, 'mean_squared_error': mean_squared_error, 'focal': focal}
