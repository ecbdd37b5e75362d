"""How all figures look, and how they become files: PNG, SVG, and SVG that takes the colours of a page around it."""

import functools
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, PURPLE = '#0072b2', '#d55e00', '#009e73', '#cc79a7'
SERIES = (BLUE, ORANGE, GREEN, PURPLE, '#e69f00', '#56b4e9')
INK, SOFT, LINE, GROUND = '#1c2530', '#5b6875', '#d9dee4', '#fefefe'
# The variables of pages/report.css that take their places there.
VARIABLES = {BLUE: 'blue', ORANGE: 'orange', GREEN: 'green', INK: 'ink', SOFT: 'soft', LINE: 'line', GROUND: 'card'}
RC = {
    'font.size': 10,
    'font.family': 'sans-serif',
    'text.color': INK,
    'axes.labelcolor': SOFT,
    'axes.edgecolor': LINE,
    'axes.titlecolor': INK,
    'axes.titlesize': 11,
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.facecolor': 'none',
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'grid.color': LINE,
    'figure.facecolor': 'none',
    'legend.frameon': False,
    'savefig.facecolor': 'none',
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mnist_jax',  # The same figure is the same file.
}
SVG = 'http://www.w3.org/2000/svg'
XLINK = 'http://www.w3.org/1999/xlink'


class Picture(NamedTuple):
    """A figure, and what its parts tell when the mouse is over them."""

    title: str
    about: str  # how to read it
    figure: Figure
    tips: Mapping[str, str]  # by the gid of an artist


def styled(function: Callable) -> Callable:
    """`function`, whose figures are in this style."""

    @functools.wraps(function)
    def in_style(*arguments: Any) -> Any:
        with matplotlib.rc_context(RC), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Glyph .* missing from')  # The browser has a font for it.
            return function(*arguments)

    return in_style


def words(text: str) -> str:
    """`text` as Matplotlib shows it as it is: no formulas, and no label that is hidden."""
    return f'{" " * text.startswith("_")}{text}'.replace('$', r'\$')


def new(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes as `Figure.subplots` gives them."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(**subplots)


def grid(axis: Axes) -> None:
    """Light horizontal and vertical lines behind the data."""
    axis.grid(True, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)


@styled
def to_png(picture: Picture) -> bytes:
    """On a white ground, 150 dots an inch."""
    contents = io.BytesIO()
    picture.figure.savefig(contents, format='png', dpi=150, facecolor='white')
    return contents.getvalue()


@styled
def to_svg(picture: Picture) -> str:
    """A file of its own; its parts have titles, which viewers show when the mouse is over them."""
    contents = io.BytesIO()
    picture.figure.savefig(contents, format='svg', facecolor=GROUND, metadata={'Date': None, 'Creator': None})
    root = ElementTree.fromstring(contents.getvalue())
    for metadata in root.findall(f'{{{SVG}}}metadata'):
        root.remove(metadata)
    for element in root.iter():
        if element.get('id') in picture.tips:
            title = ElementTree.Element(f'{{{SVG}}}title')
            title.text = picture.tips[element.get('id')]
            element.insert(0, title)
    return _text(root)


def inline(svg: str, name: str, title: str) -> str:
    """Such a file as an element of a page: its colours are the page's variables, its titles data-tip.

    Its ids begin with `name`, so that they are no other figure's.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        found = element.find(f'{{{SVG}}}title')
        if found is not None:
            element.set('data-tip', found.text or '')
            element.remove(found)
    root.set('role', 'img')
    root.set('aria-label', title)
    for attribute in ('width', 'height', 'version'):
        root.attrib.pop(attribute, None)
    text = re.sub(r'\bid="', f'id="{name}-', _text(root))
    text = re.sub(r'(xlink:href="#|url\(#)', rf'\g<1>{name}-', text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f'var(--{variable})')
    return text


def _text(root: ElementTree.Element) -> str:
    ElementTree.register_namespace('', SVG)
    ElementTree.register_namespace('xlink', XLINK)
    return ElementTree.tostring(root, encoding='unicode')


@styled
def settle(picture: Picture) -> None:
    """Lay the figure out once, and not anew for each of its files."""
    picture.figure.draw_without_rendering()
    picture.figure.set_layout_engine('none')
