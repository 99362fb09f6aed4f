"""The outbox: the forwards under way, in the store and in memory, and every change of one.

`forward.machine` decides what an event means for a forward. `outbox.sender` sends messages,
`outbox.outcomes` fetches outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from colonyd.errors import Conflict, NotFound
from federation.forward import machine
from federation.forward.machine import Effect, Forward, ProcessAction, RouteTrace
from federation.outbox.entries import Marks, OutboxEntries, OutboxEntry
from federation.outbox.latencies import Latencies
from federation.peers.context import Context
from node.etcd.txn import Compare, Delete, Get, ModRevision, Op, Put, Txn
from node.model.codec import pack, unpack
from node.model.types import Process, State
from node.processes.extension import Addition
from node.store.work import processes as store
from node.tasks.sync import WakeUp, WakeUps

_BATCH = 60  # entries read in one transaction
_BUILT = 1_024  # new forwards that are remembered until they are stored


@dataclass(frozen=True)
class Reroute:
    """The new place of a process that its peer surely will not run: a `peer`, or "" for our queue.

    `forward` is the forward to the new peer, or the record of the failed attempts.
    """

    peer: str
    forward: Forward


class Detours(Protocol):
    """Decides where a process goes that its peer will not run; `routing.router` implements it.

    The router stands above the outbox. This is all that the outbox asks of it.
    """

    def elsewhere(self, process: Process, effect: Effect) -> Reroute | None:
        """Return the new place of a process; None if the process has to fail."""


@dataclass
class Outbox:
    """The outbox of the home colony.

    `stale` holds the forwards to be read again, as (process id, peer id); `reading` holds those
    that are being read now.
    """

    context: Context
    detours: Detours
    entries: OutboxEntries = field(default_factory=OutboxEntries)
    activity: WakeUp = field(default_factory=WakeUp)
    stale: Marks = field(default_factory=Marks)
    reading: Marks = field(default_factory=Marks)
    readers: dict[str, trio.Lock] = field(default_factory=dict)  # by peer id
    wakeups: WakeUps = field(default_factory=WakeUps)
    returns: WakeUps = field(default_factory=WakeUps)
    paused: dict[str, float] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)
    # New forwards whose transactions may be under way, by process id.
    _built: dict[str, Forward] = field(default_factory=dict)

    async def load(self) -> None:
        """Read all forwards from the store."""
        items, _ = await self.context.client.range_all(self.context.keys.outbox, page=100)
        for item in items:
            forward = unpack(item.value, Forward)
            self.entries[forward.processid] = OutboxEntry(forward, item.mod_revision)

    def wakeup(self, peerid: str) -> WakeUp:
        """Return the wake-up of the sender tasks of a peer."""
        return self.wakeups[peerid]

    def returned(self, peerid: str) -> WakeUp:
        """Return the wake-up that tells that a peer is reached again."""
        return self.returns[peerid]

    def of_peer(self, peerid: str) -> list[OutboxEntry]:
        """Return the forwards to one peer."""
        return self.entries.of_peer(peerid)

    def outstanding(self, peerid: str) -> int:
        """Return how many forwards to a peer are not finished."""
        fresh = {*self.reading.of(peerid), *self.stale.of(peerid)}
        return self.entries.count_of(peerid) + sum(pid not in self.entries for pid in fresh)

    def relayed(self, origin: str) -> int:
        """Return how many processes of another colony pass through here now."""
        return self.entries.relayed(origin)

    async def wait_idle(self) -> None:
        """Return once no message is being sent and no forward is being read."""
        while True:
            event = self.activity.event
            if not (self.stale or self.reading or self.entries.busy):
                return
            await event.wait()

    def retry_now(self, peerid: str) -> None:
        """Clear the back-off of a peer that is reached again, and wake its tasks."""
        for entry in self.entries.tried(peerid):
            entry.due, entry.tries = 0.0, 0
        self.paused.pop(peerid, None)
        self.wakeup(peerid).wake()
        self.returned(peerid).wake()

    # -- operations that join the node's transactions -----------------------------------------

    def forwarding(self, process: Process, route_trace: RouteTrace | None = None) -> Addition:
        """Return the outbox entry of a process; `route_trace` if a route chose its peer."""
        # A node of a workflow may have waited for its parents longer than a message may live.
        late = route_trace is not None or bool(process.parents)
        forward = machine.new_forward(process, route_trace, self.context.clock.now() if late else 0)
        self._built[process.processid] = forward
        if len(self._built) > _BUILT:
            del self._built[next(iter(self._built))]
        return Addition(
            [Put(self.context.keys.forward(forward.peer, forward.processid), pack(forward))]
        )

    def cancelling(self, process: Process) -> Addition:
        """Return the entry that tells the peer to cancel; or the removal of one never sent."""
        key = self.context.keys.forward(process.peer, process.processid)
        entry = self.entries.get(process.processid)
        if entry is not None and entry.forward.peer != process.peer:
            entry = None  # another daemon rerouted it
        now = self.context.clock.now()
        if entry is not None and self._never_left(entry):
            # If the node asks again at the same revision, the store has another entry than memory.
            entry.withdrawn = entry.revision
            ended = pack(machine.withdrawn(entry.forward, now))
            ops: list[Op] = [Delete(key), Put(self.context.keys.proof(process.processid), ended)]
            return Addition(ops, [ModRevision(key, entry.revision)])
        forward = entry.forward if entry else self._unknown(process)
        return Addition([Put(key, pack(machine.cancelling(forward, now)))])

    @staticmethod
    def _unknown(process: Process) -> Forward:
        """Return a forward that another daemon has: of the attempt that runs, if one does."""
        begun = process.state == State.RUNNING
        return machine.new_forward(
            msgspec.structs.replace(process, attempt=process.attempt - begun)
        )

    @staticmethod
    def _never_left(entry: OutboxEntry) -> bool:
        unsent = not entry.busy and entry.forward.state == machine.ForwardState.QUEUED
        return unsent and entry.withdrawn != entry.revision

    def touched(self, process: Process) -> None:
        """Schedule a read of the entry that a transaction of the node changed."""
        self.look_for(process.processid, process.peer)

    def submitted(self, process: Process, revision: int) -> None:
        """Add the entry of a process that was stored with it at a revision, and wake its sender.

        Without the revision, or if the entry is not known any more, the store is read.
        """
        forward = self._built.pop(process.processid, None)
        known = forward is not None and forward.peer == process.peer and revision > 0
        being_read = (process.processid, process.peer) in self.reading
        if forward is None or not known or being_read or process.processid in self.entries:
            self.touched(process)
            return
        self.entries[process.processid] = OutboxEntry(forward, revision)
        self.wakeup(process.peer).wake()

    def look_for(self, processid: str, peerid: str) -> None:
        """Schedule a read of the entry of (process, peer); another daemon may have written it."""
        self.stale[processid, peerid] = None
        self.wakeup(peerid).wake()

    def mark(self, forward: Forward) -> None:
        """Schedule a read of a forward, of which the store may have a newer version."""
        self.look_for(forward.processid, forward.peer)

    @contextmanager
    def _marking(self, forward: Forward) -> Iterator[None]:
        """Schedule a read of the forward if a write fails: it may have happened all the same."""
        try:
            yield
        except BaseException:
            self.mark(forward)
            raise

    # -- store and memory --------------------------------------------------------------------

    async def refresh_all(self) -> None:
        """Read all stale forwards again, and wake the senders of their peers."""
        for peerid in self.stale.peers():
            await self.refresh(peerid)
            self.wakeup(peerid).wake()

    async def refresh(self, peerid: str) -> None:
        """Read the stale forwards of a peer again.

        A second caller waits until the read is done: it must not plan without these forwards.
        """
        async with self.readers.setdefault(peerid, trio.Lock()):
            pids = self.stale.of(peerid)
            for start in range(0, len(pids), _BATCH):
                await self._read(peerid, pids[start : start + _BATCH])
            if pids:
                self.activity.wake()

    async def _read(self, peerid: str, pids: Sequence[str]) -> None:
        # Remove the marks before the read: a change during the read sets them again.
        for pid in pids:
            self.stale.pop((pid, peerid), None)
            self.reading[pid, peerid] = None
        done = False
        try:
            gets = [Get(self.context.keys.forward(peerid, pid)) for pid in pids]
            result = await self.context.client.commit(Txn([], gets))
            done = True
        finally:
            for pid in pids:
                self.reading.pop((pid, peerid), None)
                if not done:
                    self.stale[pid, peerid] = None
        for pid, found in zip(pids, result.responses, strict=True):
            if not found:
                known = self.entries.get(pid)
                if known is not None and known.forward.peer == peerid:
                    del self.entries[pid]
            elif pid not in self.entries:
                value = unpack(found[0].value, Forward)
                self.entries[pid] = OutboxEntry(value, found[0].mod_revision)
            else:
                self._adopt(
                    self.entries[pid], unpack(found[0].value, Forward), found[0].mod_revision
                )

    @staticmethod
    def _adopt(entry: OutboxEntry, forward: Forward, revision: int) -> None:
        if revision > entry.revision:
            if forward.state != entry.forward.state:
                entry.due, entry.tries = 0.0, 0
            entry.forward, entry.revision = forward, revision

    async def save(
        self,
        entry: OutboxEntry,
        forward: Forward,
        before: Forward,
        compare: Sequence[Compare] = (),
    ) -> bool:
        """Write what follows from `before`. Return False if the forward was changed meanwhile.

        It also is False if `compare` does not hold. After False the forward is read again: a cancel
        that came while a message was on its way must not be lost to the outcome of that message.
        """
        if entry.forward is not before:
            self.mark(forward)
            return False
        key = self.context.keys.forward(forward.peer, forward.processid)
        txn = Txn([ModRevision(key, entry.revision), *compare], [Put(key, pack(forward))])
        with self._marking(forward):
            result = await self.context.client.commit(txn)
        if result.succeeded:
            entry.forward, entry.revision = forward, result.revision
            return True
        self.mark(forward)
        return False

    def leaving(self, effect: Effect) -> list[Op]:
        """Return the operations on the entry that go with the change of the process."""
        forward = effect.forward
        key = self.context.keys.forward(forward.peer, forward.processid)
        if effect.stays:
            return [Put(key, pack(forward))]
        if forward.aside:
            return [Delete(key)]  # the record belongs to the process's new place
        record = msgspec.structs.replace(
            machine.emptied(forward), ended=forward.ended or self.context.clock.now()
        )
        return [Delete(key), Put(self.context.keys.proof(forward.processid), pack(record))]

    async def apply(self, entry: OutboxEntry, effect: Effect, before: Forward) -> bool:
        """Write the effect of an event on `before` in one transaction; False if overtaken."""
        after, done = effect.forward, False
        unchanged = ModRevision(
            self.context.keys.forward(before.peer, before.processid), entry.revision
        )
        if effect.certain and entry.forward is before and await self.reroute(entry, effect):
            return True
        if effect.act is ProcessAction.NOTHING:
            if effect.stays:
                return await self.save(entry, after, before)
            if entry.forward is not before:
                self.mark(after)
                return False
            with self._marking(after):
                result = await self.context.client.commit(Txn([unchanged], self.leaving(effect)))
            if result.succeeded:
                self.entries.pop(after.processid, None)
                return True
            self.mark(after)
            return False
        tried = revision = 0

        def step(process: Process, revision: int) -> store.Transition | None:
            nonlocal done, tried
            done = False
            now = self.context.clock.now()
            if process.closed or process.peer != after.peer:
                return None
            ops = self.leaving(effect)
            if effect.act is ProcessAction.START:
                if process.state != State.WAITING:
                    return None
                done = True
                return store.start(process, revision, now, ops)
            # A second call with the same revision of the process: it is the forward that has
            # changed.
            if entry.forward is not before or revision == tried:
                return None
            done, tried = True, revision
            state = State.FAILED if effect.act is ProcessAction.FAIL else State.CANCELLED
            errors = effect.errors
            if effect.act is ProcessAction.FAIL:
                errors = [*(tried.error for tried in after.tried), *errors]
            return store.close(
                process, revision, state, now, errors=errors, extra=ops, compare=[unchanged]
            )

        with self._marking(after):
            try:
                home = self.context.home
                process, revision = await self.context.processes.change_at(
                    home, after.processid, step
                )
                if done and effect.act is ProcessAction.START:
                    self.latencies.started(process)
            except NotFound:
                await self.forget(before)
                done = True
        if done and not 0 < revision <= entry.revision:
            # Change memory first, so that nothing is sent again before the store is read. It may
            # have a later change already, which was told before this one.
            entry.forward = after
            if not effect.stays:
                self.entries.pop(after.processid, None)
        being_read = (after.processid, after.peer) in self.reading
        if done and revision > entry.revision and not being_read:
            entry.revision = revision
        else:
            self.mark(after)
        return done

    async def reroute(self, entry: OutboxEntry, effect: Effect) -> bool:
        """Reroute a process that its peer surely will not run. Return False if it has to fail.

        One transaction removes the forward, and gives the process its new place and forward. It
        compares both, so it does nothing once another daemon has sent a copy.
        """
        before, known = entry.forward, entry.revision
        key = self.context.keys.forward(before.peer, before.processid)
        taken: Reroute | None = None

        def step(process: Process, revision: int) -> store.Transition | None:
            nonlocal taken
            taken = None
            if entry.forward is before and _waits_for(process, before.peer):
                taken = self.detours.elsewhere(process, effect)
            if taken is None:
                return None
            forward = taken.forward
            place = self.context.keys.proof(forward.processid)
            if taken.peer:
                place = self.context.keys.forward(taken.peer, forward.processid)
            ops: list[Op] = [Delete(key), Put(place, pack(forward))]
            compare = [ModRevision(key, known)]
            return store.move(process, revision, taken.peer, ops, compare)

        try:
            await self.context.processes.change(self.context.home, before.processid, step)
        except (NotFound, Conflict) as error:
            # The forward is gone or has changed: read it again before anything else.
            self.look_for(before.processid, before.peer)
            return isinstance(error, Conflict)
        except BaseException:
            # The write may have happened: the store says what is to be sent.
            if taken is not None:
                self.look_for(before.processid, taken.peer or before.peer)
            raise
        if taken is None:
            return False
        if taken.peer:
            entry.forward, entry.due, entry.tries = taken.forward, 0.0, 0
            self.look_for(before.processid, taken.peer)
        else:
            self.entries.pop(before.processid, None)
        return True

    async def forget(self, forward: Forward) -> None:
        """Delete the forward of a process that is gone from the store."""
        await self.context.client.delete(self.context.keys.forward(forward.peer, forward.processid))


def _waits_for(process: Process, peer: str) -> bool:
    return process.state == State.WAITING and process.peer == peer
