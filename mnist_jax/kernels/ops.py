"""Array operations that are slow on a CPU in their plain form, or whose sums must have a fixed order.

On a CPU, layers, max pooling and the parts of batch normalization run as C kernels if these are available; everywhere
else XLA computes them. The `plain_` functions are the specification: the kernels return the same values and gradients,
except for rounding. README.md in this directory describes the kernels.

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


def conv(image_BxHxWxC: jax.Array, kernel_hxwxCxK: jax.Array, bias_K: jax.Array, padding: str, relu: bool) -> jax.Array:
    """Returns the convolution with stride 1 plus the bias, or with `relu` its ReLU. `padding` is 'SAME' or 'VALID'."""
    return _layer(padding, relu)(*_promote(image_BxHxWxC, kernel_hxwxCxK, bias_K))


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
    row_maxima = []
    for i in range(window):
        slices = [x_BxHxWxC[:, i:rows:window, j:columns:window] for j in range(window)]
        row_maxima.append(functools.reduce(jnp.maximum, slices))
    return functools.reduce(jnp.maximum, row_maxima)


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


def moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of x and of its squares per channel, over the examples whose mask is 1, not 0."""
    return _moments(x_BxHxWxC, mask_B.astype(jnp.float32))


def plain_moments(x_BxHxWxC: jax.Array, mask_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Specifies `moments`."""
    x_BxHxWxC = x_BxHxWxC.astype(jnp.float32) * mask_B.reshape(-1, 1, 1, 1)
    return x_BxHxWxC.sum((0, 1, 2)), jnp.square(x_BxHxWxC).sum((0, 1, 2))


def _plain_moments_gradient(
    x_BxHxWxC: jax.Array, mask_B: jax.Array, sum_gradient_C: jax.Array, squares_gradient_C: jax.Array
) -> jax.Array:
    sum_gradient, squares_gradient = (array.reshape(1, 1, 1, -1) for array in (sum_gradient_C, squares_gradient_C))
    return (sum_gradient + 2 * squares_gradient * x_BxHxWxC) * mask_B.reshape(-1, 1, 1, 1)


_moments_gradient = Operation('moments_gradient', _plain_moments_gradient, by_example=(0, 1))


def _moments_gradients(x: jax.Array, mask: jax.Array, *outputs_and_gradients: jax.Array) -> tuple[jax.Array, ...]:
    gradients = outputs_and_gradients[2:]
    mask_gradient = jax.vjp(functools.partial(plain_moments, x), mask)[1](gradients)[0]
    return _moments_gradient(x, mask, *gradients).astype(x.dtype), mask_gradient


_moments = Operation('moments', plain_moments, _moments_gradients)


def normalize(
    sum_C: jax.Array,
    squares_C: jax.Array,
    count: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    momentum: jax.typing.ArrayLike,
    epsilon: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns what batch normalization computes per channel from the moments of a batch.

    This is an operation of its own because XLA may round a * b + c once or twice, depending on the rest of the program.

    Args:
      sum_C: The sum over the pixels of the batch, and so on per channel.
      squares_C: The sum of the squares.
      count: The number of pixels.
      scale_C: A parameter: the standard deviation after the normalization.
      bias_C: A parameter: the mean after the normalization.
      moving_mean_C: The moving average of the mean.
      moving_variance_C: The moving average of the variance.
      momentum: The weight of the old value in the new moving averages.
      epsilon: Is added to the variance.

    Returns:
      factor and shift, such that x * factor + shift is normalized; and the new moving averages.
    """
    scalars = (jnp.asarray(value, jnp.float32) for value in (momentum, epsilon))
    return _normalize(sum_C, squares_C, count, scale_C, bias_C, moving_mean_C, moving_variance_C, *scalars)


def plain_normalize(
    sum_C: jax.Array,
    squares_C: jax.Array,
    count: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    momentum: jax.Array,
    epsilon: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Specifies `normalize`."""
    mean_C = sum_C / count
    variance_C = jnp.maximum(squares_C / count - jnp.square(mean_C), 0.0)
    new_mean_C, new_variance_C = (
        momentum * moving_C + (1 - momentum) * current_C
        for moving_C, current_C in ((moving_mean_C, mean_C), (moving_variance_C, variance_C))
    )
    return *plain_normalize_for_inference(scale_C, bias_C, mean_C, variance_C, epsilon), new_mean_C, new_variance_C


def _plain_normalize_gradient(*arguments_and_gradients: jax.Array) -> tuple[jax.Array, ...]:
    arguments, gradients = arguments_and_gradients[:9], arguments_and_gradients[9:]
    sum_C, squares_C, _, scale_C, bias_C, *_ = jax.vjp(plain_normalize, *arguments)[1](gradients)
    return sum_C, squares_C, scale_C, bias_C


_normalize_gradient = Operation('normalize_gradient', _plain_normalize_gradient)


def _normalize_gradients(*values: jax.Array) -> tuple[jax.Array, ...]:
    arguments, gradients = values[:9], values[13:]
    _, _, count, _, _, *others = jax.vjp(plain_normalize, *arguments)[1](gradients)
    sum_C, squares_C, scale_C, bias_C = _normalize_gradient(*arguments, *gradients)
    return sum_C, squares_C, count, scale_C, bias_C, *others


_normalize = Operation('normalize', plain_normalize, _normalize_gradients)


def normalize_for_inference(
    scale_C: jax.Array,
    bias_C: jax.Array,
    moving_mean_C: jax.Array,
    moving_variance_C: jax.Array,
    epsilon: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns factor and shift as `normalize` does, from the moving averages."""
    return _normalize_for_inference(
        scale_C, bias_C, moving_mean_C, moving_variance_C, jnp.asarray(epsilon, jnp.float32)
    )


def plain_normalize_for_inference(
    scale_C: jax.Array, bias_C: jax.Array, mean_C: jax.Array, variance_C: jax.Array, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Specifies `normalize_for_inference`."""
    factor_C = scale_C * jax.lax.rsqrt(variance_C + epsilon)
    return factor_C, bias_C - mean_C * factor_C


_normalize_for_inference = Operation('normalize_for_inference', plain_normalize_for_inference)


def scale_relu(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    """Returns the ReLU of x * factor + shift, with one factor and one shift per channel."""
    factor_C, shift_C = (
        jnp.broadcast_to(array, x_BxHxWxC.shape[-1:]).astype(jnp.float32) for array in (factor_C, shift_C)
    )
    return _scale_relu(x_BxHxWxC, factor_C, shift_C)


def plain_scale_relu(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    """Specifies `scale_relu`."""
    return jax.nn.relu(_scale(x_BxHxWxC, factor_C, shift_C)).astype(x_BxHxWxC.dtype)


def scale(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    """Returns x * factor + shift, with one factor and one shift per channel; XLA computes it on every device."""
    return _scale(x_BxHxWxC, factor_C, shift_C).astype(x_BxHxWxC.dtype)


def _scale(x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array) -> jax.Array:
    return x_BxHxWxC * factor_C.reshape(1, 1, 1, -1) + shift_C.reshape(1, 1, 1, -1)


def _plain_scale_relu_gradients(
    x_BxHxWxC: jax.Array, factor_C: jax.Array, shift_C: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(plain_scale_relu, x_BxHxWxC, factor_C, shift_C)[1](gradient)


_scale_relu_gradients = Operation('scale_relu_gradient', _plain_scale_relu_gradients)
_scale_relu = Operation(
    'scale_relu',
    plain_scale_relu,
    lambda x, factor, shift, output, gradient: _scale_relu_gradients(x, factor, shift, gradient),
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
