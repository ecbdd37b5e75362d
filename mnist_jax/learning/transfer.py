"""Starting from the variables of another run: what is taken from it, and what is frozen or trained at another rate.

Patterns name parameters and batch statistics by their paths, such as 'Conv_0/kernel'; '*' stands for any characters. A
pattern that matches the path of a module, such as 'Conv_*' or 'ResidualBlock_0', stands for everything in it.
"""

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mnist_jax.errors import UserError, comma_separated
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning.optimizers import Optimizer
from mnist_jax.models.layer_table import Layer, format_shape


class Transfer(NamedTuple):
    """The outcome for one array of a new run that starts from another one."""

    path: str
    shape: tuple[int, ...]
    taken: bool
    reason: str  # why it was not taken; '' if it was


def transfer_row(transfer: Transfer) -> list[str]:
    """Returns the path, the shape and the start of an array as cells of a table."""
    return [transfer.path, format_shape(transfer.shape), 'taken' if transfer.taken else f'new ({transfer.reason})']


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether one of `patterns` matches a path, or the path of a module above it."""
    parts = path.split('/')
    prefixes = ['/'.join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(prefix, pattern) for pattern in patterns for prefix in prefixes)


def take_variables(new: PyTree, origin: PyTree, skip: Sequence[str] = ()) -> tuple[PyTree, list[Transfer]]:
    """Returns `new` with the arrays of `origin` whose path and shape fit, and the outcome for each array.

    Args:
      new: The `state.Variables` of the new run.
      origin: Those of the run that it starts from.
      skip: Patterns of arrays that are not taken.

    Raises:
      UserError: no parameter fits.
    """
    available = leaves_by_path(origin)
    transfers: list[Transfer] = []
    leaves: list[PyTree] = []
    for path, leaf in leaves_by_path(new).items():
        name = path.partition('/')[2]  # without params/ or batch_stats/
        found = available.get(path)
        if matches(name, skip):
            transfers.append(Transfer(name, leaf.shape, False, 'config.init.skip'))
            leaves.append(leaf)
        elif found is not None and found.shape == leaf.shape:
            transfers.append(Transfer(name, leaf.shape, True, ''))
            leaves.append(jnp.asarray(found, leaf.dtype))
        else:
            reason = 'not in the origin' if found is None else f'{format_shape(found.shape)} in the origin'
            transfers.append(Transfer(name, leaf.shape, False, reason))
            leaves.append(leaf)
    if not any(transfer.taken for transfer in transfers):
        raise UserError(
            'config.init.workdir must be a run with parameters that fit this model, got one with '
            f'{comma_separated([path.partition("/")[2] for path in available][:8])}'
        )
    return jax.tree.unflatten(jax.tree.structure(new), leaves), transfers


def check_patterns(field: str, patterns: Sequence[str], variables: PyTree) -> None:
    """Raises a UserError that names the patterns `field` if one of them matches nothing in `variables`."""
    paths = [path.partition('/')[2] for path in leaves_by_path(variables)]
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            raise UserError(
                f'{field} must match paths of the model, such as {comma_separated(paths[:6])}, got {pattern!r}'
            )


def layer_rates(layers: Sequence[Layer], decay: float) -> list[tuple[str, float]]:
    """Returns factors of the learning rate for `with_rates` that fall by `decay` from each layer to the one below it.

    The last layer has the factor 1. A layer without a kernel, such as a normalization, has that of the layer before it.
    Parameters outside all layers, such as a position embedding, have that of the first layer.

    Args:
      layers: The layers of the model, from its input to its output.
      decay: The factor; 1 for the same learning rate in all layers.
    """
    if decay == 1:
        return []
    factor, rates = 1.0, []
    for layer in reversed(layers):
        if layer.trainable:
            rates.append((layer.name, factor))
            if layer.multiply_adds:
                factor *= decay
    return [('*', rates[-1][1]), *rates] if rates else []


def with_rates(optimizer: Optimizer, frozen: Sequence[str], rates: Sequence[tuple[str, float]]) -> Optimizer:
    """Returns `optimizer`, except that some parameters have another learning rate, or never change.

    The updates of all optimizers of this package are proportional to the learning rate, weight decay included, so a
    factor of the update is a factor of the learning rate.

    Args:
      optimizer: The optimizer of the run.
      frozen: Patterns of parameters that stay bit-identical.
      rates: Patterns, and the factors of the learning rates of what they match; the last one that matches counts.
    """
    if not frozen and not rates:
        return optimizer

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        factor = rate_factor(path_name(path), frozen, rates)
        return update * factor if factor else jnp.zeros_like(update)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(updates, state, params, **extra)
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def rate_factor(name: str, frozen: Sequence[str], rates: Sequence[tuple[str, float]]) -> float:
    """Returns the factor of the learning rate of the parameter with the path `name`; see `with_rates`."""
    if matches(name, frozen):
        return 0.0
    return next((factor for pattern, factor in reversed(rates) if matches(name, [pattern])), 1.0)


def keep_frozen(frozen: Sequence[str], new: PyTree, old: PyTree) -> PyTree:
    """Returns `new` with the leaves of `old` in place of those that the patterns `frozen` match."""
    if not frozen:
        return new
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, old_leaf: old_leaf if matches(path_name(path), frozen) else leaf, new, old
    )


def leaves_by_path(tree: PyTree) -> dict[str, PyTree]:
    """Returns the leaves by paths such as 'params/Dense_0/kernel', the same for dicts and for dataclasses."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_name(path: tuple) -> str:
    """Returns a path of JAX as text, such as 'Dense_0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')
