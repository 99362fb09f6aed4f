"""The latest wall-clock time that this colony remembers, and judges messages by.

It only goes up: so a host that boots in the past does not accept again what it saw expire. Only the
owner, who knows that a clock was wrong, can reset it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from federation.peers.keys import Keys
from federation.wire.clock import SigningClock
from node.etcd.client import EtcdClient
from node.etcd.txn import ModRevision, Put, Txn
from node.host.log import get_logger
from node.model.types import SECOND

log = get_logger("federation")


@dataclass
class HighWater:
    """Stores the floor of a `clock`, in seconds.

    The stored value holds for all daemons of the colony. Daemons only raise it, so a stored value
    lower than the remembered one is the owner's decision.
    """

    client: EtcdClient
    keys: Keys
    clock: SigningClock
    _lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def now(self) -> float:
        """Return the clock's time, in seconds."""
        return self.clock.now() / SECOND

    @property
    def latest(self) -> float:
        """Return the latest time remembered, in seconds."""
        return self.clock.floor

    @property
    def behind(self) -> float:
        """Return how many seconds the clock is behind the latest time remembered."""
        return max(0.0, self.latest - self.now)

    async def load(self) -> None:
        """Read the remembered time from the store."""
        async with self._lock:
            await self._read()

    async def keep(self) -> None:
        """Remember the present time, if it is later."""
        async with self._lock:
            revision, now = await self._read(), self.now
            if now > self.latest:
                await self._write(revision, now)

    async def reset(self) -> float:
        """Forget any time later than now. Return the time that was remembered."""
        async with self._lock:
            while True:
                revision, now = await self._read(), self.now
                before = self.latest
                if before <= now:
                    return before
                if await self._write(revision, now):
                    log.warning("latest time forgotten", before=round(before), now=round(now))
                    return before

    async def _read(self) -> int:
        """Take the stored time. Return its revision."""
        found = await self.client.get(self.keys.clock)
        self.clock.remember(float(found.value) if found else 0.0)
        return found.mod_revision if found else 0

    async def _write(self, revision: int, now: float) -> bool:
        """Store a time. Return False if another daemon was faster."""
        key = self.keys.clock
        put = Put(key, f"{now:.0f}".encode())
        done = await self.client.commit(Txn([ModRevision(key, revision)], [put]))
        if done.succeeded:
            self.clock.remember(now)
        return done.succeeded
