"""The kernels: what is done where they cannot be had."""

import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import files, native, ops


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (ModuleNotFoundError("No module named 'ziglang'"), "No module named 'ziglang'"),
        (
            subprocess.CalledProcessError(1, 'cc', stderr='kernels.c:1: error: what\nand more'),
            'kernels.c:1: error: what',
        ),
        (OSError(28, 'No space left on device'), 'No space left on device'),
    ],
)
def test_that_they_cannot_be_compiled_is_told_in_one_line(monkeypatch, caplog, error, told):
    def fail():
        raise error

    monkeypatch.setattr(native, '_compiled', fail)
    assert native._library.__wrapped__() is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert told in message and 'and more' not in message


def test_without_them_xla_computes_the_same(monkeypatch):
    x, kernel, bias = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    with_kernels = ops.dense(x, kernel, bias[0], True)
    monkeypatch.setattr(native, '_library', lambda: None)
    assert not native.loaded()
    native.set_threads(2)
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.asarray(bias[0]), True), with_kernels, rtol=1e-5, atol=1e-6)


def test_they_are_compiled_once(monkeypatch):
    found = native._compiled()
    monkeypatch.setattr(subprocess, 'run', lambda *command, **given: pytest.fail('compiled again'))
    assert native._compiled() == found and found.is_file()


def test_a_damaged_one_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    found = native._compiled()
    assert found.parent == tmp_path
    whole = found.read_bytes()
    found.write_bytes(whole[:20_000])
    assert native._compiled() == found and found.read_bytes() == whole
