"""The table of `benchmarks/keras_results.py`, without training Keras."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / 'benchmarks' / 'keras_results.py'


def test_finished_results_are_printed_without_training(tmp_path):
    results = {'mlp': {str(seed): {'accuracy': accuracy} for seed, accuracy in enumerate((0.98, 0.982, 0.987))}}
    (tmp_path / 'keras.json').write_text(json.dumps(results))
    command = [sys.executable, str(SCRIPT), '--configs=mlp', '--seeds=3', f'--output={tmp_path / "keras.json"}']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # Mean 0.983, deviations -0.003, -0.001 and 0.004: the square root of 26e-6 / 2.
    assert process.stdout.splitlines()[-1].startswith('| `mlp` | 0.9830 ± 0.0036 | 0.9800 to 0.9870 | 3 |')
    assert json.loads((tmp_path / 'keras.json').read_text()) == results


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--configs=mpl', '--configs must be among mlp, cnn, fashion_cnn, '),
        ('--seeds=0', '--seeds must be at least 1, got 0'),
    ],
)
def test_wrong_arguments_are_errors(tmp_path, argument, message):
    command = [sys.executable, str(SCRIPT), argument, f'--output={tmp_path / "keras.json"}']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and not (tmp_path / 'keras.json').exists()
    assert message in process.stderr.splitlines()[-1]
