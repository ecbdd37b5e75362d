"""How many batches a call of a compiled program takes, and where it finds the examples."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mnist_jax.config import ConfigDict
from mnist_jax.data.source import Source
from mnist_jax.distributed.devices import Replicas

# With config.steps_per_call=0, a call makes STEPS_PER_CALL updates on an accelerator, and on a CPU if a step has fewer
# than SHORT_STEP multiply-adds, because such steps are too short to dispatch one by one. If the examples are on the
# devices, a call makes all updates of an epoch, up to LONG_CALL multiply-adds: a few seconds.
STEPS_PER_CALL, SHORT_STEP, LONG_CALL = 32, 100e6, 1e13
# Batches per call when evaluating on an accelerator: dispatching a batch takes longer than computing it.
EVAL_STEPS_PER_CALL = 16
DEVICE_MEMORY_FRACTION = 0.25  # of a device's memory, for examples that are kept on it automatically

HostBatch = dict[str, np.ndarray]
"""A batch in host memory, with a leading axis of the devices of this process."""


def groups(remaining: Iterator[HostBatch], size: int) -> Iterator[list[HostBatch]]:
    """Yields the batches in groups of `size`; the last one may be smaller."""
    while group := list(itertools.islice(remaining, size)):
        yield group


def stack(group: Sequence[HostBatch]) -> HostBatch:
    """Returns the batches with a second axis of steps, after that of the devices."""
    return {name: np.stack([batch[name] for batch in group], axis=1) for name in group[0]}


def keeps_on_devices(source: Source, replicas: Replicas) -> bool:
    """Returns whether the examples are to be kept in the memory of the devices; see `config.dataset.on_device`."""
    if source.on_device != 'auto':
        return source.on_device == 'on'
    examples = sum(source.count(name) for name in source.split_names)
    return examples * math.prod(source.image_shape) < DEVICE_MEMORY_FRACTION * replicas.memory


def automatic_steps_per_call(config: ConfigDict, on_cpu: bool, on_device: bool, multiply_adds: int) -> int:
    """Returns the number of updates per call, given the multiply-adds of one update; see `STEPS_PER_CALL`."""
    if on_cpu:
        steps = STEPS_PER_CALL if multiply_adds < SHORT_STEP else 1
    else:
        steps = max(1, int(LONG_CALL / max(1, multiply_adds))) if on_device else STEPS_PER_CALL
    return min(steps, config.checkpoint_every_steps or steps)
