"""Which pixels a prediction depends on: gradients, integrated gradients, and occlusion."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.inference.restored import RestoredModel

PATH_STEPS = 32  # of the path from black along which gradients are integrated
OCCLUDED_FRACTION = 1 / 7  # of a side of the image, about that of the occluding square, whose side is odd
MAX_OCCLUSIONS = 64  # positions of the square along a side; between them, in larger images, the result is constant
OCCLUSIONS_AT_ONCE = 256


class Explainer:
    """Explains predictions of a model; every method returns one number per pixel, HxW."""

    def __init__(self, model: RestoredModel):
        self._model = model

    @functools.cached_property
    def _gradient(self) -> Callable[[jax.Array, int], jax.Array]:
        def log_probability(image_HxWxC: jax.Array, label: int) -> jax.Array:
            return jax.nn.log_softmax(self._model.logits(image_HxWxC[None])[0])[label]

        return jax.jit(jax.vmap(jax.grad(log_probability), in_axes=(0, None)))

    def gradient(self, image_HxWxC: np.ndarray, label: int) -> np.ndarray:
        """Returns the size of the gradient of the logarithm of the class's probability (Simonyan et al. 2014)."""
        gradient = self._gradient(jnp.asarray(image_HxWxC, jnp.float32)[None], label)[0]
        return np.abs(np.asarray(gradient)).max(axis=-1)

    def integrated_gradients(self, image_HxWxC: np.ndarray, label: int) -> np.ndarray:
        """Returns what each pixel contributes to the logarithm of the class's probability (Sundararajan et al. 2017).

        The contributions add up to its difference from that for a black image, except for the error of the integral.
        """
        image = np.asarray(image_HxWxC, np.float32)
        fractions = (np.arange(PATH_STEPS, dtype=np.float32) + 0.5) / PATH_STEPS
        path = fractions[:, None, None, None] * image
        gradients = np.asarray(self._gradient(jnp.asarray(path), label))
        return (gradients.mean(axis=0) * image).sum(axis=-1)

    def occlusion(self, image_HxWxC: np.ndarray, label: int) -> np.ndarray:
        """Returns how much the class's probability falls if a black square around a pixel hides it (Zeiler 2014)."""
        height, width, _ = image_HxWxC.shape
        half_rows, half_columns = (max(1, round(size * OCCLUDED_FRACTION)) // 2 for size in (height, width))
        stride = -(-max(height, width) // MAX_OCCLUSIONS)
        rows, columns = range(0, height, stride), range(0, width, stride)
        places = list(itertools.product(rows, columns))
        hidden_probabilities: list[np.ndarray] = []
        for start in range(0, len(places), OCCLUSIONS_AT_ONCE):  # All of them at once may not fit into the memory.
            part = places[start : start + OCCLUSIONS_AT_ONCE]
            hidden = np.repeat(image_HxWxC[None], len(part), axis=0)
            for image, (row, column) in zip(hidden, part, strict=True):
                image[
                    max(0, row - half_rows) : row + half_rows + 1,
                    max(0, column - half_columns) : column + half_columns + 1,
                ] = 0
            hidden_probabilities.append(self._model.predict(hidden, allow_dark=True)[:, label])
        whole = self._model.predict(image_HxWxC[None], allow_dark=True)[0, label]
        grid = (whole - np.concatenate(hidden_probabilities)).reshape(len(rows), len(columns))
        return grid.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
