"""A model of your own in one file: a residual CNN, trained on a slice of MNIST.

    python examples/own_model.py --workdir=runs/own_resnet
    python examples/own_model.py --workdir=runs/own_resnet-long --examples=54000 --epochs=4

The blocks are those of He et al. 2016, "Identity Mappings in Deep Residual Networks", at most 32 features wide. The
model is built from the layers of mnist_jax, so its results do not depend on the number of devices.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
from ml_collections import ConfigDict

import mnist_jax
from mnist_jax.config import default_config
from mnist_jax.errors import UserError
from mnist_jax.factory import Rate, Width
from mnist_jax.models.architectures import MODELS
from mnist_jax.models.layers import BatchNorm, Conv, Dense, Dropout, MaxPool, Training
from mnist_jax.train import train

BATCH_SIZE = 32
MOMENTUM = 0.9  # of the moving averages of batch normalization; the default of 0.99 is too slow for so few steps


class ResidualBlock(nn.Module):
    """Two convolutions, each after batch normalization and a ReLU; adds the input, or a 1 x 1 projection of it."""

    features: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, training: Training | None) -> jax.Array:
        normalized = BatchNorm(MOMENTUM, activation='relu')(x_BxHxWxC, training)
        shortcut = x_BxHxWxC
        if x_BxHxWxC.shape[-1] != self.features:
            shortcut = Conv(self.features, size=1, padding='same', relu=False)(normalized)
        residual = Conv(self.features, size=3, padding='same', relu=False)(normalized)
        residual = BatchNorm(MOMENTUM, activation='relu')(residual, training)
        residual = Conv(self.features, size=3, padding='same', relu=False)(residual)
        return shortcut + residual


class ResNet(nn.Module):
    """A convolution, stages of a pool and residual blocks, and the mean over all pixels.

    Attributes:
      num_classes: The number of logits.
      stages: The number of features of each stage.
      blocks: The number of blocks per stage.
      dropout: The dropout rate before the logits.
    """

    num_classes: int
    stages: Sequence[Width] = (16, 32)
    blocks: Width = 1
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, image_BxHxWxC: jax.Array, training: Training | None = None) -> jax.Array:
        x = Conv(self.stages[0], size=3, padding='same', relu=False)(image_BxHxWxC)
        for features in self.stages:
            x = MaxPool(window=2, padding='same')(x)
            for _ in range(self.blocks):
                x = ResidualBlock(features)(x, training)
        x = BatchNorm(MOMENTUM, activation='relu')(x, training)
        x_BxC = Dropout(self.dropout)(x.mean((1, 2)), training)
        return Dense(self.num_classes)(x_BxC)


MODELS['own_resnet'] = ResNet  # Now a config can select it.


def get_config(examples: int, epochs: int) -> ConfigDict:
    """Returns a config for the residual CNN; the fields of `model` are the attributes of `ResNet`."""
    config = default_config()
    config.epochs = epochs
    config.batch_size = BATCH_SIZE
    config.chunks = 1  # compiles fastest; more chunks let more devices share the work
    config.dataset.train = f'train[:{examples}]'
    config.dataset.validation = 'train[54000:]'
    config.model = ConfigDict({'name': 'own_resnet', 'stages': (16, 32), 'blocks': 1, 'dropout': 0.1})
    config.optimizer = ConfigDict({'name': 'adamw', 'learning_rate': 5e-3, 'weight_decay': 0.01})
    config.schedule = ConfigDict({'name': 'one_cycle'})
    return config


def main() -> None:
    """Trains the model, or resumes the run in the workdir, and predicts some test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=Path, default=Path('runs/own_resnet'))
    parser.add_argument('--examples', type=int, default=4_000, help='number of training examples, from 32 to 54,000')
    parser.add_argument('--epochs', type=int, default=2)
    options = parser.parse_args()
    if not BATCH_SIZE <= options.examples <= 54_000:
        parser.error(f'--examples must be from {BATCH_SIZE} to 54,000, got {options.examples}')

    try:
        result = train(get_config(options.examples, options.epochs), options.workdir)
    except UserError as error:
        parser.error(str(error))
    print(f'\ntest accuracy {result["accuracy"]:.4f}, {result["parameters"]:,} parameters')

    run = mnist_jax.load(options.workdir)
    test = run.plan.source.split('test')
    predictions = run.predict(test.image[:10]).argmax(-1)
    print('labels     ', *test.label[:10])
    print('predictions', *predictions)


if __name__ == '__main__':
    main()
