"""The complete state of a run at a step, its digests, and how a version reads the snapshots of another."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from mnist_jax.errors import UserError
from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning.callbacks import CallbackStates
from mnist_jax.learning.state import TrainState, Variables
from mnist_jax.learning.transfer import leaves_by_path

INFERENCE_LEAVES = ('state/params/', 'state/batch_stats/', 'state/average/')
"""The paths of what inference needs."""
OPTIMIZER_LEAVES = 'state/opt_state/'


def params_sha256(variables: Variables) -> str:
    """Returns the SHA-256 of the parameters and batch statistics, leaf by leaf in sorted order of their paths."""
    return tree_sha256((variables.params, variables.batch_stats)).hex()


def count_parameters(variables: Variables) -> int:
    """Returns the number of parameters and batch statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def tree_sha256(tree: PyTree) -> bytes:
    """Returns the SHA-256 of all leaves in sorted order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for _, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
        digest.update(leaf.tobytes())
    return digest.digest()


@flax.struct.dataclass
class EpochProgress:
    """The progress within the current epoch."""

    number: int = 0  # completed epochs
    loss: float = 0.0  # sums over the examples of the epoch's steps so far
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0  # duration of these steps
    skipped: int = 0  # steps of the whole run whose update was not finite


class Snapshot(NamedTuple):
    """The contents of a checkpoint: everything a run needs to resume as if it had never stopped."""

    state: TrainState
    callbacks: CallbackStates
    epoch: EpochProgress

    @property
    def sha256(self) -> bytes:
        """The digest of all leaves."""
        return tree_sha256(self)

    def with_digest(self, digest: bytes) -> dict[str, PyTree]:
        """Returns the tree that Orbax saves: the snapshot and its digest."""
        return {'snapshot': self, 'sha256': np.frombuffer(digest, np.uint8)}


class SavedSnapshot:
    """A snapshot as Orbax restores it without knowing its structure, from any version of this program."""

    def __init__(self, tree: PyTree):
        """`tree` consists of nested dicts and lists."""
        self._tree, self._leaves = tree, leaves_by_path(tree)

    def matches(self, digest: bytes, abstract: Snapshot) -> bool:
        """Returns whether `digest` is that of the leaves, in the order of their paths here or in `abstract`."""
        if digest == tree_sha256(self._tree):
            return True
        expected = leaves_by_path(abstract)
        if expected.keys() != self._leaves.keys():
            return False
        leaves = [self._leaves[path] for path in expected]
        return digest == jax.tree.unflatten(jax.tree.structure(abstract), leaves).sha256

    def for_inference(self, abstract: Snapshot) -> Snapshot:
        """Returns the snapshot with the parameters and the batch statistics that `abstract` describes.

        Other leaves of the state are zeros if they are missing or different, because inference does not read them.

        Raises:
          UserError: the parameters or the batch statistics are not those that `abstract` describes.
        """
        return self._assemble(abstract, jax.tree.map(_zeros, abstract), INFERENCE_LEAVES)

    def for_resuming(self, abstract: Snapshot, make_first: Callable[[], Snapshot]) -> tuple[Snapshot, list[str]]:
        """Returns the complete snapshot.

        Args:
          abstract: The structure, shapes and dtypes of the snapshot.
          make_first: Returns the snapshot before the first step.

        Returns:
          The snapshot, and the paths of the leaves that were not saved, because the version that saved them did not
          have them yet. They have their values before the first step.

        Raises:
          UserError: a leaf has another shape or dtype, a parameter, batch statistic or part of the optimizer's state is
            missing, or this version does not have one of the leaves.
        """
        missing = [path for path in leaves_by_path(abstract) if path not in self._leaves]
        initial = make_first() if missing else abstract
        return self._assemble(abstract, initial, (*INFERENCE_LEAVES, OPTIMIZER_LEAVES), strict=True), missing

    def _assemble(
        self, abstract: Snapshot, initial: Snapshot, required: tuple[str, ...], strict: bool = False
    ) -> Snapshot:
        """Returns the snapshot, with the leaves of `initial` in place of those that are missing or different.

        Args:
          abstract: The structure, shapes and dtypes of the snapshot.
          initial: A snapshot of this structure.
          required: The prefixes of the paths that must match `abstract`; no other path may have one of them.
          strict: Whether every saved leaf must match `abstract`.
        """
        expected = leaves_by_path(abstract)
        for path in [path for path in self._leaves if path not in expected]:
            if strict or path.startswith(required):
                raise UserError(f'it has {path}, which this version and config do not have')
        leaves = []
        for (path, leaf), default in zip(expected.items(), jax.tree.leaves(initial), strict=True):
            saved = self._leaves.get(path)
            if saved is None and path.startswith(required):
                raise UserError(f'it has no {path}')
            if saved is not None and _describe(saved) != _describe(leaf):
                if strict or path.startswith(required):
                    raise UserError(f'{path} must be {_describe(leaf)}, got {_describe(saved)}')
                saved = None
            leaves.append(default if saved is None else saved)
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _describe(leaf: PyTree) -> str:
    """Returns the shape and dtype of an array, or the type of a number."""
    return f'{leaf.dtype}{list(leaf.shape)}' if hasattr(leaf, 'dtype') else type(leaf).__name__


def _zeros(leaf: PyTree) -> PyTree:
    return np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, 'dtype') else leaf
