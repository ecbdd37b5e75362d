"""Saves the snapshots of a run as Orbax checkpoints, in the background and whatever the disk does."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mnist_jax import files
from mnist_jax.distributed import processes
from mnist_jax.errors import first_line
from mnist_jax.workdir.snapshot import Snapshot

OVERHEAD_BYTES = 8192  # bytes that Orbax needs at most beside each array
KEEP_LATEST = 2  # latest checkpoints, so that there is one to fall back to


class CheckpointWriter:
    """Saves snapshots under their steps; keeps the latest ones and the best.

    What cannot be written, on a full disk for example, is told, and the run goes on: the next save is another try.
    """

    def __init__(self, directory: Path, prepare: Callable[[], None]):
        """`prepare` is called before each save, and raises an OSError where it cannot be made."""
        self._directory = directory
        self._prepare = prepare
        self._best_step = -1
        self._saving: tuple[Snapshot, Any] | None = None
        self._unsaved: Snapshot | None = None  # what could not be written, where that was the last
        self._orbax: ocp.training.Checkpointer | None = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self,
            cleanup_tmp_directories=True,
        )

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save; it is written in the background, and whole or not at all."""
        self.finish()
        self._best_step = snapshot.callbacks.early_stopping.best_step
        host = snapshot._replace(state=jax.tree.map(np.array, snapshot.state))
        step = int(host.state.step)
        tree = host.with_digest(host.sha256)
        if not self._has_room(host, sum(np.asarray(leaf).nbytes + OVERHEAD_BYTES for leaf in jax.tree.leaves(tree))):
            return
        try:
            self._orbax = self._orbax or self._open()  # This removes what a failed one left.
            there = any(checkpoint.step == step for checkpoint in self._orbax.checkpoints)
            self._saving = host, self._orbax.save_async(step, tree, overwrite=there)
        except Exception as error:
            self._failed(host, error)

    def _has_room(self, host: Snapshot, size: int) -> bool:
        """Whether so many bytes can be written now, as all processes see it. Orbax would try, and fail, for seconds."""
        problem = None
        try:
            self._prepare()
            files.reserve(self._directory, size)
        except OSError as error:
            problem = error
        if processes.any_process(problem is not None):
            self._tell(host, problem)
            return False
        return True

    def finish(self) -> bool:
        """Wait for what is being saved; whether the last snapshot is."""
        if self._saving is not None:
            (host, response), self._saving = self._saving, None
            try:
                response.result()
                self._unsaved = None
            except Exception as error:
                self._failed(host, error)
        return self._unsaved is None

    def _failed(self, host: Snapshot, error: Exception) -> None:
        """Begin anew after Orbax, which raises what it likes for a disk that fails, and for ever after."""
        if processes.is_distributed():  # They are not at the same place any more.
            raise error
        self._close()
        self._orbax = None
        self._tell(host, error)

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # A failure that was told before.
            if self._orbax is not None:
                self._orbax.close()

    def _tell(self, host: Snapshot, error: Exception | None) -> None:
        self._unsaved = host
        logging.error('the checkpoint of step %d cannot be written: %s', host.state.step, _reason(error))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question: which of the checkpoints, in their order, are to be kept."""
        latest = [checkpoint.step for checkpoint in checkpoints[-KEEP_LATEST:]]
        return [checkpoint.step in (*latest, self._best_step) for checkpoint in checkpoints]

    def __enter__(self) -> 'CheckpointWriter':
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            if not self.finish():
                self.save(self._unsaved)
                if not self.finish() and kind is not None:
                    self.check()
        finally:
            self._close()

    def check(self) -> None:
        """Raise an OSError where the last snapshot could not be written in the end."""
        if self._unsaved is not None:
            raise OSError(
                f'the last checkpoint, of step {self._unsaved.state.step}, is not written to '
                f'{str(self._directory)!r}; where it can be, the same command goes on from the one before'
            )


def _reason(error: Exception | None) -> str:
    if error is None:
        return 'another process says so'
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, amid much else
    if code:
        return os.strerror(int(code[1]))
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
