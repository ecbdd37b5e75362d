"""Measures the time from the command to the end of the first training step, imports and compilation included.

    .venv/bin/python benchmarks/startup.py --config=configs/cnn.py --runs=3

Starts the program in a new process each time, and stops it after one step. The first start compiles into an empty
cache; the others find the compiled programs there, as does every start on a machine except the first with a config.
Edit no file of the package within 10 seconds before: such code is compiled, but not stored. The data should already be
prepared; otherwise, the first start prepares it, and its time includes that.

Prints the processor, the seconds of the start with the empty cache, the seconds of the others with their median, and
a Markdown table of the seconds of each part of one more start. That start leaves out what the program does besides:
reading the command line, describing the run, and saving the first checkpoint.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import flags
import throughput

# Runs the command line, prints the time from the start of the process to the end of the first step, and exits.
PROGRAM = """
import functools, os, sys, time
from mnist_jax import train
from mnist_jax.distributed import stored_programs

def stop(step, request):
    print(time.time() - float(os.environ['START_TIME']), flush=True)
    os._exit(0)

train.train = functools.partial(train.train, on_step=stop)
stored_programs.enabled = True  # as for the command `python -m mnist_jax.main`
from mnist_jax.main import main
sys.argv[0] = 'mnist_jax.main'
main()
"""


# Does what the program does until the end of the first step, and prints the time after each part.
PARTS = """
import os, sys, time

def done(part):
    print(f'{part}: {time.time() - float(os.environ["START_TIME"])}', flush=True)

done('start of Python')
import jax
done('import of jax')
import flax.linen
done('import of flax')
import mnist_jax.train
done('other imports, such as orbax.checkpoint and tensorflow_datasets')
from mnist_jax.config import load_config
from mnist_jax.distributed import stored_programs
stored_programs.enabled = True
from mnist_jax.training.experiment import make_experiment
experiment = make_experiment(load_config(sys.argv[1]))
done('building the experiment')
state = experiment.replicas.replicate(experiment.create_state())
done('loading the program that creates the state, and running it')
group = next(experiment.train_calls(0))
done('reading the training split')
jax.block_until_ready(experiment.train_steps(state, group))
done('loading the program of the step, and running it once')
"""


def seconds_by_part(config: str, cache: Path) -> dict[str, float]:
    """Returns the seconds of each part of a start."""
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache), 'START_TIME': str(time.time())}
    command = [sys.executable, '-c', PARTS, config]
    process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    lines = [line.rpartition(': ') for line in process.stdout.splitlines()]
    ends = [0.0, *(float(end) for *_, end in lines)]
    return {part: end - begin for (part, *_), begin, end in zip(lines, ends, ends[1:], strict=False)}


def first_step_seconds(config: str, cache: Path, workdir: Path) -> float:
    """Returns the seconds from the start of a process to the end of its first step."""
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache), 'START_TIME': str(time.time())}
    command = [sys.executable, '-c', PROGRAM, f'--config={config}', f'--workdir={workdir}']
    process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(process.stdout.split()[-1])


def main() -> None:
    """Measures the starts, and prints their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=flags.config_path, default='configs/cnn.py')
    parser.add_argument('--runs', type=flags.at_least(1), default=3, help='the number of starts with a filled cache')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / 'cache'
        cold, *warm = (
            first_step_seconds(options.config, cache, Path(directory) / f'run{run}') for run in range(options.runs + 1)
        )
        parts = seconds_by_part(options.config, cache)
    print(f'{throughput.processor()}, {Path(options.config).stem}')
    print(f'empty compilation cache: {cold:.1f} s')
    print(
        f'filled compilation cache: {", ".join(f"{seconds:.1f}" for seconds in warm)} s; '
        f'median {statistics.median(warm):.1f} s'
    )
    print('\n| part | seconds |\n|---|---|')
    for part, seconds in parts.items():
        print(f'| {part} | {seconds:.2f} |')


if __name__ == '__main__':
    main()
