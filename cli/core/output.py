"""Output of values: JSON for programs, rich tables for people.

It knows shapes of replies (times, states) but makes no calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cli.core.terminal import json_text, print_line, print_note, printable
from colonyd.replies import parse_time

if TYPE_CHECKING:
    from cli.core.session import Session

STATES = ("waiting", "running", "successful", "failed", "cancelled")
_NAME_WIDTH = 32  # characters of a name in a table on a terminal
_WIDEST = 100_000  # columns of a line that is never folded
_PIPE_WIDTH = 240  # columns when stdout is no terminal: lines for a script are not folded


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print_line(json_text(value, 2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table, or the line `empty` (on stderr: it is no data) when there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    body = [[Text(printable(cell_text(cell))) for cell in row] for row in rows]
    if not body:
        print_note(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in body:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    console.print(table)


def print_lines(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table of one line a row: on a terminal cut to its width, in a pipe never cut.

    Without rows it is the line `empty`, on stderr.
    """
    from rich.console import Console

    from cli.core.layout import fitted, row_text

    body = [[cell_text(cell) for cell in row] for row in rows]
    if not body:
        print_note(empty)
        return
    width = Console().width if sys.stdout.isatty() else None
    lines = fitted(columns, body, width)
    console = Console(width=width or _WIDEST, highlight=False)
    for number, line in enumerate(lines):
        console.print(row_text(line, style="" if number else "bold"), soft_wrap=width is None)


def print_value(session: Session, value: Any, fields: Iterable[tuple[str, object]]) -> None:
    """Print one object: as JSON with --json, else as `fields`."""
    if session.as_json:
        print_json(value)
    else:
        print_fields(fields)


def print_done(session: Session, value: Any, line: str) -> None:
    """Print the result of a change: as JSON with --json, else as one line."""
    if session.as_json:
        print_json(value)
    else:
        print_line(line)


def print_rows(
    session: Session,
    rows: Sequence[Any],
    columns: Sequence[str],
    cells: Callable[[Any], Sequence[object]],
    empty: str,
) -> None:
    """Print a listing: as JSON with --json, else as one line with the `cells` of each row."""
    if session.as_json:
        print_json(rows)
    else:
        print_lines(columns, [cells(row) for row in rows], empty)


def when(text: object) -> str:
    """Return a time of a reply for people, in UTC; empty when it is unset."""
    moment = parse_time(text)
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds") if moment else ""


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print `name  value` lines; fields with an empty value are left out."""
    kept = [(name, cell_text(value)) for name, value in fields if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in kept), default=0)
    for name, text in kept:
        indented = printable(text).replace("\n", "\n" + " " * (width + 2))
        print_line(f"{name.ljust(width)}  {indented}")


def cell_text(value: object) -> str:
    """Return the text of one cell: strings as they are, the rest as compact JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    return json_text(value)


def name_text(name: object) -> str:
    """Return a name in a table: on a terminal its first characters only, where it may have 200."""
    text = cell_text(name)
    if len(text) <= _NAME_WIDTH or not sys.stdout.isatty():
        return text
    return text[: _NAME_WIDTH - 1] + "…"


def short(identifier: object) -> str:
    """Return the first 12 characters of an id: `ls` shows them, other commands accept them."""
    return str(identifier or "")[:12]


def at(text: object) -> float | None:
    """Return a time of a reply as Unix s, or None when it is unset."""
    moment = parse_time(text)
    return moment.timestamp() if moment else None


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Return a text such as '5 s ago'; empty for None."""
    if moment is None:
        return ""
    return f"{span((now or datetime.now(UTC)).timestamp() - moment.timestamp())} ago"


def span(seconds: float) -> str:
    """Return a duration in s, min, h or d, whichever reads best."""
    seconds = max(0.0, seconds)
    for limit, unit, size in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def state_name(state: object) -> str:
    """Return the word for a process state number."""
    if isinstance(state, int) and 0 <= state < len(STATES):
        return STATES[state]
    return f"unknown ({state})"


def output_lines(out: Sequence[object] | None) -> list[str]:
    """Return a line for each element of a process's output: strings raw, the rest as JSON."""
    return [value if isinstance(value, str) else json_text(value) for value in out or []]


@dataclass(frozen=True)
class Check:
    """One finding. `ok` is True, False, or None for a finding that may matter but need not."""

    name: str
    ok: bool | None
    detail: str
    next: str = ""
