"""Time from the command to the first training step, imports, data and compilation included.

    .venv/bin/python benchmarks/startup.py --config=configs/cnn.py --runs=3

Starts the program as a process with one step of training, on prepared data. The first start compiles into an empty
cache; the others find the cache, as every start but a machine's first does. Prints seconds, and writes nothing.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Runs the program and prints how long after its start the first step was done.
PROGRAM = """
import os, runpy, sys, time
from mnist_jax.training import loop
add = loop.Loop._add
def stop(*arguments):
    add(*arguments)
    print(time.time() - float(os.environ['STARTED']), flush=True)
    os._exit(0)
loop.Loop._add = stop
sys.argv[0] = 'mnist_jax.main'
runpy.run_module('mnist_jax.main', run_name='__main__')
"""


def first_step_seconds(config: str, cache: Path, workdir: Path) -> float:
    """Seconds from the start of a process to its first finished step."""
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'STARTED': str(time.time()),
    }
    command = [sys.executable, '-c', PROGRAM, f'--config={config}', f'--workdir={workdir}']
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'cnn.py'))
    parser.add_argument('--runs', type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / 'cache'
        seconds = [
            first_step_seconds(arguments.config, cache, Path(directory) / f'run{run}')
            for run in range(arguments.runs + 1)
        ]
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {Path(arguments.config).stem}')
    print(f'empty compilation cache: {seconds[0]:.1f} s')
    print(
        f'later starts: {", ".join(f"{s:.1f}" for s in seconds[1:])} s; median {statistics.median(seconds[1:]):.1f} s'
    )


if __name__ == '__main__':
    main()
