"""Writes figures and tables as one self-contained HTML page, and each figure as a PNG and an SVG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from mnist_jax import files
from mnist_jax.report import figures
from mnist_jax.report.figures import ReportFigure

TEMPLATES = Path(__file__).parent / 'templates'


class Table(NamedTuple):
    """A table of text; a click on a heading sorts it by that column, numerically if its cells are numbers."""

    title: str
    about: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1  # the number of leading columns that hold text, which is left-aligned
    highlighted: Sequence[int] = ()  # indices of rows
    footer: Sequence[Sequence[str]] = ()  # rows such as totals and means, which stay last


Section = ReportFigure | Table


def write_page(directory: Path, title: str, facts: Mapping[str, str], sections: Mapping[str, Section]) -> Path:
    """Writes `index.html` and, for each figure, `NAME.png` and `NAME.svg`; returns the path of the page.

    Args:
      directory: Where to write; created if it does not exist.
      title: The title of the page.
      facts: The list of facts at the top of the page, by name.
      sections: The sections by name; a name is the anchor of its section and the name of its files.
    """
    files.make_directory(directory, '--workdir: the report directory')
    rendered: list[dict[str, object]] = []
    for name, section in sections.items():
        inline = None
        if isinstance(section, ReportFigure):
            figures.freeze_layout(section)
            svg = figures.to_svg(section)
            files.write_bytes(directory / f'{name}.png', figures.to_png(section))
            files.write_text(directory / f'{name}.svg', svg)
            inline = figures.inline_svg(svg, name, section.title)
        rendered.append({'name': name, 'svg': inline, **section._asdict()})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template('report.html').render(title=title, facts=facts, sections=rendered)
    # Written last: if the page exists, so do all figures.
    files.write_bytes(directory / 'index.html', page.encode(errors='replace'))
    return directory / 'index.html'
