"""What is done now and then: the latest time is remembered, and what nobody needs is deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from federation.highwater import HighWater
from federation.keys import Keys
from node.etcd.client import EtcdClient
from node.processes import Processes

__all__ = ["Upkeep"]

_PAGE = 1000


@dataclass
class Upkeep:
    """`now` gives Unix ns."""

    home: str
    client: EtcdClient
    processes: Processes
    keys: Keys
    now: Callable[[], int]
    memory: HighWater = field(init=False)

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
        """Delete what stands beside processes that are gone. Raises EtcdError."""
        leftovers = (self.keys.proofs, self.keys.lates, self.keys.aparts, self.keys.followed_all)
        for prefix in leftovers:
            listing = await self.client.range(prefix, limit=_PAGE, keys_only=True)
            for item in listing.items:
                pid = item.key[len(prefix) :]
                if await self.processes.load(self.home, pid) is None:
                    await self.client.delete(item.key)
