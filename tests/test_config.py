"""Configs: loading, checks, JSON in and out, and whether a run may resume; every field is read by the code."""

import ast
import json

import pytest
from conftest import ROOT

from mnist_jax.config import (
    check_fields,
    check_resumable,
    config_fields,
    config_from_json,
    config_to_json,
    default_config,
    load_config,
)
from mnist_jax.config_checks import check_config
from mnist_jax.errors import UserError

HEAD = (
    'from mnist_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n'  # five lines
)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_is_valid_and_survives_json(path):
    config = load_config(str(path))
    check_config(config)
    restored = config_from_json(json.loads(config_to_json(config)))
    assert restored == config and restored.is_locked
    assert list(config_fields(restored)) == list(config_fields(config))


def test_every_field_is_read_by_the_code():
    names = set()
    for path in (ROOT / 'mnist_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)  # an attribute of a Linen module or a dataclass
    # `factory.build` reads `name` by its key.
    fields = {field.rsplit('.', 1)[-1] for field, _ in config_fields(default_config())} - {'name'}
    assert fields <= names, f'declared and never read: {fields - names}'


def test_the_configs_of_the_project_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config('configs/mlp.py').model.name == 'mlp'
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'mlp.py').write_text(HEAD + '    config.epochs = 77\n    return config\n')
    assert load_config('configs/mlp.py').epochs == 77


def test_configs_that_import_the_default_from_the_directory_still_load(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    path = tmp_path / 'old.py'
    path.write_text('from configs import default\n\n\ndef get_config():\n    return default.get_config()\n')
    assert load_config(str(path)) == default_config()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'does not exist; configs/cnn.py is an example'),
        ('x = (', "cannot be loaded: SyntaxError: '(' was never closed"),
        (
            'import nothing_like_that',
            "cannot be loaded: ModuleNotFoundError: No module named 'nothing_like_that' (line 1)",
        ),
        ('config = 1', 'must define a function get_config() that returns a ConfigDict'),
        ('def get_config():\n    return 3\n', 'must return a ConfigDict, got int'),
        (HEAD + '    config.epohcs = 3\n    return config\n', 'Did you mean "epochs" instead of "epohcs"? (line 6)'),
        (HEAD + '    config.epochs = "x"\n    return config\n', "cannot be casted to type <class 'int'> (line 6)"),
        (HEAD, 'must return a ConfigDict, got NoneType'),
    ],
)
def test_a_wrong_config_file_is_a_one_line_error(tmp_path, text, message):
    path = tmp_path / 'mine.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert message in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('batch_size', 0, 'config.batch_size must be an integer from 1 to 2147483647, got 0'),
        ('epochs', -1, 'config.epochs must be an integer from 0 to 2147483647, got -1'),
        ('devices', -2, 'config.devices must be an integer from 0 to 2147483647, got -2'),
        ('seed', 2**31, 'config.seed must be an integer from 0 to 2147483647, got 2147483648'),
        ('seed', -1, 'config.seed must be an integer from 0 to 2147483647, got -1'),
        ('chunks', 65, 'config.chunks must be an integer from 1 to 64, got 65'),
        (
            'checkpoint_every_minutes',
            -1.0,
            'config.checkpoint_every_minutes must be a number from 0 to 525600, got -1.0',
        ),
        ('folds', 1, 'config.folds must be 0 or at least 2, got 1'),
        ('fold', 3, 'config.fold must be at most config.folds=0, got 3'),
    ],
)
def test_a_number_out_of_range_is_an_error(field, value, message):
    config = default_config()
    config[field] = value
    with pytest.raises(UserError) as error:
        check_config(config)
    assert str(error.value) == message


def test_unknown_and_missing_fields_are_errors():
    config = default_config().copy_and_resolve_references()
    with config.unlocked():
        config.epohcs = 3
    with pytest.raises(UserError, match=r"config.epohcs is not a field \(did you mean 'epochs'\?\)"):
        check_config(config)
    with config.unlocked():
        del config.epohcs
        del config.seed
    with pytest.raises(UserError, match=r'config\.seed is missing'):
        check_config(config)
    with pytest.raises(UserError, match=r"config.model.paddding is not a field \(did you mean 'model.padding'\?\)"):
        check_fields(default_config(), ['epochs', 'model.paddding'])


def test_a_resumed_run_may_only_change_the_epochs_and_where_it_runs():
    saved, config = default_config(), default_config()
    config.epochs, config.devices, config.dataset.data_dir = 11, 4, '/elsewhere'
    check_resumable(saved, config)
    config.seed, config.optimizer.learning_rate = 1, 0.5
    with pytest.raises(UserError) as error:
        check_resumable(saved, config)
    for change in ('seed (was 0, is 1)', 'optimizer.learning_rate (was 0.001, is 0.5)'):
        assert change in str(error.value)
    assert 'devices' not in str(error.value)
