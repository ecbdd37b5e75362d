"""launch.sh, run with a stand-in for Python that records the commands it is asked to run."""

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
        echo "pip $(basename "${@: -1}")" >>"$LOG"
        if [[ -n ${KILL:-} ]]; then kill -9 $PPID; fi
        exit ${FAIL:-0} ;;
    *) echo "in $PWD: $*" >>"$LOG" ;;
esac
"""
LOCKS = [f'requirements{suffix}.txt' for suffix in ('', '-test', '-onnx', '-trackers', '-docs')]
# The last argument of each 'pip install'; for the package itself, it is the directory of the checkout.
SETUP = ['pip requirements.txt', 'pip a checkout']


@pytest.fixture
def launch(tmp_path):
    """A function that runs a copy of launch.sh and returns the commands that the stand-in recorded."""
    root, log = tmp_path / 'a checkout', tmp_path / 'log'
    root.mkdir()
    for name in ('launch.sh', 'pyproject.toml', *LOCKS):
        shutil.copy(ROOT / name, root / name)
    stand_in = tmp_path / 'python3'
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(*arguments, script=root / 'launch.sh', cwd=tmp_path, status=0, **environment):
        log.write_text('')
        variables = {**os.environ, 'LOG': str(log), 'PYTHON': str(stand_in), **environment}
        process = subprocess.run([script, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)
        assert process.returncode == status, process.stderr
        return log.read_text().splitlines()

    run.root = root
    return run


def test_it_installs_once_and_again_after_the_requirements_change(launch):
    assert launch('setup') == ['venv', *SETUP]
    assert launch('setup') == []
    installed = [f'pip requirements-{name}.txt' for name in ('test', 'onnx', 'trackers')]
    assert launch('test', '-x') == [*installed, f'in {launch.root}: -m pytest -x']
    for name, command in zip(('requirements.txt', 'pyproject.toml'), SETUP, strict=True):
        with open(launch.root / name, 'a') as file:
            file.write('# changed\n')
        assert launch('setup') == [command]
        assert launch('setup') == []


def test_it_installs_the_package_again_after_the_checkout_is_moved(launch, tmp_path):
    launch('setup')
    moved = launch.root.rename(tmp_path / 'moved')
    assert launch('setup', script=moved / 'launch.sh') == ['pip requirements.txt', 'pip moved']


@pytest.mark.parametrize('command', ['setup', 'test', 'docs'])
def test_an_interrupted_installation_starts_over(launch, command):
    if command != 'setup':
        launch('setup')
    launch(command, KILL='1', status=-9)
    assert launch('setup') == ['venv', *SETUP]


def test_a_failed_installation_keeps_what_was_installed_before(launch):
    launch('setup')
    with open(launch.root / 'requirements.txt', 'a') as file:
        file.write('# changed\n')
    for _ in range(2):
        assert launch('setup', FAIL='1', status=1) == ['pip requirements.txt']
    assert launch('setup') == ['pip requirements.txt']


def test_it_passes_all_arguments_on_from_any_directory(launch, tmp_path):
    launch('setup')
    for arguments in (('--mode=eval', '--workdir=a b'), ('--config', 'configs/cnn.py', '--config.epochs=1'), ()):
        command = ' '.join(('-m', 'mnist_jax.main', *arguments))
        assert launch(*arguments) == [f'in {tmp_path}: {command}']
    assert launch('reproduce', '--seeds=3') == [f'in {tmp_path}: -m mnist_jax.main --mode=reproduce --seeds=3']
    assert launch('docs', 'build', '--strict') == [
        'pip requirements-docs.txt',
        f'in {launch.root}: -m mkdocs build --strict',
    ]


def test_it_works_through_a_symbolic_link(launch, tmp_path):
    launch('setup')
    (tmp_path / 'link').symlink_to(launch.root / 'launch.sh')
    assert launch('setup', script=tmp_path / 'link', PYTHON='/bin/false') == []


def test_an_old_python_is_an_error_that_names_the_required_version(launch):
    process = subprocess.run(
        [launch.root / 'launch.sh'], env={**os.environ, 'PYTHON': '/bin/false'}, capture_output=True, text=True
    )
    assert process.returncode == 2
    assert process.stderr == 'error: Python must be 3.11 or newer, got /bin/false; set PYTHON=/path/to/python3.11\n'
