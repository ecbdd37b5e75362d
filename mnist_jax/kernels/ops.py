"""Array operations that are slow on a CPU in their plain form, or whose sums must have a fixed order.

On a CPU, layers and max pooling run as C kernels if these are available; everywhere else XLA computes them. So do the
operations of `norms.py`, `depthwise.py`, `attention.py` and `warping.py`. The `plain_` functions are the specification:
the kernels return the same values and gradients, except for rounding. README.md in this directory describes them.

Shapes: B examples, H x W pixels, C input channels, F inputs, K output features, and h x w for the height and width of a
convolution kernel.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mnist_jax.kernels.primitive import Operation, use_plain
from mnist_jax.kernels.sums import PyTree


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces with plain XLA operations only inside this context, so that the result runs without the kernels."""
    token = use_plain.set(True)
    try:
        yield
    finally:
        use_plain.reset(token)


def delay_until(earlier: PyTree, values: PyTree) -> PyTree:
    """Returns `values` such that they cannot be used before `earlier` has been computed.

    XLA runs independent computations at the same time, and several chunks of a batch would evict each other from the
    caches. An optimization barrier alone orders XLA's program but not the threads that execute it. So this adds a zero
    to `values` that depends on `earlier` and that the compiler cannot prove to be zero.
    """
    zeros = [leaf.ravel()[0] > jnp.inf for leaf in jax.tree.leaves(earlier)]
    if not zeros:
        return values
    zero = jnp.stack(jax.lax.optimization_barrier(zeros)).any()
    return jax.tree.map(lambda value: value + zero.astype(value.dtype), values)


def separate(x: jax.Array) -> jax.Array:
    """Returns x, and keeps XLA from computing what is before it together with what follows, forward and backward.

    XLA rounds a * b + c once or twice, depending on the rest of the program. A product that is separated from a
    sum is rounded before it. On a CPU, XLA drops its own optimization barriers before it fuses operations, so a kernel
    that only returns its argument takes their place. Where there is no kernel, such as for bfloat16 and in derivatives
    in forward mode, only the barrier remains.
    """
    return _separate(x.reshape(-1)).reshape(x.shape)


def _separate_gradient(x_N: jax.Array, output_N: jax.Array, gradient_N: jax.Array) -> tuple[jax.Array]:
    del x_N, output_N
    return (_separate(gradient_N),)


_separate = Operation('separate', jax.lax.optimization_barrier, _separate_gradient, by_example=(0,), in_place=True)


def conv(
    image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, bias_K: jax.Array, padding: str, relu: bool, stride: int = 1
) -> jax.Array:
    """Returns the convolution plus the bias, or with `relu` its ReLU. `padding` is 'SAME' or 'VALID'."""
    arrays = _promote(image_BxHxWxC, kernel_hxwxCxK, bias_K)
    if stride == 1:
        return _layer(padding, relu)(*arrays)
    image, kernel, bias = arrays
    return _layer('VALID', relu)(*_without_stride(image, kernel, padding, stride), bias)


def _without_stride(
    image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, padding: str, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Returns image and kernel of the same convolution with stride 1 and 'VALID' padding.

    Each square of stride x stride pixels becomes one pixel with as many times the channels, and the kernel likewise.
    """
    if kernel_hxwxCxK.shape[:2] == (1, 1):
        return image_BxHxWxC[:, ::stride, ::stride], kernel_hxwxCxK
    pads, positions = [], []
    for size, window in zip(image_BxHxWxC.shape[1:3], kernel_hxwxCxK.shape[:2], strict=True):
        outputs = -(-size // stride) if padding == 'SAME' else (size - window) // stride + 1
        missing = max((outputs - 1) * stride + window - size, 0) if padding == 'SAME' else 0
        # Squares that the whole kernel covers, for every output.
        count = outputs - 1 + -(-window // stride)
        pads.append((missing // 2, count * stride - size - missing // 2))
        positions.append((0, -window % stride))

    def squares(array: jax.Array, first: int) -> jax.Array:
        """Moves the positions within squares of the axes `first` and `first + 1` to the axis after these."""
        before, (height, width), after = array.shape[:first], array.shape[first : first + 2], array.shape[first + 2 :]
        split = array.reshape(*before, height // stride, stride, width // stride, stride, *after)
        moved = jnp.moveaxis(split, first + 2, first + 1)
        return moved.reshape(*before, height // stride, width // stride, stride * stride * after[0], *after[1:])

    height, width = (size + min(0, after) for size, (_, after) in zip(image_BxHxWxC.shape[1:3], pads, strict=True))
    # `jax.lax.pad` would crop too, but jax2onnx cannot convert it for batches of any size.
    (top, bottom), (left, right) = ((before, max(0, after)) for before, after in pads)
    image = jnp.pad(image_BxHxWxC[:, :height, :width], [(0, 0), (top, bottom), (left, right), (0, 0)])
    return squares(image, 1), squares(jnp.pad(kernel_hxwxCxK, [*positions, (0, 0), (0, 0)]), 0)


def dense(x_BxF: jax.Array, kernel_FxK: jax.Array, bias_K: jax.Array, relu: bool) -> jax.Array:
    """Returns x @ kernel + bias, or with `relu` its ReLU. x may have any number of leading axes."""
    rows = math.prod(x_BxF.shape[:-1])
    output_NxK = _layer(None, relu)(*_promote(x_BxF.reshape(rows, x_BxF.shape[-1]), kernel_FxK, bias_K))
    return output_NxK.reshape(*x_BxF.shape[:-1], kernel_FxK.shape[-1])


def _promote(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Promotes all three to one dtype, and broadcasts the bias to one number per feature."""
    dtype = jnp.result_type(x, kernel, bias)
    return x.astype(dtype), kernel.astype(dtype), jnp.broadcast_to(bias, kernel.shape[-1:]).astype(dtype)


def plain_layer(padding: str | None, relu: bool, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Specifies `conv` and, if `padding` is None, `dense`."""
    output = _product(x, kernel, padding)
    output = output + bias.reshape((1,) * (output.ndim - 1) + (-1,))
    return jax.nn.relu(output) if relu else output


def _product(x: jax.Array, kernel: jax.Array, padding: str | None) -> jax.Array:
    if padding is None:
        return x @ kernel
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.cache
def _layer(padding: str | None, relu: bool) -> Operation:
    return Operation(
        'layer_relu' if relu else 'layer',
        functools.partial(plain_layer, padding, relu),
        functools.partial(_layer_gradients, padding, relu),
        by_example=(0,),
    )


def _layer_gradients(
    padding: str | None,
    relu: bool,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    output: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, ...]:
    relu_output = (output,) if relu else ()
    x_gradient = _input_gradient(padding, relu, x.shape[1:])(gradient, kernel, *relu_output)
    return x_gradient, *_kernel_gradient(padding, kernel.shape)(x, gradient, *relu_output)


@functools.cache
def _input_gradient(padding: str | None, relu: bool, shape: tuple[int, ...]) -> Operation:
    """Returns the gradient of a layer with respect to its input, whose examples have this shape."""

    def plain(gradient: jax.Array, kernel: jax.Array, *relu_output: jax.Array) -> jax.Array:
        x = jax.ShapeDtypeStruct((len(gradient), *shape), gradient.dtype)
        gradient = _relu_gradient(gradient, *relu_output)
        return jax.linear_transpose(lambda x: _product(x, kernel, padding), x)(gradient)[0]

    return Operation('input_gradient', plain, by_example=(0, 2) if relu else (0,))


@functools.cache
def _kernel_gradient(padding: str | None, shape: tuple[int, ...]) -> Operation:
    """Returns the gradients of a layer with respect to its kernel, which has this shape, and to its bias."""

    def plain(x: jax.Array, gradient: jax.Array, *relu_output: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
        gradient = _relu_gradient(gradient, *relu_output)
        (kernel_gradient,) = jax.linear_transpose(lambda kernel: _product(x, kernel, padding), kernel)(gradient)
        return kernel_gradient, gradient.sum(tuple(range(gradient.ndim - 1)))

    return Operation('kernel_gradient', plain)


def _relu_gradient(gradient: jax.Array, output: jax.Array | None = None) -> jax.Array:
    """Backpropagates through a ReLU with this output; without an output, returns the gradient itself."""
    return gradient if output is None else jnp.where(output > 0, gradient, 0)


def max_pool(x_BxHxWxC: jax.Array, window: int, padding: str) -> jax.Array:
    """Applies max pooling with stride `window`, like `nn.max_pool` except for the gradient at ties.

    If several values of a window tie for the maximum, they share the gradient.
    """
    padded = padding == 'SAME' and any(size % window for size in x_BxHxWxC.shape[1:3])
    if window != 2 or padded:
        return plain_max_pool(x_BxHxWxC, window, padding)
    return _max_pool_2x2(x_BxHxWxC)


def plain_max_pool(x_BxHxWxC: jax.Array, window: int, padding: str) -> jax.Array:
    """Specifies `max_pool`."""
    # Uses strided slices and `jnp.maximum` instead of a reduce-window, whose gradient is slow on a CPU.
    height, width = x_BxHxWxC.shape[1:3]
    if padding == 'SAME':
        window = min(window, max(height, width))  # the same result from fewer slices
        pads = [_same_padding(size, window) for size in (height, width)]
        x_BxHxWxC = jnp.pad(x_BxHxWxC, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    rows, columns = (size // window * window for size in x_BxHxWxC.shape[1:3])
    if not rows or not columns:
        return x_BxHxWxC[:, : rows // window, : columns // window]
    # The maximum of each row first: this takes 2 * window slices instead of window**2.
    maxima = functools.reduce(jnp.maximum, [x_BxHxWxC[:, :rows, j:columns:window] for j in range(window)])
    return functools.reduce(jnp.maximum, [maxima[:, i::window] for i in range(window)])


def _same_padding(size: int, window: int) -> tuple[int, int]:
    missing = -size % window
    return missing // 2, missing - missing // 2


def _plain_max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    return plain_max_pool(x_BxHxWxC, 2, 'VALID')


def _plain_max_pool_2x2_gradient(x_BxHxWxC: jax.Array, gradient: jax.Array) -> jax.Array:
    return jax.vjp(_plain_max_pool_2x2, x_BxHxWxC)[1](gradient)[0]


_max_pool_2x2_gradient = Operation('pool_gradient', _plain_max_pool_2x2_gradient, by_example=(0, 1))
_max_pool_2x2 = Operation(
    'pool',
    _plain_max_pool_2x2,
    lambda x, output, gradient: (_max_pool_2x2_gradient(x, gradient),),
    by_example=(0,),
)


def all_finite(tree: PyTree) -> jax.Array:
    """Returns a bool: whether all values of all arrays are finite."""
    return _all_finite(*jax.tree.leaves(tree)) > 0


def plain_all_finite(*arrays: jax.Array) -> jax.Array:
    """Specifies `all_finite`, as 1 or 0 in float32, in which the kernels compute."""
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all().astype(jnp.float32)


_all_finite = Operation('all_finite', plain_all_finite)


def random_mask(keys_Bx2: jax.Array, shape: tuple[int, ...], probability: float) -> jax.Array:
    """Returns a Bx`shape` mask that is True with this probability, drawn for each of the B keys (uint32) separately."""
    return _random_bits(keys_Bx2, shape) < jnp.uint32(min(round(probability * 2**32), 2**32 - 1))


def random_numbers(keys_Bx2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns Bx`shape` numbers, uniform in [-1, 1), drawn for each of the B keys (uint32) separately."""
    return (_random_bits(keys_Bx2, shape) >> 8).astype(jnp.float32) * 2.0**-23 - 1


def _random_bits(keys_Bx2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns Bx`shape` random numbers, uint32.

    The index of each value is mixed with the two words of the key by Wellons's hash function "lowbias32", applied
    twice. That takes a few operations per value; JAX's default generator takes about 80.
    """
    key_Bx2 = keys_Bx2.reshape(-1, 2, *(1,) * len(shape))
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    return _lowbias32(_lowbias32(index ^ key_Bx2[:, 0]) ^ key_Bx2[:, 1])


def _lowbias32(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
