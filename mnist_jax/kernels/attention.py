"""Softmax, and products of many small matrices, as in attention; see `ops.py` for kernels and plain forms."""

import math

import jax
import jax.numpy as jnp

from mnist_jax.kernels.primitive import Operation


def softmax(x: jax.Array) -> jax.Array:
    """Returns the softmax over the last axis."""
    return _softmax(x.reshape(math.prod(x.shape[:-1]), x.shape[-1])).reshape(x.shape)


def plain_softmax(x_RxN: jax.Array) -> jax.Array:
    """Specifies `softmax`."""
    return jax.nn.softmax(x_RxN)


def _plain_softmax_gradient(output_RxN: jax.Array, gradient_RxN: jax.Array) -> jax.Array:
    return output_RxN * (gradient_RxN - (gradient_RxN * output_RxN).sum(-1, keepdims=True))


_softmax_gradient = Operation('softmax_gradient', _plain_softmax_gradient, by_example=(0, 1))
_softmax = Operation(
    'softmax',
    plain_softmax,
    lambda x, output, gradient: (_softmax_gradient(output, gradient),),
    by_example=(0,),
)


def matrix_products(a_NxMxK: jax.Array, b_NxKxL: jax.Array) -> jax.Array:
    """Returns the products a @ b of N pairs of matrices."""
    dtype = jnp.result_type(a_NxMxK, b_NxKxL)
    count = jnp.broadcast_shapes(a_NxMxK.shape[:1], b_NxKxL.shape[:1])
    a_NxMxK, b_NxKxL = (jnp.broadcast_to(array, (*count, *array.shape[1:])) for array in (a_NxMxK, b_NxKxL))
    return _matrix_products(a_NxMxK.astype(dtype), b_NxKxL.astype(dtype))


def plain_matrix_products(a_NxMxK: jax.Array, b_NxKxL: jax.Array) -> jax.Array:
    """Specifies `matrix_products`."""
    return a_NxMxK @ b_NxKxL


def _matrix_products_gradients(
    a: jax.Array, b: jax.Array, output: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return matrix_products(gradient, b.swapaxes(1, 2)), matrix_products(a.swapaxes(1, 2), gradient)


_matrix_products = Operation('matrix_products', plain_matrix_products, _matrix_products_gradients, by_example=(0, 1))
