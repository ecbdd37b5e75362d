"""Robustness: each corruption on images for which the result is known, attacks, and the page."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.data.partition import sample
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError
from mnist_jax.inference.ensemble import Ensemble, Views
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.studies import stress as stress_module
from mnist_jax.studies.corruptions import CORRUPTIONS
from mnist_jax.studies.stress import attack, stress
from mnist_jax.train import train

IMAGES = np.random.default_rng(0).uniform(0, 1, (6, 12, 10, 1)).astype(np.float32)


def corrupted(name, images, strength, seed=0):
    return CORRUPTIONS[name].corrupt(images, strength, np.random.default_rng(seed))


@pytest.mark.parametrize('name', CORRUPTIONS)
@pytest.mark.parametrize('channels', [1, 2, 3])
def test_corruptions_change_images_more_the_stronger_they_are(name, channels):
    images = np.repeat(np.zeros((4, 28, 28, 1), np.float32), channels, axis=-1)
    images[:, 6:22, 11:17] = 0.9
    changes = [np.abs(corrupted(name, images, strength) - images).mean() for strength in CORRUPTIONS[name].strengths]
    assert changes[0] > 0 and changes[-1] > changes[0]
    assert changes == sorted(changes)
    once, again = (corrupted(name, images, CORRUPTIONS[name].strengths[2]) for _ in range(2))
    assert np.array_equal(once, again) and once.shape == images.shape


def test_corruptions_by_hand():
    dot = np.zeros((50, 9, 9, 1), np.float32)
    dot[:, 4, 4] = 1
    moved = corrupted('shift', dot, 3)[..., 0]
    distances = np.hypot(*(np.argwhere(moved)[:, 1:] - 4).T)
    assert moved.sum() == 50 and distances.min() > 2 and distances.max() < 4.5
    assert np.array_equal(corrupted('thicker strokes', dot, 3)[0, 3:6, 3:6, 0], np.ones((3, 3)))
    assert corrupted('thicker strokes', dot, 3)[0].sum() == 9
    assert not corrupted('thinner strokes', dot, 1.0).any()
    np.testing.assert_allclose(corrupted('low contrast', IMAGES, 0.4), 0.3 + 0.4 * IMAGES, rtol=1e-6)
    occluded = corrupted('occlusion', np.ones((20, 10, 10, 1)), 0.25)
    assert ((occluded == 0.5).sum(axis=(1, 2, 3)) == 25).all()
    np.testing.assert_allclose(corrupted('noise', np.full((9, 28, 28, 1), 0.5), 0.1).std(), 0.1, rtol=0.05)
    square = np.zeros((1, 41, 41, 1), np.float32)
    square[:, 10:31, 10:31] = 1
    assert corrupted('smaller', square, 0.5).sum() == 11 * 11  # Every second pixel of 21 is left.
    turned = corrupted('rotation', square, 45)
    assert turned[0, 20, 7] > 0.9 and turned[0, 11, 11] < 0.1  # a square on its corner


@pytest.fixture(scope='module')
def runs(data_dir, tmp_path_factory):
    """Two trained multi-layer perceptrons."""
    from conftest import make_small

    directory = tmp_path_factory.mktemp('runs')
    for seed in range(2):
        config = make_small(data_dir, 'mlp', seed=seed, devices=1, chunks=1, epochs=3, dataset__train='train[:2000]')
        train(config, directory / f'run-{seed}')
    return directory


def test_an_attack_follows_the_sign_of_the_gradient_within_its_limit(runs):
    model = RestoredModel.load(runs / 'run-0')
    examples = model.plan.source.split('test').take(np.arange(50))

    def loss(images):
        logits = model.logits(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples.label).sum()

    clean = examples.image.astype(np.float32)
    expected = np.clip(clean + 20 * np.sign(jax.grad(loss)(jnp.asarray(clean))), 0, 255)
    np.testing.assert_array_equal(attack(model, examples, 20.0, 1), expected)
    stronger = attack(model, examples, 20.0, 10)
    assert np.abs(stronger - clean).max() <= 20.001 and stronger.min() >= 0 and stronger.max() <= 255
    losses = [float(loss(jnp.asarray(images))) for images in (clean, expected, stronger)]
    assert losses[0] < losses[1] < losses[2]


def test_runs_are_measured_on_the_same_images(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stress_module, 'PGD_STEPS', 2)
    outcome = stress([str(runs / 'run-*')], tmp_path / 'both')
    names = [*CORRUPTIONS, 'FGSM', 'PGD']
    assert list(outcome.accuracies) == ['run-0', 'run-1']
    assert all(list(rows) == names for rows in outcome.accuracies.values())
    record = json.loads((tmp_path / 'both' / 'stress' / 'stress.json').read_text())
    assert record['examples'] == 200
    assert record['runs']['run-1']['accuracies'] == outcome.accuracies['run-1']
    for run in ('run-0', 'run-1'):
        result = json.loads((runs / run / 'eval.json').read_text())
        assert record['runs'][run]['accuracy'] == outcome.clean[run] == result['accuracy']
        means = [np.mean(outcome.accuracies[run][name]) for name in CORRUPTIONS]
        assert abs(record['runs'][run]['mean_corrupted_accuracy'] - np.mean(means)) < 1e-9
    assert 'run-1: mean over all corruptions' in capsys.readouterr().out
    alone = stress([str(runs / 'run-1')], runs / 'run-1')
    assert alone.accuracies['run-1'] == outcome.accuracies['run-1']
    page = (runs / 'run-1' / 'stress' / 'index.html').read_text()
    assert page.count('<svg') >= 2 and 'Accuracy under corruption' in page


def test_a_pattern_finds_ensembles_too(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(stress_module, 'PGD_STEPS', 1)
    monkeypatch.setattr(stress_module, 'CORRUPTIONS', {'blur': CORRUPTIONS['blur']})
    members = [runs / 'run-0', runs / 'run-1']
    Ensemble.load_runs(tmp_path / 'both', members, None, 'probabilities', Views()).save()
    shutil.copytree(runs / 'run-0', tmp_path / 'alone')
    outcome = stress([f'{tmp_path}/*'], tmp_path / 'stressed')
    assert list(outcome.accuracies) == ['alone', 'both']


def test_the_images_are_from_the_whole_split():
    indices = sample(5000, 2000)
    assert len(np.unique(indices)) == 2000 and (np.diff(indices) > 0).all()
    assert 900 < (indices < 2500).sum() < 1100
    np.testing.assert_array_equal(sample(200, 2000), np.arange(200))


def test_runs_with_other_test_images_are_refused(runs, small, tmp_path):
    train(small('mlp', devices=1, epochs=0, dataset__test='test[:100]'), tmp_path / 'other')
    with pytest.raises(UserError, match='all runs must have the same test split, got 2 different ones'):
        stress([str(runs / 'run-0'), str(tmp_path / 'other')], tmp_path / 'both')
    assert not (tmp_path / 'both').exists()


def test_small_color_images_can_be_corrupted():
    split = Split(np.zeros((2, 5, 4, 3), np.uint8), np.zeros(2, np.int32))
    for name, corruption in CORRUPTIONS.items():
        for strength in corruption.strengths:
            assert corrupted(name, split.image / 255, strength).shape == (2, 5, 4, 3)
