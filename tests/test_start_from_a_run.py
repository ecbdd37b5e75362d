"""Whole runs that start from another run."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import fail_after, make_small
from ml_collections import ConfigDict

from mnist_jax.config import override_fields
from mnist_jax.data.idx_builders import MnistIdx
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.averaging import AVERAGES
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.state import create_state, start_from
from mnist_jax.models.architectures import MLP
from mnist_jax.train import train
from mnist_jax.training.plan import make_plan
from mnist_jax.workdir.results import caveats


def leaves(workdir, step=None):
    model = RestoredModel.load(workdir, step)
    variables = model.snapshot.state.variables
    paths = jax.tree_util.tree_leaves_with_path((variables.params, variables.batch_stats))
    return {jax.tree_util.keystr(path, simple=True, separator='/').partition('/')[2]: leaf for path, leaf in paths}


@pytest.fixture(scope='module')
def origin(data_dir, tmp_path_factory):
    """The workdir of a small CNN with batch normalization."""
    workdir = tmp_path_factory.mktemp('origin') / 'run'
    train(make_small(data_dir, 'cnn', model__batch_norm=True, epochs=1), workdir)
    return workdir


@pytest.fixture
def start(small, origin):
    """A function that returns the config of a run that starts from `origin`."""

    def make(**fields):
        fields = {'init__workdir': str(origin), 'model__batch_norm': True, 'seed': 1, 'epochs': 1, **fields}
        return small('cnn', **fields)

    return make


def test_a_run_starts_from_the_parameters_of_another(start, origin, tmp_path):
    result = train(start(epochs=0), tmp_path)
    expected = evaluate_workdir(origin)
    assert result['params_sha256'] == expected['params_sha256'] and result['accuracy'] == expected['accuracy']
    assert result['origin'] == {
        'workdir': str(origin.resolve()),
        'step': 5,
        'params_sha256': expected['params_sha256'],
        'taken': result['origin']['arrays'],
        'arrays': len(leaves(origin)),
    }


def test_another_head_is_new(start, origin, tmp_path, caplog):
    caplog.set_level('INFO')
    train(start(epochs=0, model__hidden=(24,)), tmp_path)
    new, old = leaves(tmp_path), leaves(origin)
    same = {path for path in new if path in old and np.array_equal(new[path], old[path])}
    assert {'Conv_0/kernel', 'Conv_1/kernel', 'BatchNorm_0/mean'} <= same
    assert new['Dense_0/kernel'].shape[1] == 24 and 'Dense_0/kernel' not in same
    assert '16 in the origin' in caplog.text


def test_a_layer_that_is_skipped_is_new_although_it_fits(start, origin, tmp_path, caplog):
    caplog.set_level('INFO')
    config = start(epochs=0)
    override_fields(config, {'init.skip': 'Dense_1'}, dict)
    train(config, tmp_path)
    new, old = leaves(tmp_path), leaves(origin)
    assert {path for path in new if not np.array_equal(new[path], old[path])} == {'Dense_1/kernel', 'Dense_1/bias'}
    assert 'new (config.init.skip)' in caplog.text


def test_what_may_be_wrong_about_the_origin_is_logged(start, small, tmp_path, caplog, monkeypatch):
    caplog.set_level('WARNING')
    train(start(epochs=0, dataset__test='test[:100]'), tmp_path / 'same')
    assert not caplog.text
    monkeypatch.setattr(MnistIdx, 'CLASS_NAMES', 'abcdefghij')
    train(start(epochs=0, dataset__normalize='none'), tmp_path / 'other')
    assert (
        'the last layer is taken from a run with other classes, 0, 1, 2, 3, 4, ... instead of a, b, c, d, e, ...; to '
        'initialize it at random, add --config.init.skip=Dense_1'
    ) in caplog.text
    assert "another scale of the inputs: config.dataset.normalize='unit', not 'none'" in caplog.text


def test_examples_that_the_origin_was_trained_on_are_counted(start, origin, tmp_path, caplog):
    fields = {'dataset__train': 'train[300:600]', 'dataset__validation': 'train[200:320]'}
    result = train(start(epochs=0, **fields), tmp_path / 'run')
    name = f'the training split of config.init.workdir={origin}'
    assert result['origin']['overlaps'] == [{'first': name, 'second': 'validation', 'examples': 100}]
    assert f'{name} and validation share 100 examples' in caplog.text
    assert f'{name} and validation share 100 examples' in caveats(evaluate_workdir(tmp_path / 'run'))['overlap']
    drawn = start(epochs=0, dataset__train='train[:600]', dataset__validation_fraction=0.5)
    (overlap,) = train(drawn, tmp_path / 'drawn')['origin']['overlaps']
    validation = make_plan(drawn).source.indices('validation')
    first = make_plan(start()).source.indices('train')
    assert overlap['examples'] == len(set(validation.tolist()) & set(first.tolist())) > 100


def test_the_examples_of_an_origin_are_counted_without_its_files(small, tmp_path):
    def run(name, **fields):
        directory = tmp_path / f'data of {name}'
        directory.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (60, 6, 6), np.uint8)
        arrays = {'x_train': images, 'y_train': np.arange(60) % 3, 'x_test': images[:9], 'y_test': np.arange(9) % 3}
        np.savez(directory / 'own.npz', **arrays)
        fields = {'devices': 1, 'chunks': 1, 'batch_size': 8, 'epochs': 0, **fields}
        config = small('mlp', dataset__name='npz', dataset__train='train', dataset__test='test', **fields)
        config.dataset.data_dir, config.dataset.raw_dir = str(directory), str(directory / 'own.npz')
        result = train(config, tmp_path / name)
        shutil.rmtree(directory)
        return result

    run('origin', dataset__split_seed=3, dataset__validation_fraction=0.5)
    result = run('next', dataset__validation_fraction=0.5, init__workdir=str(tmp_path / 'origin'))
    (overlap,) = result['origin']['overlaps']
    assert overlap['second'] == 'validation' and 0 < overlap['examples'] < 30


def test_frozen_parameters_keep_their_bits(start, origin, tmp_path):
    train(start(init__freeze=('Conv_*', 'BatchNorm_0'), optimizer__name='rmsprop'), tmp_path)
    new, old = leaves(tmp_path), leaves(origin)
    same = {path for path in new if np.array_equal(new[path], old[path])}
    assert same == {path for path in new if path.startswith(('Conv_', 'BatchNorm_0/'))}


def test_rates_change_what_they_match_only(start, tmp_path):
    for name, rates in {'one': (), 'less': (('Dense_1', 0.25),), 'none': (('Dense_1', 0.0),)}.items():
        train(start(init__rates=rates, dataset__train='train[:64]'), tmp_path / name)
    first = leaves(tmp_path / 'one', '0')
    change = {name: leaves(tmp_path / name)['Dense_1/bias'] - first['Dense_1/bias'] for name in ('one', 'less', 'none')}
    assert np.allclose(change['less'], change['one'] / 4, rtol=1e-3) and np.all(change['none'] == 0)
    kernels = [leaves(tmp_path / name)['Conv_0/kernel'] for name in ('one', 'less')]
    assert np.array_equal(*kernels)  # one update, whose gradient does not depend on the rates


def test_layer_decay_equals_the_rates_that_it_stands_for(start, tmp_path):
    rates = (('Dense_0', 0.5), ('*_1', 0.25), ('Dense_1', 1.0), ('*_0', 0.125), ('Dense_0', 0.5))
    train(start(init__layer_decay=0.5), tmp_path / 'decay')
    train(start(init__rates=rates), tmp_path / 'rates')
    decayed, explicit = leaves(tmp_path / 'decay'), leaves(tmp_path / 'rates')
    assert all(np.array_equal(decayed[name], explicit[name]) for name in explicit)


def test_a_run_that_was_stopped_equals_one_that_was_not(start, tmp_path):
    config = start(epochs=2, init__freeze=('Conv_0',), init__rates=(('Dense_*', 0.5),), checkpoint_every_steps=2)
    whole = train(config, tmp_path / 'whole')
    with pytest.raises(RuntimeError):
        train(config, tmp_path / 'stopped', on_step=fail_after(7))
    resumed = train(config, tmp_path / 'stopped')
    assert resumed['params_sha256'] == whole['params_sha256'] and resumed['origin'] == whole['origin']
    starts = json.loads((tmp_path / 'stopped' / 'provenance.json').read_text())
    assert [start['origin'] for start in starts] == [whole['origin']] * 2


def test_the_number_of_devices_does_not_matter(start, tmp_path):
    digests = {
        train(start(devices=devices, init__freeze=('Conv_0',)), tmp_path / str(devices))['params_sha256']
        for devices in (1, 2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'init__workdir': 'missing'},
            r"config.init.workdir must be the directory of a run, got 'missing', which does",
        ),
        ({'init__step': '7'}, r"config.init.step must be one of latest, 0, 5, got '7'"),
        ({'init__freeze': ('Konv_0',)}, 'config.init.freeze must match paths of the model'),
        ({'init__freeze': (1,)}, 'config.init.freeze must be a tuple of patterns'),
        ({'init__skip': ('Konv_0',)}, 'config.init.skip must match paths of the model'),
        ({'init__skip': (1,)}, 'config.init.skip must be a tuple of patterns'),
        ({'init__layer_decay': 1.5}, 'config.init.layer_decay must be a number from 0 to 1, got 1.5'),
        ({'init__rates': (('Konv_0', 1.0),)}, 'config.init.rates must match paths of the model'),
        ({'init__rates': (('*/mean', 0.5),)}, 'config.init.rates must match paths of the model'),
        ({'init__rates': (('Conv_0',),)}, 'config.init.rates must be a tuple of pairs'),
        ({'init__rates': (('Conv_0', -1.0),)}, 'each factor of config.init.rates must be'),
        ({'init__workdir': '', 'init__step': 'best'}, 'config.init.workdir must be set'),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_written(start, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train(start(**fields), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_cannot_start_from_itself(start, tmp_path):
    with pytest.raises(UserError, match='must be another run than --workdir'):
        train(start(init__workdir=str(tmp_path)), tmp_path)


def test_a_model_that_shares_nothing_is_refused(small, origin, tmp_path):
    config = small('mlp', init__workdir=str(origin), model__hidden=())
    with pytest.raises(UserError, match='must be a run with parameters that fit this model'):
        train(config, tmp_path)


@pytest.mark.parametrize('average', ['none', *sorted(set(AVERAGES) - {'none'})])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_no_arrays_of_a_new_run_share_memory(name, average):
    """The train step takes over the memory of its arguments, which fails if two of them are the same array."""
    optimizer = OPTIMIZERS[name]()
    state = create_state(MLP(10, hidden=(4,)), optimizer, (8, 8, 1), 0, None if average == 'none' else True)
    started = start_from(state, state.variables, optimizer)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(started)]
    assert len(set(places)) == len(places) > 5
    jax.tree.map(np.testing.assert_array_equal, started.params, state.params)


def test_a_run_with_adam_and_an_average_starts_from_another(start, tmp_path):
    adam, ema = ConfigDict({'name': 'adam', 'learning_rate': 1e-3}), ConfigDict({'name': 'ema'})
    config = start(optimizer=adam, average=ema, dataset__train='train[:64]')
    assert train(config, tmp_path)['origin']['taken'] > 0
