"""The election: one daemon at a time leads the daemons of a store, by a key on a lease.

The leader's work is in `timers.runner`. A lease is no clock: the leader adds `fence` to its
transactions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.txn import Absent, Compare, ModRevision, Put, Txn
from node.etcd.watch import WatchBatch, watch
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.store.keys import ROOT

log = get_logger("leader")

KEY = ROOT + "leader"
# Seconds after which another daemon takes over from a silent leader.
TTL = 6
_FILE = "daemon-id"
_AGAIN = 0.5  # seconds after a campaign that the store did not answer
_GOODBYE = 1.0  # seconds that giving up the lease may take


class LeaseHolder(msgspec.Struct, frozen=True):
    """The leader: a home directory, and one start of a daemon in it."""

    home: str
    start: str


def home_identity(home: Path) -> str:
    """Return the id of a home directory, made when missing; call it with the home locked."""
    path = home / _FILE
    try:
        found = path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        found = ""
    if len(found) == 64:
        return found
    fresh = new_id()
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(fresh + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    return fresh


def may_take(
    seen: tuple[LeaseHolder, int] | None, home: str, start: str, *, led: bool
) -> Compare | None:
    """Return what must hold for this daemon to become the leader now, or None: another one leads.

    A key of the same home is of an earlier start, since the home is locked. But two homes can be
    copies of one: once it has led, a daemon leaves a key of another start alone.
    """
    if seen is None:
        return Absent(KEY)
    holder, revision = seen
    if holder.home == home and (holder.start == start or not led):
        return ModRevision(KEY, revision)
    return None


@dataclass
class Leader:
    """Leads, or waits for it.

    `identity` is that of the home directory; `holds` is whether this daemon leads.
    """

    client: EtcdClient
    identity: str
    start: str = field(default_factory=new_id)
    holds: bool = False
    _fence: Compare | None = None
    _led: bool = False
    _seen: tuple[LeaseHolder, int] | None = None
    _as_of: int = 0
    _listed: bool = False
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def fence(self) -> Sequence[Compare]:
        """Return what each transaction of the leader compares: a deposed leader's do nothing.

        After a defeat it still names the lost term, and never holds again.
        """
        return [self._fence or ModRevision(KEY, 1)]

    async def elected(self) -> None:
        """Return when this daemon leads."""
        while not self.holds:
            await self._changed.wait()

    async def deposed(self) -> None:
        """Return when this daemon no longer leads."""
        while self.holds:
            await self._changed.wait()

    async def run(self) -> None:
        """Lead whenever no other daemon does, until cancelled."""
        sender, receiver = trio.open_memory_channel[WatchBatch](16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, self.client, sender)
            nursery.start_soon(self._campaign)
            async for batch in receiver:
                self._take_in(batch)

    def _take_in(self, batch: WatchBatch) -> None:
        self._listed = True
        if batch.snapshot:
            if batch.revision < self._as_of:
                return  # listed before we wrote
            self._seen, self._as_of = None, batch.revision
        for event in batch.events:
            if event.key != KEY or not (batch.snapshot or event.mod_revision > self._as_of):
                continue
            known = None if event.value is None else unpack(event.value, LeaseHolder)
            self._seen = None if known is None else (known, event.mod_revision)
            self._as_of = max(self._as_of, event.mod_revision)
        self._stir()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _campaign(self) -> None:
        while True:
            changed = self._changed
            condition = may_take(self._seen, self.identity, self.start, led=self._led)
            if not self._listed or condition is None:
                await changed.wait()
                continue
            try:
                won = await self._lead(condition)
            except EtcdError as error:
                log.warning("campaign again", seconds=_AGAIN, because=error)
                await trio.sleep(_AGAIN)
                continue
            if not won:
                # The watch will tell who won.
                with trio.move_on_after(_AGAIN):
                    await changed.wait()

    async def _lead(self, condition: Compare) -> bool:
        """Take the key and lead until it is lost; return whether it was won at all."""
        lease = await self.client.grant(TTL)
        try:
            data = pack(LeaseHolder(self.identity, self.start))
            result = await self.client.commit(Txn([condition], [Put(KEY, data, lease)]))
            if not result.succeeded:
                return False
            self._step_up(result.revision)
            lost = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, lease, lost)
                nursery.start_soon(self._beaten, result.revision, lost)
                await lost.wait()
                self._step_down()
                nursery.cancel_scope.cancel()
            return True
        finally:
            self._step_down()
            with trio.move_on_after(_GOODBYE, shield=True):
                # The key is gone already, or its lease will run out.
                with suppress(EtcdError):
                    await self.client.revoke(lease)

    async def _renew(self, lease: int, lost: trio.Event) -> None:
        try:
            await self.client.keep_alive(lease)
        except EtcdError as error:
            log.warning("the lease is lost", error=error)
        lost.set()

    async def _beaten(self, revision: int, lost: trio.Event) -> None:
        """Notice that the key is gone or another daemon's: the watch may tell that before the
        lease.
        """
        while self._as_of <= revision or (self._seen is not None and self._seen[1] == revision):
            await self._changed.wait()
        lost.set()

    def _step_up(self, revision: int) -> None:
        self._fence = ModRevision(KEY, revision)
        self._led = self.holds = True
        if revision > self._as_of:
            self._seen, self._as_of = (LeaseHolder(self.identity, self.start), revision), revision
        log.info("leads", revision=revision)
        self._stir()

    def _step_down(self) -> None:
        if self.holds:
            self.holds = False
            log.info("leads no longer")
            self._stir()


async def _watch(client: EtcdClient, sender: trio.MemorySendChannel[WatchBatch]) -> None:
    await watch(client, KEY, sender)
