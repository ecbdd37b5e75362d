"""Convolutional architectures besides the CNN of the published experiments: LeNet-5, ResNet and a small MobileNet."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from mnist_jax.factory import Count, Rate, Width
from mnist_jax.models.layers import (
    NORMALIZATIONS,
    Activation,
    ActivationName,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalMeanPool,
    MeanPool,
    NormalizationName,
    SqueezeExcitation,
    StochasticDepth,
    Training,
    normalized,
)


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998), with complete connections and a softmax instead of radial basis functions.

    Attributes:
      num_classes: The number of logits.
      features: The features of each 5 x 5 convolution. The first one pads its input.
      hidden: The widths of the dense layers.
      activation: The activation of all layers.
    """

    num_classes: int
    features: Sequence[Width] = (6, 16)
    hidden: Sequence[Width] = (120, 84)
    activation: ActivationName = 'tanh'

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x_BxHxWxC = image_BxHxWxC
        for number, features in enumerate(self.features):
            x_BxHxWxC = Conv(features, 5, 'valid' if number else 'same', relu=False)(x_BxHxWxC)
            x_BxHxWxC = MeanPool(2)(Activation(self.activation)(x_BxHxWxC))
        x_BxF = Flatten()(x_BxHxWxC)
        for width in self.hidden:
            x_BxF = Activation(self.activation)(Dense(width)(x_BxF))
        return Dense(self.num_classes)(x_BxF)


class ResNet(nn.Module):
    """A residual network of basic blocks (He et al. 2016).

    A convolution is followed by stages of blocks of two 3 x 3 convolutions. The first block of each stage except the
    first halves height and width; its shortcut is a 1 x 1 convolution.

    Attributes:
      num_classes: The number of logits.
      widths: The features of each stage.
      blocks: The number of blocks per stage.
      normalization: What follows each convolution.
      activation: The activation of all layers.
      squeeze_excitation: The reduction of a squeeze-and-excitation layer at the end of each block; 0 for none.
      stochastic_depth: The fraction of examples for which the last block is left out in training; for the blocks before
        it, the fraction rises linearly from 0.
      dropout: The dropout rate before the last layer.
    """

    num_classes: int
    widths: Sequence[Width] = (16, 32, 64)
    blocks: Width = 2
    normalization: NormalizationName = 'batch'
    activation: ActivationName = 'relu'
    squeeze_excitation: Count = 0
    stochastic_depth: Rate = 0.0
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        stem = Conv(self.widths[0], 3, 'same', relu=False)
        normalization = NORMALIZATIONS[self.normalization](activation=self.activation)
        x_BxHxWxC = normalized(stem, normalization, image_BxHxWxC, training)
        count = len(self.widths) * self.blocks
        for number in range(count):
            stage, in_stage = divmod(number, self.blocks)
            x_BxHxWxC = ResidualBlock(
                features=self.widths[stage],
                stride=2 if stage and not in_stage else 1,
                normalization=self.normalization,
                activation=self.activation,
                squeeze_excitation=self.squeeze_excitation,
                stochastic_depth=self.stochastic_depth * (number + 1) / count,
            )(x_BxHxWxC, training)
        x_BxF = GlobalMeanPool()(x_BxHxWxC)
        if self.dropout:
            x_BxF = Dropout(self.dropout)(x_BxF, training)
        return Dense(self.num_classes)(x_BxF)


class ResidualBlock(nn.Module):
    """A basic block of a `ResNet`, whose attributes it shares."""

    features: int
    stride: int
    normalization: str
    activation: str
    squeeze_excitation: int
    stochastic_depth: float

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
        def convolve(x_BxHxWxC: jax.Array, size: int, stride: int, activation: str) -> jax.Array:
            convolution = Conv(self.features, size, 'same', relu=False, stride=stride)
            normalization = NORMALIZATIONS[self.normalization](activation=activation)
            return normalized(convolution, normalization, x_BxHxWxC, training)

        branch = convolve(x_BxHxWxC, 3, self.stride, self.activation)
        branch = convolve(branch, 3, 1, 'identity')
        if self.squeeze_excitation:
            branch = SqueezeExcitation(self.squeeze_excitation)(branch)
        if self.stochastic_depth:
            branch = StochasticDepth(self.stochastic_depth)(branch, training)
        shortcut = x_BxHxWxC
        if self.stride > 1 or x_BxHxWxC.shape[-1] != self.features:
            shortcut = convolve(x_BxHxWxC, 1, self.stride, 'identity')
        return Activation(self.activation)(branch + shortcut)


class DepthwiseCNN(nn.Module):
    """A MobileNet (Howard et al. 2017) for small images.

    A convolution is followed by pairs of a 3 x 3 depthwise and a 1 x 1 convolution.

    Attributes:
      num_classes: The number of logits.
      stem: The features of the first convolution.
      widths: The features of each pair.
      strides: The stride of the depthwise convolution of each pair.
      normalization: What follows each convolution.
      activation: The activation of all layers.
      dropout: The dropout rate before the last layer.
    """

    num_classes: int
    stem: Width = 16
    widths: Sequence[Width] = (32, 64, 64, 128)
    strides: Sequence[Width] = (1, 2, 1, 2)
    normalization: NormalizationName = 'batch'
    activation: ActivationName = 'relu'
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        def apply(convolution: Conv | DepthwiseConv, x_BxHxWxC: jax.Array) -> jax.Array:
            normalization = NORMALIZATIONS[self.normalization](activation=self.activation)
            return normalized(convolution, normalization, x_BxHxWxC, training)

        x_BxHxWxC = apply(Conv(self.stem, 3, 'same', relu=False), image_BxHxWxC)
        for features, stride in zip(self.widths, self.strides, strict=True):
            x_BxHxWxC = apply(DepthwiseConv(3, 'same', stride), x_BxHxWxC)
            x_BxHxWxC = apply(Conv(features, 1, 'same', relu=False), x_BxHxWxC)
        x_BxF = GlobalMeanPool()(x_BxHxWxC)
        if self.dropout:
            x_BxF = Dropout(self.dropout)(x_BxF, training)
        return Dense(self.num_classes)(x_BxF)
