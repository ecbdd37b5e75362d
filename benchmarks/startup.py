"""Measures the time from the command to the end of the first training step, imports and compilation included.

    .venv/bin/python benchmarks/startup.py --config=configs/cnn.py --runs=3

Starts the program in a new process each time, and stops it after one step. The first start compiles into an empty
cache; the others find the compiled step there, as does every start on a machine except the first. The data should
already be prepared; otherwise, the first start prepares it, and its time includes that.

Prints the processor, the seconds of the start with the empty cache, and the seconds of the others with their median.
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

# Runs the command line, prints the time from the start of the process to the end of the first step, and exits.
PROGRAM = """
import functools, os, sys, time
from mnist_jax import train

def stop(step, request):
    print(time.time() - float(os.environ['START_TIME']), flush=True)
    os._exit(0)

train.train = functools.partial(train.train, on_step=stop)
from mnist_jax.main import main
sys.argv[0] = 'mnist_jax.main'
main()
"""


def first_step_seconds(config: str, cache: Path, workdir: Path) -> float:
    """Returns the seconds from the start of a process to the end of its first step."""
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache), 'START_TIME': str(time.time())}
    command = [sys.executable, '-c', PROGRAM, f'--config={config}', f'--workdir={workdir}']
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(process.stdout.split()[-1])


def main() -> None:
    """Measures the starts, and prints their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/cnn.py')
    parser.add_argument('--runs', type=int, default=3, help='the number of starts with a filled cache')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / 'cache'
        cold, *warm = (
            first_step_seconds(options.config, cache, Path(directory) / f'run{run}') for run in range(options.runs + 1)
        )
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {Path(options.config).stem}')
    print(f'empty compilation cache: {cold:.1f} s')
    print(
        f'filled compilation cache: {", ".join(f"{seconds:.1f}" for seconds in warm)} s; '
        f'median {statistics.median(warm):.1f} s'
    )


if __name__ == '__main__':
    main()
