"""Ensembles: the mean of what their runs predict, everywhere where a run can be used."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax import export as jax_export

import mnist_jax
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_ensemble, evaluate_workdir
from mnist_jax.inference.endpoint import Endpoint
from mnist_jax.inference.ensemble import Ensemble, Views, load_model
from mnist_jax.inference.export import export
from mnist_jax.inference.packaged import PACKAGED
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.metrics import mcnemar_exact
from mnist_jax.train import train


@pytest.fixture(scope='module')
def runs(data_dir, tmp_path_factory):
    """Three small runs with different seeds and models, and validation examples."""
    from conftest import make_small

    directory = tmp_path_factory.mktemp('runs')
    for seed, model in enumerate(('mlp', 'mlp', 'cnn')):
        validation = {'dataset__validation': 'train[300:700]', 'dataset__train': 'train[:300]'}
        config = make_small(data_dir, model, seed=seed, devices=1, chunks=1, epochs=4, **validation)
        train(config, directory / f'run-{seed}')
    return [directory / f'run-{seed}' for seed in range(3)]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)


def make(runs, workdir, combine='probabilities', views=Views()):  # noqa: B008
    return Ensemble.load_runs(workdir, runs, None, combine, views)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_predictions_are_means(runs, images, tmp_path):
    members = [mnist_jax.load(run) for run in runs]
    mean = np.mean([member.predict(images) for member in members], axis=0)
    np.testing.assert_allclose(make(runs, tmp_path).predict(images), mean, rtol=1e-5, atol=1e-7)
    logits = np.mean([member.logits(images) for member in members], axis=0)
    np.testing.assert_allclose(make(runs, tmp_path, 'logits').predict(images), softmax(logits), rtol=1e-4, atol=1e-6)


def test_views_are_shifted_and_mirrored_images(runs, images, tmp_path):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
    views = [*shifted, *(view[:, :, ::-1] for view in shifted)]
    model = mnist_jax.load(runs[2])
    mean = np.mean([model.predict(view) for view in views], axis=0)
    together = make(runs[2:], tmp_path, views=Views(1, True))
    np.testing.assert_allclose(together.predict(images), mean, rtol=1e-5, atol=1e-6)
    assert together.views.number == 18
    assert np.array_equal(Views(1, True).map(lambda view: view, jax.numpy.asarray(images))[0], images)


def test_an_ensemble_is_evaluated_and_used_like_a_run(runs, images, tmp_path, capsys):
    model = make(runs, tmp_path / 'ensemble')
    result = evaluate_ensemble(model)
    assert 'ensemble   mean of the probabilities of 3 runs' in capsys.readouterr().out
    singles = [json.loads((run / 'eval.json').read_text()) for run in runs]
    own = np.load(tmp_path / 'ensemble' / 'predictions.npz')
    assert result['accuracy'] == (own['prediction'] == own['label']).mean()
    for run, single, row in zip(runs, singles, result['runs'], strict=True):
        theirs = np.load(run / 'predictions.npz')
        assert np.array_equal(theirs['label'], own['label']) and row['accuracy'] == single['accuracy']
        right, other = own['prediction'] == own['label'], theirs['prediction'] == own['label']
        assert (row['only_first'], row['only_second']) == ((right & ~other).sum(), (other & ~right).sum())
        assert row['p_value'] == mcnemar_exact(row['only_first'], row['only_second'])
    assert result['parameters'] == sum(single['parameters'] for single in singles)
    assert result['uncertainty']['validation_examples'] == 400
    assert singles[0]['uncertainty']['validation_examples'] == 400
    assert evaluate_workdir(tmp_path / 'ensemble') == result

    restored = load_model(tmp_path / 'ensemble')
    np.testing.assert_array_equal(restored.predict(images), model.predict(images))
    answer = Endpoint(restored).answer(json.dumps({'image': images[0, ..., 0].tolist(), 'feature_maps': True}).encode())
    assert set(answer['probabilities']) == set(map(str, range(10)))
    directory = export(tmp_path / 'ensemble')
    exported = jax_export.deserialize(bytearray((directory / 'model.stablehlo').read_bytes()))
    np.testing.assert_allclose(exported.call(images), model.predict(images), rtol=1e-3, atol=1e-5)
    assert 'Ensemble of 3 runs' in (directory / 'README.md').read_text()


def test_files_are_predicted(runs, tmp_path):
    from PIL import Image

    evaluate_ensemble(make(runs[:2], tmp_path / 'ensemble'))
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:35, 18:22] = 255
    Image.fromarray(pixels).save(tmp_path / 'one.png')
    assert predict(tmp_path / 'ensemble', [str(tmp_path / 'one.png')], tmp_path / 'out.jsonl') == 0
    assert len((tmp_path / 'out.jsonl').read_text().splitlines()) == 1


def test_runs_that_do_not_fit_together_are_refused(runs, small, tmp_path):
    other = small('mlp', devices=1, epochs=0, dataset__train='train[:200]', dataset__validation='train[300:700]')
    train(other, tmp_path / 'other')
    with pytest.raises(UserError, match=r"the same config.dataset.train: 'train\[:300\]' in .* got 'train\[:200\]'"):
        evaluate_ensemble(make([runs[0], tmp_path / 'other'], tmp_path / 'ensemble'))
    digits = small('mlp', devices=1, epochs=0, dataset__train='train[:200]')
    digits.dataset.name, digits.dataset.test = 'digits', 'test'
    train(digits, tmp_path / 'digits')
    with pytest.raises(UserError, match=r'the same image shape: \(28, 28, 1\) in'):
        make([runs[0], tmp_path / 'digits'], tmp_path / 'ensemble')
    assert not (tmp_path / 'ensemble').exists()


def test_runs_on_other_data_with_the_same_split_names_are_refused(small, tmp_path):
    """Otherwise, the test examples of one run may be training examples of the other."""
    rng = np.random.default_rng(0)
    for name in ('one', 'two'):
        arrays = {f'x_{split}': rng.integers(0, 256, (80, 8, 8)).astype(np.uint8) for split in ('train', 'test')}
        labels = {f'y_{split}': np.arange(80) % 4 for split in ('train', 'test')}
        np.savez(tmp_path / f'{name}.npz', **arrays, **labels)
        config = small('mlp', devices=1, epochs=1, dataset__train='train', dataset__test='test')
        config.dataset.name, config.dataset.raw_dir = 'npz', str(tmp_path / f'{name}.npz')
        train(config, tmp_path / name)
    with pytest.raises(UserError, match='all runs must have the same data'):
        evaluate_ensemble(make([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'ensemble'))
    shutil.copy(tmp_path / 'two.npz', tmp_path / 'one.npz')  # Not what the run was trained with.
    with pytest.raises(UserError, match='the dataset must be the one'):
        evaluate_ensemble(make([tmp_path / 'one'], tmp_path / 'ensemble'))
    assert not (tmp_path / 'ensemble').exists()


def test_the_directory_of_an_ensemble_is_not_used_for_anything_else(runs, small, tmp_path):
    make(runs[:1], tmp_path / 'ensemble').save()
    with pytest.raises(UserError, match='holds an ensemble; use another --workdir for a run'):
        train(small('mlp'), tmp_path / 'ensemble')
    with pytest.raises(UserError, match='holds another ensemble; use another --workdir'):
        evaluate_ensemble(make(runs[:2], tmp_path / 'ensemble'))
    with pytest.raises(UserError, match='an ensemble, which only --mode=eval, predict'):
        RestoredModel.load(tmp_path / 'ensemble')
    assert [path.name for path in (tmp_path / 'ensemble').iterdir()] == ['ensemble.json']


@pytest.mark.parametrize(('name', 'held'), [('study.json', 'a study'), ('member-0', 'a population')])
def test_a_study_or_a_population_is_not_used_for_an_ensemble(runs, forked, tmp_path, name, held):
    (tmp_path / name).mkdir()
    for mode in ('eval', 'report'):
        failed = forked(f'--mode={mode}', f'--run={runs[0]}', f'--run={runs[1]}', f'--workdir={tmp_path}')
        assert failed.returncode == 2 and f'holds {held}; use another --workdir for a' in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_without_checkpoints_can_be_members(images, tmp_path):
    make([PACKAGED], tmp_path).save()
    np.testing.assert_array_equal(load_model(tmp_path).predict(images), RestoredModel.load(PACKAGED).predict(images))


def test_the_gradient_of_an_impossible_class_is_finite(runs, images, tmp_path):
    ensemble = make(runs[:1], tmp_path)
    ensemble.variables[0]['params']['Dense_1']['bias'][3] = -1000.0
    gradient = jax.grad(lambda image: ensemble.logits(image)[0, 3])(jax.numpy.asarray(images[:1], 'float32'))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda saved: saved.pop('runs'), "is damaged: 'runs'"),
        (lambda saved: saved['runs'][0].update(params_sha256='0'), 'must have the SHA-256 0'),
        (
            lambda saved: saved['runs'][0].update(workdir='/nowhere'),
            "got '/nowhere', which does not exist",
        ),
        (lambda saved: saved['runs'][0].update(step='latest'), "is damaged: invalid literal for int.*'latest'"),
        (lambda saved: saved['runs'][0].update(step=7), 'must have a checkpoint of step 7, got those of'),
        (lambda saved: saved.update(runs=[]), 'its runs, combine, shift or flip are invalid'),
        (lambda saved: saved.update(shift=999), 'its runs, combine, shift or flip are invalid'),
        (lambda saved: saved.update(flip='false'), 'its runs, combine, shift or flip are invalid'),
    ],
)
def test_a_damaged_ensemble_is_an_error(runs, tmp_path, damage, message):
    model = make(runs[:1], tmp_path)
    model.save()
    saved = json.loads((tmp_path / 'ensemble.json').read_text())
    damage(saved)
    (tmp_path / 'ensemble.json').write_text(json.dumps(saved))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--combine=votes'], '--combine must be probabilities or logits'),
        (['--shift=9'], '--shift must be from 0 to 8, got 9'),
        (['--processes=2'], '--processes must not be combined with --run'),
        (['--step=7'], '--step must be one of'),
    ],
)
def test_wrong_flags(runs, forked, tmp_path, arguments, message):
    failed = forked('--mode=eval', f'--run={runs[0]}', f'--workdir={tmp_path / "ensemble"}', *arguments)
    assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count('\n') == 1
    assert not (tmp_path / 'ensemble').exists()


def test_own_images_are_evaluated_by_one_process(runs, forked):
    failed = forked('--mode=eval', f'--workdir={runs[0]}', '--input=.', '--processes=2')
    assert failed.returncode == 2 and failed.stderr == 'error: --processes must not be combined with --input\n'


def test_a_saved_ensemble_is_evaluated_by_one_process(runs, forked, tmp_path):
    make(runs, tmp_path).save()
    failed = forked('--mode=eval', f'--workdir={tmp_path}', '--processes=2')
    assert failed.returncode == 2 and failed.stderr.endswith('must not be combined with the --workdir of an ensemble\n')


@pytest.mark.parametrize('flag', ['--flip', '--shift=1', '--combine=logits'])
def test_flags_of_ensembles_without_runs(runs, forked, flag):
    failed = forked('--mode=eval', f'--workdir={runs[0]}', flag)
    assert failed.returncode == 2 and 'needs --run, which makes an ensemble' in failed.stderr


def test_the_command(runs, forked, tmp_path):
    pattern = str(runs[0].parent / 'run-*')
    done = forked('--mode=eval', f'--run={pattern}', f'--workdir={tmp_path / "ensemble"}', '--shift=1')
    assert done.returncode == 0, done.stderr
    assert '3 runs, 9 views of each image' in done.stdout
    again = forked('--mode=eval', f'--workdir={tmp_path / "ensemble"}')
    assert again.stdout == done.stdout
