"""Bars on stderr for long work: on a terminal only, and never with --json or --quiet."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cli.core.terminal import printable, quiet
from colonyd.worker.watcher import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN = 4 << 20  # bytes from which on work shows its progress

Meter = Callable[[int], None]  # gets how many bytes were done since the last time

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|/\s*(\d+(?:\.\d+)?))")


def bars() -> bool:
    """Return whether a bar may be drawn."""
    context = click.get_current_context(silent=True)
    as_json = context is not None and getattr(context.find_root().obj, "as_json", False)
    return sys.stderr.isatty() and not quiet() and not as_json


@contextmanager
def meter(what: str, total: int | None) -> Iterator[Meter]:
    """Show how many of `total` bytes are done; without a total, how many.

    Work of less than `SHOWN` bytes shows nothing.
    """
    if not bars() or (total is not None and total < SHOWN):
        yield lambda size: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(escape(printable(what)), total=total)
        yield lambda size: progress.advance(task, size)


def share(text: str) -> float | None:
    """Return how much of its work a command says is done, from 0 to 1; None if it says no number.

    "40%", "step 3/10" and "2.5 / 10 MB" are numbers.
    """
    if not (found := _SHARE.search(text)):
        return None
    whole = float(found[2]) if found[2] else 100.0
    return min(1.0, float(found[1]) / whole) if whole > 0 else None


class _Bars(Watcher):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def begin(self, processid: str, name: str) -> None:
        shown = f"{name} {processid[:12]}"
        self._tasks[processid] = self._progress.add_task(printable(shown), total=None, said="")

    def tell(self, processid: str, text: str) -> None:
        if (task := self._tasks.get(processid)) is not None:
            done, said = share(text), printable(text).replace("\n", " ")[:40]
            if done is None:
                self._progress.update(task, said=said)
            else:
                self._progress.update(task, said=said, total=1.0, completed=done)

    def end(self, processid: str) -> None:
        if (task := self._tasks.pop(processid, None)) is not None:
            self._progress.remove_task(task)


@contextmanager
def board() -> Iterator[Watcher]:
    """Give a watcher with a bar for each process; what is printed meanwhile stands above them."""
    if not bars():
        yield Watcher()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        yield _Bars(progress)
