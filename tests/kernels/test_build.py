"""Compiling and loading the kernels, what happens if that fails, and that the number of threads does not matter."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import files
from mnist_jax.kernels import build, ops
from mnist_jax.kernels.build import kernels_available, set_threads


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (ModuleNotFoundError("No module named 'ziglang'"), "No module named 'ziglang'"),
        (
            subprocess.CalledProcessError(1, 'cc', stderr='gemm.c:1: error: expected expression\nand more'),
            'gemm.c:1: error: expected expression',
        ),
        (OSError(28, 'No space left on device'), 'No space left on device'),
    ],
)
def test_a_failed_compilation_is_logged_in_one_line(caplog, error, reason):
    def fail():
        raise error

    assert build.load_library(fail) is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert reason in message and 'and more' not in message


def test_xla_computes_the_same_without_the_kernels(monkeypatch):
    x, kernel, bias = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    with_kernels = ops.dense(x, kernel, bias[0], True)
    monkeypatch.setattr(build, 'enabled', False)
    assert not kernels_available()
    set_threads(2)
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.asarray(bias[0]), True), with_kernels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('channels', 'features', 'kernel'), [(1, 70, 3), (1, 6, 3), (2, 40, 5), (64, 40, 2)])
def test_results_are_bit_identical_for_any_number_of_threads(channels, features, kernel):
    shapes = (11, 28, 28, channels), (features,), (kernel, kernel, channels, features), (11, 28, 28, features)
    rng = np.random.default_rng(0)
    image, bias, weights, gradient = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def output_and_gradients(threads):
        set_threads(threads)
        output, vjp = jax.vjp(lambda *arrays: ops.conv(*arrays, 'SAME', True), image, weights, bias)
        return jax.tree.leaves((output, vjp(gradient)))

    try:
        for threads in (2, 3, 8):
            for one, other in zip(output_and_gradients(1), output_and_gradients(threads), strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        set_threads(1)


def test_the_library_is_compiled_only_once(monkeypatch):
    library = build.compile_library()
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: pytest.fail('compiled again'))
    assert build.compile_library() == library and library.is_file()


def test_a_damaged_library_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    library = build.compile_library()
    assert library.parent == tmp_path
    contents = library.read_bytes()
    digest = library.with_name(library.name + '.sha256')
    for path, damaged in ((library, contents[:20_000]), (digest, b'\xff')):
        path.write_bytes(damaged)
        assert build.compile_library() == library and library.read_bytes() == contents


def test_code_that_is_edited_while_it_is_compiled_is_compiled_again(monkeypatch, tmp_path):
    sources = shutil.copytree(build.SOURCES, tmp_path / 'sources')
    monkeypatch.setattr(build, 'SOURCES', sources)
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    commands, run = [], subprocess.run

    def edit_and_run(command, **options):
        commands.append(command)
        if len(commands) == 1:
            with (sources / 'gemm.c').open('a') as file:
                file.write('// A comment.\n')
        return run(command, **options)

    monkeypatch.setattr(subprocess, 'run', edit_and_run)
    library = build.compile_library()
    assert len(commands) == 2 and [path.name for path in tmp_path.glob('*.so')] == [library.name]
    assert build.compile_library() == library and len(commands) == 2


@pytest.mark.parametrize('source', ['gemm.c', 'simd.h'])
def test_a_changed_source_gives_another_library(monkeypatch, tmp_path, source):
    library = build.compile_library()
    sources = shutil.copytree(build.SOURCES, tmp_path / 'sources')
    monkeypatch.setattr(build, 'SOURCES', sources)
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    with (sources / source).open('a') as file:
        file.write('// A comment.\n')
    changed = build.compile_library()
    assert changed.is_file() and changed.name != library.name
