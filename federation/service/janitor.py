"""What is done now and then: the latest time is remembered, and what nobody needs is deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from federation.peers.highwater import HighWater
from federation.peers.keys import Keys
from node.etcd.client import EtcdClient
from node.processes.service import Processes

_PAGE = 1000  # keys read at once
_PAGES = 10  # of each kind, looked through at a sweep
_MANY = 40  # processes looked for together


@dataclass
class Upkeep:
    """`now` gives Unix ns. A sweep looks at `pages` of `page` keys of each kind."""

    home: str
    client: EtcdClient
    processes: Processes
    keys: Keys
    now: Callable[[], int]
    page: int = _PAGE
    pages: int = _PAGES
    memory: HighWater = field(init=False)
    _places: dict[str, str] = field(default_factory=dict)  # where to go on, by prefix

    def __post_init__(self) -> None:
        self.memory = HighWater(self.client, self.keys, self.now)

    async def load(self) -> None:
        """Read what is remembered."""
        await self.memory.load()

    def high_water(self) -> float:
        """The latest wall-clock time remembered, in seconds."""
        return self.memory.latest

    async def keep_clock(self) -> None:
        """Remember what time it is, unless it was later before. Raises EtcdError."""
        await self.memory.keep()

    async def sweep(self) -> None:
        """Delete what stands beside processes that are gone. Raises EtcdError.

        Where there is more than a sweep looks at, the next one goes on from there.
        """
        leftovers = (self.keys.proofs, self.keys.lates, self.keys.aparts, self.keys.followed_all)
        for prefix in leftovers:
            for _ in range(self.pages):
                if not await self._sweep_page(prefix):
                    break

    async def _sweep_page(self, prefix: str) -> bool:
        """Look through one page; False when it was the last, and the next is the first again."""
        start = self._places.get(prefix)
        listing = await self.client.range(prefix, limit=self.page, start=start, keys_only=True)
        found = [item.key for item in listing.items]
        for at in range(0, len(found), _MANY):
            await self._delete_leftovers(prefix, found[at : at + _MANY])
        if listing.more:
            self._places[prefix] = found[-1] + "\0"
        else:
            self._places.pop(prefix, None)
        return listing.more

    async def _delete_leftovers(self, prefix: str, found: Sequence[str]) -> None:
        pids = [key.removeprefix(prefix) for key in found]
        there = {
            each.processid for each in await self.processes.load_many(self.home, pids, light=True)
        }
        for key, pid in zip(found, pids, strict=True):
            if pid not in there:
                await self.client.delete(key)
