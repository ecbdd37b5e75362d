"""The examples run, as a user would run them."""

import json
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, environment
from nbclient import NotebookClient

EXAMPLES = ROOT / 'examples'
NOTEBOOKS = sorted(EXAMPLES.glob('*.ipynb'))
SHORTER = {'epochs = 60': 'epochs = 2', 'seeds=10': 'seeds=2', '[1e-3, 3e-3, 1e-2]': '[1e-3, 1e-2]'}  # of the study


def outputs(notebook) -> list[list[set[str]]]:
    """Returns the types of the outputs of each code cell."""
    return [
        [set(output.get('data', {output.output_type: ''})) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == 'code'
    ]


@pytest.fixture
def variables(data_dir) -> dict[str, str]:
    """The environment variables of an example."""
    variables = {**environment(data_dir), 'PYTHONPATH': str(ROOT)}
    variables.pop('PYTEST_CURRENT_TEST', None)  # With it, a kernel does not capture the output of child processes.
    return variables


def execute(name, tmp_path, variables, shorter=()):
    """Executes a notebook in a directory; asserts that its stored outputs are of the same kind."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    stored = outputs(notebook)
    for text in shorter:
        (cell,) = (cell for cell in notebook.cells if text in cell.source)
        cell.source = cell.source.replace(text, shorter[text])
    options = {'resources': {'metadata': {'path': str(tmp_path)}}, 'coalesce_streams': True, 'timeout': 300}
    NotebookClient(notebook, **options).execute(env=variables)
    assert outputs(notebook) == stored


def test_the_notebook_of_a_first_run(tmp_path, variables):
    execute('first_run.ipynb', tmp_path, variables)
    assert json.loads((tmp_path / 'runs' / 'first-run' / 'eval.json').read_text())['accuracy'] > 0.9


def test_the_notebook_of_a_study(tmp_path, variables):
    execute('study.ipynb', tmp_path, variables, SHORTER)
    study = tmp_path / 'runs' / 'losses'
    assert len(list((study / 'trials').iterdir())) == 8 and len(list(study.rglob('eval.json'))) == 2


def test_notebooks_are_small_enough_to_be_shown_by_a_code_host():
    assert len(NOTEBOOKS) == 2 and all(path.stat().st_size < 200_000 for path in NOTEBOOKS)


def test_own_model_trains_and_predicts(tmp_path, variables):
    command = [sys.executable, str(EXAMPLES / 'own_model.py'), f'--workdir={tmp_path / "run"}', '--examples=2000']
    process = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / 'run' / 'eval.json').read_text())['accuracy'] > 0.7
    assert 'labels      7 2 1 0 4 1 4 9 5 9' in process.stdout


@pytest.mark.parametrize('examples', ['-5', '60000'])
def test_own_model_refuses_examples_outside_its_training_split(tmp_path, variables, examples):
    command = [
        sys.executable,
        str(EXAMPLES / 'own_model.py'),
        f'--workdir={tmp_path / "run"}',
        f'--examples={examples}',
    ]
    process = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert process.returncode == 2 and not (tmp_path / 'run').exists()
    assert process.stderr.endswith(f'error: --examples must be from 32 to 54,000, got {examples}\n')


def test_a_study_on_a_ray_cluster(tmp_path, variables):
    pytest.importorskip('ray')
    fields = {'dataset.train': 'train[:300]', 'dataset.validation': 'train[300:400]', 'epochs': '1'}
    flags = ['--config=configs/mlp.py', *(f'--config.{name}={value}' for name, value in fields.items())]
    study = ['--vary=optimizer.learning_rate=1e-3,1e-2', f'--workdir={tmp_path / "study"}']
    command = [sys.executable, str(EXAMPLES / 'ray_study.py'), *flags, *study]
    process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert len((tmp_path / 'study' / 'trials.csv').read_text().splitlines()) == 3
