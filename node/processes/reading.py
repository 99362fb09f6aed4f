"""How far the index of waiting processes is read after a start, while calls are served already.

The keys come in their order: of one executor type, the process that is first in the queue is known
first. `runtime.feeds` reads, `service` fills the index.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from colonyd.errors import Unavailable

_PATIENCE = 10.0  # seconds that a call waits for the rest
_ALL = "\U0010ffff"  # after each key


@dataclass
class Reading:
    """The keys read so far, of `total`; `upto` is the last queue key, or after all of them.

    `revision` is that of the first try. Without `begin` there is nothing to wait for.
    """

    total: int = 0
    read: int = 0
    upto: str = ""
    revision: int = 0
    _end: trio.Event | None = None

    @property
    def under_way(self) -> bool:
        """Return whether keys are still to be read."""
        return self._end is not None

    def begin(self, total: int, revision: int) -> None:
        """Note that `total` keys, as of `revision`, are read from here on.

        After a break they are read again: what was read up to `upto` stays known meanwhile.
        """
        self.total, self.read = total, 0
        if self._end is None:
            self.upto, self.revision = "", revision
            self._end = trio.Event()

    def took(self, key: str) -> None:
        """Note that all queue keys up to `key` are read."""
        self.upto = max(self.upto, key)

    def took_queue(self) -> None:
        """Note that all queue keys are read; those of processes that wait for others follow."""
        self.upto = _ALL

    @property
    def queue_known(self) -> bool:
        """Return whether all queue keys are read."""
        return self._end is None or self.upto == _ALL

    def end(self) -> None:
        """Note that all keys are read."""
        if self._end is not None:
            self._end.set()
            self._end = None

    def covers(self, key: str) -> bool:
        """Return whether all queue keys up to `key` of its executor type are read."""
        return self._end is None or key <= self.upto

    async def ended(self) -> None:
        """Return once all keys are read."""
        if self._end is not None:
            await self._end.wait()

    async def demand_end(self) -> None:
        """Return once all keys are read. Raises Unavailable if that takes long."""
        with trio.move_on_after(_PATIENCE):
            return await self.ended()
        raise self.refusal()

    def refusal(self) -> Unavailable:
        """Return the error for a call that can't be answered before the end."""
        return Unavailable(f"the daemon has started and is {self}; ask again in some seconds")

    @property
    def left(self) -> int:
        """Return about how many keys are still to be read."""
        return max(1, self.total - self.read) if self.under_way else 0

    def __str__(self) -> str:
        """Return the progress in words."""
        return f"reading the queue: {self.read:,} of {self.total:,}"
