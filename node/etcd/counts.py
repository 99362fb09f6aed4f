"""Counts of keys below prefixes of the store, kept by a watch while somebody asks for them.

etcd counts a prefix key by key, however often it is asked. Here a prefix is counted once; from
there on its changes are added up. What the keys mean is known to callers.
"""

from __future__ import annotations

from functools import partial

import trio

from node.etcd.client import EtcdClient
from node.etcd.watch import WatchBatch, watch
from node.tasks.sync import WakeUp

_PATIENCE = 0.5  # seconds for which a caller waits until the watch has told of our own writes
_IDLE = 600.0  # seconds after the last question in which the watch ends


class _Count:
    """How many keys a prefix had at revision `at`, and every change since.

    While they are being counted, `number` is None and changes are kept aside.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._at = 0
        self._later: list[tuple[int, int]] = []

    def begin(self, number: int, at: int) -> None:
        """Begin with the keys that were counted at a revision."""
        self.number, self._at = number, at
        for revision, change in self._later:
            self.add(revision, change)
        self._later.clear()

    def add(self, revision: int, change: int) -> None:
        """Add a change, unless the keys were counted after it."""
        if self.number is None:
            self._later.append((revision, change))
        elif revision > self._at:
            self.number += change


class Counts:
    """Counts of the keys below `root`, by the two names that follow it: `root/NAME/NAME/...`.

    A key is put once and then deleted; one that is put again while it is there would count twice.
    The count has all writes of this client, and those of others once the watch has told of them.
    """

    def __init__(self, client: EtcdClient, root: str) -> None:
        self.client = client
        self.root = root
        self._counts: dict[str, _Count] = {}
        self._upto = 0  # the revision up to which the watch was taken in; 0: there is none
        self._told = WakeUp()
        self._wanted = trio.Event()
        self._asked = False

    async def of(self, prefix: str) -> int:
        """Return how many keys begin with `prefix`: the root, two names and a slash.

        Raises EtcdError.
        """
        self._asked = True
        self._wanted.set()
        if not self._upto:
            return await self.client.count(prefix)
        known = self._counts.get(prefix)
        if known is None:
            return await self._begin(prefix)
        told = await self._caught_up() and self._counts.get(prefix) is known
        if told and known.number is not None:
            return known.number
        return await self.client.count(prefix)

    async def _begin(self, prefix: str) -> int:
        known = self._counts[prefix] = _Count()
        try:
            found = await self.client.range(prefix, limit=1, keys_only=True)
        except BaseException:
            if self._counts.get(prefix) is known:
                del self._counts[prefix]
            raise
        known.begin(found.count, found.revision)
        return found.count

    async def _caught_up(self) -> bool:
        """Return whether the watch has told of all that this client wrote; wait a little for it."""
        wrote = self.client.noted.get(self.root, 0)
        if self._upto >= wrote:
            return True
        with trio.move_on_after(_PATIENCE):
            while 0 < self._upto < wrote:
                await self._told.event.wait()
        if 0 < self._upto < wrote:
            # A write that changed no key, or a watch that is broken: counting again is right.
            self.client.noted[self.root] = 0
            self._counts.clear()
        return self._upto >= wrote

    async def run(self) -> None:
        """Follow the changes while somebody asks, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._follow()
            finally:
                self._upto = 0
                self._counts.clear()
                self.client.noted.pop(self.root, None)
                self._told.wake()
            self._wanted = trio.Event()

    async def _follow(self) -> None:
        sender, receiver = trio.open_memory_channel[WatchBatch](64)
        async with trio.open_nursery() as nursery:
            self.client.noted[self.root] = 0
            nursery.start_soon(partial(watch, self.client, self.root, sender, listing=False))
            nursery.start_soon(self._end_when_idle, nursery.cancel_scope)
            async for batch in receiver:
                self._take_in(batch)

    async def _end_when_idle(self, scope: trio.CancelScope) -> None:
        while self._asked:
            self._asked = False
            await trio.sleep(_IDLE)
        scope.cancel()

    def _take_in(self, batch: WatchBatch) -> None:
        if batch.snapshot:
            # What changed before is not known.
            self._counts.clear()
            self._upto = batch.revision
        else:
            for event in batch.events:
                known = self._counts.get(self._prefix(event.key))
                if known is not None:
                    known.add(event.mod_revision, -1 if event.value is None else 1)
            self._upto = batch.events[-1].mod_revision
        self._told.wake()

    def _prefix(self, key: str) -> str:
        first = key.find("/", len(self.root))
        return key[: key.find("/", first + 1) + 1]
