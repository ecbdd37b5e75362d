"""Sections of figures and tables as one page that needs nothing beside it, and the figures as files of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from mnist_jax import files
from mnist_jax.report import style
from mnist_jax.report.style import Picture

PAGES = Path(__file__).parent / 'templates'


class Table(NamedTuple):
    """Rows of text; columns sort by what they show, as numbers where they are."""

    title: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1  # columns of words, which come first
    marked: Sequence[int] = ()  # rows
    foot: Sequence[Sequence[str]] = ()  # rows of what is over all the others, which stay last


Section = Picture | Table


def write(place: Path, title: str, facts: Mapping[str, str], sections: Mapping[str, Section]) -> Path:
    """Write `index.html` and, for each picture, NAME.png and NAME.svg to `place`; returns the page's path.

    Args:
      place: a directory, which is made.
      title: of the page.
      facts: what is told first, by what it is.
      sections: by names that tell them apart, as those of files do.
    """
    files.make_directory(place, '--workdir: the place of the report')
    shown = []
    for name, section in sections.items():
        svg = None
        if isinstance(section, Picture):
            style.settle(section)
            text = style.to_svg(section)
            files.write_bytes(place / f'{name}.png', style.to_png(section))
            files.write_text(place / f'{name}.svg', text)
            svg = style.inline(text, name, section.title)
        shown.append({'name': name, 'svg': svg, **section._asdict()})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template('report.html').render(title=title, facts=facts, sections=shown)
    # The page last: where it is, all is there.
    files.write_bytes(place / 'index.html', page.encode(errors='replace'))
    return place / 'index.html'
