"""The style of all figures, and their export as PNG, as SVG, and as inline SVG in the colors of an HTML page."""

import functools
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from typing import NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.typing import RcKeyType

P = ParamSpec('P')
R = TypeVar('R')

# The color-blind-safe palette of Okabe and Ito.
BLUE, ORANGE, GREEN, PURPLE = '#0072b2', '#d55e00', '#009e73', '#cc79a7'
SERIES_COLORS = (BLUE, ORANGE, GREEN, PURPLE, '#e69f00', '#56b4e9')
TEXT, MUTED, BORDER, BACKGROUND = '#1c2530', '#5b6875', '#d9dee4', '#fefefe'
# The CSS variables of templates/report.css that replace these colors in a page.
CSS_VARIABLES = {
    BLUE: 'blue',
    ORANGE: 'orange',
    GREEN: 'green',
    TEXT: 'text',
    MUTED: 'muted',
    BORDER: 'border',
    BACKGROUND: 'card',
}
RC_PARAMS: dict[RcKeyType, object] = {
    'font.size': 10,
    'font.family': 'sans-serif',
    'text.color': TEXT,
    'axes.labelcolor': MUTED,
    'axes.edgecolor': BORDER,
    'axes.titlecolor': TEXT,
    'axes.titlesize': 11,
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.facecolor': 'none',
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'grid.color': BORDER,
    'figure.facecolor': 'none',
    'legend.frameon': False,
    'savefig.facecolor': 'none',
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mnist_jax',  # Makes the SVG of a figure reproducible.
}
SVG_NAMESPACE = 'http://www.w3.org/2000/svg'
XLINK_NAMESPACE = 'http://www.w3.org/1999/xlink'


class ReportFigure(NamedTuple):
    """A figure with its title, a caption and tooltips."""

    title: str
    about: str  # how to read the figure
    figure: Figure
    tooltips: Mapping[str, str]  # by the gid of an artist


MAX_NAME = 22  # characters of the name of a class in a figure


def shorten(name: str) -> str:
    """Returns the name of a class, without its middle if it would take too much of a figure."""
    if len(name) <= MAX_NAME:
        return name
    end = MAX_NAME // 2 - 1  # Names often differ at their ends.
    return f'{name[: MAX_NAME - 1 - end]}\N{HORIZONTAL ELLIPSIS}{name[-end:]}'


def categorical_color(number: int, count: int) -> tuple[float, ...]:
    """Returns the color of one of `count` categories."""
    name = 'tab10' if count <= 10 else 'tab20' if count <= 20 else 'hsv'
    colors = matplotlib.colormaps[name]
    return colors(number) if count <= 20 else colors(number / count)


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that draws or saves figures, so that it uses the style of this module."""

    @functools.wraps(function)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(RC_PARAMS), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Glyph .* missing from')  # The browser has a font with that glyph.
            return function(*args, **kwargs)

    return in_style


def literal_text(text: str) -> str:
    """Returns `text` such that Matplotlib does not hide it as a private label."""
    return f'{" " * text.startswith("_")}{text}'


def show_dollars(figure: Figure) -> None:
    """Shows each $ in a figure as it is; Matplotlib would parse what is between two of them as a formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == 'log':  # The powers of ten at its ticks are formulas.
                for label in axis.get_ticklabels(which='both'):
                    label.set_parse_math(True)


def new_figure(
    width: float, height: float, nrows: int = 1, ncols: int = 1, *, sharex: bool = False
) -> tuple[Figure, np.ndarray]:
    """Returns a figure of `width` x `height` inches, and its axes as an array of shape (nrows, ncols)."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(nrows, ncols, sharex=sharex, squeeze=False)


def add_grid(axis: Axes) -> None:
    """Adds light grid lines behind the data."""
    axis.grid(True, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)


@styled
def freeze_layout(report_figure: ReportFigure) -> None:
    """Lays the figure out once, so that saving it in several formats does not repeat the layout."""
    show_dollars(report_figure.figure)
    report_figure.figure.draw_without_rendering()
    report_figure.figure.set_layout_engine('none')


@styled
def to_png(report_figure: ReportFigure) -> bytes:
    """Returns the figure as a PNG file with a white background and 150 dots per inch."""
    contents = io.BytesIO()
    show_dollars(report_figure.figure)
    report_figure.figure.savefig(contents, format='png', dpi=150, facecolor='white')
    return contents.getvalue()


@styled
def to_svg(report_figure: ReportFigure) -> str:
    """Returns the figure as a standalone SVG file; its tooltips are <title> elements, which viewers show on hover."""
    contents = io.BytesIO()
    report_figure.figure.savefig(contents, format='svg', facecolor=BACKGROUND, metadata={'Date': None, 'Creator': None})
    root = ElementTree.fromstring(contents.getvalue())
    for metadata in root.findall(f'{{{SVG_NAMESPACE}}}metadata'):
        root.remove(metadata)
    for element in root.iter():
        tooltip = report_figure.tooltips.get(element.get('id', ''))
        if tooltip is not None:
            title = ElementTree.Element(f'{{{SVG_NAMESPACE}}}title')
            title.text = tooltip
            element.insert(0, title)
    return _serialize(root)


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """Converts the result of `to_svg` to an element of an HTML page.

    Colors become the page's CSS variables, and <title> elements become `data-tip` attributes. All ids start with
    `prefix`, so that the ids of several figures in one page differ.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        tooltip = element.find(f'{{{SVG_NAMESPACE}}}title')
        if tooltip is not None:
            element.set('data-tip', tooltip.text or '')
            element.remove(tooltip)
    root.set('role', 'img')
    root.set('aria-label', title)
    for attribute in ('width', 'height', 'version'):
        root.attrib.pop(attribute, None)
    text = re.sub(r'\bid="', f'id="{prefix}-', _serialize(root))
    text = re.sub(r'(xlink:href="#|url\(#)', rf'\g<1>{prefix}-', text)
    for color, variable in CSS_VARIABLES.items():
        text = text.replace(color, f'var(--{variable})')
    return text


def _serialize(root: ElementTree.Element) -> str:
    ElementTree.register_namespace('', SVG_NAMESPACE)
    ElementTree.register_namespace('xlink', XLINK_NAMESPACE)
    return ElementTree.tostring(root, encoding='unicode')
