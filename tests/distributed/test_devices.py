"""The device count changes nothing of the result."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mnist_jax.distributed.devices import Replicas, batch_layout, native, preserves_bits, start_backend
from mnist_jax.errors import UserError
from mnist_jax.kernels.sums import tree_sum
from mnist_jax.learning.losses import LOSSES
from mnist_jax.training.experiment import make_experiment
from mnist_jax.workdir.snapshot import params_sha256


def train_some(config, steps=5):
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    losses = []
    for batch, _ in zip(experiment.train_batches(0), range(steps), strict=False):
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
    return params_sha256(state), losses


@pytest.mark.parametrize(
    ('model', 'batch_size', 'fields'),
    [('cnn', 64, {}), ('mlp', 100, {}), ('cnn', 50, {'model__batch_norm': True, 'model__stage_dropout': (0.2, 0.2)})],
)
def test_one_two_four_and_eight_devices_give_the_same_bits(small, model, batch_size, fields):
    config = {'batch_size': batch_size, 'chunks': 8, 'model__dropout': (0.5,), **fields}
    found = {devices: train_some(small(model, devices=devices, **config)) for devices in (1, 2, 4, 8)}
    assert len({digest for digest, _ in found.values()}) == 1
    assert len({tuple(losses) for _, losses in found.values()}) == 1


@pytest.mark.parametrize(('loss', 'chunks'), [(name, chunks) for name in LOSSES for chunks in (1, 2)])
def test_no_loss_depends_on_devices(small, loss, chunks):
    fields = {'chunks': chunks, 'batch_size': 50, 'loss': ConfigDict({'name': loss})}
    on_one, on_two = (train_some(small(devices=devices, **fields), steps=2) for devices in (1, 2))
    assert on_one == on_two


def test_empty_chunks_do_not_change_the_bits(small):
    # Five devices have two chunks each, of which the last two are empty.
    expected, found = (train_some(small(devices=devices, chunks=8)) for devices in (1, 5))
    assert preserves_bits(8, 5) and found == expected


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
    assert batch_layout(batch_size, chunks, devices) == layout


@pytest.mark.parametrize(
    ('chunks', 'devices', 'same'),
    [(8, 1, True), (8, 2, True), (8, 3, False), (8, 5, True), (8, 8, True), (8, 16, True), (6, 1, True), (6, 2, False)],
)
def test_same_bits(chunks, devices, same):
    assert preserves_bits(chunks, devices) == same
    rows = np.random.default_rng(0).normal(size=(chunks, 1000)).astype(np.float32)
    each = -(-chunks // devices)
    padded = np.concatenate([rows, np.zeros((each * devices - chunks, 1000), np.float32)])
    on_devices = [tree_sum(padded[start : start + each]) for start in range(0, len(padded), each)]
    assert (tree_sum(on_devices) == tree_sum(rows)).all() == same


def test_several_steps_in_one_call_give_the_same_bits(small):
    found = []
    for steps_per_call in (1, 2, 5):
        experiment = make_experiment(small(steps_per_call=steps_per_call, model__dropout=(0.5,)))
        state, losses = experiment.replicas.replicate(experiment.create_state()), []
        for batch in experiment.train_batches(0):
            state, sums = experiment.train_step(state, batch)
            losses += np.atleast_1d(sums['loss']).tolist()
        found.append((params_sha256(state), losses))
    assert len(found[0][1]) == experiment.steps_per_epoch == 5
    assert found[1:] == found[:1] * 2


@pytest.mark.parametrize('fields', [{}, {'batch_norm': True, 'stage_dropout': (0.2, 0.2)}])
def test_bfloat16_computes_and_float32_keeps(small, fields):
    fields = {f'model__{name}': value for name, value in fields.items()}
    states = {}
    for dtype in ('float32', 'bfloat16'):
        experiment = make_experiment(small('cnn', dtype=dtype, **fields))
        state = experiment.replicas.replicate(experiment.create_state())
        for batch, _ in zip(experiment.train_batches(0), range(3), strict=False):
            state, sums = experiment.train_step(state, batch)
        states[dtype] = state, float(sums['loss'] / sums['count'])
        assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {'float32'}
    assert 'bf16' in str(jax.make_jaxpr(experiment.train_step)(state, batch))
    assert states['float32'][1] != states['bfloat16'][1]
    np.testing.assert_allclose(states['bfloat16'][1], states['float32'][1], rtol=0.02)


def test_an_unknown_dtype_is_told(small):
    with pytest.raises(UserError, match=r"config.dtype='float16' is unknown.*; the choices are: bfloat16, float32"):
        make_experiment(small(dtype='float16'))


def test_a_process_loads_the_rows_of_its_devices():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    replicas = Replicas([Device(process) for process in (1, 1, 0, 0, 2, 2)])
    assert len(replicas.local) == 2 and replicas.share(24) == slice(8, 16)
    assert Replicas(jax.local_devices()[:4]).share(24) == slice(0, 24)


def test_all_sum_is_one_collective():
    replicas = Replicas(jax.local_devices()[:4])

    def summed(state, batch, offset, all_sum):
        return state, all_sum({'a': batch['x'] * state + offset, 'b': batch['x'].sum()})

    step = replicas.compile(summed, offset=np.float32(1))
    batch = replicas.shard({'x': np.arange(8, dtype=np.float32)})
    _, found = step(np.float32(2), batch)
    np.testing.assert_array_equal(found['a'], [2 * (0 + 2 + 4 + 6) + 4, 2 * (1 + 3 + 5 + 7) + 4])
    assert float(found['b']) == 28
    assert str(jax.make_jaxpr(step)(np.float32(2), batch)).count('all_gather[') == 1


def test_the_cpu_is_one_device_whose_cores_share_each_operation(monkeypatch):
    threads = []
    monkeypatch.setattr(native, 'set_threads', threads.append)
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(6)))
    assert len(start_backend(0)) == 1
    assert len(start_backend(4)) == 4
    assert threads == [6, 1]


def test_more_devices_than_there_are_is_told():
    with pytest.raises(UserError, match='devices=9 is more than there are: 1 to 8'):
        start_backend(9)
