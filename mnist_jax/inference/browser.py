"""Writes a CNN as JavaScript data, for a page that runs it without a server; see docs/draw.js."""

import base64
import json

import numpy as np

from mnist_jax.data.framing import Framing
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.inference import packaged
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.models.architectures import CNN
from mnist_jax.models.layers import BatchNorm

FRAMING = Framing(box_size=20, center_by_mass=True)  # what docs/draw.js does


def to_javascript(model: RestoredModel, about: str) -> str:
    """Returns a script that defines `MODEL`: the layers of a CNN, with batch normalization folded into its kernels.

    Args:
      model: The model, whose architecture is `cnn` with ReLU, with batch normalization or none, and whose pixels are
        normalized as 'unit'; trained in float32 on images framed as those of MNIST.
      about: What the page says about the model.

    Raises:
      UserError: it is another architecture.
    """
    cnn, normalize = model.plan.model, model.plan.config.dataset.normalize
    if normalize != 'unit':
        raise UserError(f"a model for the browser must have dataset.normalize 'unit', got {normalize!r}")
    if not isinstance(cnn, CNN) or cnn.activation != 'relu' or cnn.normalization not in ('none', 'batch'):
        raise UserError(
            'a model for the browser must be a cnn with ReLU, and batch normalization or none, got '
            f'{model.plan.config.model.to_dict()}'
        )
    framing = model.plan.source.data.description.framing
    if framing != FRAMING or model.plan.config.dtype != 'float32':
        raise UserError(
            f'a model for the browser must be trained in float32 on images framed as {FRAMING}, got '
            f'{model.plan.config.dtype} and {framing}'
        )
    variables = model.snapshot.state.variables
    layers: list[JsonObject] = []
    number = 0
    for stage, window in zip(cnn.stages, cnn.pool, strict=True):
        for _ in stage:
            kernel, bias = (variables.params[f'Conv_{number}'][name] for name in ('kernel', 'bias'))
            if cnn.batch_norm or cnn.normalization == 'batch':
                name = f'BatchNorm_{number}'
                kernel, bias = _fold(kernel, bias, variables.params[name], variables.batch_stats[name])
            layers.append({'type': 'conv', **_arrays(kernel, bias), 'padding': cnn.padding})
            number += 1
        if window > 1:
            layers.append({'type': 'maxPool', 'window': window, 'padding': cnn.padding})
    if cnn.global_pool:
        layers.append({'type': 'globalMean'})
    for index in range(len(cnn.hidden) + 1):
        params = variables.params[f'Dense_{index}']
        layers.append({'type': 'dense', **_arrays(params['kernel'], params['bias']), 'relu': index < len(cnn.hidden)})
    contents = {
        'about': about,
        'classes': list(model.class_names),
        'shape': list(model.image_shape),
        'maxPixel': model.plan.source.max_pixel,
        'layers': layers,
    }
    return f"'use strict';\nconst MODEL = {json.dumps(contents)};\n"


def packaged_script() -> str:
    """Returns the script of the model that comes with the package, which the documentation runs."""
    return to_javascript(RestoredModel.load(packaged.PACKAGED), packaged.describe(packaged.PACKAGED))


def _fold(
    kernel: np.ndarray, bias: np.ndarray, params: dict[str, np.ndarray], stats: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel and the bias of the convolution that includes the batch normalization after it."""
    factor = params['scale'] / np.sqrt(stats['variance'] + np.float32(BatchNorm.epsilon))
    return kernel * factor, (bias - stats['mean']) * factor + params['bias']


def _arrays(kernel: np.ndarray, bias: np.ndarray) -> JsonObject:
    """Returns the shape of a kernel, and kernel and bias as little-endian float32 in base64."""
    encoded = (base64.b64encode(np.asarray(array, '<f4').tobytes()).decode() for array in (kernel, bias))
    return {'shape': list(kernel.shape), **dict(zip(('kernel', 'bias'), encoded, strict=True))}
