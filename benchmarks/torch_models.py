"""The newer architectures of mnist_jax in PyTorch, as its users would write them; `programs.py` measures them."""

from typing import Any

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """A basic block: two 3 x 3 convolutions, and a 1 x 1 convolution as the shortcut if the shape changes."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, features, 3, stride, 1),
            nn.BatchNorm2d(features, eps=1e-3, momentum=0.01),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, 1, 1),
            nn.BatchNorm2d(features, eps=1e-3, momentum=0.01),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == features
            else nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride), nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return torch.relu(self.branch(x) + self.shortcut(x))


class MeanPool(nn.Module):
    """The mean over the spatial axes, or over the tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the means."""
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


class Tokens(nn.Module):
    """A linear projection of each patch, BxTxF."""

    def __init__(self, patch: int, width: int, channels: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, patch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the tokens."""
        return self.projection(image).flatten(2).transpose(1, 2)


class Perceptron(nn.Sequential):
    """A hidden layer with GELU, and an output layer as wide as the input."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU('tanh'), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """A block of an MLP-Mixer."""

    def __init__(self, tokens: int, spec: dict[str, Any]):
        super().__init__()
        width = spec['width']
        self.token_norm, self.feature_norm = nn.LayerNorm(width, 1e-3), nn.LayerNorm(width, 1e-3)
        self.over_tokens = Perceptron(tokens, spec['token_hidden'])
        self.over_features = Perceptron(width, spec['feature_hidden'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        x = x + self.over_tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_features(self.feature_norm(x))


class TransformerBlock(nn.Module):
    """A block of a vision transformer, with PyTorch's own fused attention."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        width = spec['width']
        self.heads = spec['heads']
        self.attention_norm, self.norm = nn.LayerNorm(width, 1e-3), nn.LayerNorm(width, 1e-3)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = Perceptron(width, spec['hidden'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        size, tokens, width = x.shape
        parts = self.inputs(self.attention_norm(x)).view(size, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        x = x + self.output(mixed.transpose(1, 2).reshape(size, tokens, width))
        return x + self.perceptron(self.norm(x))


class Positions(nn.Module):
    """Adds a learned position to each token."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the tokens with their positions."""
        return x + self.position


def lenet5(spec: dict[str, Any], shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns the layers of LeNet-5 without the last one."""
    layers: list[nn.Module] = []
    for number, features in enumerate(spec['features']):
        layers += [nn.LazyConv2d(features, 5, padding=0 if number else 2), nn.Tanh(), nn.AvgPool2d(2)]
    layers.append(nn.Flatten())
    for width in spec['hidden']:
        layers += [nn.LazyLinear(width), nn.Tanh()]
    return layers


def resnet(spec: dict[str, Any], shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns the layers of a ResNet without the last one."""
    inputs = spec['widths'][0]
    layers = [nn.Conv2d(shape[2], inputs, 3, padding=1), nn.BatchNorm2d(inputs, eps=1e-3, momentum=0.01), nn.ReLU()]
    for stage, features in enumerate(spec['widths']):
        for number in range(spec['blocks']):
            layers.append(ResidualBlock(inputs, features, 2 if stage and not number else 1))
            inputs = features
    return [*layers, MeanPool()]


def depthwise(spec: dict[str, Any], shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns the layers of a MobileNet without the last one."""
    inputs = spec['stem']
    layers = [nn.Conv2d(shape[2], inputs, 3, padding=1), nn.BatchNorm2d(inputs, eps=1e-3, momentum=0.01), nn.ReLU()]
    for features, stride in zip(spec['widths'], spec['strides'], strict=True):
        for convolution, width in (
            (nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), inputs),
            (nn.Conv2d(inputs, features, 1), features),
        ):
            layers += [convolution, nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU()]
        inputs = features
    return [*layers, MeanPool()]


def mixer(spec: dict[str, Any], shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns the layers of an MLP-Mixer without the last one."""
    tokens = (shape[0] // spec['patch']) * (shape[1] // spec['patch'])
    blocks = [MixerBlock(tokens, spec) for _ in range(spec['depth'])]
    return [Tokens(spec['patch'], spec['width'], shape[2]), *blocks, nn.LayerNorm(spec['width'], 1e-3), MeanPool()]


def vit(spec: dict[str, Any], shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns the layers of a vision transformer without the last one."""
    tokens = (shape[0] // spec['patch']) * (shape[1] // spec['patch'])
    blocks = [TransformerBlock(spec) for _ in range(spec['depth'])]
    embedding = [Tokens(spec['patch'], spec['width'], shape[2]), Positions(tokens, spec['width'])]
    return [*embedding, *blocks, nn.LayerNorm(spec['width'], 1e-3), MeanPool()]


LAYERS = {'lenet5': lenet5, 'resnet': resnet, 'depthwise': depthwise, 'mixer': mixer, 'vit': vit}
