"""Saves the snapshots of a run as Orbax checkpoints in the background, and survives failing disks."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mnist_jax import files
from mnist_jax.distributed import processes
from mnist_jax.errors import WriteError, first_line
from mnist_jax.workdir.snapshot import Snapshot

OVERHEAD_BYTES = 8192  # upper bound on what Orbax writes for an array in addition to its bytes
KEEP_LATEST = 2  # latest checkpoints to keep, so that there is one to fall back to


class CheckpointWriter:
    """Saves snapshots under their step numbers; keeps the latest ones and the best one.

    A checkpoint that cannot be written, on a full disk for example, is logged and the run continues; the next save
    tries again. As a context manager, it waits for the last save, and retries it once if it failed. The best snapshot
    is written again if its checkpoint is missing, and no later one is written before: each checkpoint names the best
    one, which must exist.

    Attributes:
      best: The best snapshot, of host arrays, if it is one of those that were passed to `save`; otherwise None.
    """

    def __init__(self, directory: Path, prepare: Callable[[], None]):
        """Opens the writer.

        Args:
          directory: The directory of the checkpoints.
          prepare: Called before each save; raises an OSError if nothing can be saved.
        """
        self._directory = directory
        self._prepare = prepare
        self.best: Snapshot | None = None
        self._best_step = -1
        self._saving: tuple[Snapshot, ocp.AsyncResponse[bool]] | None = None
        self._unsaved: Snapshot | None = None  # the last snapshot, if it could not be written
        self._orbax: ocp.training.Checkpointer | None = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self,
            cleanup_tmp_directories=True,
        )

    def save(self, snapshot: Snapshot) -> None:
        """Starts to save the snapshot in the background, atomically; waits for the previous save first."""
        self._finish()
        self._best_step = snapshot.callbacks.early_stopping.best_step
        # Host arrays make the checkpoint independent of the devices.
        host = snapshot._replace(state=jax.tree.map(np.array, snapshot.state))
        if host.state.step == self._best_step:
            self.best = host
        elif self.best is not None and self.best.state.step == self._best_step and self._is_missing(self.best):
            self._discard()  # It would still list the checkpoint.
            self._start(self.best)
            self._finish()
            if self._is_missing(self.best):
                self._unsaved = host
                return
        self._start(host)

    def _is_missing(self, snapshot: Snapshot) -> bool:
        """Returns whether a process does not see the checkpoint of a snapshot; the same in all processes."""
        return processes.any_process(not (self._directory / str(snapshot.state.step)).is_dir())

    def _start(self, host: Snapshot) -> None:
        """Starts to save a snapshot of host arrays."""
        step = int(host.state.step)
        tree = host.with_digest(host.sha256)
        if not self._has_space(host, sum(np.asarray(leaf).nbytes + OVERHEAD_BYTES for leaf in jax.tree.leaves(tree))):
            return
        try:
            self._orbax = self._orbax or self._open()  # Opening it deletes what a failed save left behind.
            exists = any(checkpoint.step == step for checkpoint in self._orbax.checkpoints)
            # Without `force`, Orbax would not write the best checkpoint again after a later one.
            self._saving = host, self._orbax.save_async(step, tree, force=True, overwrite=exists)
        except Exception as error:
            self._handle_failure(host, error)

    def _has_space(self, host: Snapshot, size: int) -> bool:
        """Returns whether `size` bytes can be written in every process; Orbax itself takes seconds to fail."""
        problem = None
        try:
            self._prepare()
            files.reserve(self._directory, size)
        except OSError as error:
            problem = error
        if processes.any_process(problem is not None):
            self._record_failure(host, problem)
            return False
        return True

    def _finish(self) -> None:
        """Waits for the save in progress."""
        if self._saving is not None:
            (host, response), self._saving = self._saving, None
            try:
                response.result()
                self._unsaved = None
            except Exception as error:
                self._handle_failure(host, error)

    def _handle_failure(self, host: Snapshot, error: Exception) -> None:
        """Discards the Checkpointer, which may keep failing after a disk failure; the next save opens a new one."""
        if processes.is_distributed():  # The processes are out of sync.
            raise error
        self._discard()
        self._record_failure(host, error)

    def _discard(self) -> None:
        self._close()
        self._orbax = None

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # The failure has been logged already.
            if self._orbax is not None:
                self._orbax.close()

    def _record_failure(self, host: Snapshot, error: Exception | None) -> None:
        self._unsaved = host
        logging.error('The checkpoint of step %d cannot be written: %s', host.state.step, _describe(error))

    def should_preserve(
        self,
        checkpoints: Sequence[ocp.training.CheckpointMetadata],
        *,
        context: ocp.training.preservation_policies.PreservationContext,
    ) -> Sequence[bool]:
        """Returns for each checkpoint whether Orbax keeps it; see its `PreservationPolicy`."""
        latest = sorted(checkpoint.step for checkpoint in checkpoints)[-KEEP_LATEST:]
        return [checkpoint.step in (*latest, self._best_step) for checkpoint in checkpoints]

    def __enter__(self) -> 'CheckpointWriter':
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        try:
            self._finish()
            if self._unsaved is not None:
                self.save(self._unsaved)
                self._finish()
                if exc_type is not None:
                    self.check()
        finally:
            self._close()

    def check(self) -> None:
        """Raises a WriteError if the last snapshot could not be written, not even by the retry."""
        if self._unsaved is not None:
            raise WriteError(
                f'the last checkpoint, at step {self._unsaved.state.step}, could not be written to '
                f'{str(self._directory)!r}; once the disk is writable, run the same command again to resume from the '
                'previous checkpoint'
            )


def _describe(error: Exception | None) -> str:
    """Returns the cause of a failed save in a few words."""
    if error is None:
        return 'it failed in another process'
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore hides it in a long message.
    if code:
        return os.strerror(int(code[1]))
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
