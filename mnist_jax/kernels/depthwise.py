"""Depthwise convolutions; see `ops.py` for kernels and plain forms.

Shapes: B examples, H x W pixels, C channels; h and w are the height and width of the kernel.
"""

import functools

import jax
import jax.numpy as jnp

from mnist_jax.kernels.primitive import Operation


def depthwise_conv(
    image_BxHxWxC: jax.Array,
    kernel_hxwxC: jax.Array,
    bias_C: jax.Array,
    padding: str,
    stride: int = 1,
    relu: bool = False,
) -> jax.Array:
    """Returns the convolution of each channel with its own kernel, plus the bias, or with `relu` its ReLU.

    `padding` is 'SAME' or 'VALID'.
    """
    dtype = jnp.result_type(image_BxHxWxC, kernel_hxwxC, bias_C)
    bias_C = jnp.broadcast_to(bias_C, kernel_hxwxC.shape[-1:])
    arrays = (array.astype(dtype) for array in (image_BxHxWxC, kernel_hxwxC, bias_C))
    return _depthwise(padding, stride, relu)(*arrays, jnp.float32(stride))


def plain_depthwise_conv(
    padding: str, stride: int, relu: bool, image: jax.Array, kernel: jax.Array, bias: jax.Array, _: jax.Array
) -> jax.Array:
    """Specifies `depthwise_conv`. The last argument tells the kernel the stride."""
    output = _convolve(image, kernel, padding, stride) + bias.reshape(1, 1, 1, -1)
    return jax.nn.relu(output) if relu else output


def _convolve(image: jax.Array, kernel: jax.Array, padding: str, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        image,
        kernel[:, :, None],
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=image.shape[-1],
    )


@functools.cache
def _depthwise(padding: str, stride: int, relu: bool) -> Operation:
    plain = functools.partial(plain_depthwise_conv, padding, stride, relu)

    def gradients(
        image: jax.Array, kernel: jax.Array, bias: jax.Array, stride_number: jax.Array, output: jax.Array, g: jax.Array
    ) -> tuple[jax.Array, ...]:
        if relu:
            g = jnp.where(output > 0, g, 0)
        kernel_gradients = _kernel_gradient(padding, stride, kernel.shape)(image, g, stride_number)
        image_gradient = _image_gradient(padding, stride, image.shape[1:])(g, kernel, stride_number)
        return image_gradient, *kernel_gradients, jnp.zeros_like(stride_number)

    return Operation('depthwise_relu' if relu else 'depthwise', plain, gradients, by_example=(0,))


@functools.cache
def _image_gradient(padding: str, stride: int, shape: tuple[int, ...]) -> Operation:
    """Returns the gradient with respect to the image, whose examples have this shape."""

    def plain(gradient: jax.Array, kernel: jax.Array, _: jax.Array) -> jax.Array:
        image = jax.ShapeDtypeStruct((len(gradient), *shape), gradient.dtype)
        return jax.linear_transpose(lambda image: _convolve(image, kernel, padding, stride), image)(gradient)[0]

    return Operation('depthwise_image_gradient', plain, by_example=(0,))


@functools.cache
def _kernel_gradient(padding: str, stride: int, shape: tuple[int, ...]) -> Operation:
    """Returns the gradients with respect to the kernel, which has this shape, and to the bias."""

    def plain(image: jax.Array, gradient: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
        transposed = jax.linear_transpose(lambda kernel: _convolve(image, kernel, padding, stride), kernel)
        return transposed(gradient)[0], gradient.sum((0, 1, 2))

    return Operation('depthwise_kernel_gradient', plain)
