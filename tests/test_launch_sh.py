"""launch.sh with a stand-in for Python that writes down what it is asked to do."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

STAND_IN = """#!/bin/bash
case "$*" in
    -c*) exit 0 ;;
    '-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo venv >>"$LOG" ;;
    *'-m pip install'*)
        echo "pip ${@: -1}" | sed 's:/.*/::' >>"$LOG"
        if [[ -n ${KILL:-} ]]; then kill -9 $PPID; fi ;;
    *) echo "in $PWD: $*" >>"$LOG" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """A function that runs a copy of launch.sh and returns what the stand-in was asked to do."""
    root, log = tmp_path / 'a project', tmp_path / 'log'
    root.mkdir()
    for name in ('launch.sh', 'requirements.txt', 'requirements-test.txt', 'requirements-onnx.txt', 'configs'):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / name)
    stand_in = tmp_path / 'python3'
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(*arguments, cwd=root, code=0, **environment):
        log.write_text('')
        variables = {**os.environ, 'LOG': str(log), 'PYTHON': str(stand_in), **environment}
        done = subprocess.run([root / 'launch.sh', *arguments], cwd=cwd, env=variables, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return log.read_text().splitlines()

    run.root = root
    return run


def test_it_installs_once_and_again_when_the_requirements_changed(launch):
    assert launch('setup') == ['venv', 'pip requirements.txt']
    assert launch('setup') == []
    installed = ['pip requirements-test.txt', 'pip requirements-onnx.txt']
    assert launch('test', '-x') == [*installed, f'in {launch.root}: -m pytest -x']
    with open(launch.root / 'requirements.txt', 'a') as file:
        file.write('six==1.17.0\n')
    assert launch('setup') == ['pip requirements.txt']
    assert launch('setup') == []


@pytest.mark.parametrize('command', ['setup', 'test'])
def test_an_interrupted_installation_is_done_again_from_nothing(launch, command):
    if command == 'test':
        launch('setup')
    launch(command, KILL='1', code=-9)
    assert launch('setup') == ['venv', 'pip requirements.txt']


def test_it_passes_everything_on_from_any_directory(launch, tmp_path):
    launch('setup')
    assert launch('--mode=eval', '--workdir=a b', cwd=tmp_path) == [
        f'in {tmp_path}: -m mnist_jax.main --mode=eval --workdir=a b'
    ]
    expected = f'in {tmp_path}: -m mnist_jax.main --config={launch.root}/configs/cnn.py --config.epochs=1'
    assert launch('--config=configs/cnn.py', '--config.epochs=1', cwd=tmp_path) == [expected]
    assert launch('--config', 'configs/cnn.py', cwd=tmp_path) == [
        f'in {tmp_path}: -m mnist_jax.main --config {launch.root}/configs/cnn.py'
    ]
    (tmp_path / 'link').symlink_to(launch.root / 'launch.sh')
    linked = subprocess.run([tmp_path / 'link', 'setup'], env={**os.environ, 'PYTHON': '/bin/false'}, check=True)
    assert linked.returncode == 0


def test_an_old_python_is_told(launch):
    done = subprocess.run(
        [launch.root / 'launch.sh'], env={**os.environ, 'PYTHON': '/bin/false'}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr == 'error: Python 3.11 or newer is wanted, and /bin/false is not; set PYTHON=/path/to/python3.11\n'
    )
