"""Results in a directory, until the colony has acknowledged them: a crash must not lose one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from colonyd.worker.handler import Ending


class _SavedResult(msgspec.Struct):
    """A result in its file."""

    out: list[Any]
    errors: list[str]


@dataclass(frozen=True)
class Unusable:
    """A file that was set aside, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Results:
    """The results in one directory. `None` keeps nothing: what is not acknowledged dies with the
    worker.
    """

    directory: Path | None

    def keep(self, processid: str, ending: Ending) -> None:
        """Write a result down, durably. Raises OSError when the disk takes no more."""
        if self.directory is None:
            return
        path = self._path(processid)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(msgspec.json.encode(_SavedResult(ending.out, ending.errors)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def forget(self, processid: str) -> None:
        """Remove a result that was acknowledged, or that nobody wants."""
        if self.directory is not None:
            self._path(processid).unlink(missing_ok=True)

    def kept(self) -> Iterator[tuple[str, Ending] | Unusable]:
        """Yield the process id and result of each file; one that can't be read is set aside."""
        for path in sorted(self.directory.glob("*.json")) if self.directory else ():
            if not path.is_file():
                yield self._set_aside(path, "no regular file")  # reading a FIFO might never end
                continue
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=_SavedResult)
            except (OSError, msgspec.MsgspecError) as error:
                yield self._set_aside(path, str(error))
                continue
            yield path.stem, Ending(saved.out, saved.errors)

    def set_aside(self, processid: str, why: str) -> Unusable:
        """Move a result that can't be offered out of the way, for people to look at."""
        if self.directory is None:
            return Unusable(Path(processid), why)
        return self._set_aside(self._path(processid), why)

    def _set_aside(self, path: Path, why: str) -> Unusable:
        aside = path.with_suffix(".unusable")
        try:
            path.replace(aside)
        except OSError as error:
            why = f"{why}; {error}"
        return Unusable(aside, why)

    def _path(self, processid: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{processid}.json"
