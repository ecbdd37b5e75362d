"""Tests the exploration of a dataset: its tables on known data, and that its figures are drawn."""

import numpy as np
from matplotlib.image import imread

from mnist_jax.report import explore


def test_explore_writes_tables_and_figures(small, tmp_path):
    text = explore.explore(small(dataset__validation='train[300:400]', dataset__test='test[:100]+train[:3]'), tmp_path)
    assert (tmp_path / 'explore.txt').read_text() == text
    rows = [' '.join(line.split()) for line in text.splitlines()]
    # There are 8 zeros among the first hundred test labels, and one among the three training labels 5, 0, 4.
    (zeros,) = [row for row in rows if row.startswith('0 ')]
    assert zeros.split()[-2:] == ['9', '8.74%']
    assert 'all 300 100.00% 100 100.00% 103 100.00%' in rows
    assert 'batch of 64 on 2 device(s), padded to 64 2 x 32 x 28 x 28 x 1 uint8' in rows
    assert 'test examples in train 3 0 0 0' in rows and 'within train 0 0 0 0' in rows
    assert (tmp_path / 'findings.csv').read_text().startswith('finding,split,index,class,score,other_split')
    for name in ('examples', 'numbers', 'class_shares', 'class_statistics', 'outliers'):
        pixels = imread(tmp_path / f'{name}.png')
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02


def test_class_statistics_are_computed_per_pixel():
    images = np.array([[[[0]]], [[[0]]], [[[6]]]], np.uint8)
    values = [statistic(images, axis=0).item() for statistic in explore.STATISTICS.values()]
    np.testing.assert_allclose(values, [2, 0, np.sqrt(8)])
