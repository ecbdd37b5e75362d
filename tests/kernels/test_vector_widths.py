"""The kernels have the same bits for vectors of every width; widths that the processor lacks are emulated."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CPUINFO = Path('/proc/cpuinfo')
HAS_AVX2 = CPUINFO.exists() and 'avx2' in CPUINFO.read_text()

# Prints a digest of the outputs and gradients of all kernels, on odd shapes.
PROGRAM = """
import hashlib, sys
import jax, numpy as np
from mnist_jax.kernels import attention, build, depthwise, norms, ops, warping
build.FLAGS += tuple(sys.argv[1:])
assert build.kernels_available()
build.set_threads(2)
rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
digest = hashlib.sha256()

def add(function, *arrays):
    outputs, vjp = jax.vjp(function, *arrays)
    cotangents = jax.tree.map(lambda output: normal(*output.shape), outputs)
    for leaf in jax.tree.leaves((outputs, vjp(cotangents))):
        digest.update(np.asarray(leaf).tobytes())

SHAPES = ((3, 13, 1, 33, 3), (2, 9, 5, 7, 2), (5, 14, 32, 40, 3), (2, 9, 48, 33, 3), (130, 6, 3, 2, 5))
for batch, size, channels, features, kernel in SHAPES:
    for padding in ('SAME', 'VALID'):
        layer = lambda x, w, b, padding=padding: ops.conv(x, w, b, padding, True)
        add(layer, normal(batch, size, size, channels), normal(kernel, kernel, channels, features), normal(features))
for batch, inputs, features in ((1, 300, 10), (17, 785, 33), (64, 64, 129)):
    add(lambda x, w, b: ops.dense(x, w, b, False), normal(batch, inputs), normal(inputs, features), normal(features))
x = normal(6, 9, 8, 21)
add(lambda x: ops.max_pool(x, 2, 'VALID'), x)
add(lambda x: norms.moments(x, np.array([1, 1, 0, 1, 1, 0], np.float32)), x)
for activation in norms.ACTIVATIONS:
    add(lambda *arrays, a=activation: norms.scale(*arrays, a), 3 * x, normal(21), normal(21))
sums = norms.moments(x, np.ones(6, np.float32))
add(lambda *arrays: norms.normalize(*sums, np.float32(432), *arrays, 0.9, 1e-3), *(normal(21) for _ in range(4)))
add(lambda *arrays: norms.normalize_for_inference(*arrays, 1e-3), *(abs(normal(21)) for _ in range(4)))
add(lambda x: norms.standardize(x, 1e-3), normal(70, 37))
add(attention.softmax, 3 * normal(70, 37))
add(attention.matrix_products, normal(3, 17, 9), normal(3, 9, 35))
for stride in (1, 2):
    layer = lambda *arrays, stride=stride: depthwise.depthwise_conv(*arrays, 'SAME', stride, relu=stride == 1)
    add(layer, x, normal(3, 3, 21), normal(21))
images, motion = normal(5, 9, 7, 3), warping.Motion(*normal(9, 5))
digest.update(np.asarray(jax.jit(warping.warp)(images, motion)).tobytes())
digest.update(np.asarray(jax.jit(warping.distort)(images, normal(5, 2, 9, 7), normal(5))).tobytes())
print(digest.hexdigest())
"""


def digest(*flags: str) -> str:
    command = [sys.executable, '-c', PROGRAM, *flags]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope='module')
def native():
    return digest()


@pytest.mark.parametrize('bits', [128, 256, 512])
def test_vectors_of_any_width_give_the_same_bits(native, bits):
    assert digest(f'-DVECTOR_BITS={bits}') == native


@pytest.mark.skipif(not HAS_AVX2, reason='needs a processor with AVX2')
def test_another_generation_of_processors_gives_the_same_bits(native):
    assert digest('-mcpu=haswell') == native
