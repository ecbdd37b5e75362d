"""Tests what all figures share."""

import re

import numpy as np
import pytest

from mnist_jax.report import confusion, figures
from mnist_jax.report.figures import ReportFigure, freeze_layout, new_figure, to_png, to_svg

PRICES = ['$1_$5', r'$\frac$', '$10 and $20']


def texts(svg):
    return [re.sub('<[^>]*>', '', element) for element in re.findall(r'<text.*?</text>', svg, re.DOTALL)]


@pytest.mark.parametrize('draw', [confusion.heat_maps, confusion.flow])
def test_names_of_classes_are_no_formulas(draw):
    figure = draw(np.array([[5, 1, 0], [0, 7, 2], [1, 0, 4]]), PRICES)
    freeze_layout(figure)
    shown = ' '.join(texts(to_svg(figure)))
    assert to_png(figure) and all(name in shown for name in PRICES)


def test_powers_of_ten_are_formulas():
    figure, ((axis,),) = new_figure(4, 3)
    axis.set(yscale='log', ylim=(0.5, 2e4), title=figures.literal_text(PRICES[0]))
    report_figure = ReportFigure('a title', 'about', figure, {})
    freeze_layout(report_figure)
    shown = texts(to_svg(report_figure))
    assert PRICES[0] in shown and not any('mathdefault' in text for text in shown)
    assert any(re.sub(r'\s', '', text) == '104' for text in shown)
