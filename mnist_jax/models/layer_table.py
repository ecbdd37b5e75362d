"""The layers of a model with their shapes, parameters and cost, determined without computing anything."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from mnist_jax import text_tables
from mnist_jax.errors import UserError
from mnist_jax.kernels.sums import PyTree
from mnist_jax.models.architectures import is_own_model

HEADER = ('layer', 'kind', 'output shape', 'parameters', 'trainable', 'multiply-adds')


class Layer(NamedTuple):
    """One row of the layer table; `multiply_adds` is the cost of the forward pass for one example."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    trainable: int
    non_trainable: int
    multiply_adds: int


class Output(NamedTuple):
    """The output of a module; the last `feature_axes` of its axes are those of a product with its kernel."""

    kind: str
    array: Any
    feature_axes: int


@contextlib.contextmanager
def record_outputs() -> Iterator[dict[tuple[str, ...], Output]]:
    """Records the class and the output of each module called in this context, by its path and in call order.

    Of several outputs, the first counts; modules without one are left out. Of a module inside a transformation such as
    `nn.vmap`, only the type of the output is recorded.
    """
    outputs: dict[tuple[str, ...], Output] = {}
    outside = get_opaque_trace_state()

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == '__call__':
            array = next((leaf for leaf in jax.tree.leaves(output) if hasattr(leaf, 'shape')), None)
            if array is not None:
                recorded = array if get_opaque_trace_state() == outside else jax.typeof(array)
                features = context.module.features if isinstance(context.module, nn.DenseGeneral) else 1
                axes = 1 if isinstance(features, int) else len(features)
                outputs[context.module.path] = Output(type(context.module).__name__, recorded, axes)
        return output

    with nn.intercept_methods(record):
        yield outputs


def list_layers(
    model: nn.Module, image_shape: tuple[int, ...], is_frozen: Callable[[str], bool] = lambda path: False
) -> list[Layer]:
    """Returns the layers of `model` in call order; the name of a nested layer is its path.

    Args:
      model: The model.
      image_shape: The shape of an image, HxWxC.
      is_frozen: Returns whether a parameter, given by its path, is not trainable.

    Raises:
      UserError: the model does not fit images of `image_shape` (HxWxC).
    """
    outputs: dict[tuple[str, ...], Output] = {}

    def init(key: jax.Array) -> PyTree:
        with record_outputs() as recorded:
            variables = model.init(key, np.zeros((1, *image_shape), np.float32))
        outputs.update(recorded)
        return variables

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        variables = jax.eval_shape(init, key)
    except ZeroDivisionError:  # An initializer divides by the number of inputs of a dense layer.
        raise _shape_error(image_shape, 'no pixels are left before the dense layers') from None
    except (ValueError, TypeError) as error:
        if is_own_model(model):
            raise
        raise _shape_error(image_shape, str(error).splitlines()[0]) from None
    for path, output in outputs.items():
        if 0 in output.array.shape:
            raise _shape_error(image_shape, f'no pixels are left after {"/".join(path)}')
    layers = [_layer(variables, path, output, is_frozen) for path, output in outputs.items()]
    # A module that only contains others is not a layer: its children are.
    parents = {path[:-1] for path in outputs if path}
    return [
        layer
        for layer, path in zip(layers, outputs, strict=True)
        if layer.trainable or layer.non_trainable or path not in parents
    ]


def _shape_error(image_shape: tuple[int, ...], reason: str) -> UserError:
    return UserError(
        f'the model does not fit images of shape {image_shape}: {reason}; use fewer or smaller kernels and pooling '
        'windows'
    )


def _layer(variables: PyTree, path: tuple[str, ...], output: Output, is_frozen: Callable[[str], bool]) -> Layer:
    kind, shape = output.kind, output.array.shape[1:]
    parameters = _own_arrays(variables.get('params', {}), path)
    frozen = {name: array for name, array in parameters.items() if is_frozen('/'.join((*path, name)))}
    kernel = math.prod(parameters['kernel'].shape) if 'kernel' in parameters else 0
    return Layer(
        name='/'.join(path) or kind,
        kind=kind,
        output_shape=shape,
        trainable=_count(parameters) - _count(frozen),
        non_trainable=_count(_own_arrays(variables.get('batch_stats', {}), path)) + _count(frozen),
        # A convolution applies its whole kernel at every output position; a dense layer has one position. Attention
        # multiplies all pairs of tokens twice.
        multiply_adds=2 * shape[0] * math.prod(shape)
        if kind == 'AttentionProducts'
        else kernel * math.prod(shape[: -output.feature_axes]),
    )


def _own_arrays(tree: PyTree, path: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the arrays of the module at `path`, without those of the modules inside it."""
    for name in path:
        tree = tree.get(name, {})
    return {name: leaf for name, leaf in tree.items() if not isinstance(leaf, Mapping)}


def _count(arrays: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(array.shape) for array in arrays.values())


def table_row(layer: Layer) -> tuple[str, ...]:
    """Returns a layer as strings in the columns of `HEADER`."""
    total = layer.trainable + layer.non_trainable
    numbers = (f'{number:,}' for number in (total, layer.trainable, layer.multiply_adds))
    return (layer.name, layer.kind, format_shape(layer.output_shape), *numbers)


def format_table(
    model: nn.Module, image_shape: tuple[int, ...], is_frozen: Callable[[str], bool] = lambda path: False
) -> str:
    """Returns the layer table with its totals as text; see `list_layers`."""
    layers = list_layers(model, image_shape, is_frozen)
    rows = [HEADER, ('input', '', format_shape(image_shape), '0', '0', '0'), *map(table_row, layers)]
    trainable = sum(layer.trainable for layer in layers)
    non_trainable = sum(layer.non_trainable for layer in layers)
    lines = text_tables.titled(rows, left=3)
    lines.append(lines[1])
    lines.append(
        f'parameters: {trainable + non_trainable:,} (trainable {trainable:,}, not trainable {non_trainable:,}); '
        f'multiply-adds per example: {sum(layer.multiply_adds for layer in layers):,}'
    )
    return '\n'.join(lines)


def format_shape(shape: tuple[int, ...]) -> str:
    """Returns a shape as text, such as '28 x 28 x 1'."""
    return ' x '.join(map(str, shape))
