"""Architectures that cut an image into patches, one token each: MLP-Mixer and vision transformer.

Shapes: T tokens, F features of a token.
"""

import math

import flax.linen as nn
import jax

from mnist_jax.factory import Rate, Width
from mnist_jax.kernels import ops
from mnist_jax.models.layers import (
    Activation,
    ActivationName,
    Conv,
    Dense,
    Dropout,
    GlobalMeanPool,
    LayerNorm,
    SelfAttention,
    Training,
)


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): two-layer perceptrons over the tokens and over the features, in turn.

    Attributes:
      num_classes: The number of logits.
      patch: The height and width of a patch, in pixels; the image is padded to whole patches.
      width: The number of features.
      depth: The number of blocks.
      token_hidden: The width of the hidden layer over the tokens.
      feature_hidden: The width of the hidden layer over the features.
      activation: The activation of the hidden layers.
      dropout: The dropout rate of the outputs of the perceptrons.
    """

    num_classes: int
    patch: Width = 4
    width: Width = 64
    depth: Width = 4
    token_hidden: Width = 32
    feature_hidden: Width = 128
    activation: ActivationName = 'gelu'
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x_BxTxF = _tokens(image_BxHxWxC, self.patch, self.width)
        for _ in range(self.depth):
            normalized_BxFxT = LayerNorm(activation='identity')(x_BxTxF).swapaxes(1, 2)
            mixed = Perceptron(self.token_hidden, self.activation, self.dropout)(normalized_BxFxT, training)
            x_BxTxF = x_BxTxF + mixed.swapaxes(1, 2)
            normalized_BxTxF = LayerNorm(activation='identity')(x_BxTxF)
            x_BxTxF = x_BxTxF + Perceptron(self.feature_hidden, self.activation, self.dropout)(
                normalized_BxTxF, training
            )
        return _classify(x_BxTxF, self.num_classes)


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) that classifies the mean of its tokens.

    Attributes:
      num_classes: The number of logits.
      patch: The height and width of a patch, in pixels; the image is padded to whole patches.
      width: The number of features, a multiple of `heads`.
      depth: The number of blocks.
      heads: The number of attention heads.
      hidden: The width of the hidden layer of each block.
      activation: The activation of the hidden layers.
      dropout: The dropout rate of the outputs of the perceptrons and of the attention.
    """

    num_classes: int
    patch: Width = 4
    width: Width = 64
    depth: Width = 4
    heads: Width = 4
    hidden: Width = 128
    activation: ActivationName = 'gelu'
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x_BxTxF = _tokens(image_BxHxWxC, self.patch, self.width)
        position_TxF = self.param('position', nn.initializers.normal(0.02), x_BxTxF.shape[1:])
        x_BxTxF = x_BxTxF + position_TxF[None]
        for _ in range(self.depth):
            attended = SelfAttention(self.heads)(LayerNorm(activation='identity')(x_BxTxF))
            if self.dropout:
                attended = ops.separate(Dropout(self.dropout)(attended, training))
            x_BxTxF = x_BxTxF + attended
            normalized_BxTxF = LayerNorm(activation='identity')(x_BxTxF)
            x_BxTxF = x_BxTxF + Perceptron(self.hidden, self.activation, self.dropout)(normalized_BxTxF, training)
        return _classify(x_BxTxF, self.num_classes)


class Perceptron(nn.Module):
    """A hidden layer, and an output layer that is as wide as the input."""

    hidden: int
    activation: str
    dropout: float

    @nn.compact
    def __call__(self, x_BxTxF: jax.Array, training: Training | None) -> jax.Array:
        output = Dense(x_BxTxF.shape[-1])(Activation(self.activation)(Dense(self.hidden)(x_BxTxF)))
        return ops.separate(Dropout(self.dropout)(output, training)) if self.dropout else output


def _tokens(image_BxHxWxC: jax.Array, patch: int, width: int) -> jax.Array:
    """Returns a linear projection of each patch, BxTxF."""
    x_BxHxWxF = Conv(width, patch, 'same', relu=False, stride=patch)(image_BxHxWxC)
    return x_BxHxWxF.reshape(x_BxHxWxF.shape[0], math.prod(x_BxHxWxF.shape[1:3]), width)


def _classify(x_BxTxF: jax.Array, num_classes: int) -> jax.Array:
    """Adds the last layers to the module that calls it; returns the logits BxK."""
    x_BxTxF = LayerNorm(activation='identity')(x_BxTxF)
    return Dense(num_classes)(GlobalMeanPool()(x_BxTxF[:, :, None]))
