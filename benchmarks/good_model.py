"""Time to a good model: configs/fast.py from the command to eval.json, beside Keras with the published CNN's recipe.

    .venv/bin/python benchmarks/good_model.py --seeds=5

The data are prepared and the compilation cache is filled by a run that does not count. Then half of the seeds, Keras
once (10 epochs of configs/cnn.py and the evaluation on the test split), and the other seeds, one after the other.
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

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
EPOCHS = 10  # of the published recipe


def keras_accuracy(task_path: str, test_path: str) -> float:
    """Train Keras's model by the published recipe; its accuracy on the test split."""
    import programs

    task, test = json.loads(Path(task_path).read_text()), np.load(test_path)
    program = programs.Keras(task)
    program.model.fit(program.image, program.label, batch_size=task['batch_size'], epochs=EPOCHS, verbose=0)
    image = test['image'].astype(np.float32) / 255
    return program.model.evaluate(image, test['label'].astype(np.int64), verbose=0)[1]


def run_keras(directory: Path) -> tuple[float, float]:
    """Seconds from the command to the accuracy, and the accuracy."""
    import throughput

    from mnist_jax.data.source import SOURCES

    task, _ = throughput.write_task('cnn', directory)
    split = SOURCES['mnist'](data_dir='', raw_dir='', train='train', validation='', test='test').other('test')
    test = split.take(np.arange(split.size))
    np.savez(directory / 'test.npz', image=test.image, label=test.label)
    command = [throughput.other_python(), __file__, '--keras', str(task), str(directory / 'test.npz')]
    began = time.perf_counter()
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began, float(done.stdout.split()[-1])


def run_ours(directory: Path, seed: int) -> tuple[float, float]:
    """Seconds from the command to the end of the process, which has then written eval.json; the test accuracy."""
    workdir = directory / str(seed)
    command = [sys.executable, '-m', 'mnist_jax.main', '--noreport', '--config=configs/fast.py']
    began = time.perf_counter()
    subprocess.run(
        [*command, f'--workdir={workdir}', f'--config.seed={seed}'], check=True, cwd=ROOT, capture_output=True
    )
    return time.perf_counter() - began, json.loads((workdir / 'eval.json').read_text())['accuracy']


def main() -> None:
    """Run all, and print what each took and reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--keras', nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keras:
        print(keras_accuracy(*arguments.keras))
        return
    found = []
    with tempfile.TemporaryDirectory() as directory:
        run_ours(Path(directory), arguments.seeds)
        for seed in range(arguments.seeds):
            if seed == arguments.seeds // 2:
                keras_seconds, accuracy = run_keras(Path(directory))
                print(f'Keras: {keras_seconds:.1f} s, test accuracy {accuracy:.4f}', flush=True)
            found.append(run_ours(Path(directory), seed))
            print(f'configs/fast.py, seed {seed}: {found[-1][0]:.1f} s, test accuracy {found[-1][1]:.4f}', flush=True)
    seconds, accuracies = zip(*found, strict=True)
    print(
        f'configs/fast.py: mean test accuracy {statistics.fmean(accuracies):.4f}, {min(seconds):.1f} to '
        f'{max(seconds):.1f} s; Keras takes {keras_seconds / statistics.median(seconds):.1f} times the median'
    )


if __name__ == '__main__':
    main()
