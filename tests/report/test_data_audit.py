"""The audit of a dataset: its tables on known data, its list of findings, its figures and its cache."""

import csv

import numpy as np
import pytest

from mnist_jax.data.records import Split
from mnist_jax.report import data_audit, figures


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    (tmp_path / 'cache').mkdir()
    monkeypatch.setattr(data_audit.files, 'cache_directory', lambda: tmp_path / 'cache')
    return tmp_path / 'cache'


def known_splits():
    """Returns splits with one near-duplicate across them, a blank image, and a class without test examples."""
    rng = np.random.default_rng(0)
    images = rng.integers(20, 200, (30, 6, 6, 1), np.uint8)
    images[25] = images[3] + 5
    images[26] = images[4]
    images[10] = 0
    labels = np.arange(30) % 3
    labels[25:] = 1
    return {'train': Split(images[:20], labels[:20]), 'test': Split(images[20:], np.where(labels == 2, 0, labels)[20:])}


def test_duplicates_are_counted_within_and_across_splits():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    train = Split(images[[0, 1, 1, 1, 2]], np.array([7, 1, 1, 8, 2]))
    test = Split(images[[1, 2, 3, 4, 4]], np.array([8, 3, 3, 4, 4]))
    audit = data_audit.audit({'train': train, 'test': test}, '0123456789')
    assert [row[:3] for row in data_audit.duplicate_table(audit)[1:]] == [
        ['within train', '2', '1'],
        ['within test', '1', '0'],
        ['test examples in train', '2', '1'],
    ]


def test_tables_and_findings_of_known_data(tmp_path):
    audit = data_audit.audit(known_splits(), ['cat', 'dog', 'owl'])
    assert data_audit.split_table(audit)[1:] == [['train', '20', '1', 'none'], ['test', '10', '0', 'owl']]
    assert data_audit.duplicate_table(audit)[1:] == [
        ['within train', '0', '0', '0', '0'],
        ['within test', '0', '0', '0', '0'],
        # Example 6 of the test split is the same as the cat 4 + 3 = 7, a dog; 5 is nearly the same as example 3, a cat.
        ['test examples in train', '1', '0', '1', '1'],
    ]
    data_audit.write_findings(audit, tmp_path / 'findings.csv')
    with open(tmp_path / 'findings.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    copy, near, blank, *outliers = rows
    assert (copy['finding'], copy['split'], copy['index'], copy['other_index']) == ('duplicate', 'test', '6', '4')
    assert (near['finding'], near['split'], near['index'], near['class']) == ('near-duplicate', 'test', '5', 'dog')
    assert (near['other_split'], near['other_index'], near['other_class']) == ('train', '3', 'cat')
    assert float(near['score']) == 1.0
    assert (blank['finding'], blank['split'], blank['index']) == ('blank', 'train', '10')
    assert {row['finding'] for row in outliers} == {'outlier'}
    for draw in (data_audit.draw_near_duplicates, data_audit.draw_outliers):
        assert len(figures.to_png(draw(audit))) > 5000


def test_the_audit_of_the_same_data_is_read_from_the_cache(cache, monkeypatch):
    splits = known_splits()
    first = data_audit.audit(splits, 'abc')
    (path,) = cache.rglob('audit-*.npz')
    with monkeypatch.context() as context:
        context.setattr(data_audit.similarity, 'near_duplicates', None)
        again = data_audit.audit(splits, 'abc')
    for found, expected in zip(again[2:], first[2:], strict=True):
        np.testing.assert_equal(found, expected)
    path.write_bytes(path.read_bytes()[:100])
    damaged = data_audit.audit(splits, 'abc')
    np.testing.assert_equal(damaged.pairs, first.pairs)


@pytest.mark.parametrize('limit', ['MAX_CANDIDATES', 'MAX_IMAGES', 'MAX_PAIRS'])
def test_data_with_too_many_images_says_so(monkeypatch, limit):
    monkeypatch.setattr(data_audit.similarity, limit, -1)
    audit = data_audit.audit(known_splits(), 'abc')
    assert data_audit.duplicate_table(audit)[1][3:] == ['not searched', 'not searched']
    assert data_audit.draw_near_duplicates(audit) is None


def test_the_outliers_of_each_class_take_turns():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    images = rng.integers(0, 255, (80, 5, 5, 1), np.uint8)
    audit = data_audit.audit({'train': Split(images, labels)}, 'ab')
    assert len(audit.outliers) == 20
    classes = labels[audit.outliers]
    assert all({classes[turn], classes[turn + 1]} == {0, 1} for turn in range(0, 20, 2))
    for label in (0, 1):
        assert (np.diff(audit.outlier_scores[classes == label]) <= 0).all()
