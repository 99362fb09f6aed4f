"""Lookup of processes that have left the store, one at a time, in the history files of this home.

`retention` decides what leaves when; `archive.index` knows where a record is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from node.archive.index import HistoryIndex
from node.host.log import get_logger
from node.model.repair import mended
from node.model.types import Process

log = get_logger("history")

_PATIENCE = 5.0  # seconds that a read waits for an index that is being made
_READERS = 2  # reads at once: others may need a thread, too
T = TypeVar("T")


@dataclass
class _ColonyHistory:
    index: HistoryIndex
    turn: trio.Lock = field(default_factory=trio.Lock)
    ready: trio.Event = field(default_factory=trio.Event)


@dataclass
class HistoryReader:
    """Reads history. `directory` has the histories of all colonies; with None nothing is found."""

    directory: Path | None = None
    _colonies: dict[str, _ColonyHistory] = field(default_factory=dict)
    _readers: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_READERS))

    async def run(self) -> None:
        """Index what the files hold already, once."""
        if self.directory is None:
            return
        for colony in await trio.to_thread.run_sync(_names, self.directory):
            try:
                await self.catch_up(colony)
            except OSError as error:
                log.warning("history is not indexed", colony=colony, error=error)

    async def catch_up(self, colony: str) -> None:
        """Index the records written since to the history of a colony. Raises OSError."""
        known = self._known(colony)
        if known is not None:
            async with known.turn:
                await trio.to_thread.run_sync(known.index.catch_up)
                known.ready.set()

    async def find(self, colony: str, processid: str) -> Process | None:
        """Return the process as it left the store, or None."""
        known = self._known(colony)
        if known is None:
            return None
        with trio.move_on_after(_PATIENCE):
            await known.ready.wait()
        try:
            record = await self._apart(known.index.find, processid)
        except OSError as error:
            log.warning("history is not readable", colony=colony, error=error)
            return None
        return _process(record["process"]) if record is not None else None

    def _known(self, colony: str) -> _ColonyHistory | None:
        if self.directory is None:
            return None
        if colony not in self._colonies:
            if not (self.directory / colony).is_dir():
                return None
            self._colonies[colony] = _ColonyHistory(HistoryIndex(self.directory / colony))
        return self._colonies[colony]

    async def _apart(self, work: Callable[[str], T], processid: str) -> T:
        return await trio.to_thread.run_sync(work, processid, limiter=self._readers)


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def _process(plain: dict[str, Any]) -> Process:
    try:
        return msgspec.convert(plain, Process)
    except msgspec.ValidationError:
        return msgspec.convert(mended(plain, Process), Process)
