"""Compiles the C kernels for this machine's CPU on first use, loads them and registers them with XLA."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from mnist_jax import files

enabled = True
"""Whether to use the kernels. Set it to False before tracing to compute every layer with XLA, e.g. to compare them."""

SOURCES = Path(__file__).parent
ACTIVATIONS = ('identity', 'relu', 'leaky_relu', 'gelu', 'silu', 'tanh')  # of activation.h
# The functions of ffi_handlers.c without their prefix mnist_jax_, which is also part of their names in XLA.
TARGETS = (
    *('layer', 'layer_relu', 'input_gradient', 'kernel_gradient', 'pool', 'pool_gradient'),
    *('moments', 'moments_gradient', 'normalize', 'normalize_gradient', 'normalize_for_inference'),
    *(f'scale_{name}{ending}' for name in ACTIVATIONS for ending in ('', '_gradient')),
    *('standardize', 'standardize_gradient', 'softmax', 'softmax_gradient', 'matrix_products'),
    *(
        'depthwise',
        'depthwise_relu',
        'depthwise_image_gradient',
        'depthwise_kernel_gradient',
        'all_finite',
        'separate',
        'warp',
        'distort',
    ),
)
FLAGS = (
    *('-O3', '-mcpu=native', '-shared', '-fPIC', '-fvisibility=hidden'),
    '-ffp-contract=on',  # a * b + c is one fused multiply-add, which rounds once, and nothing else is rearranged
    *(('-mprefer-vector-width=512',) if platform.machine() in ('x86_64', 'AMD64') else ()),
    # Do not link libc: the process has loaded it already, and the compiler would have to build its own first.
    *(() if sys.platform == 'darwin' else ('-nostdlib',)),
)


def kernels_available() -> bool:
    """Returns whether XLA can call the kernels. The first call compiles, loads and registers them."""
    return enabled and load_library() is not None


def set_threads(count: int) -> None:
    """Sets the maximum number of threads per kernel call. The results do not depend on it."""
    library = load_library() if enabled else None
    if library is not None:
        library.mnist_jax_set_threads(count)


def compile_library() -> Path:
    """Returns the shared library from the user's cache directory, compiling it if it is missing or damaged.

    Raises:
      ImportError: the compiler is not installed.
      subprocess.CalledProcessError: the compiler fails.
      OSError: the library cannot be written.
    """
    # The compiler is a Python package of a pinned version, because the same compiler everywhere gives the same bits.
    compiler_version = importlib.metadata.version('ziglang')
    sources = _read_sources()
    inputs = (*sources, compiler_version.encode(), jax.lib.__version__.encode(), ' '.join(FLAGS).encode())
    name = f'kernels-{hashlib.sha256(b"|".join(inputs)).hexdigest()[:16]}.so'
    directory = files.cache_directory() or Path(_temporary_directory().name)
    library, digest = directory / name, directory / f'{name}.sha256'
    if not _is_intact(library, digest):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            new_library, new_digest = Path(scratch) / library.name, Path(scratch) / digest.name
            compiler = [sys.executable, '-m', 'ziglang', 'cc', *FLAGS, f'-I{jax.ffi.include_dir()}']
            subprocess.run(
                [*compiler, *map(str, sorted(SOURCES.glob('*.c'))), '-o', str(new_library)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, 'ZIG_GLOBAL_CACHE_DIR': scratch, 'ZIG_LOCAL_CACHE_DIR': scratch},
            )
            if _read_sources() != sources:  # They were edited meanwhile: the name is that of other code.
                return compile_library()
            new_digest.write_text(hashlib.sha256(new_library.read_bytes()).hexdigest())
            new_library.replace(library)
            new_digest.replace(digest)
    return library


def _read_sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SOURCES.glob('*.[ch]'))]


@functools.cache
def load_library(compile_fn: Callable[[], Path] = compile_library) -> ctypes.CDLL | None:
    """Compiles, loads and registers the kernels, once per process. Logs a warning and returns None if that fails."""
    try:
        library = ctypes.CDLL(str(compile_fn()))
    except (OSError, ImportError, subprocess.CalledProcessError) as error:
        text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = text.strip().partition('\n')[0]
        logging.warning(
            'Cannot compile the kernels in %s (%s); XLA computes all layers instead, which is slower', SOURCES, reason
        )
        return None
    for target in TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, f'mnist_jax_{target}'))
        jax.ffi.register_ffi_target(f'mnist_jax_{target}', handler, platform='cpu')
    return library


@functools.cache
def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Returns a directory that exists until this process ends."""
    return tempfile.TemporaryDirectory(prefix='mnist_jax-')


def _is_intact(library: Path, digest: Path) -> bool:
    # Loading a truncated library, as after a power failure, would crash the process silently.
    if not library.exists() or not digest.exists():
        return False
    return hashlib.sha256(library.read_bytes()).hexdigest().encode() == digest.read_bytes()
