"""The layer table of a model, found without computing anything."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mnist_jax import text_tables
from mnist_jax.errors import UserError

HEADER = ('layer', 'kind', 'output shape', 'parameters', 'trainable', 'multiply-adds')


class Layer(NamedTuple):
    """One row of the layer table. `multiply_adds` are those of the inference of one example."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    trainable: int
    non_trainable: int
    multiply_adds: int


@contextlib.contextmanager
def record_outputs() -> Iterator[dict[tuple[str, ...], tuple[str, jax.Array]]]:
    """The class and the output of each module that is called meanwhile, by its path, in the order of the calls."""
    found: dict[tuple[str, ...], tuple[str, jax.Array]] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == '__call__':
            found[context.module.path] = (type(context.module).__name__, output)
        return output

    with nn.intercept_methods(record):
        yield found


def list_layers(model: nn.Module, image_shape: tuple[int, ...]) -> list[Layer]:
    """The layers of `model` in the order of their calls; a nested one has its path as its name."""
    outputs: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}

    def init(key: jax.Array) -> Any:
        with record_outputs() as found:
            variables = model.init(key, np.zeros((1, *image_shape), np.float32))
        outputs.update({path: (kind, output.shape[1:]) for path, (kind, output) in found.items()})
        return variables

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        variables = jax.eval_shape(init, key)
    except ZeroDivisionError:  # What an initialiser makes of a dense layer without inputs.
        raise _does_not_fit(image_shape, 'nothing is left of them before the dense layers') from None
    except (ValueError, TypeError) as error:
        raise _does_not_fit(image_shape, str(error).splitlines()[0]) from None
    for path, (_, shape) in outputs.items():
        if 0 in shape:
            raise _does_not_fit(image_shape, f'nothing is left of them after {"/".join(path)}')
    found = [_layer(variables, path, kind, shape) for path, (kind, shape) in outputs.items()]
    # A module that only holds others is no layer: its children are.
    inner = {path[:-1] for path in outputs if path}
    return [layer for layer, path in zip(found, outputs, strict=True) if layer.trainable or path not in inner]


def _does_not_fit(image_shape: tuple[int, ...], reason: str) -> UserError:
    return UserError(
        f'the model does not fit images of {image_shape}: {reason}; take smaller kernels or pools, or fewer'
    )


def _layer(variables: Any, path: tuple[str, ...], kind: str, shape: tuple[int, ...]) -> Layer:
    parameters = _own(variables['params'], path)
    kernel = math.prod(parameters['kernel'].shape) if 'kernel' in parameters else 0
    return Layer(
        name='/'.join(path) or kind,
        kind=kind,
        output_shape=shape,
        trainable=_count(parameters),
        non_trainable=_count(_own(variables.get('batch_stats', {}), path)),
        # Each of the places of a convolution's output (a dense layer has one) takes the whole kernel once.
        multiply_adds=kernel * math.prod(shape[:-1]),
    )


def _own(tree: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of the module at `path` itself, without those of the modules in it."""
    for name in path:
        tree = tree.get(name, {})
    return {name: leaf for name, leaf in tree.items() if not isinstance(leaf, Mapping)}


def _count(arrays: Mapping[str, Any]) -> int:
    return sum(math.prod(array.shape) for array in arrays.values())


def table_row(layer: Layer) -> tuple[str, ...]:
    """A layer in the columns of `HEAD`."""
    total = layer.trainable + layer.non_trainable
    numbers = (f'{number:,}' for number in (total, layer.trainable, layer.multiply_adds))
    return (layer.name, layer.kind, _shape(layer.output_shape), *numbers)


def format_table(model: nn.Module, image_shape: tuple[int, ...]) -> str:
    """The layer table as text: layer, kind, output shape, parameters, and their totals."""
    found = list_layers(model, image_shape)
    rows = [HEADER, ('input', '', _shape(image_shape), '0', '0', '0'), *map(table_row, found)]
    trainable = sum(layer.trainable for layer in found)
    non_trainable = sum(layer.non_trainable for layer in found)
    lines = text_tables.titled(rows, left=3)
    lines.append(lines[1])
    lines.append(
        f'parameters: {trainable + non_trainable:,} (trainable {trainable:,}, not trainable {non_trainable:,}); '
        f'multiply-adds an example: {sum(layer.multiply_adds for layer in found):,}'
    )
    return '\n'.join(lines)


def _shape(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
