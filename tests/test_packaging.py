"""The package's metadata: pyproject.toml agrees with the code and with the locks."""

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
DEPENDENCIES = [Requirement(line) for line in PROJECT['dependencies']]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT['optional-dependencies'].items()}
# The name on the package index of each import whose name differs.
DISTRIBUTIONS = {'absl': 'absl-py', 'orbax': 'orbax-checkpoint', 'PIL': 'pillow', 'sklearn': 'scikit-learn'}


def locked(name):
    """The versions in a lock, by name."""
    lines = re.findall(r'^([\w.-]+)==(\S+)$', (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


@pytest.mark.parametrize(
    ('requirements', 'lock'),
    [
        (DEPENDENCIES, 'requirements.txt'),
        (EXTRAS['test'], 'requirements-test.txt'),
        (EXTRAS['docs'], 'requirements-docs.txt'),
        (EXTRAS['onnx'], 'requirements-onnx.txt'),
        (EXTRAS['trackers'], 'requirements-trackers.txt'),
    ],
)
def test_each_locked_version_is_in_the_declared_range(requirements, lock):
    versions = locked('requirements.txt') | locked('requirements-test.txt') | locked(lock)
    for requirement in requirements:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_no_two_locks_differ():
    versions = {}
    for path in ROOT.glob('requirements*.txt'):
        for name, version in locked(path.name).items():
            assert versions.setdefault(name, version) == version, (path, name)


def test_every_import_of_the_package_is_declared():
    imports = set()
    for path in (ROOT / 'mnist_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports.update(alias.name.split('.')[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imports.add(node.module.split('.')[0])
    third_party = imports - sys.stdlib_module_names - {'mnist_jax'}
    declared = {canonicalize_name(requirement.name) for requirement in DEPENDENCIES}
    declared |= {'jax2onnx', 'optuna', 'wandb', 'mlflow', 'trackio'}  # optional; see pyproject.toml
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third_party} <= declared


def test_the_console_script_is_a_function_of_the_package():
    module, _, function = PROJECT['scripts']['mnist-jax'].partition(':')
    assert callable(getattr(importlib.import_module(module), function))


def test_the_installed_package_is_this_checkout():
    assert importlib.metadata.version('mnist_jax') == PROJECT['version']
    assert importlib.metadata.distribution('mnist_jax').read_text('direct_url.json').count(ROOT.as_uri()) == 1
