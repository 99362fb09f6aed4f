"""What clients were told, one line each, on the disk before anything is done about it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import msgspec
import trio

__all__ = ["Journal", "Kind", "Told", "read"]


class Kind:
    """What is written down. Times are of the checker's steady clock, in seconds."""

    SUBMITTED = "submitted"  # `pid` is the answer to the submission of `token`
    UNKNOWN = "unknown"  # the submission of `token` was refused, or never answered
    ASSIGNED = "assigned"  # `who` was handed `pid`, which started at `value` and carries `token`
    ADOPTED = "adopted"  # `who` found `pid` among what it has
    CLOSING = "closing"  # `who` is about to close `pid` with the output `value`
    CLOSED = "closed"  # that was answered with success
    REFUSED = "refused"  # that was refused; `value` says why
    SEEN = "seen"  # a subscriber or a reader was told of `pid` in the state `value`
    LOGGED = "logged"  # the line `value` of `pid` was taken
    NEMESIS = "nemesis"  # `value` befell `colony`


class Told(msgspec.Struct, frozen=True):
    """One thing that a client was told. `began` is when it asked, `at` when it was told."""

    kind: str
    colony: str
    who: str = ""
    pid: str = ""
    token: str = ""
    value: str = ""
    began: float = 0.0
    at: float = 0.0


class Journal:
    """Lines of JSON at the end of a file, each synced. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    async def note(self, kind: str, colony: str, *, began: float = 0.0, **fields: str) -> None:
        """Write one line, and return once it is on the disk."""
        now = time.monotonic()
        told = Told(kind, colony, began=began or now, at=now, **fields)
        # At once, so that lines are in the order in which things were told; a disk takes its time.
        os.write(self._file, msgspec.json.encode(told) + b"\n")
        await trio.to_thread.run_sync(os.fdatasync, self._file)


def read(path: Path) -> list[Told]:
    """All lines of a journal, in order."""
    return [msgspec.json.decode(line, type=Told) for line in path.read_bytes().splitlines()]
