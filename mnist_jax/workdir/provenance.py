"""Where a run comes from: each start of its training, with command, commit, versions and hardware, in its workdir."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from mnist_jax import files
from mnist_jax.config import ROOT
from mnist_jax.distributed import processes

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint', 'tensorflow-datasets', 'ziglang')
MAX_STARTS = 100  # starts that are kept, the latest
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


def record_start(workdir: Path, step: int, devices: str) -> None:
    """Add this start, at `step` on `devices`, to `provenance.json`."""
    now = {
        'began': datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds'),
        'step': step,
        'command': _command(),
        'commit': _commit(),
        'devices': devices,
        'processor': processor(),
        'system': platform.platform(),
        'versions': {
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    text = json.dumps([*read_provenance(workdir)[1 - MAX_STARTS :], now], indent=2)
    files.write_text(workdir / 'provenance.json', f'{text}\n')


def read_provenance(workdir: Path) -> list[dict[str, Any]]:
    """The starts that are on record, the first one first; none where nothing readable is."""
    try:
        found = files.read_json(workdir / 'provenance.json')
    except (OSError, ValueError):
        return []
    return [start for start in found if _is_start(start)] if isinstance(found, list) else []


def _is_start(start: Any) -> bool:
    return isinstance(start, dict) and all(isinstance(start.get(name), kind) for name, kind in FIELDS.items())


def processor() -> str:
    """The number of cores that this process may use, and the name of the processor."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    name = models[0] if models else platform.processor() or platform.machine()
    return f'{processes.available_cores()} cores of {name}'


def _command() -> str:
    if Path(sys.argv[0]).name != 'main.py':
        return f'{Path(sys.argv[0]).name}, from Python'
    return shlex.join(['python', '-m', 'mnist_jax.main', *sys.argv[1:]])


def _commit() -> str:
    """The commit of this code, and whether it was changed since."""
    try:
        name = _git('rev-parse', 'HEAD')
        return f'{name} and changes' if _git('status', '--porcelain', '--untracked-files=no') else name
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def _git(*arguments: str) -> str:
    command = ['git', '-C', str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
