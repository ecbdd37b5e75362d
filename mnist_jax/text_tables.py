"""Tables as text, for a terminal or in Markdown."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The rows as lines of equally wide columns, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def titled(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The same with a line under the first row."""
    lines = aligned(rows, left)
    return [lines[0], '-' * max(map(len, lines)), *lines[1:]]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as a table in Markdown, the first one its head."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return [lines[0], '|' + '---|' * len(rows[0]), *lines[1:]]


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals, a whole number as it is, and NA for None."""
    if value is None:
        return 'NA'
    return f'{value:,}' if isinstance(value, int) else f'{value:.{digits}f}'
