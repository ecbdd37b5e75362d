"""The audit of labels: flipped labels are found, and the files list them."""

import csv

import numpy as np
import pytest
from matplotlib.image import imread
from raw_data import idx_bytes

from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.studies.label_audit import audit_config, audit_labels


@pytest.fixture(scope='module')
def flipped(data_dir, tmp_path_factory):
    """Returns a directory with 6,000 training images of MNIST, and the indices of 100 whose labels were flipped."""
    mnist = SOURCES['mnist'](data_dir, '', 'train[:6000]', '', 'test[:500]')
    rng = np.random.default_rng(0)
    indices = rng.choice(6000, 100, replace=False)
    labels = mnist.split('train').label.astype(np.uint8)
    labels[indices] = (labels[indices] + rng.integers(1, 10, 100)) % 10
    directory = tmp_path_factory.mktemp('flipped')
    for name, split in (('train', mnist.split('train')), ('t10k', mnist.split('test'))):
        (directory / f'{name}-images-idx3-ubyte').write_bytes(idx_bytes(split.image[..., 0]))
        label = labels if name == 'train' else split.label.astype(np.uint8)
        (directory / f'{name}-labels-idx1-ubyte').write_bytes(idx_bytes(label))
    return directory, set(indices.tolist())


def test_flipped_labels_are_among_the_first_suspects(flipped, small, tmp_path, capsys):
    directory, indices = flipped
    fields = {
        'dataset__data_dir': str(tmp_path / 'data'), 'dataset__raw_dir': str(directory), 'dataset__train': 'train',
        'dataset__test': 'test', 'folds': 3, 'epochs': 4, 'model__hidden': (64,), 'devices': 1, 'steps_per_call': 32,
    }  # fmt: skip
    suspects = audit_labels(small(**fields), tmp_path / 'audit')
    assert len(indices & set(suspects.example[:100].tolist())) >= 60
    assert len(indices & set(suspects.example.tolist())) >= 90
    with open(tmp_path / 'audit' / 'label_suspects.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['index']) for row in rows] == suspects.example.tolist()
    assert [row['suggestion'] for row in rows] == [str(label) for label in suspects.suggestion]
    assert imread(tmp_path / 'audit' / 'label_suspects.png').shape[0] > 200
    printed = capsys.readouterr().out
    assert f'another class is suggested for {len(rows):,} of 6,000 training examples, ' in printed
    # Nothing is trained again.
    again = audit_labels(small(**fields), tmp_path / 'audit')
    np.testing.assert_equal(again, suspects)


def test_positions_are_those_in_the_training_split(small, tmp_path):
    order = 'train[400:600]+train[:400]'
    config = small(folds=2, epochs=1, devices=1, dataset__train=order)
    audit_labels(config, tmp_path)
    source = SOURCES['mnist'](config.dataset.data_dir, '', order, '', 'test[:10]')
    with open(tmp_path / 'label_suspects.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    labels = source.split('train').label
    assert len(rows) > 100 and all(row['label'] == str(labels[int(row['index'])]) for row in rows)


def test_the_folds_replace_the_validation_examples(small):
    config = audit_config(small(folds=3, dataset__validation_fraction=0.1, early_stopping__restore_best=True))
    assert config.dataset.validation_fraction == 0
    with pytest.raises(UserError, match=r'config.optimizer.learning_rate must be'):
        audit_config(small(folds=3, optimizer__learning_rate=-1.0))


def test_a_single_fold_is_refused(small, tmp_path):
    with pytest.raises(UserError, match=r'config.fold must be 0 for --mode=explore, which trains all folds, got 2'):
        audit_labels(small(folds=3, fold=2), tmp_path)
