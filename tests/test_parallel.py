"""The device count changes nothing of the result."""

import jax
import numpy as np
import pytest

from mnist_jax import checkpoint, parallel
from mnist_jax.errors import UserError
from mnist_jax.experiment import make_experiment


def train_some(config, steps=5):
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    losses = []
    for batch, _ in zip(experiment.train_batches(0), range(steps), strict=False):
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
    return checkpoint.params_sha256(state), losses


@pytest.mark.parametrize(
    ('model', 'batch_size', 'fields'),
    [('cnn', 64, {}), ('mlp', 100, {}), ('cnn', 50, {'model__batch_norm': True, 'model__stage_dropout': (0.2, 0.2)})],
)
def test_one_two_four_and_eight_devices_give_the_same_bits(small, model, batch_size, fields):
    config = {'batch_size': batch_size, 'chunks': 8, 'model__dropout': (0.5,), **fields}
    found = {devices: train_some(small(model, devices=devices, **config)) for devices in (1, 2, 4, 8)}
    assert len({digest for digest, _ in found.values()}) == 1
    assert len({tuple(losses) for _, losses in found.values()}) == 1


def test_a_device_count_that_does_not_divide_the_chunks_agrees_to_rounding(small):
    expected, found = train_some(small(devices=1))[1], train_some(small(devices=3))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('batch_size', 'chunks', 'devices', 'layout'),
    [
        (128, 8, 1, (16, 128)),
        (128, 8, 8, (16, 128)),
        (100, 8, 2, (13, 104)),
        (1, 8, 2, (1, 8)),
        (128, 8, 3, (16, 144)),
        (128, 8, 16, (16, 256)),
    ],
)
def test_batch_layout(batch_size, chunks, devices, layout):
    assert parallel.batch_layout(batch_size, chunks, devices) == layout


def test_all_sum_is_one_collective():
    replicas = parallel.Replicas(jax.local_devices()[:4])

    def summed(state, batch, offset, all_sum):
        return state, all_sum({'a': batch['x'] * state + offset, 'b': batch['x'].sum()})

    step = replicas.compile(summed, offset=np.float32(1))
    batch = replicas.shard({'x': np.arange(8, dtype=np.float32)})
    _, found = step(np.float32(2), batch)
    np.testing.assert_array_equal(found['a'], [2 * (0 + 2 + 4 + 6) + 4, 2 * (1 + 3 + 5 + 7) + 4])
    assert float(found['b']) == 28
    assert str(jax.make_jaxpr(step)(np.float32(2), batch)).count('all_gather[') == 1


@pytest.mark.parametrize(
    ('cores', 'multiply_adds', 'parameters', 'devices'),
    [
        (2, 128 * 4_043_904, 224_394, 2),  # cnn
        (6, 128 * 4_043_904, 224_394, 4),  # the most that divide the 8 chunks
        (64, 128 * 4_043_904, 224_394, 8),
        (2, 128 * 668_672, 669_706, 1),  # mlp: much to send for what it computes
        (2, 16 * 14_000, 994, 1),  # digits_cnn: little to compute
    ],
)
def test_the_cpu_is_shared_where_the_model_gains_from_it(monkeypatch, cores, multiply_adds, parameters, devices):
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(cores)))
    assert len(parallel.start(0, chunks=8, multiply_adds=multiply_adds, parameters=parameters)) == devices


def test_more_devices_than_there_are_is_told():
    with pytest.raises(UserError, match='devices=9 is more than there are: 1 to 8'):
        parallel.start(9, chunks=8, multiply_adds=0, parameters=0)
