"""Tables as plain text, for a terminal or in Markdown."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the rows as lines with aligned columns; the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def titled(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the rows as `aligned` does, with a rule below the first one, the header."""
    lines = aligned(rows, left)
    return [lines[0], '-' * max(map(len, lines)), *lines[1:]]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows as the lines of a Markdown table; the first row is the header."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return [lines[0], '|' + '---|' * len(rows[0]), *lines[1:]]


def number(value: float | None, digits: int = 4) -> str:
    """Formats an integer with thousands separators, any other number with `digits` decimals, and None as NA."""
    if value is None:
        return 'NA'
    return f'{value:,}' if isinstance(value, int) else f'{value:.{digits}f}'


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun, such as '1 run' or '1,200 runs'."""
    return f'{count:,} {noun}{"s" * (count != 1)}'
