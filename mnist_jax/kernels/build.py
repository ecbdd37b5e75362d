"""The functions of kernels/, in C: compiled for this machine's processor on first use, and made known to XLA."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from absl import logging

from mnist_jax import files

SOURCES = Path(__file__).parent
# The functions of kernels.c, which XLA knows by the same names: mnist_jax_layer ...
TARGETS = (
    *('layer', 'layer_relu', 'input_gradient', 'kernel_gradient', 'pool', 'pool_gradient'),
    *('moments', 'scale_relu', 'scale_relu_gradient'),
)
FLAGS = (
    *('-O3', '-mcpu=native', '-shared', '-fPIC'),
    *(('-mprefer-vector-width=512',) if platform.machine() in ('x86_64', 'AMD64') else ()),
    # No libc to link with, which the process has: the compiler would build one first.
    *(() if sys.platform == 'darwin' else ('-nostdlib',)),
)


def loaded() -> bool:
    """Whether XLA knows the kernels; compiles them where that was not done on this kind of processor."""
    return _library() is not None


def set_threads(count: int) -> None:
    """On how many threads each call of a kernel is computed, from now on."""
    library = _library()
    if library is not None:
        library.mnist_jax_set_threads(count)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, ImportError, subprocess.CalledProcessError) as error:
        told = error.stderr.strip().partition('\n')[0] if hasattr(error, 'stderr') else error
        logging.warning('The kernels in %s cannot be compiled (%s): XLA computes all layers, slower', SOURCES, told)
        return None
    for target in TARGETS:
        function = jax.ffi.pycapsule(getattr(library, f'mnist_jax_{target}'))
        jax.ffi.register_ffi_target(f'mnist_jax_{target}', function, platform='cpu')
    return library


def _compiled() -> Path:
    """The library, from the user's cache directory where it is there."""
    # The package brings a C compiler of this exact version: the same one everywhere gives the same bits.
    compiler = importlib.metadata.version('ziglang')
    sources = [path.read_bytes() for path in sorted(SOURCES.glob('*.[ch]'))]
    what = (*sources, compiler.encode(), jax.lib.__version__.encode(), ' '.join(FLAGS).encode())
    name = f'kernels-{hashlib.sha256(b"|".join(what)).hexdigest()[:16]}.so'
    directory = files.cache_directory() or Path(_temporary().name)
    library, digest = directory / name, directory / f'{name}.sha256'
    if not _is_whole(library, digest):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            output = Path(scratch) / name
            command = [sys.executable, '-m', 'ziglang', 'cc', *FLAGS, f'-I{jax.ffi.include_dir()}']
            subprocess.run(
                [*command, str(SOURCES / 'kernels.c'), '-o', str(output)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, 'ZIG_GLOBAL_CACHE_DIR': scratch, 'ZIG_LOCAL_CACHE_DIR': scratch},
            )
            told = Path(scratch) / digest.name
            told.write_text(hashlib.sha256(output.read_bytes()).hexdigest())
            output.replace(library)
            told.replace(digest)
    return library


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    """A directory that is there as long as this process is."""
    return tempfile.TemporaryDirectory(prefix='mnist_jax-')


def _is_whole(library: Path, digest: Path) -> bool:
    # A part of a library, as after a power failure, would end the process without a word.
    if not library.exists() or not digest.exists():
        return False
    return hashlib.sha256(library.read_bytes()).hexdigest() == digest.read_text()
