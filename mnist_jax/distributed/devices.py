"""The devices of a run: how many there are, and how a step runs on all of them.

This is the only module that knows about devices and mesh axes.
"""

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_jax import files
from mnist_jax.distributed import processes
from mnist_jax.distributed.stored_programs import stored
from mnist_jax.errors import UserError
from mnist_jax.kernels.build import kernels_available, set_threads
from mnist_jax.kernels.square_root import use_exact_square_roots
from mnist_jax.kernels.sums import PyTree, tree_sum

AXIS = 'devices'
# XLA merges equal operations earlier in programs for several devices than in those for one, and it optimizes an
# operation depending on how often its operands are used. It also removes optimization barriers before it fuses
# operations; then a product in a chunk's gradient and the sum over chunks become one instruction, which rounds once.
DISABLED_PASSES = ('cse', 'cse_barrier_expander')
GPU_FLAG = 'xla_gpu_deterministic_ops'
CACHED_SECONDS = 0.2  # Programs that take longer to compile are cached.
OWN_THREADS = 'MNIST_JAX_NPROC'  # the PJRT_NPROC that this module has set, here or in the process that started this one
XLA_THREADS = 16  # XLA's threads for several CPU devices; enough for 8 devices
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


def start_backend(
    devices: int,
    xla_products: bool = False,
    own_model: bool = False,
    deterministic: bool = True,
    fewer_devices: bool = False,
) -> 'Replicas':
    """Starts the JAX backend with the devices that the run should use. Afterwards, only process 0 logs.

    Args:
      devices: The number of devices per process; 0 for all accelerators, or one CPU device that uses every core.
      xla_products: Whether XLA computes matrix products of the model, also on a CPU that has the kernels.
      own_model: Whether the model is not one of this package.
      deterministic: Whether accelerators compute float32 products in full precision, with deterministic kernels.
      fewer_devices: Whether to use all available devices if there are fewer than `devices`.

    Raises:
      UserError: fewer devices are available, and `fewer_devices` is False.
    """
    cores = processes.available_cores()
    _configure_cpu(min(max(1, devices), max(8, cores)), cores, kernels_available() and not xla_products)
    use_exact_square_roots()
    if own_model:
        _disable_passes()
    deterministic_kernels = deterministic and _select_deterministic_kernels()
    _cache_compilations()
    try:
        by_process = [jax.local_devices(process_index=process) for process in range(jax.process_count())]
    except RuntimeError:  # An unknown host name is a possible cause.
        processes.check_host_name()
        raise
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    available = min(map(len, by_process))
    if devices > available:
        if not fewer_devices:
            kind = 'virtual devices on the CPU' if jax.default_backend() == 'cpu' else jax.default_backend()
            raise UserError(f'config.devices must be from 1 to {available} ({kind}), or 0 for automatic, got {devices}')
        logging.info('devices   %d instead of config.devices=%d', available, devices)
        devices = available
    if jax.default_backend() == 'cpu':
        processes.check_host_name()
        processes.check_connections()
    else:
        # By default, GPUs compute float32 products in TF32, with 10 of 23 bits of the mantissa, and TPUs in bfloat16.
        jax.config.update('jax_default_matmul_precision', 'highest' if deterministic else None)
    count = devices or (1 if jax.default_backend() == 'cpu' else available)
    return Replicas([device for local in by_process for device in local[:count]], deterministic_kernels)


def _configure_cpu(devices: int, cores: int, kernels: bool) -> None:
    # Every virtual device blocks a thread while it waits for the others, so collectives deadlock with fewer than two
    # threads per device. XLA splits some of its matrix products by the number of its threads, which changes the order
    # of their sums. So if XLA, not the kernels, computes the products, the number of threads is constant. With the
    # kernels, one device is up to a third faster with no more threads than cores. The backend reads PJRT_NPROC when it
    # starts.
    threads = str(max(2, cores) if devices == 1 and kernels else max(XLA_THREADS, 2 * devices))
    set_before = os.environ.get('PJRT_NPROC')
    is_own = set_before == os.environ.get(OWN_THREADS)  # else, the user has chosen the number
    if set_before is None or (is_own and not _is_started()):
        os.environ['PJRT_NPROC'] = os.environ[OWN_THREADS] = threads
    elif is_own and set_before != threads and not kernels:
        logging.warning(
            'JAX already runs with %s threads instead of %s, so XLA may round its products differently than in other '
            'runs. To prevent this, set the environment variable PJRT_NPROC=%s when Python starts',
            set_before,
            threads,
            threads,
        )
    set_threads(max(1, cores // devices))
    _keep_freed_memory()
    # If the backend is already running, as in a notebook or a test, its devices are used as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update('jax_num_cpu_devices', devices)


def _disable_passes() -> None:
    """Disables the passes of XLA that round the results of a model differently on one device than on several.

    The models of this package need more time without these passes, and have the same bits with them.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if 'xla_disable_hlo_passes' in flags or accelerators_possible():
        return
    os.environ['XLA_FLAGS'] = f'{flags} --xla_disable_hlo_passes={",".join(DISABLED_PASSES)}'.strip()
    if _is_started():
        logging.warning(
            'JAX was in use before the model was built, so XLA may round its results differently than in other runs. '
            'To prevent this, set the environment variable XLA_FLAGS="%s" when Python starts',
            os.environ['XLA_FLAGS'],
        )


def accelerators_possible() -> bool:
    """Returns whether JAX may use an accelerator, as far as is known before the backend starts."""
    installed = any(importlib.util.find_spec(name) is not None for name in ('jax_plugins', 'libtpu'))
    return installed and jax.config.values['jax_platforms'] != 'cpu'


def _is_started() -> bool:
    """Returns whether the backend is running: JAX refuses to change the number of CPU devices from then on."""
    count = jax.config.values['jax_num_cpu_devices']
    try:
        jax.config.update('jax_num_cpu_devices', count + 1)
    except RuntimeError:
        return True
    jax.config.update('jax_num_cpu_devices', count)
    return False


def _select_deterministic_kernels() -> bool:
    """Makes XLA select deterministic GPU kernels, and not by their measured time, which differs between two starts.

    Returns whether XLA does so: it reads its settings when it starts, and those of the user take precedence.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if not accelerators_possible():  # The flag would only invalidate the cache of compiled programs.
        return True
    if GPU_FLAG not in flags and not _is_started():
        os.environ['XLA_FLAGS'] = f'{flags} --{GPU_FLAG}=true'.strip()
    deterministic = f'--{GPU_FLAG}=true' in os.environ.get('XLA_FLAGS', '')
    if not deterministic:
        logging.warning(
            'The results may not be reproducible: the environment variable XLA_FLAGS must contain --%s=true when '
            'Python starts, got %r',
            GPU_FLAG,
            flags,
        )
    return deterministic


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees for the next step; the system would have to zero new pages."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        # Allocate large blocks from the heap too, from a single arena: only the first arena can grow without limit.
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def _cache_compilations() -> None:
    """Caches compiled programs in the user's cache directory, unless JAX is configured to use another one."""
    directory = files.cache_directory()
    # Without a cache, runs only start more slowly.
    if jax.config.values['jax_compilation_cache_dir'] is None and directory is not None:
        jax.config.update('jax_compilation_cache_dir', str(directory))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', CACHED_SECONDS)


class Replicas:
    """The devices of a run, in all its processes. Each has a full copy of the state and a share of every batch."""

    def __init__(self, devices: list[jax.Device], deterministic: bool = True):
        """Creates the replicas.

        Args:
          devices: The devices in the order of the processes, with the same number from each process.
          deterministic: Whether they compute products in full precision, with deterministic kernels.
        """
        self.devices = devices
        self.deterministic = deterministic or self.on_cpu
        self.local = [device for device in devices if device.process_index == jax.process_index()]

    def __len__(self) -> int:
        return len(self.devices)

    def __str__(self) -> str:
        kind = 'CPU, virtual' if self.on_cpu else self.devices[0].device_kind
        num_processes = len(self) // len(self.local)
        by_process = f', {len(self.local)} in each of {num_processes} processes' if num_processes > 1 else ''
        return f'{len(self)} ({kind}){by_process}'

    @property
    def on_cpu(self) -> bool:
        """Whether these are virtual devices on the CPU."""
        return self.devices[0].platform == 'cpu'

    @property
    def memory(self) -> int:
        """The least memory of an accelerator in bytes; 0 for CPUs, or if it is unknown."""
        if self.on_cpu:
            return 0
        limits = [(device.memory_stats() or {}).get('bytes_limit', 0) for device in self.local]
        # All processes must decide alike. JAX's integers have 32 bits.
        return int(multihost_utils.process_allgather(np.int32(min(limits) >> 20)).min()) << 20

    def all_sum(self, tree: PyTree) -> PyTree:
        """Returns the sum of `tree` over the devices: one collective, always added in the same order (`tree_sum`)."""
        if len(self) == 1:
            return tree
        vector, unravel = ravel_pytree(tree)
        gathered = jax.lax.all_gather(vector, AXIS)
        return unravel(tree_sum([gathered[device] for device in range(len(self))]))

    def all_rows(self, array: jax.Array) -> jax.Array:
        """Returns the rows of `array` from all devices, concatenated in the order of the global batch."""
        return array if len(self) == 1 else jax.lax.all_gather(array, AXIS, tiled=True)

    def compile(self, step: Callable, constants: int = 0, donate: bool = False, key: str | None = None) -> Callable:
        """Compiles `step(state, batch, *constants)` for all devices.

        The state and the constants are replicated, the batch is sharded, and the results are replicated.

        Args:
          step: The function that runs on each device; it may call `all_sum` and `all_rows`.
          constants: The number of arguments of `step` after the batch.
          donate: Whether the new state reuses the memory of the state passed in.
          key: Identifies `step` among stored programs; see `stored_programs.stored`.
        """
        compiled = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0, *(None,) * constants),
            out_axes=None,
            devices=self.devices,
            donate_argnums=(0,) if donate else (),
        )
        return stored(compiled, key, self.devices)

    def replicate(self, tree: PyTree) -> PyTree:
        """Returns `tree` on every device, in the layout of compiled steps; any other layout would recompile."""
        return jax.device_put(tree, NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec()))

    def local_rows(self, batch_size: int) -> slice:
        """Returns the rows of a global batch of `batch_size` (padded) rows that this process loads for its devices."""
        rows, first = batch_size // len(self), self.devices.index(self.local[0])
        return slice(rows * first, rows * (first + len(self.local)))

    def shard(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Splits this process's rows of a batch over its devices, in order, along a new leading axis."""
        return {name: column.reshape(len(self.local), -1, *column.shape[1:]) for name, column in rows.items()}


def batch_layout(batch_size: int, chunks: int, devices: int) -> tuple[int, int]:
    """Returns the chunk size, and the padded size of a global batch of `batch_size` examples.

    The batch is cut into `chunks` chunks, plus empty ones until every device has the same number of chunks.
    """
    chunk_size = -(-batch_size // chunks)
    return chunk_size, chunk_size * -(-chunks // devices) * devices


def preserves_bits(chunks: int, devices: int) -> bool:
    """Returns whether this many devices add up `chunks` chunks in the same order as one device.

    They do if each device has 1, 2, 4, 8, ... chunks, which then form a subtree of `tree_sum`. Empty chunks add
    nothing.
    """
    chunks_per_device = -(-chunks // devices)
    return devices == 1 or chunks_per_device & (chunks_per_device - 1) == 0


def to_host(tree: PyTree) -> PyTree:
    """Returns `tree` with its leaves as NumPy arrays in host memory."""
    if jax.default_backend() != 'cpu':  # On a CPU, nothing is copied, and the call takes longer than the rest.
        tree = jax.device_get(tree)  # starts all copies before it waits for the first
    return jax.tree.map(np.asarray, tree)
