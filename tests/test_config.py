"""Configs: loaded, checked, written and read again, compared; every field is read by the code."""

import ast
import json
from pathlib import Path

import pytest

from mnist_jax.config import (
    check_config,
    check_fields,
    check_resumable,
    config_fields,
    config_from_json,
    config_to_json,
    load_config,
)
from mnist_jax.errors import UserError

ROOT = Path(__file__).parent.parent
HEAD = 'from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n'


def default():
    return load_config(str(ROOT / 'configs' / 'default.py'))


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_is_good_and_survives_json(path):
    config = load_config(str(path))
    check_config(config)
    again = config_from_json(json.loads(config_to_json(config)))
    assert again == config and again.is_locked
    assert list(config_fields(again)) == list(config_fields(config))


def test_every_field_is_read_by_the_code():
    read = set()
    for path in (ROOT / 'mnist_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
    # `name` selects in errors.build, which takes it as a key.
    fields = {field.rsplit('.', 1)[-1] for field, _ in config_fields(default())} - {'name'}
    assert fields <= read, f'declared and never read: {fields - read}'


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        (None, 'does not exist; configs/cnn.py is an example'),
        ('x = (', "cannot be read: SyntaxError: '(' was never closed"),
        (
            'import nothing_like_that',
            "cannot be read: ModuleNotFoundError: No module named 'nothing_like_that' (line 1)",
        ),
        ('config = 1', 'has no function get_config()'),
        ('def get_config():\n    return 3\n', 'returned a int; a ConfigDict is wanted'),
        (HEAD + '    config.epohcs = 3\n    return config\n', 'Did you mean "epochs" instead of "epohcs"? (line 6)'),
        (HEAD + '    config.epochs = "x"\n    return config\n', "cannot be casted to type <class 'int'> (line 6)"),
        (HEAD, 'returned a NoneType; a ConfigDict is wanted'),
    ],
)
def test_wrong_files_are_told_in_a_line(tmp_path, text, told):
    path = tmp_path / 'mine.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert told in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('batch_size', 0, 'config.batch_size=0 is wrong: a whole number from 1 to 2147483647 is wanted'),
        ('epochs', -1, 'config.epochs=-1 is wrong: a whole number from 0 to 2147483647 is wanted'),
        ('devices', -2, 'config.devices=-2 is wrong: a whole number from 0 to 2147483647 is wanted'),
        ('seed', 2**31, 'config.seed=2147483648 is wrong: a whole number from 0 to 2147483647 is wanted'),
        ('chunks', 65, 'config.chunks=65 is wrong: a whole number from 1 to 64 is wanted'),
        (
            'checkpoint_every_minutes',
            -1.0,
            'config.checkpoint_every_minutes=-1.0 is wrong: a number from 0 to 525600 is wanted',
        ),
        ('seed', -1, 'config.seed=-1 is wrong: a whole number from 0 to 2147483647 is wanted'),
    ],
)
def test_numbers_out_of_range_are_told(field, value, told):
    config = default()
    config[field] = value
    with pytest.raises(UserError) as error:
        check_config(config)
    assert str(error.value) == told


def test_unknown_and_missing_fields_are_told():
    config = default().copy_and_resolve_references()
    with config.unlocked():
        config.epohcs = 3
    with pytest.raises(UserError, match=r"config.epohcs is no field \(did you mean 'epochs'\?\)"):
        check_config(config)
    with config.unlocked():
        del config.epohcs
        del config.seed
    with pytest.raises(UserError, match=r'config\.seed is missing'):
        check_config(config)
    with pytest.raises(UserError, match=r"config.model.paddding is no field \(did you mean 'model.padding'\?\)"):
        check_fields(default(), ['epochs', 'model.paddding'])


def test_a_run_goes_on_with_other_epochs_and_elsewhere_but_with_nothing_else_changed():
    saved, asked = default(), default()
    asked.epochs, asked.devices, asked.dataset.data_dir = 11, 4, '/elsewhere'
    check_resumable(saved, asked)
    asked.seed, asked.optimizer.learning_rate = 1, 0.5
    with pytest.raises(UserError) as error:
        check_resumable(saved, asked)
    for told in ('seed (was 0, is 1)', 'optimizer.learning_rate (was 0.001, is 0.5)'):
        assert told in str(error.value)
    assert 'devices' not in str(error.value)
