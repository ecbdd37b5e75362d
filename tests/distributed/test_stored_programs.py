import functools
import hashlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment
from jax.experimental.compilation_cache import compilation_cache

from mnist_jax.distributed import stored_programs
from mnist_jax.distributed.stored_programs import stored
from mnist_jax.learning.augmentation import AUGMENTATIONS
from mnist_jax.learning.losses import LOSSES, cross_entropy
from mnist_jax.training.plan import make_plan

X = np.arange(6, dtype=np.float32)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """The directory of stored programs, which is empty."""
    before = jax.config.values['jax_compilation_cache_dir']
    monkeypatch.setattr(stored_programs, 'enabled', True)
    monkeypatch.setattr(stored_programs, 'is_being_edited', lambda: False)
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    yield tmp_path / 'programs'
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()


def start(key='key'):
    """Returns a program as a new process would get it, and a list that grows whenever it is traced."""
    traces = []

    def function(x, tree):
        traces.append(x)
        return {'sum': jnp.sum(x * tree['factor']), 'sine': jnp.sin(x)}

    return stored(jax.jit(function), key, jax.devices()[:1]), traces


def check(function, x=X):
    result = function(x, {'factor': np.float32(3)})
    assert result['sum'] == 3 * x.sum() and np.allclose(result['sine'], np.sin(x), atol=1e-6)


def test_a_stored_program_is_not_traced_again(programs):
    first, traces = start()
    check(first)
    check(first)
    assert len(traces) == 1
    second, traces = start()
    check(second)
    assert traces == [] and len(list(programs.iterdir())) == 1


def test_programs_are_stored_without_the_compiler_of_the_kernels(programs, monkeypatch):
    installed = importlib.metadata.version

    def version(package):
        if package == 'ziglang':
            raise importlib.metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(importlib.metadata, 'version', version)
    check(start()[0])
    assert len(list(programs.iterdir())) == 1


def test_another_key_shape_or_setting_is_another_program(programs, monkeypatch):
    check(start()[0])
    changed, traces = start('another key')
    check(changed)
    assert len(traces) == 1
    shape, traces = start()
    check(shape, X[:4])
    check(shape)
    assert len(traces) == 1
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ.get("XLA_FLAGS", "")} ')
    flags, traces = start()
    check(flags)
    assert len(traces) == 1
    jax.config.update('jax_default_matmul_precision', 'highest')
    try:
        precision, traces = start()
        check(precision)
    finally:
        jax.config.update('jax_default_matmul_precision', None)
    assert len(traces) == 1 and len(list(programs.iterdir())) == 5


def test_other_code_is_another_program(programs, monkeypatch):
    check(start()[0])
    contents = {path: path.read_bytes() for path in stored_programs.source_files()}
    monkeypatch.setattr(stored_programs, 'code_digest', stored_programs.code_digest.__wrapped__)
    check(start()[0])
    assert len(list(programs.iterdir())) == 1
    monkeypatch.setattr(Path, 'read_bytes', lambda path: contents[path] + b' ' * (path.name == 'layers.py'))
    changed = stored_programs.describe_environment()
    monkeypatch.undo()
    assert changed != stored_programs.describe_environment()
    names = {path.name for path in contents}
    assert {'layers.py', 'step.py', 'gemm.c', 'simd.h', 'devices.py', 'experiment.py', 'restored.py'} <= names


pickled = pickle.dumps('intact, but not a program')


@pytest.mark.parametrize(
    'damage',
    [
        lambda contents: b'',
        lambda contents: contents[:-100],
        lambda contents: contents[:1000] + bytes([contents[1000] ^ 1]) + contents[1001:],
        lambda contents: hashlib.sha256(pickled).digest() + pickled,
    ],
)
def test_a_damaged_program_is_compiled_again(programs, damage):
    check(start()[0])
    (path,) = programs.iterdir()
    contents = path.read_bytes()
    path.write_bytes(damage(contents))
    again, traces = start()
    check(again)
    assert len(traces) == 1 and path.read_bytes() != damage(contents)
    last, traces = start()
    check(last)
    assert traces == []


def test_nothing_is_stored_outside_the_command_or_without_a_cache(programs, monkeypatch):
    monkeypatch.setattr(stored_programs, 'is_being_edited', lambda: True)
    check(start()[0])
    monkeypatch.setattr(stored_programs, 'is_being_edited', lambda: False)
    check(start(None)[0])
    monkeypatch.setattr(stored_programs, 'enabled', False)
    check(start()[0])
    monkeypatch.setattr(stored_programs, 'enabled', True)
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        check(start()[0])
    finally:
        jax.config.update('jax_enable_compilation_cache', True)
    assert not programs.exists()


@pytest.mark.parametrize(('age', 'edited'), [(3600, False), (-5, True)])
def test_code_that_changed_after_it_was_imported_is_being_edited(monkeypatch, tmp_path, age, edited):
    source = tmp_path / 'layers.py'
    source.write_text('')
    os.utime(source, (time.time() - age,) * 2)
    monkeypatch.setattr(stored_programs, 'source_files', lambda: [source])
    assert stored_programs.is_being_edited() is edited


def test_a_program_that_cannot_be_stored_still_runs(programs):
    programs.write_text('a file where the directory should be')
    function, traces = start()
    check(function)
    check(function)
    assert len(traces) == 1


def test_the_oldest_programs_are_removed(programs, monkeypatch):
    monkeypatch.setattr(stored_programs, 'MAX_PROGRAMS', 2)
    for age, key in enumerate(['first', 'second']):
        check(start(key)[0])
        newest = max(programs.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1000 + age, 1000 + age))
    check(start('first')[0])  # Now it is the most recently used one.
    check(start('third')[0])
    for key, count in {'first': 0, 'third': 0, 'second': 1}.items():
        function, traces = start(key)
        check(function)
        assert len(traces) == count, key


def test_programs_with_parts_of_the_user_are_not_stored(small, monkeypatch):
    plan = make_plan(small(seed=3))
    key = plan.program_key('step')
    assert key == make_plan(small(seed=4)).program_key('step') and key != plan.program_key('another')
    assert key == make_plan(small(optimizer__learning_rate=0.5)).program_key('step')  # an argument of the step
    assert key != make_plan(small(optimizer__epsilon=0.5)).program_key('step')
    monkeypatch.setitem(LOSSES, 'own', lambda label_smoothing: cross_entropy(label_smoothing))
    assert make_plan(small(loss__name='own')).program_key('step') is None
    monkeypatch.setitem(LOSSES, 'own', functools.wraps(cross_entropy)(lambda label_smoothing: cross_entropy()))
    assert make_plan(small(loss__name='own')).program_key('step') is None
    monkeypatch.setitem(LOSSES, 'own', LOSSES['cross_entropy'])
    own_key = make_plan(small(loss__name='own')).program_key('step')
    monkeypatch.setitem(LOSSES, 'own', LOSSES['focal'])
    assert None is not own_key != make_plan(small(loss__name='own')).program_key('step') is not None
    augmented = make_plan(small(augmentation=({'name': 'shift'}, {'name': 'own'})))
    assert augmented.program_key('step') is None  # It is not known here, as in a process that loads the run.
    monkeypatch.setitem(AUGMENTATIONS, 'own', lambda: lambda images, draw: images)
    assert augmented.program_key('step') is None
    assert make_plan(small(augmentation=({'name': 'shift'},))).program_key('step') is not None


def test_the_command_stores_its_programs(data_dir, tmp_path):
    """A second start loads every program of the first, and ends with the same parameters."""
    variables = environment(data_dir) | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache')}
    newest = max(path.stat().st_mtime for path in stored_programs.source_files())
    while time.time() - newest <= stored_programs.EDITING_SECONDS:
        time.sleep(1)
    fields = [
        'dataset.train=train[:300]',
        'dataset.test=test[:200]',
        'batch_size=64',
        'epochs=1',
        'model.hidden=(8,)',
    ]
    command = [sys.executable, '-m', 'mnist_jax.main', '--config=configs/mlp.py', '--noreport']
    command += [f'--config.{field}' for field in fields]
    results, stored_files = [], []
    for run in 'ab':
        subprocess.run([*command, f'--workdir={tmp_path / run}'], cwd=ROOT, env=variables, check=True)
        results.append((tmp_path / run / 'eval.json').read_text())
        stored_files.append({path.name: path.stat().st_ino for path in (tmp_path / 'cache' / 'programs').iterdir()})
    assert results[0] == results[1]
    assert stored_files[0] == stored_files[1] and len(stored_files[0]) >= 3
