"""Eviction: when a store is so full that what ended first has to leave it, and up to which time.

What leaves, and how, is in `retention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import Compacted
from node.model.types import SECOND
from node.store import keys

_FROM, _TO = 50, 40  # percent of the quota in use from which things leave, and down to which
_URGENT = 65  # percent from which nothing that ended is spared, and the work has no pauses
_YOUNG = 60 * SECOND  # ns for which ended things stay: they may still be asked for, or closed again
_SOME = 500  # things that leave at once, about
_PRECISE = SECOND // 1000  # ns
_SEEN = 8.0  # seconds from a compaction until its effect is in the sizes that etcd reports

Places = Callable[[int], Iterable[tuple[str, str]]]


@dataclass
class Eviction:
    """Decides what leaves. `now` gives Unix ns; `goal` is how many bytes have to leave the
    store.
    """

    client: EtcdClient
    now: Callable[[], int]
    goal: int = 0
    _revision: int = 0  # of the store when something last left it, 0 once that counts
    _seen: float = 0.0  # when that is seen, on trio's clock
    _left: int = 0  # bytes that left and are still counted as in use
    _reached: int = 0  # Unix ns up to which things left
    _width: int = SECOND
    _some: int = _SOME
    _all: bool = False

    @property
    def _percent(self) -> int:
        pressure = self.client.pressure
        return 100 * pressure.used // pressure.quota if pressure.quota else 0

    @property
    def urgent(self) -> bool:
        """Return whether the store is about to refuse work."""
        return self.client.pressure.percent >= _URGENT

    async def due(self) -> bool:
        """Return whether something has to leave now; then `goal` is how much. Raises EtcdError.

        What left before counts as in use until it is compacted and that is seen.
        """
        if self._percent < _FROM:
            return False
        if self._revision:
            try:
                # The revision that is compacted itself can be read.
                await self.client.range(keys.SERVER, limit=1, revision=self._revision - 1)
            except Compacted:
                self._revision, self._seen = 0, trio.current_time() + _SEEN
        elif trio.current_time() >= self._seen:
            self._left = 0
        pressure = self.client.pressure
        self.goal = pressure.used - self._left - pressure.quota * _TO // 100
        self._some = _SOME
        return self.goal > 0

    async def rest(self, freed: int) -> None:
        """Note that so many bytes left. Raises EtcdError."""
        self._left += freed
        self._revision = (await self.client.range(keys.SERVER, limit=1)).revision
        self.client.pressure.wanted = self._revision

    async def limit(self, places: Places) -> int:
        """Return the time, in Unix ns, by which some of all things had ended. Raises EtcdError.

        `places` gives prefix and first key of each listing of what ended by a time.
        """
        latest = self.now() - (0 if self.urgent else _YOUNG)
        low = self._reached if self._reached < latest else 0
        # Most of the store is later: counting it would take etcd long.
        high = min(latest, low + self._width) if low else latest
        while (count := await self._count(places, high)) < self._some and high < latest:
            self._width *= 2
            high = min(latest, low + self._width)
        while count > 2 * self._some and high - low > _PRECISE:
            middle = (low + high) // 2
            if (some := await self._count(places, middle)) < self._some:
                low = middle
            else:
                high, count = middle, some
        self._all = high == latest
        return high

    def moved(self, limit: int, records: int) -> bool:
        """Note how many things left by a limit; return whether more may."""
        if records:
            self._width = max(_PRECISE, limit - self._reached) if self._reached else SECOND
            self._reached = limit
            self._some = _SOME
        else:
            # All of these have to stay: look at later ones.
            self._some *= 4
        return records > 0 or not self._all

    async def _count(self, places: Places, limit: int) -> int:
        """Return how many things ended by a time."""
        count = 0
        for prefix, start in places(limit):
            count += (await self.client.range(prefix, start=start, limit=1, keys_only=True)).count
        return count
