"""The examples run, as a user would run them."""

import json
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, environment
from nbclient import NotebookClient

EXAMPLES = ROOT / 'examples'
NOTEBOOK = EXAMPLES / 'first_run.ipynb'


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
    return {**environment(data_dir), 'PYTHONPATH': str(ROOT)}


def test_the_notebook_runs_and_its_stored_outputs_are_of_the_same_kind(tmp_path, variables):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    options = {'resources': {'metadata': {'path': str(tmp_path)}}, 'coalesce_streams': True, 'timeout': 300}
    NotebookClient(notebook, **options).execute(env=variables)
    assert outputs(notebook) == stored
    assert json.loads((tmp_path / 'runs' / 'first-run' / 'eval.json').read_text())['accuracy'] > 0.9


def test_the_notebook_is_small_enough_to_be_shown_by_a_code_host():
    assert NOTEBOOK.stat().st_size < 200_000


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
