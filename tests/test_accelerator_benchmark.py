"""The benchmark for accelerators, in its small form on the CPU."""

import json
import subprocess
import sys

from conftest import ROOT, environment


def test_every_part_of_the_accelerator_benchmark_runs_on_the_cpu(data_dir, tmp_path):
    command = [sys.executable, 'benchmarks/accelerator.py', '--quick', '--minutes=20', f'--output={tmp_path}']
    process = subprocess.run(command, cwd=ROOT, env=environment(data_dir), capture_output=True, text=True)
    results = json.loads((tmp_path / 'accelerator.json').read_text())
    assert process.returncode == 0 and results['errors'] == {}, results['errors']
    parts = results['parts']
    assert set(parts['tests']['outcomes'].values()) == {'PASSED', 'SKIPPED'}
    assert parts['throughput']['mlp']['train'].keys() == {'ours', 'ours.fast'}
    assert 0 < parts['time']['warm']['accuracy'] <= 1 and parts['time']['seeds'][0]['seconds'] > 0
    assert parts['ingredients']['rows']['rotation with scale and shift'][0] > 0
    assert parts['scale']['rows'][0]['images_per_second'] > 0
    table = (tmp_path / 'accelerator.md').read_text()
    assert table.strip() == process.stdout.partition('\n1 (CPU, virtual)')[2].join(['1 (CPU, virtual)', '']).strip()


def test_a_directory_without_wheels_is_an_error(tmp_path):
    command = [sys.executable, 'benchmarks/accelerator.py', f'--wheels={tmp_path}', f'--output={tmp_path / "out"}']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and not (tmp_path / 'out').exists()
    assert process.stderr.splitlines()[-1].startswith(
        f"accelerator.py: error: --wheels must be a directory with wheels, got '{tmp_path}'"
    )
