"""Runs of other versions: they are evaluated, loaded and resumed, whatever fields a version adds.

`old_run/` was written by the version of commit 54a3b18 and must never be rewritten: it shows that this version reads
what that one wrote. It is the MLP of `old_config`, trained for one epoch. The other tests edit a copy of it.
"""

import csv
import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_small
from orbax.checkpoint import v1 as ocp

import mnist_jax
from mnist_jax import config as config_module
from mnist_jax.config import config_from_json, config_sha256
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.train import train
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.comparison import comparison_table
from mnist_jax.workdir.metrics_log import COLUMNS, read_metrics
from mnist_jax.workdir.provenance import read_provenance

OLD_RUN = Path(__file__).parent / 'old_run'


@pytest.fixture
def old_config(data_dir):
    """A function that returns the config of the old run, with overrides."""
    splits = {'dataset__validation': 'train[300:400]', 'dataset__test': 'test[:100]'}
    options = {'batch_size': 100, 'epochs': 1, 'devices': 1, 'chunks': 1, 'steps_per_call': 0, 'model__hidden': (4,)}
    return functools.partial(make_small, data_dir, **{**splits, **options})


@pytest.fixture
def old_run(tmp_path, data_dir):
    """A copy of the old run that finds the data of the tests."""
    workdir = shutil.copytree(OLD_RUN, tmp_path / 'old')
    edit_json(workdir / 'config.json', lambda config: config['dataset'].update(data_dir=data_dir))
    return workdir


def edit_json(path, edit):
    contents = json.loads(path.read_text())
    edit(contents)
    path.write_text(json.dumps(contents))


def edit_config(workdir, edit):
    """Edits config.json as if the run had been saved by a version with other fields."""
    edit_json(workdir / 'config.json', edit)
    digest = config_sha256(config_from_json(json.loads((workdir / 'config.json').read_text())))
    edit_json(workdir / 'digests.json', lambda digests: digests.update(config=digest))


def edit_checkpoint(workdir, edit):
    """Edits the checkpoint as if it had been saved by a version with other leaves."""
    path = workdir / 'checkpoints' / '3'
    tree = ocp.load(path)
    edit(tree['snapshot'])
    leaves = jax.tree_util.tree_leaves_with_path(tree['snapshot'])
    in_order = sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0]))
    digest = hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for _, leaf in in_order)).digest()
    shutil.rmtree(path)
    ocp.save(path, {**tree, 'sha256': np.frombuffer(digest, np.uint8)})


def test_a_run_of_an_older_version_is_evaluated_loaded_compared_and_resumed(old_run, old_config, tmp_path):
    written = json.loads((OLD_RUN / 'eval.json').read_text())
    run = mnist_jax.load(old_run)
    assert run.result['accuracy'] == 0.08 and [row['epoch'] for row in run.metrics] == [1]
    assert run.predict(np.zeros((1, 28, 28))).shape == (1, 10)
    assert '0.0800' in comparison_table([str(old_run)])
    assert [start['step'] for start in read_provenance(old_run)] == [0]
    result = evaluate_workdir(old_run)
    for name in ('params_sha256', 'split_sha256', 'step', 'count', 'parameters'):
        assert result[name] == written[name], name
    assert result['loss'] == pytest.approx(written['loss'], rel=1e-4)
    resumed = train(old_config(epochs=2), old_run)
    uninterrupted = train(old_config(epochs=2), tmp_path / 'new')
    assert resumed['step'] == 6 and resumed['loss'] == pytest.approx(uninterrupted['loss'], rel=1e-4)
    for old, new in zip(read_metrics(old_run), read_metrics(tmp_path / 'new'), strict=True):
        assert old['train_loss'] == pytest.approx(new['train_loss'], rel=1e-4)


def test_a_missing_config_field_means_its_default(old_run, old_config):
    def remove(config):
        del config['seed'], config['reduce_lr'], config['early_stopping']['min_delta'], config['dataset']['split_seed']
        del config['loss']['label_smoothing'], config['optimizer']['rho'], config['model']['dropout']

    edit_config(old_run, remove)
    config = Checkpoints(old_run).read_config()
    assert (config.seed, config.reduce_lr.factor, config.dataset.split_seed) == (0, 0.1, 0)
    assert evaluate_workdir(old_run)['step'] == 3
    with pytest.raises(UserError, match=r'different config: seed \(was 0, is 1\); .*use another --workdir'):
        train(old_config(epochs=2, seed=1), old_run)
    with pytest.raises(UserError, match=r'different config: model.dropout \(was None, is \(0.5,\)\); use'):
        train(old_config(epochs=2, model__dropout=(0.5,)), old_run)
    assert train(old_config(epochs=2), old_run)['step'] == 6
    assert json.loads((old_run / 'config.json').read_text())['seed'] == 0


def test_a_field_added_to_the_default_config_keeps_older_runs(old_run, old_config, tmp_path, monkeypatch):
    shutil.copytree(config_module.CONFIGS, tmp_path / 'configs')
    path = tmp_path / 'configs' / 'default.py'
    added = "    config.added = 'none'\n    config.section = ConfigDict({'field': 1})\n    config.reduce_lr.added = 2\n"
    path.write_text(path.read_text().replace('    return config.lock()\n', f'{added}    return config.lock()\n', 1))
    monkeypatch.setattr(config_module, 'CONFIGS', tmp_path / 'configs')
    config = Checkpoints(old_run).read_config()
    assert (config.added, config.section.field, config.reduce_lr.added) == ('none', 1, 2)
    checkpoints = Checkpoints(old_run)
    checkpoints.check_config(old_config(epochs=2))
    with pytest.raises(UserError, match=r"different config: added \(was 'none', is 'some'\)"):
        checkpoints.check_config(old_config(epochs=2, added='some'))


def test_a_config_field_of_a_newer_version_is_an_error_that_names_it(old_run, old_config):
    def add(config):
        config['early_stopping']['warmup'] = config['annealing'] = 3

    edit_config(old_run, add)
    for use in (evaluate_workdir, mnist_jax.load, lambda workdir: train(old_config(epochs=2), workdir)):
        with pytest.raises(UserError) as error:
            use(old_run)
        message = (
            'is from another version of the program: this one has no config.annealing, config.early_stopping.warmup'
        )
        assert message in str(error.value)


def test_columns_of_metrics_csv_may_be_added_and_missing(old_run, old_config):
    path = old_run / 'metrics.csv'
    rows = list(csv.DictReader(path.read_text().splitlines()))
    columns = [name for name in rows[0] if not name.startswith('validation')]
    text = [','.join([*columns, 'f1']), ','.join([*(rows[0][name] for name in columns), 'good'])]
    path.write_text('\n'.join(text) + '\n')
    assert [list(row) for row in read_metrics(old_run)] == [columns]
    assert 'old' in comparison_table([str(old_run)])
    train(old_config(epochs=2), old_run)
    first, second = csv.DictReader(path.read_text().splitlines())
    assert list(first) == [*COLUMNS, 'f1']
    assert (first['f1'], first['validation_loss'], second['f1']) == ('good', '', '')
    assert float(second['validation_loss']) > 0 and len(read_metrics(old_run)) == 2


def test_a_new_leaf_of_a_resumed_snapshot_has_its_initial_value(old_run, old_config, caplog):
    def remove(snapshot):
        del snapshot['epoch']['skipped'], snapshot['state']['learning_rate_scale'], snapshot['callbacks']['reduce_lr']

    edit_checkpoint(old_run, remove)
    assert evaluate_workdir(old_run)['skipped_steps'] == 0
    result = train(old_config(epochs=2), old_run)
    assert result['step'] == 6 and result['skipped_steps'] == 0
    assert 'was saved by an older version, without state/learning_rate_scale, callbacks/reduce_lr/best,' in caplog.text
    assert read_metrics(old_run)[1]['learning_rate'] == 0.001


def test_evaluation_needs_only_parameters_and_batch_statistics(old_run, old_config):
    def edit(snapshot):
        snapshot['state']['opt_state'] = {'momentum': np.zeros(3, np.float32)}
        snapshot['state']['average'] = np.ones(3, np.float32)
        del snapshot['callbacks']

    expected = evaluate_workdir(old_run)
    before = (old_run / 'metrics.csv').read_text()
    edit_checkpoint(old_run, edit)
    assert evaluate_workdir(old_run) == expected
    assert mnist_jax.load(old_run).predict(np.zeros((1, 28, 28))).shape == (1, 10)
    message = (
        r'checkpoints/3\' was saved with another config, or by another version of the program: it has state/average'
    )
    with pytest.raises(UserError, match=message):
        train(old_config(epochs=2), old_run)
    assert (old_run / 'metrics.csv').read_text() == before and not (old_run / 'damaged').exists()


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda params: params.pop('Dense_1'), 'it has no state/params/Dense_1/bias'),
        (lambda params: params.update(Dense_2=params['Dense_1']), 'it has state/params/Dense_2/bias, which this'),
        (
            lambda params: params['Dense_0'].update(bias=np.zeros(5, np.float32)),
            r'state/params/Dense_0/bias must be float32\[4\], got float32\[5\]',
        ),
    ],
)
def test_other_parameters_are_refused_by_name(old_run, edit, message):
    edit_checkpoint(old_run, lambda snapshot: edit(snapshot['state']['params']))
    with pytest.raises(UserError, match=f'was saved with another config, or by another version .*: {message}'):
        evaluate_workdir(old_run)
