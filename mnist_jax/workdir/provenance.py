"""Provenance of a run: the command, commit, versions and hardware of each start, kept in its workdir."""

import datetime
import importlib.metadata
import itertools
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags, logging

from mnist_jax import files
from mnist_jax.config import CHECKOUT
from mnist_jax.distributed import processes
from mnist_jax.files import JsonObject

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint', 'tensorflow-datasets', 'ziglang')
VECTORS = {'avx512f': 'AVX-512', 'avx2': 'AVX2'}  # names of vector instructions, the widest first
MAX_STARTS = 100  # latest starts to keep

EpochHistory = Sequence[tuple[int, int]]
"""Pairs (step, epochs), in order: from this step on, the learning-rate schedule was that of a run of this many epochs.

An ordinary run has one item, whose step is 0. So has a run that was continued with another number of epochs but has had
the learning rates of an ordinary run of that many epochs.
"""

FIELDS = {
    'began': str,
    'step': int,
    'command': str,
    'commit': str,
    'devices': str,
    'processor': str,
    'system': str,
    'versions': dict,
}


def record_start(
    workdir: Path,
    step: int,
    devices: str,
    epochs: EpochHistory = (),
    deterministic: bool = True,
    origin: JsonObject | None = None,
    own_code: Mapping[str, str] | None = None,
) -> None:
    """Appends this start, at `step` on `devices`, to `provenance.json`.

    Args:
      workdir: The directory of the run.
      step: The step at which it starts.
      devices: The devices in words.
      epochs: The history of its number of epochs.
      deterministic: Whether accelerators compute with deterministic kernels.
      origin: What the run started from, if it started from another run.
      own_code: The digests of the code of the parts that are not of this package, by the fields that select them.
    """
    start = {
        'began': datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds'),
        'step': step,
        'epochs': epochs,
        'command': _command(),
        'commit': _commit(),
        'devices': devices,
        'deterministic': deterministic,
        'origin': origin,
        'own_code': dict(own_code or {}),
        'processor': processor(),
        'system': platform.platform(),
        'versions': {
            'python': platform.python_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
    }
    path, starts = workdir / 'provenance.json', read_provenance(workdir)
    if path.exists() and not starts:
        logging.warning('%s was damaged, and has been copied to %s', path, files.keep_damaged(path))
    files.write_text(path, json.dumps([*starts[1 - MAX_STARTS :], start], indent=2) + '\n')


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # Some environments have only what a run needs, or a fork of it.
        return ''


def read_provenance(workdir: Path) -> list[JsonObject]:
    """Returns the recorded starts, oldest first; damaged ones are left out."""
    try:
        starts = files.read_json(workdir / 'provenance.json')
    except (FileNotFoundError, ValueError):  # Other errors, such as that of a network, are not damage.
        return []
    if not isinstance(starts, list):
        return []
    return [
        start
        for start in starts
        if isinstance(start, dict) and all(isinstance(start.get(name), kind) for name, kind in FIELDS.items())
    ]


def training_start(starts: Sequence[JsonObject], step: int) -> int:
    """Returns the index of the last start, of at least one, from which a run was trained up to a step.

    The same command may start a finished run again, which trains nothing.
    """
    return max((index for index, start in enumerate(starts) if start['step'] < step), default=0)


def changed_code(workdir: Path, own_code: Mapping[str, str], step: int) -> list[str]:
    """Returns the fields of `own_code` whose part had other code at a start that trained the run up to `step`."""
    starts = read_provenance(workdir) if own_code else []
    first = max((number for number, start in enumerate(starts) if start['step'] == 0), default=0)
    recorded = [start.get('own_code') for start in starts[first:] if start['step'] < step]
    starts = [start for start in recorded if isinstance(start, dict)]  # Older versions did not record it.
    return [field for field, digest in own_code.items() if any(start.get(field, digest) != digest for start in starts)]


def read_origin(workdir: Path) -> JsonObject | None:
    """Returns what the run started from, as its last start recorded it; None if it did not start from another run."""
    starts = read_provenance(workdir)
    origin = starts[-1].get('origin') if starts else None
    fields = {'workdir': str, 'step': int, 'params_sha256': str, 'taken': int, 'arrays': int}
    valid = isinstance(origin, dict) and all(isinstance(origin.get(name), kind) for name, kind in fields.items())
    return origin if valid else None


def read_epochs(workdir: Path) -> EpochHistory:
    """Returns the history that the last start recorded; () if there is none."""
    starts = read_provenance(workdir)
    try:
        history = [(step, epochs) for step, epochs in starts[-1]['epochs']]
        numbers = list(itertools.chain.from_iterable(history))
    except (IndexError, KeyError, TypeError, ValueError):
        return ()
    valid = all(type(number) is int and number >= 0 for number in numbers) and history == sorted(history)
    return history if valid and numbers[:1] == [0] else ()


def processor() -> str:
    """Returns the number of cores that this process may use, the name of the processor, and its vector instructions."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    name = models[0] if models else platform.processor() or platform.machine()
    instructions = {word for line in lines if line.startswith('flags') for word in line.split()}
    vectors = next((f' ({text})' for flag, text in VECTORS.items() if flag in instructions), '')
    cores = processes.available_cores()
    return f'{cores} {"core" if cores == 1 else "cores"} of {name}{vectors}'


def program() -> list[str]:
    """Returns what comes before the flags on the command line: `python` and a user's script, or this package."""
    script = Path(sys.argv[0])
    is_package = script.absolute().parts[-2:] == ('mnist_jax', 'main.py')
    is_own_script = flags.FLAGS.is_parsed() and script.suffix == '.py' and not is_package
    return ['python', *((sys.argv[0],) if is_own_script else ('-m', 'mnist_jax.main'))]


def _command() -> str:
    if not flags.FLAGS.is_parsed() and Path(sys.argv[0]).name not in ('main.py', 'mnist-jax'):
        return f'{Path(sys.argv[0]).name}, from Python'
    arguments = sys.argv[1:]
    # Without what a launcher adds for the processes that it starts, so that the command can be repeated.
    if '--processes=0' in arguments:
        arguments = arguments[: arguments.index('--processes=0')]
    if arguments[-1:] == ['--workers=0']:
        arguments.pop()
    return shlex.join([*program(), *arguments])


def _commit() -> str:
    """Returns the commit of this code, and whether tracked files have changed since."""
    if CHECKOUT is None:  # An installed package may lie in another project's repository.
        return f'mnist_jax {importlib.metadata.version("mnist_jax")}'
    try:
        name = _git('rev-parse', 'HEAD')
        return f'{name} with changes' if _git('status', '--porcelain', '--untracked-files=no') else name
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def _git(*arguments: str) -> str:
    command = ['git', '-C', str(CHECKOUT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
