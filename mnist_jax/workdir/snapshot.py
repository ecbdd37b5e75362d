"""The complete state of a run at a step, and its digests."""

import hashlib
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from mnist_jax.kernels.sums import PyTree
from mnist_jax.learning.callbacks import CallbackStates
from mnist_jax.learning.step import TrainState, Variables


def params_sha256(variables: Variables) -> str:
    """Returns the SHA-256 of the parameters and batch statistics, leaf by leaf in sorted order of their paths."""
    return _sha256((variables.params, variables.batch_stats)).hex()


def _sha256(tree: PyTree) -> bytes:
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
        return _sha256(self)

    def with_digest(self, digest: bytes) -> dict[str, PyTree]:
        """Returns the tree that Orbax saves: the snapshot and its digest."""
        return {'snapshot': self, 'sha256': np.frombuffer(digest, np.uint8)}
