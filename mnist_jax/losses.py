"""Loss functions: logits and labels to one loss per example."""

import jax
import optax


def cross_entropy(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats, per example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxK, label_B)


LOSSES = {'cross_entropy': cross_entropy}
