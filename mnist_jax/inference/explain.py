"""Which pixels a prediction depends on: gradients, integrated gradients, and occlusion."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.inference.restored import RestoredModel

PATH_STEPS = 32  # of the path from black along which gradients are integrated
OCCLUDED_FRACTION = 1 / 7  # of a side of the image, that of the occluding square


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
        hidden = np.repeat(image_HxWxC[None], height * width, axis=0)
        for index in range(height * width):
            row, column = divmod(index, width)
            rows = slice(max(0, row - half_rows), row + half_rows + 1)
            hidden[index, rows, max(0, column - half_columns) : column + half_columns + 1] = 0
        whole = self._model.predict(image_HxWxC[None])[0, label]
        return (whole - self._model.predict(hidden)[:, label]).reshape(height, width)
