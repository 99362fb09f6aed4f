"""Processes as the store was last known to have them, for transactions that compare revisions."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from node.model.codec import pack
from node.model.types import Process

_MOST = 2048  # processes
_ROOM = 16 << 20  # bytes of all of them as they are stored; in memory they are some times as large


@dataclass
class ProcessCache:
    """The processes that were read or written last, each with the revision of its last write."""

    room: int = _ROOM
    held: int = 0  # bytes
    _known: OrderedDict[str, tuple[Process, int, int]] = field(default_factory=OrderedDict)

    def get(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """Return a process of a colony and its revision, or None. It may have changed since."""
        known = self._known.get(processid)
        return known[:2] if known is not None and known[0].colonyname == colony else None

    def put(self, process: Process, revision: int, size: int = 0) -> None:
        """Keep a process, which has `size` bytes in the store (0: unknown)."""
        size = size or len(pack(process))
        self.drop(process.processid)
        if size > self.room:
            return
        self._known[process.processid] = (process, revision, size)
        self.held += size
        while self.held > self.room or len(self._known) > _MOST:
            self.held -= self._known.popitem(last=False)[1][2]

    def drop(self, processid: str) -> None:
        """Forget a process."""
        known = self._known.pop(processid, None)
        if known is not None:
            self.held -= known[2]

    def __len__(self) -> int:
        """Return the number of processes."""
        return len(self._known)
