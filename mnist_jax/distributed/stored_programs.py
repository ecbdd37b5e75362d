"""Stores compiled programs, so that a later start does not have to trace and compile them again.

JAX's own cache finds a program by its operations, so every start still traces the model. Here, a program is found by
what determines it: the config, the code of this package, the versions of the libraries, the settings of JAX and XLA,
the processor, and the shapes of its arguments.
"""

import functools
import hashlib
import importlib.metadata
import itertools
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import logging
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from mnist_jax import files
from mnist_jax.errors import WriteError
from mnist_jax.factory import PACKAGE
from mnist_jax.kernels.build import kernels_available


def _is_command() -> bool:
    specification = getattr(sys.modules['__main__'], '__spec__', None)
    return getattr(specification, 'name', '') == 'mnist_jax.main' or Path(sys.argv[0]).name == 'mnist-jax'


_IMPORTED = time.time()
enabled = _is_command()
"""Whether to store and to load programs. Only this package's own command does: in a script, a notebook or a test,
functions of the package may have been replaced, which nothing here would notice."""

# The packages whose code programs are made of. Everything else that a program depends on is a value in its key.
CODE = ('kernels', 'models', 'learning', 'distributed', 'training', 'inference')
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'ziglang')
VARIABLES = ('XLA_FLAGS', 'PJRT_NPROC')  # PJRT_NPROC: XLA divides some loops among its threads when it compiles
DEBUGGING = ('jax_debug_nans', 'jax_debug_infs', 'jax_disable_jit')  # They need the traced function.
MAX_PROGRAMS = 64  # the most recently used ones are kept
EDITING_SECONDS = 10.0  # Code that changed later than this before the import may not be what was imported.
DIGEST_BYTES = hashlib.sha256().digest_size


def stored(function: Callable, key: str | None, devices: Sequence[jax.Device]) -> Callable:
    """Returns `function`, except that its compiled programs are loaded from disk if they are stored there.

    Args:
      function: The result of `jax.jit` or `jax.pmap`; its arguments are positional.
      key: Everything that `function` depends on besides the code of this package and the shapes of its arguments; None
        to store nothing.
      devices: The devices on which it runs, all of this process.
    """
    directory = _directory()
    if key is None or directory is None:
        return function
    programs: dict[object, Callable] = {}

    def call(*arguments):  # noqa: ANN202
        leaves, structure = jax.tree.flatten(arguments)
        shapes = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in programs:
            name = hashlib.sha256(
                '\n'.join((key, repr(shapes), str(devices), describe_environment())).encode()
            ).hexdigest()
            programs[shapes] = _load_or_compile(directory / name, function, arguments, devices)
        return programs[shapes](*arguments)

    return call


def _directory() -> Path | None:
    """Returns where programs are stored: in the directory of JAX's cache; None if nothing is to be stored."""
    settings = jax.config.values
    cache = settings['jax_compilation_cache_dir']
    if not enabled or not settings['jax_enable_compilation_cache'] or not cache or '://' in cache:
        return None
    if any(settings[name] for name in DEBUGGING):
        return None
    # A program of several processes, or of an accelerator, is not stored.
    if jax.process_count() > 1 or jax.default_backend() != 'cpu' or is_being_edited():
        return None
    return Path(cache) / 'programs'


@functools.cache
def source_files() -> list[Path]:
    """Returns the files with the code of `CODE`, in order."""
    files_of_code = itertools.chain.from_iterable((PACKAGE / name).iterdir() for name in CODE)
    return sorted(path for path in files_of_code if path.suffix in ('.py', '.c', '.h'))


def is_being_edited() -> bool:
    """Returns whether the code may have changed since this process imported it; then nothing is stored."""
    code_digest()  # first: what changes after it was computed is noticed below, now or the next time
    return max(path.stat().st_mtime for path in source_files()) > _IMPORTED - EDITING_SECONDS


@functools.cache
def code_digest() -> str:
    """Returns the digest of this code."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # ziglang is missing where it cannot be installed.
        return None


def describe_environment() -> str:
    """Returns what every program depends on besides its own key and the shapes of its arguments."""
    settings = {name: value for name, value in jax.config.values.items() if not re.search('cache|preemption', name)}
    return repr(
        (
            code_digest(),
            [_version(name) for name in LIBRARIES],
            [os.environ.get(name) for name in VARIABLES],
            sorted(settings.items()),
            files.processor_features(),
            kernels_available(),
        )
    )


def _load_or_compile(path: Path, function: Callable, arguments: Sequence, devices: Sequence[jax.Device]) -> Callable:
    try:
        contents = path.read_bytes()
        digest, program = contents[:DIGEST_BYTES], contents[DIGEST_BYTES:]
        if hashlib.sha256(program).digest() != digest:
            raise ValueError('its SHA-256 digest does not match')
        executable, in_tree, out_tree = pickle.loads(program)
        loaded = serialize_executable.deserialize_and_load(executable, in_tree, out_tree, execution_devices=devices)
        os.utime(path)
        return loaded
    except FileNotFoundError:
        pass
    except Exception as error:  # Whatever is wrong with it, the program can be compiled again.
        logging.debug('The stored program %s cannot be used: %s', path, error)
    compiled = _compile(function, arguments)
    try:
        program = pickle.dumps(serialize_executable.serialize(compiled))
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, hashlib.sha256(program).digest() + program)
        _remove_oldest(path.parent)
    except (WriteError, OSError, ValueError, NotImplementedError) as error:  # The next start only takes longer.
        logging.debug('The program %s cannot be stored: %s', path, error)
    return compiled


def _compile(function: Callable, arguments: Sequence) -> jax.stages.Compiled:
    """Compiles `function` without JAX's cache: a program from there, stored again, lacks parts of its code."""
    compilation_cache.reset_cache()  # JAX looks at the setting only once.
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        return function.lower(*arguments).compile()  # type: ignore[attr-defined]
    finally:
        jax.config.update('jax_enable_compilation_cache', True)
        compilation_cache.reset_cache()


def _remove_oldest(directory: Path) -> None:
    programs = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in programs[:-MAX_PROGRAMS]:
        path.unlink(missing_ok=True)
