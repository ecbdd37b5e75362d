"""Devices: how many, and how a step runs on all of them. No other room knows of devices or axes."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_jax import files
from mnist_jax.distributed import processes
from mnist_jax.errors import UserError
from mnist_jax.kernels.build import loaded, set_threads
from mnist_jax.kernels.sums import tree_sum

AXIS = 'devices'
XLA_THREADS = 16  # of XLA on several devices of the CPU, enough for 8
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def start_backend(devices: int, dtype: str = 'float32') -> 'Replicas':
    """Start the JAX backend with the devices that the run shall use. From here on, process 0 speaks for all.

    Args:
      devices: how many of each process; 0 for all of an accelerator's, or one on the CPU, which uses all cores.
      dtype: in which the model computes.
    """
    cores = processes.available_cores()
    _configure_cpu(min(max(1, devices), max(8, cores)), cores, dtype == 'float32' and loaded())
    _cache_compilations()
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    by_process = [jax.local_devices(process_index=process) for process in range(jax.process_count())]
    available = min(map(len, by_process))
    if devices > available:
        kind = 'virtual devices on the CPU' if jax.default_backend() == 'cpu' else jax.default_backend()
        raise UserError(f'devices={devices} is more than there are: 1 to {available} ({kind}), or 0 for automatic')
    count = devices or (1 if jax.default_backend() == 'cpu' else available)
    return Replicas([device for local in by_process for device in local[:count]])


def _configure_cpu(devices: int, cores: int, kernels: bool) -> None:
    # Every virtual device blocks a thread while it waits for the others: with fewer than two threads a device,
    # collectives deadlock. XLA splits some of its matrix products by the number of its threads, and then takes the sums
    # in another order: where products are XLA's and not the kernels', the number is a constant. One device with the
    # kernels is up to a third faster with no more threads than cores. The variable is read when the backend starts.
    threads = max(2, cores) if devices == 1 and kernels else max(XLA_THREADS, 2 * devices)
    os.environ.setdefault('PJRT_NPROC', str(threads))
    set_threads(max(1, cores // devices))
    _keep_freed_memory()
    # Where the backend runs already, as in a notebook or a test, what it has is what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update('jax_num_cpu_devices', devices)


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one: the system would clear each page of it anew."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        # Large blocks come from the heap too, and only the first arena's may grow to any size.
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def _cache_compilations() -> None:
    """Keep compiled programs in the user's cache directory, unless JAX is told of another place."""
    directory = files.cache_directory()
    if jax.config.jax_compilation_cache_dir is None and directory is not None:  # Compiling anew is only slower.
        jax.config.update('jax_compilation_cache_dir', str(directory))


class Replicas:
    """The devices of a run, in all its processes, each with a whole copy of the state and a share of every batch."""

    def __init__(self, devices: list[jax.Device]):
        """`devices` are equally many of each process, process by process."""
        self.devices = devices
        self.local = [device for device in devices if device.process_index == jax.process_index()]

    def __len__(self) -> int:
        return len(self.devices)

    def __str__(self) -> str:
        kind = 'CPU, virtual' if self.on_cpu else self.devices[0].device_kind
        processes = len(self) // len(self.local)
        return f'{len(self)} ({kind})' + (f', {len(self.local)} in each of {processes} processes' * (processes > 1))

    @property
    def on_cpu(self) -> bool:
        """Whether these are virtual devices."""
        return self.devices[0].platform == 'cpu'

    def all_sum(self, tree: Any) -> Any:
        """The sum of `tree` over the devices, in one collective and always in the same order (`tree_sum`)."""
        if len(self) == 1:
            return tree
        vector, unravel = ravel_pytree(tree)
        gathered = jax.lax.all_gather(vector, AXIS)
        return unravel(tree_sum([gathered[device] for device in range(len(self))]))

    def compile(self, step: Callable, donate: bool = False, by_example: bool = False, **given: np.ndarray) -> Callable:
        """`step(state, batch, all_sum=...)` on all devices, with a replicated state and a sharded batch.

        Its results are replicated. Where the second one is `by_example`, the devices' rows of it are brought together
        in the order of the global batch. With `donate` it gives up the state that it is given. `given` are further
        arguments of the step whose values are no part of the compiled program.
        """

        def run(state: Any, batch: Any, *values: jax.Array) -> Any:
            first, second = step(state, batch, all_sum=self.all_sum, **dict(zip(given, values, strict=True)))
            if by_example and len(self) > 1:
                second = jax.lax.all_gather(second, AXIS, tiled=True)
            return first, second

        compiled = jax.pmap(
            run,
            axis_name=AXIS,
            in_axes=(None, 0, *(None for _ in given)),
            out_axes=None,
            devices=self.devices,
            donate_argnums=(0,) if donate else (),
        )
        return lambda state, batch: compiled(state, batch, *given.values())

    def replicate(self, tree: Any) -> Any:
        """The tree on every device, as a compiled step returns it and expects it: other input is compiled for anew."""
        return jax.device_put(tree, NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec()))

    def local_rows(self, batch_size: int) -> slice:
        """The rows of a global batch of this (padded) size that this process loads, for its devices."""
        rows, first = batch_size // len(self), self.devices.index(self.local[0])
        return slice(rows * first, rows * (first + len(self.local)))

    def shard(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's share of a batch with a leading axis of its devices: the first device takes the first rows."""
        return {name: column.reshape(len(self.local), -1, *column.shape[1:]) for name, column in rows.items()}


def batch_layout(batch_size: int, chunks: int, devices: int) -> tuple[int, int]:
    """(chunk size, padded batch size): how a global batch of `batch_size` examples is cut.

    Into `chunks` chunks, or as many more as give each device equally many.
    """
    chunk_size = -(-batch_size // chunks)
    return chunk_size, chunk_size * -(-chunks // devices) * devices


def preserves_bits(chunks: int, devices: int) -> bool:
    """Whether so many devices add up `chunks` chunks in the order of one device.

    They do where the chunks of a device, 1, 2, 4 or more, are a subtree of `tree_sum`; empty ones add nothing.
    """
    each = -(-chunks // devices)
    return devices == 1 or each & (each - 1) == 0


def to_host(tree: Any) -> Any:
    """The tree with its leaves as NumPy arrays in host memory."""
    return jax.tree.map(np.asarray, tree)
