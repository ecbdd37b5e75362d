"""What a run is at a step, with the digests of that."""

import hashlib
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from mnist_jax.learning.callbacks import CallbackStates
from mnist_jax.learning.step import TrainState


def params_sha256(state: TrainState) -> str:
    """The digest of parameters and batch statistics, leaf by leaf in sorted order of their paths."""
    return _sha256((state.params, state.batch_stats)).hexdigest()


def _sha256(tree: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = hashlib.sha256()
    for _, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
        found.update(leaf.tobytes())
    return found


@flax.struct.dataclass
class EpochProgress:
    """The epoch that is under way."""

    number: int = 0  # of epochs that are complete
    loss: float = 0.0  # sums over the examples of its steps so far
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0  # that these steps took
    skipped: int = 0  # steps of the whole run whose update was not finite


class Snapshot(NamedTuple):
    """What a checkpoint holds: all that the run needs to go on as if it had not stopped."""

    state: TrainState
    callbacks: CallbackStates
    epoch: EpochProgress

    @property
    def sha256(self) -> bytes:
        """The digest of everything in it."""
        return _sha256(self).digest()

    def with_digest(self, digest: bytes) -> dict[str, Any]:
        """What Orbax saves: this and its digest."""
        return {'snapshot': self, 'sha256': np.frombuffer(digest, np.uint8)}
