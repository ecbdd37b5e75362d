"""Architectures: Linen modules that map images to logits, selected by `config.model.name`.

To add one, write a module whose attributes are its config fields, with `num_classes` first and
`__call__(self, image_BxHxWxC, training=None)`, and add it to `MODELS`.
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from mnist_jax.factory import Rate, Width
from mnist_jax.models.convnets import DepthwiseCNN, LeNet5, ResNet
from mnist_jax.models.layers import (
    NORMALIZATIONS,
    Activation,
    ActivationName,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalMeanPool,
    MaxPool,
    NormalizationName,
    Training,
)
from mnist_jax.models.token_models import Mixer, ViT


class MLP(nn.Module):
    """A multi-layer perceptron.

    Attributes:
      num_classes: The number of logits.
      hidden: The width of each hidden layer.
      dropout: The dropout rate after each hidden layer; () for none.
      activation: The activation of the hidden layers.
    """

    num_classes: int
    hidden: Sequence[Width] = (512, 512)
    dropout: Sequence[Rate] = ()
    activation: ActivationName = 'relu'

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        return _dense_layers(self, image_BxHxWxC, training)


class CNN(nn.Module):
    """Stages of convolutions, each followed by max pooling and dropout, then dense layers as in `MLP`.

    Attributes:
      num_classes: The number of logits.
      stages: For each stage, the number of features of each of its convolutions.
      kernel: Height and width of the kernels, in pixels.
      padding: The padding of convolutions and pooling.
      pool: Window size and stride of the max pooling after each stage, in pixels; 1 for none.
      batch_norm: Whether batch normalization precedes the activation of each convolution.
      normalization: The same for normalizations of any kind.
      activation: The activation of all layers.
      stage_dropout: The dropout rate after each stage; () for none.
      global_pool: Whether the dense layers get the mean of each channel, instead of all pixels.
      hidden: The width of each hidden dense layer.
      dropout: The dropout rate after each hidden dense layer; () for none.
    """

    num_classes: int
    stages: Sequence[Sequence[Width]] = ((32,), (64,))
    kernel: Width = 3
    padding: Literal['same', 'valid'] = 'same'
    pool: Sequence[Width] = (2, 2)
    batch_norm: bool = False
    normalization: NormalizationName = 'none'
    activation: ActivationName = 'relu'
    stage_dropout: Sequence[Rate] = ()
    global_pool: bool = False
    hidden: Sequence[Width] = (64, 64)
    dropout: Sequence[Rate] = ()

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x_BxHxWxC = image_BxHxWxC
        dropout = self.stage_dropout or (0.0,) * len(self.stages)
        for stage, window, rate in zip(self.stages, self.pool, dropout, strict=True):
            for features in stage:
                normalization = 'batch' if self.batch_norm else self.normalization
                is_plain = normalization == 'none' and self.activation == 'relu'
                x_BxHxWxC = Conv(features, self.kernel, self.padding, relu=is_plain)(x_BxHxWxC)
                if not is_plain:
                    x_BxHxWxC = NORMALIZATIONS[normalization](activation=self.activation)(x_BxHxWxC, training)
            if window > 1:
                x_BxHxWxC = MaxPool(window, self.padding)(x_BxHxWxC)
            if rate:
                x_BxHxWxC = Dropout(rate)(x_BxHxWxC, training)
        if self.global_pool:
            x_BxHxWxC = GlobalMeanPool()(x_BxHxWxC)
        return _dense_layers(self, x_BxHxWxC, training)


def _dense_layers(model: MLP | CNN, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
    """Flattens the input and applies the hidden layers of `model`, with dropout, and the output layer."""
    x_BxF = Flatten()(x_BxHxWxC)
    for width, rate in zip(model.hidden, model.dropout or (0.0,) * len(model.hidden), strict=True):
        x_BxF = Dense(width, relu=model.activation == 'relu')(x_BxF)
        if model.activation != 'relu':
            x_BxF = Activation(model.activation)(x_BxF)
        if rate:
            x_BxF = Dropout(rate)(x_BxF, training)
    return Dense(model.num_classes)(x_BxF)


MODELS: dict[str, type[nn.Module]] = {
    'mlp': MLP,
    'cnn': CNN,
    'lenet5': LeNet5,
    'resnet': ResNet,
    'depthwise': DepthwiseCNN,
    'mixer': Mixer,
    'vit': ViT,
}
# Tests show that these do not mix the examples of a batch, and that they leave no matrix product to XLA. Take a class
# out while you change it, so that runs check it.
TESTED = (MLP, CNN, LeNet5, ResNet, DepthwiseCNN, Mixer, ViT)


def is_own_model(model: nn.Module) -> bool:
    """Returns whether a model is the user's own, not one that comes with this package."""
    return type(model) not in TESTED
