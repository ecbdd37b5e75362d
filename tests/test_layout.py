"""The layout of the package: its modules and packages, and that imports only point down."""

import ast
import traceback

import pytest
from conftest import ROOT

from mnist_jax.learning.model_checks import PROBES
from mnist_jax.models.architectures import MLP, MODELS
from mnist_jax.train import train

PACKAGE = ROOT / 'mnist_jax'
# A module may import its own package and the levels below; names on the same level do not import each other.
LEVELS = (
    ('main',),
    ('commands',),
    ('studies',),
    ('train',),
    ('notebook',),
    ('evaluate', 'report'),
    ('inference',),
    ('training',),
    ('workdir',),
    ('learning',),
    ('distributed', 'models'),
    ('kernels', 'data'),
    ('config_checks',),
    ('config',),
    ('files',),
    ('factory',),
    ('errors', 'text_tables'),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imported_modules(path):
    """Yields the modules and packages of mnist_jax that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mnist_jax':
            yield from node.module.split('.')[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split('.')[1] for alias in node.names if alias.name.startswith('mnist_jax.'))


def owner(path):
    """Returns the top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_every_module_has_a_level():
    assert {owner(path) for path in PACKAGE.rglob('*.py')} - {'__init__'} == set(LEVEL)


def test_imports_only_point_down():
    for path in PACKAGE.rglob('*.py'):
        if path != PACKAGE / '__init__.py':
            own = owner(path)
            wrong = [name for name in imported_modules(path) if name != own and LEVEL[name] <= LEVEL[own]]
            assert not wrong, f'{path} imports {wrong}'


def test_the_package_stays_small():
    assert len(list(PACKAGE.glob('*.py'))) <= 12
    assert len([path for path in PACKAGE.iterdir() if (path / '__init__.py').exists()]) <= 10
    assert all(len(path.relative_to(PACKAGE).parts) <= 3 for path in PACKAGE.rglob('*.py'))


def test_every_package_is_described_in_one_line():
    for path in PACKAGE.glob('*/__init__.py'):
        assert path.read_text().count('\n') == 1 and path.read_text().startswith('"""'), path


class FailingMLP(MLP):
    """An MLP that raises an exception when its train step is traced."""

    def __call__(self, image_BxHxWxC, training=None):
        if training is not None and len(image_BxHxWxC) > PROBES:  # Fewer images check the model before the first step.
            raise RuntimeError('traced')
        return super().__call__(image_BxHxWxC)


def test_the_step_is_three_calls_below_train(small, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, 'failing_mlp', FailingMLP)
    with pytest.raises(RuntimeError, match='traced') as error:
        train(small(model__name='failing_mlp'), tmp_path)
    frames = [f.name for f in traceback.extract_tb(error.tb) if str(PACKAGE) in f.filename]
    assert frames[:5] == ['train', 'run', 'train_steps', 'train_step', '_mean_gradient']
