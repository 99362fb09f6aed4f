"""Lines that fit a terminal: text in one line, cut by the cells it takes, and widths of columns.

Values in, values out; `cli.core.output` prints tables, `cli.ops.top` draws a screen.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from cli.core.terminal import printable

GAP = 2  # cells between two columns
# Columns that hold what people write, and get more of a line than the others.
_ROOMY = frozenset({"FUNCTION", "ENDPOINTS", "ERROR", "WHY", "SPEC", "POLICY", "DOES"})
_FEW = 16  # cells that such a column keeps before others are cut
# What a word in a cell says, in a colour; NO_COLOR takes all of them away.
_STYLES = {
    "failed": "red",
    "rejected": "red",
    "blocked": "red",
    "pending": "yellow",
    "cancelled": "yellow",
    "running": "green",
}


def one_line(text: str) -> str:
    """Return text whose newlines, tabs and control characters are escapes such as `\\n`."""
    if text.isprintable():
        return text
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def cut(text: str, width: int) -> str:
    """Return text of at most `width` cells; what is cut off leaves a `…`. A wide character is two
    cells.
    """
    if cell_len(text) <= width:
        return text
    # Of long text only what may be shown is measured.
    kept, room = [], width - 1
    for character in text[:width]:
        room -= cell_len(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…" if width > 0 else ""


def fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> list[list[str]]:
    """Return heading and rows, each cell as wide as its column; a line has at most `width` cells.

    Without a `width` nothing is cut. The first column, which names the row, is cut last.
    """
    lines = [[one_line(cell) for cell in row] for row in (columns, *rows)]
    natural = [max(cell_len(line[at]) for line in lines) for at in range(len(columns))]
    wide = natural if width is None else _shared(columns, natural, width)
    return [
        [
            cut(cell, room) + " " * (room - cell_len(cut(cell, room)))
            for cell, room in zip(line, wide, strict=True)
        ]
        for line in lines
    ]


def _shared(columns: Sequence[str], natural: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns that share a line: no column is cut that takes little."""
    room = width - GAP * (len(columns) - 1)
    roomy = [name in _ROOMY for name in columns]
    first = min(natural[0], max(8, room // 2))
    # What people write is cut first, down to a few characters; then all, the longest first.
    wide = [min(each, _FEW) if many else each for each, many in zip(natural, roomy, strict=True)]
    wide[0] = first
    most = max(natural)
    while sum(wide) > max(0, room) and most > 0:
        most -= 1
        wide[1:] = [min(each, most) for each in wide[1:]]
    for at in sorted(range(len(wide)), key=lambda at: (not roomy[at], at)):
        others = sum(roomy[at + 1 :]) if roomy[at] else 0
        left = max(0, room - sum(wide))
        wide[at] += min(natural[at] - wide[at], left // (1 + others))
    return wide


def row_text(cells: Sequence[str], *, style: str = "") -> Text:
    """Return a row of `fitted` as one line; words that say something have their colour."""
    line = Text(no_wrap=True, overflow="crop", style=style)
    for at, cell in enumerate(cells):
        line.append(" " * GAP if at else "")
        line.append(cell, style=None if style else _STYLES.get(cell.strip()))
    line.rstrip()
    return line
