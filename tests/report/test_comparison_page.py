"""Tests the page that compares several runs."""

import pytest
from conftest import make_small, open_page

from mnist_jax import train
from mnist_jax.errors import UserError
from mnist_jax.report.comparison_page import compare_runs


def test_page_compares_two_runs(data_dir, trained, tmp_path, browser):
    from playwright.sync_api import expect

    # Matplotlib must neither parse this name as a formula nor hide it as a private label.
    other = tmp_path / '_$a^$'
    train.train(make_small(data_dir, epochs=1), other)
    page_path = compare_runs([str(trained), str(other)], tmp_path / 'both')
    with open_page(browser, page_path.as_uri()) as page:
        assert [section.get_attribute('id') for section in page.locator('section').all()] == [
            'accuracies', 'runs', 'learning_curves', 'fields', 'pairs',
        ]  # fmt: skip
        assert 'dataset.train' in page.locator('#fields thead').inner_text()
        assert page.locator('#fields tbody tr').all_inner_texts()[1].split()[:2] == ['_$a^$', 'train[:300]']
        assert page.locator('#runs tbody tr').count() == 2 and page.locator('#pairs tbody tr').count() == 1
        assert '_$a^$' in page.locator('#learning_curves svg').text_content()
        page.locator('#accuracies [id$="run-0-left"]').hover()
        expect(page.locator('#tip')).to_contain_text('run: 0.')


def test_comparison_needs_two_runs_and_a_directory_that_is_not_a_run(data_dir, trained, tmp_path):
    train.train(make_small(data_dir, epochs=1), tmp_path / 'other')
    with pytest.raises(UserError, match=r"--workdir '.*' is a run, whose own report would be overwritten"):
        compare_runs([str(trained), str(tmp_path / 'other')], trained)
    with pytest.raises(UserError, match='--run must name at least two runs to compare, got 1'):
        compare_runs([str(trained)], tmp_path / 'one')
