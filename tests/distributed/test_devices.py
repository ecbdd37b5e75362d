"""The number of devices does not change the result."""

import dataclasses
import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import ROOT, environment
from ml_collections import ConfigDict

from mnist_jax.distributed import devices as devices_module
from mnist_jax.distributed.devices import Replicas, batch_layout, preserves_bits, start_backend
from mnist_jax.errors import UserError
from mnist_jax.kernels.sums import tree_sum
from mnist_jax.learning.losses import LOSSES
from mnist_jax.models import layers
from mnist_jax.models.architectures import MODELS
from mnist_jax.training.evaluation import evaluate_split
from mnist_jax.training.experiment import make_experiment
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.snapshot import params_sha256


def train_few_steps(config, steps=5):
    """Trains for a few steps; returns the digest of the parameters and the losses."""
    experiment = make_experiment(config)
    state = experiment.replicas.replicate(experiment.create_state())
    losses = []
    for batch, _ in zip(experiment.train_batches(0), range(steps), strict=False):
        state, sums = experiment.train_step(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
    return params_sha256(state.variables), losses


CLIPPED = ConfigDict({'name': 'lion', 'learning_rate': 1e-3, 'weight_decay': 0.1, 'clip_norm': 0.1, 'clip_value': 0.01})
NADAM = ConfigDict({'name': 'nadam', 'learning_rate': 1e-3, 'weight_decay': 0.1, 'decayed': 'all', 'clip_norm': 1.0})


@pytest.mark.parametrize(
    ('model', 'batch_size', 'fields'),
    [
        ('cnn', 64, {}),
        ('mlp', 100, {}),
        ('mlp', 64, {'optimizer': CLIPPED}),
        ('mlp', 64, {'optimizer': NADAM}),
        ('cnn', 50, {'model__batch_norm': True, 'model__stage_dropout': (0.2, 0.2)}),
    ],
)
def test_1_2_4_and_8_devices_are_bit_identical(small, model, batch_size, fields):
    config = {'batch_size': batch_size, 'chunks': 8, 'model__dropout': (0.5,), **fields}
    results = [train_few_steps(small(model, devices=devices, **config)) for devices in (1, 2, 4, 8)]
    assert len({digest for digest, _ in results}) == 1
    assert len({tuple(losses) for _, losses in results}) == 1


def test_the_program_itself_has_the_same_bits_on_two_devices_with_batch_normalization(data_dir):
    # XLA optimizes the program in more passes than in the process of the tests, and differently on two devices.
    options = ['--config=configs/fashion_cnn.py', "--set=dataset.name='mnist'", '--steps=12', '--devices=1,2']
    process = subprocess.run(
        [sys.executable, 'benchmarks/same_bits.py', *options],
        cwd=ROOT,
        env=environment(data_dir),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and process.stdout.splitlines()[-1] == 'bit-identical', process.stdout


@pytest.mark.parametrize(('loss', 'chunks'), [(name, chunks) for name in LOSSES for chunks in (1, 2)])
def test_losses_do_not_depend_on_the_number_of_devices(small, loss, chunks):
    fields = {'chunks': chunks, 'batch_size': 50, 'loss': ConfigDict({'name': loss})}
    on_one, on_two = (train_few_steps(small(devices=devices, **fields), steps=2) for devices in (1, 2))
    assert on_one == on_two


def test_empty_chunks_do_not_change_the_result(small):
    # Five devices have two chunks each; the last two chunks are empty.
    on_one, on_five = (train_few_steps(small(devices=devices, chunks=8)) for devices in (1, 5))
    assert preserves_bits(8, 5) and on_five == on_one


def test_a_device_count_that_does_not_divide_the_chunks_agrees_within_rounding(small):
    on_one, on_three = train_few_steps(small(devices=1))[1], train_few_steps(small(devices=3))[1]
    np.testing.assert_allclose(on_three, on_one, rtol=1e-5)


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
def test_a_padded_batch_gives_each_device_the_same_number_of_chunks(batch_size, chunks, devices, layout):
    assert batch_layout(batch_size, chunks, devices) == layout


@pytest.mark.parametrize(
    ('chunks', 'devices', 'same'),
    [(8, 1, True), (8, 2, True), (8, 3, False), (8, 5, True), (8, 8, True), (8, 16, True), (6, 1, True), (6, 2, False)],
)
def test_preserves_bits_predicts_whether_the_sums_are_bit_identical(chunks, devices, same):
    assert preserves_bits(chunks, devices) == same
    rows = np.random.default_rng(0).normal(size=(chunks, 1000)).astype(np.float32)
    share = -(-chunks // devices)
    padded = np.concatenate([rows, np.zeros((share * devices - chunks, 1000), np.float32)])
    on_devices = [tree_sum(padded[start : start + share]) for start in range(0, len(padded), share)]
    assert (tree_sum(on_devices) == tree_sum(rows)).all() == same


def test_several_steps_per_call_are_bit_identical_to_single_steps(small):
    results = []
    for steps_per_call in (1, 2, 5):
        experiment = make_experiment(small(steps_per_call=steps_per_call, model__dropout=(0.5,)))
        state, losses = experiment.replicas.replicate(experiment.create_state()), []
        for group in experiment.train_calls(0):
            state, sums = experiment.train_steps(state, group)
            losses += np.atleast_1d(sums['loss']).tolist()
        results.append((params_sha256(state.variables), losses))
    assert len(results[0][1]) == experiment.steps_per_epoch == 5
    assert results[1:] == results[:1] * 2


@pytest.mark.parametrize('fields', [{}, {'batch_norm': True, 'stage_dropout': (0.2, 0.2)}])
def test_bfloat16_is_used_for_compute_and_float32_for_the_state(small, fields):
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


def test_bfloat16_is_as_accurate_as_float32_within_noise(small):
    fields = {'dataset__train': 'train[:3000]', 'dataset__test': 'test[:1000]', 'epochs': 3}
    accuracies = []
    for dtype in ('float32', 'bfloat16'):
        experiment = make_experiment(small('cnn', dtype=dtype, steps_per_call=0, **fields))
        state = experiment.replicas.replicate(experiment.create_state())
        for epoch in range(3):
            for group in experiment.train_calls(epoch):
                state, _ = experiment.train_steps(state, group)
        sums, _ = evaluate_split(experiment, state.variables, experiment.source.split('test'))
        accuracies.append(float(sums['correct'] / sums['count']))
    # The standard error of the accuracy on 1,000 examples is 0.01.
    assert min(accuracies) > 0.8 and abs(accuracies[0] - accuracies[1]) < 0.03


def test_an_unknown_dtype_is_an_error_that_lists_the_choices(small):
    with pytest.raises(UserError, match=r"config\.dtype must be one of bfloat16, float32, got 'float16'"):
        make_experiment(small(dtype='float16'))


def test_a_process_loads_only_the_rows_of_its_devices():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    replicas = Replicas([Device(process) for process in (1, 1, 0, 0, 2, 2)])
    assert len(replicas.local) == 2 and replicas.local_rows(24) == slice(8, 16)
    assert Replicas(jax.local_devices()[:4]).local_rows(24) == slice(0, 24)


def test_all_sum_needs_one_collective():
    replicas = Replicas(jax.local_devices()[:4])

    def sum_batch(state, batch, offset):
        return state, replicas.all_sum({'a': batch['x'] * state + offset, 'b': batch['x'].sum()})

    step = replicas.compile(sum_batch, constants=1)
    arguments = np.float32(2), replicas.shard({'x': np.arange(8, dtype=np.float32)}), np.float32(1)
    _, sums = step(*arguments)
    np.testing.assert_array_equal(sums['a'], [2 * (0 + 2 + 4 + 6) + 4, 2 * (1 + 3 + 5 + 7) + 4])
    assert float(sums['b']) == 28
    assert str(jax.make_jaxpr(step)(*arguments)).count('all_gather[') == 1


def test_all_rows_keeps_the_order_of_the_global_batch():
    replicas = Replicas(jax.local_devices()[:4])
    step = replicas.compile(lambda state, batch: (state, replicas.all_rows(batch['x'])))
    x = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(step(np.float32(2), replicas.shard({'x': x}))[1], x)


def test_by_default_the_cpu_is_one_device_that_uses_every_core(monkeypatch):
    threads = []
    monkeypatch.setattr(devices_module, 'set_threads', threads.append)
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(6)))
    assert len(start_backend(0)) == 1
    assert len(start_backend(4)) == 4
    assert threads == [6, 1]


def test_own_models_are_compiled_without_two_passes_of_xla(monkeypatch, caplog):
    for flags in ('', '--xla_dump_to=x'):
        monkeypatch.setenv('XLA_FLAGS', flags)
        start_backend(1, own_model=True)
        assert os.environ['XLA_FLAGS'] == f'{flags} --xla_disable_hlo_passes=cse,cse_barrier_expander'.strip()
        # The backend runs already.
        assert f'XLA_FLAGS="{os.environ["XLA_FLAGS"]}" when Python starts' in caplog.messages[-1]


@pytest.mark.parametrize(
    ('own_model', 'accelerator', 'flags'),
    [(False, False, ''), (True, True, ''), (True, False, '--xla_disable_hlo_passes=dce')],
)
def test_xla_keeps_its_passes_for_the_models_of_this_package_on_accelerators_and_if_the_user_says_so(
    monkeypatch, caplog, own_model, accelerator, flags
):
    monkeypatch.setattr(devices_module, 'accelerators_possible', lambda: accelerator)
    monkeypatch.setenv('XLA_FLAGS', flags)
    start_backend(1, own_model=own_model, deterministic=False)
    assert os.environ['XLA_FLAGS'] == flags and not caplog.messages


@pytest.mark.parametrize(
    ('dense', 'devices', 'threads'), [(layers.Dense(3), 1, 6), (nn.Dense(3), 1, 16), (layers.Dense(3), 2, 16)]
)
def test_xla_has_the_same_number_of_threads_on_all_numbers_of_devices_if_it_computes_products(
    small, monkeypatch, dense, devices, threads
):
    monkeypatch.setitem(MODELS, 'own', lambda num_classes: nn.Sequential([layers.Flatten(), dense]))
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(6)))
    monkeypatch.delenv('PJRT_NPROC', raising=False)
    config = small()
    config.model = ConfigDict({'name': 'own'})
    start_backend(devices, make_plan(config).xla_products)
    assert os.environ['PJRT_NPROC'] == str(threads)


def test_the_number_of_threads_of_an_earlier_run_is_not_that_of_the_user(monkeypatch, caplog):
    monkeypatch.setenv('PJRT_NPROC', '2')
    monkeypatch.setenv(devices_module.OWN_THREADS, '2')
    start_backend(1, xla_products=False)
    assert not caplog.messages
    start_backend(1, xla_products=True)  # The backend runs already.
    assert 'JAX already runs with 2 threads instead of 16' in caplog.messages[-1]
    monkeypatch.setenv('PJRT_NPROC', '3')  # the user's
    start_backend(1, xla_products=True)
    assert len(caplog.messages) == 1 and os.environ['PJRT_NPROC'] == '3'
    code = 'from mnist_jax.distributed.devices import start_backend; import os; start_backend(1, xla_products=True); '
    for before, after in (('2', '16'), ('3', '3')):
        variables = {**os.environ, 'PJRT_NPROC': before}
        process = subprocess.run(
            [sys.executable, '-c', f"{code}print(os.environ['PJRT_NPROC'])"],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert process.stdout.strip() == after, process.stderr


def test_too_many_devices_are_an_error_that_says_how_many_are_available():
    with pytest.raises(UserError, match=r'config\.devices must be from 1 to 8 \(.*\), or 0 for automatic, got 9'):
        start_backend(9)


@pytest.mark.parametrize(
    ('model', 'fields'), [('mlp', {}), ('cnn', {'model__batch_norm': True, 'model__stage_dropout': (0.2, 0.2)})]
)
def test_examples_on_the_devices_give_the_same_bits_as_batches_from_the_host(small, model, fields):
    results = []
    for on_device, steps_per_call in (('off', 1), ('on', 2), ('on', 100)):
        config = small(model, dataset__on_device=on_device, steps_per_call=steps_per_call, chunks=4, **fields)
        experiment = make_experiment(config)
        state = experiment.replicas.replicate(experiment.create_state())
        losses = []
        for group in experiment.train_calls(0):
            assert all(('image' in batch) == (on_device == 'off') for batch in group)
            state, sums = experiment.train_steps(state, group)
            losses += np.atleast_1d(sums['loss']).tolist()
        totals, probabilities = evaluate_split(experiment, state.variables, experiment.source.split('test'))
        results.append((params_sha256(state.variables), losses, float(totals['loss']), probabilities.tobytes()))
    assert results[1:] == results[:1] * 2 and len(results[0][1]) == experiment.steps_per_call == 5


@pytest.mark.parametrize('on_device', ['off', 'on'])
def test_several_batches_per_call_evaluate_like_one_batch_per_call(small, on_device):
    one = make_experiment(small('cnn', devices=2, dataset__on_device=on_device, eval_batch_size=60))
    several = dataclasses.replace(one, eval_steps_per_call=3)
    split = one.source.split('test')
    assert [len(group) for group in several.eval_calls(split)] == [3, 1]
    variables = one.replicas.replicate(one.create_state()).variables
    (totals, probabilities), (expected_totals, expected) = (
        evaluate_split(experiment, variables, split) for experiment in (several, one)
    )
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    for name, total in expected_totals.items():
        np.testing.assert_allclose(totals[name], total, rtol=1e-6)


def test_an_accelerator_keeps_examples_that_fit_and_makes_an_epoch_per_call(small, monkeypatch):
    monkeypatch.setattr(Replicas, 'on_cpu', False)
    bytes_needed = (300 + 200) * 28 * 28
    for memory, on_device in ((4 * bytes_needed, False), (4 * bytes_needed + 1, True)):
        monkeypatch.setattr(Replicas, 'memory', memory)
        for every, steps_per_call in ((0, 5), (3, 3)):
            experiment = make_experiment(small(steps_per_call=0, checkpoint_every_steps=every))
            assert (experiment.on_device, experiment.steps_per_call) == (on_device, steps_per_call)
        assert not make_experiment(small(dataset__in_memory=False)).on_device
        assert not make_experiment(small(dataset__on_device='off')).on_device


def test_examples_that_stay_on_disk_cannot_be_kept_on_the_devices(small):
    with pytest.raises(
        UserError, match=r"config.dataset.in_memory must be True if config.dataset.on_device is 'on', got"
    ):
        make_experiment(small(dataset__in_memory=False, dataset__on_device='on'))


@pytest.mark.parametrize(
    ('flags', 'started', 'expected'),
    [
        ('', False, True),
        ('--xla_gpu_deterministic_ops=true', True, True),
        ('', True, False),  # The backend has read its settings already.
        ('--xla_gpu_deterministic_ops=false', False, False),  # The user's own setting
    ],
)
def test_what_is_recorded_as_deterministic_is_what_xla_does(monkeypatch, caplog, flags, started, expected):
    monkeypatch.setattr(devices_module, 'accelerators_possible', lambda: True)
    monkeypatch.setattr(devices_module, '_is_started', lambda: started)
    monkeypatch.setattr(Replicas, 'on_cpu', False)
    monkeypatch.setenv('XLA_FLAGS', flags)
    assert start_backend(1).deterministic == expected
    assert any('must contain --xla_gpu_deterministic_ops=true' in message for message in caplog.messages) != expected
    assert not start_backend(1, deterministic=False).deterministic


def test_the_memory_of_the_devices_is_the_least_one(monkeypatch):
    class Device:
        platform, process_index = 'gpu', 0

        def __init__(self, gibibytes):
            self.gibibytes = gibibytes

        def memory_stats(self):
            return {'bytes_limit': self.gibibytes << 30}

    assert Replicas([Device(80), Device(40)]).memory == 40 << 30
    assert Replicas(jax.local_devices()[:2]).memory == 0
