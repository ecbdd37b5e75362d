"""The kernels: what is done where they cannot be had."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import files
from mnist_jax.kernels import build, ops
from mnist_jax.kernels.build import loaded, set_threads


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

    monkeypatch.setattr(build, '_compiled', fail)
    assert build._library.__wrapped__() is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert told in message and 'and more' not in message


def test_without_them_xla_computes_the_same(monkeypatch):
    x, kernel, bias = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    with_kernels = ops.dense(x, kernel, bias[0], True)
    monkeypatch.setattr(build, '_library', lambda: None)
    assert not loaded()
    set_threads(2)
    np.testing.assert_allclose(ops.dense(x, kernel, jnp.asarray(bias[0]), True), with_kernels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('channels', 'features', 'kernel'), [(1, 70, 3), (1, 6, 3), (2, 40, 5), (64, 40, 2)])
def test_the_number_of_threads_changes_no_bit(channels, features, kernel):
    keys = jax.random.split(jax.random.key(0), 4)
    image, bias = jax.random.normal(keys[0], (11, 28, 28, channels)), jax.random.normal(keys[1], (features,))
    weights = jax.random.normal(keys[2], (kernel, kernel, channels, features))
    gradient = jax.random.normal(keys[3], (11, 28, 28, features))

    def computed(threads):
        set_threads(threads)
        output, vjp = jax.vjp(lambda *given: ops.conv(*given, 'SAME', True), image, weights, bias)
        return jax.tree.leaves((output, vjp(gradient)))

    try:
        for threads in (2, 3, 8):
            for one, other in zip(computed(1), computed(threads), strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        set_threads(1)


def test_they_are_compiled_once(monkeypatch):
    found = build._compiled()
    monkeypatch.setattr(subprocess, 'run', lambda *command, **given: pytest.fail('compiled again'))
    assert build._compiled() == found and found.is_file()


def test_a_damaged_one_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, 'cache_directory', lambda: tmp_path)
    found = build._compiled()
    assert found.parent == tmp_path
    whole = found.read_bytes()
    found.write_bytes(whole[:20_000])
    assert build._compiled() == found and found.read_bytes() == whole
