"""Configs: loading, checks, JSON in and out, and whether a run may resume; every field is read by the code."""

import ast
import json
from collections.abc import Sequence

import pytest
from conftest import ROOT
from ml_collections import ConfigDict, config_dict

from mnist_jax.config import (
    check_resumable,
    config_fields,
    config_from_json,
    config_to_json,
    default_config,
    load_config,
    override_fields,
)
from mnist_jax.config_checks import check_config
from mnist_jax.errors import UserError
from mnist_jax.factory import Rate, Section, Width

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
        ('import sys\nsys.exit("no data")', 'cannot be loaded: SystemExit: no data'),
        (
            'import ml_collections\ndef get_config():\n    return ml_collections.FrozenConfigDict({"epochs": 3})',
            'must return a ConfigDict without frozen sections',
        ),
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
        ('checkpoint_min_seconds', -1.0, 'config.checkpoint_min_seconds must be a number from 0 to 86400, got -1.0'),
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


def test_a_resumed_run_may_only_change_the_epochs_and_where_it_runs():
    saved, config = default_config(), default_config()
    config.epochs, config.devices, config.dataset.data_dir = 11, 4, '/elsewhere'
    check_resumable(saved, config, {})
    config.seed, config.optimizer.learning_rate = 1, 0.5
    with pytest.raises(UserError) as error:
        check_resumable(saved, config, {})
    for change in ('seed (was 0, is 1)', 'optimizer.learning_rate (was 0.001, is 0.5)'):
        assert change in str(error.value)
    assert 'devices' not in str(error.value)


def conv_net(num_classes: int, widths: Sequence[Width], dropout: Rate = 0.1, names: Sequence[str] = ()) -> None:
    """A user's own model, with a field that has no default."""


def other_net(
    num_classes: int, blocks=2, fast=False, scale: float | None = None, widths: Sequence[Sequence[int]] = ((8,),)
) -> None:
    """Another one, with fields that have no annotation or more than one type."""


def slow(rate: float = 0.5, epsilon: float = 1e-3) -> None:
    """An optimizer that has a field of the same name as RMSprop."""


SECTIONS = {
    'model': Section({'conv_net': conv_net, 'other_net': other_net}, extra=('num_classes',)),
    'optimizer': Section({'slow': slow}, shared=('learning_rate',)),
}


def overridden(**texts):
    """Returns the default config with overrides: `overridden(model__name='conv_net')`."""
    config = default_config()
    lines = override_fields(config, {name.replace('__', '.'): text for name, text in texts.items()}, lambda: SECTIONS)
    assert config.is_locked
    return config, lines


def test_another_part_takes_its_own_defaults_and_keeps_what_all_parts_share():
    config, lines = overridden(optimizer__name='slow')
    assert config.optimizer.to_dict() == {'name': 'slow', 'learning_rate': 1e-3}  # not RMSprop's epsilon of 1e-7
    assert lines == ['optimizer slow; defaults: rate=0.5, epsilon=0.001; from the config file: learning_rate=0.001']


def test_the_fields_of_the_new_part_are_set_in_any_order():
    expected = {'name': 'conv_net', 'widths': (3, 4), 'dropout': 0.25}
    for order in (1, -1):
        texts = {'model__dropout': '0.25', 'model__name': 'conv_net', 'model__widths': '(3,4)'}
        config, lines = overridden(**dict(list(texts.items())[::order]))
        assert config.model.to_dict() == expected
        assert lines == ['model     conv_net; defaults: names=()']


def test_the_name_that_the_file_has_already_changes_nothing():
    config = default_config()
    config.optimizer = ConfigDict({'name': 'slow', 'learning_rate': 0.1, 'rate': 0.2})
    assert override_fields(config, {'optimizer.name': 'slow'}, lambda: SECTIONS) == []
    assert config.optimizer.to_dict() == {'name': 'slow', 'learning_rate': 0.1, 'rate': 0.2}


def test_a_field_that_the_file_leaves_out_can_be_set():
    config = default_config()
    config.optimizer = ConfigDict({'name': 'slow', 'learning_rate': 1})
    override_fields(config, {'optimizer.epsilon': '1', 'optimizer.learning_rate': '0.5'}, lambda: SECTIONS)
    assert config.optimizer.to_dict() == {'name': 'slow', 'learning_rate': 0.5, 'epsilon': 1.0}
    assert isinstance(config.optimizer.epsilon, float)  # as its annotation says


@pytest.mark.parametrize(
    ('text', 'value'),
    [('64', (64,)), ('(64,)', (64,)), ('64,32', (64, 32)), ('[64, 32]', (64, 32)), ('()', ())],
)
def test_a_tuple_can_be_written_without_parentheses(text, value):
    config = default_config()
    override_fields(config, {'model.widths': text, 'model.name': 'conv_net'}, lambda: SECTIONS)
    assert config.model.widths == value


def test_a_single_augmentation_can_be_written_without_a_tuple():
    config = default_config()
    override_fields(config, {'augmentation': "({'name': 'flip'})"}, lambda: SECTIONS)
    assert config.augmentation == ({'name': 'flip'},)


def test_values_are_of_the_type_of_their_field():
    config, _ = overridden(
        model__name='other_net', model__blocks='3', model__fast=True, model__scale='2', model__widths='[[4], [8, 8]]',
        epochs='7', early_stopping__min_delta='1', early_stopping__restore_best=True, dtype='bfloat16',
    )  # fmt: skip
    values = {'blocks': 3, 'fast': True, 'scale': 2.0, 'widths': ((4,), (8, 8))}
    assert config.model.to_dict() == {'name': 'other_net', **values}
    assert isinstance(config.model.scale, float) and isinstance(config.early_stopping.min_delta, float)
    assert (config.epochs, config.early_stopping.restore_best, config.dtype) == (7, True, 'bfloat16')
    config, _ = overridden(model__name='other_net', model__scale='None')
    assert config.model.scale is None
    config, _ = overridden(model__name='conv_net', model__names='a, b', early_stopping__restore_best=False)
    assert config.model.names == ('a', 'b') and config.early_stopping.restore_best is False


def test_a_field_must_have_a_value():
    config = default_config()
    config.epochs = config_dict.required_placeholder(int)
    with pytest.raises(UserError, match=r'config\.epochs must have a value, got a required placeholder'):
        check_config(config)


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        ({'model__name': 'conv'}, "config.model.name must be one of conv_net, other_net, got 'conv' (did you mean"),
        (
            {'model__name': 'conv_net', 'model__drop': '1'},
            "config.model.drop is not a field for 'conv_net' (did you mean 'dropout'?); the fields are: dropout, "
            'names, widths',
        ),
        (
            {'optimizer__name': 'slow', 'optimizer__rho': '1'},
            "config.optimizer.rho is not a field for 'slow'; the fields are: epsilon, learning_rate, rate",
        ),
        (
            {'model__name': 'conv_net', 'model__num_classes': '1'},
            "config.model.num_classes is not a field for 'conv_net'; the fields are: dropout, names, widths",
        ),
        (
            {'model__name': 'conv_net', 'model__widths': 'None'},
            "--config.model.widths must be a tuple, such as (64, 32), (64,) or (), got 'None'",
        ),
        ({'epochs': '1e1'}, "--config.epochs must be of type int, got '1e1'"),
        ({'epochs': True}, '--config.epochs needs a value: --config.epochs=VALUE, of type int'),
        ({'epochs': False}, '--noconfig.epochs needs a value: --config.epochs=VALUE, of type int'),
        ({'dtype': 'None'}, "--config.dtype must be of type str, got None; use '' for none"),
        ({'early_stopping': 'x'}, 'config.early_stopping is a section: set its fields, for example '
                                  '--config.early_stopping.'),
        ({'model': 'x'}, 'config.model is a section: set its fields, for example --config.model.name=VALUE'),
        ({'early_stopping__patiense': '1'}, "config.early_stopping.patiense is not a field (did you mean "
                                            "'early_stopping.patience'?); the fields are: early_stopping.min_delta,"),
        ({'epochs__name': '1'}, "config.epochs.name is not a field (did you mean 'epochs'?)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_an_error_that_says_what_it_must_be(texts, message):
    with pytest.raises(UserError) as error:
        overridden(**texts)
    assert str(error.value).startswith(message)
