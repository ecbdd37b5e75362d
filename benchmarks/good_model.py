"""Measures the time to accuracy of configs/fast.py, and of Keras with the recipe of the published CNN.

    .venv/bin/python benchmarks/good_model.py --seeds=5

Times whole processes, from the command to the result: for configs/fast.py, the result is eval.json; for Keras (10
epochs of configs/cnn.py, then an evaluation on the test split), it is the accuracy. A first run, which does not count,
prepares the data and fills the compilation cache. Then one process runs at a time: half of the seeds, Keras once, and
the other seeds. Keras is installed into benchmarks/.venv if it is missing; see throughput.py.

Prints the seconds and the test accuracy of every run; at the end, the mean accuracy over the seeds, the range of the
seconds, and how many times longer than the median Keras took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KERAS_EPOCHS = 10  # as in the published recipe


def keras_accuracy(task_path: str, test_path: str) -> float:
    """Trains Keras's model by the published recipe; returns its accuracy on the test split."""
    import programs

    task, test = json.loads(Path(task_path).read_text()), np.load(test_path)
    program = programs.Keras(task)
    program.model.fit(program.image, program.label, batch_size=task['batch_size'], epochs=KERAS_EPOCHS, verbose=0)
    image = test['image'].astype(np.float32) / 255
    return program.model.evaluate(image, test['label'].astype(np.int64), verbose=0)[1]


def run_keras(directory: Path) -> tuple[float, float]:
    """Returns the seconds from the command to the accuracy, and the test accuracy."""
    import throughput  # Imported here because it imports mnist_jax, which the environment of Keras lacks.

    from mnist_jax.data.source import SOURCES

    task_path, _ = throughput.write_task('cnn', directory)
    split = SOURCES['mnist'](data_dir='', raw_dir='', train='train', validation='', test='test').read_slice('test')
    test = split.take(np.arange(split.size))
    test_path = directory / 'test.npz'
    np.savez(test_path, image=test.image, label=test.label)
    command = [throughput.other_python(), __file__, '--keras', str(task_path), str(test_path)]
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''}
    start = time.perf_counter()
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start, float(process.stdout.split()[-1])


def run_mnist_jax(directory: Path, seed: int) -> tuple[float, float]:
    """Returns the seconds from the command to the end of the process, after eval.json, and the test accuracy."""
    workdir = directory / str(seed)
    command = [sys.executable, '-m', 'mnist_jax.main', '--noreport', '--config=configs/fast.py']
    start = time.perf_counter()
    subprocess.run([*command, f'--workdir={workdir}', f'--config.seed={seed}'], check=True, capture_output=True)
    return time.perf_counter() - start, json.loads((workdir / 'eval.json').read_text())['accuracy']


def main() -> None:
    """Runs everything, and prints the time and the test accuracy of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, help='the number of seeds')
    parser.add_argument('--keras', nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keras:
        print(keras_accuracy(*options.keras))
        return
    seconds, accuracies, keras_seconds = [], [], 0.0
    with tempfile.TemporaryDirectory() as directory:
        run_mnist_jax(Path(directory), options.seeds)
        for seed in range(options.seeds):
            if seed == options.seeds // 2:
                keras_seconds, accuracy = run_keras(Path(directory))
                print(f'Keras: {keras_seconds:.1f} s, test accuracy {accuracy:.4f}', flush=True)
            elapsed, accuracy = run_mnist_jax(Path(directory), seed)
            print(f'configs/fast.py, seed {seed}: {elapsed:.1f} s, test accuracy {accuracy:.4f}', flush=True)
            seconds.append(elapsed)
            accuracies.append(accuracy)
    print(
        f'configs/fast.py: mean test accuracy {statistics.fmean(accuracies):.4f}, {min(seconds):.1f} to '
        f'{max(seconds):.1f} s; Keras took {keras_seconds / statistics.median(seconds):.1f} times the median'
    )


if __name__ == '__main__':
    main()
