"""Revocation: ends all forwards to and all processes from a blocked colony, repeated until done.

`peers.Peers.block` stores the block before anything is ended. `forward.machine` decides what
becomes of each forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from colonyd.errors import Conflict
from federation.forward import machine
from federation.forward.machine import Forward, ProcessAction
from federation.forward.receipt import ReceiptRecord
from federation.limits.accounts import Pages
from federation.outbox.entries import OutboxEntry
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.registry import BLOCKED, PeerState
from node.etcd.client import KeyValue
from node.etcd.txn import Delete, ModRevision, Op, Txn
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.types import Process, State
from node.processes.extension import Addition
from node.store.work import processes as store
from node.tasks.sync import WakeUp

_MANY = 40  # processes read in one transaction
_TRIES = 8
_LONGEST = 60.0  # seconds between two tries

log = get_logger("blocking")


@dataclass
class Revocation:
    """Ends the forwards and processes of blocked colonies, one by one, each in one transaction.

    Every step reads the store, ends one thing, and leaves nothing half done: a sweep that is cut
    off is simply started again. After the block, only our own submissions can be new (one on its
    way, or a workflow's next node); `NodeExtension.submitted` reports these.
    """

    context: Context
    outbox: Outbox
    _begin: WakeUp = field(default_factory=WakeUp)
    _ended: WakeUp = field(default_factory=WakeUp)

    async def run(self) -> None:
        """Sweep while a blocked colony has something left, also after a crash; until cancelled."""
        tries = 0
        while True:
            event, failed = self._begin.event, False
            for peerid in self.due():
                try:
                    await self.sweep(peerid)
                except Exception as error:
                    failed = True
                    log.warning("block not finished", peer=peerid, error=repr(error))
            self._ended.wake()
            tries = tries + 1 if failed else 0
            pause = min(_LONGEST, machine.delay(tries, self.context.chance)) if failed else math.inf
            with trio.move_on_after(pause):
                await event.wait()

    def begin(self) -> None:
        """Wake the sweep: there may be something to end."""
        self._begin.wake()

    async def wait(self, entry: PeerState) -> None:
        """Return once everything of a blocked colony has ended."""
        while entry.peer.ending:
            await self._ended.event.wait()

    def due(self) -> set[str]:
        """Return the blocked colonies whose sweep is not finished, or that have new forwards."""
        peers = self.context.peers
        marked = {
            entry.peer.id
            for entry in peers.known.values()
            if entry.peer.state == BLOCKED and entry.peer.ending
        }
        outbox = self.outbox
        sent = {*outbox.entries.peers(), *outbox.stale.peers(), *outbox.reading.peers()}
        return marked | {peerid for peerid in sent if peers.state(peerid) == BLOCKED}

    def _over(self, peerid: str) -> bool:
        """Return whether the owner trusts the colony again: then what is left goes on."""
        return self.context.peers.state(peerid) != BLOCKED

    async def sweep(self, peerid: str) -> None:
        """End everything of a colony, then store that it is done.

        Raises EtcdError or RpcError: the caller tries again.
        """
        forwards = await self._sweep_outbox(peerid)
        processes = await self._sweep_inbox(peerid)
        if not self._over(peerid):
            await self.context.peers.ended(peerid)
            log.info("blocked", peer=peerid, forwards=forwards, processes=processes)

    # -- our forwards to the colony ------------------------------------------------------------

    async def _sweep_outbox(self, peerid: str) -> int:
        """Fail the processes sent to the colony, and return how many.

        The error of a process that the colony may still run says that it is in doubt.
        """
        client, keys = self.context.client, self.context.keys
        items, _ = await client.range_all(keys.forward(peerid, ""), page=100)
        count = 0
        for item in items:
            found: KeyValue | None = item
            for _ in range(_TRIES):
                if found is None or self._over(peerid):
                    break
                if await self._end_forward(found):
                    count += 1
                    break
                # The forward has changed (copy sent, receipt, reroute): decide by its new state.
                found = await client.get(item.key)
            else:
                raise Conflict(f"the forward {item.key} changes too fast")
        return count

    async def _end_forward(self, item: KeyValue) -> bool:
        """End one forward and its process, if the entry is still as it was read.

        The transaction compares process and entry, so a copy sent meanwhile is never taken for
        unsent. A process that never left and came by a route may be rerouted instead.
        """
        forward = unpack(item.value, Forward)
        pid, now = forward.processid, self.context.clock.now()
        effect = machine.blocked(forward, self.context.peers.name(forward.peer), now)
        known = self.outbox.entries.get(pid)
        if known is None or known.revision != item.mod_revision:
            known = OutboxEntry(forward, item.mod_revision)
        if effect.certain and forward.retry and await self.outbox.reroute(known, effect):
            return False
        leaving = self.outbox.leaving(effect)
        unchanged = ModRevision(item.key, item.mod_revision)
        loaded = await self.context.processes.load(self.context.home, pid)
        closed = loaded is None or loaded[0].closed or loaded[0].peer != forward.peer
        if loaded is None:
            txn = Txn([unchanged], [Delete(item.key)])
        elif closed or effect.act is ProcessAction.NOTHING:
            txn = Txn([unchanged], leaving)
        else:
            errors = [*(tried.error for tried in forward.tried), *effect.errors]
            return await self._fail(loaded[0], loaded[1], unchanged, errors, leaving)
        ended = (await self.context.client.commit(txn)).succeeded
        if ended:
            self._gone(pid, forward.peer)
        return ended

    async def _fail(
        self,
        process: Process,
        revision: int,
        unchanged: ModRevision,
        errors: list[str],
        leaving: list[Op],
    ) -> bool:
        step = store.close(
            process,
            revision,
            State.FAILED,
            self.context.clock.now(),
            errors=errors,
            extra=leaving,
            compare=[unchanged],
        )
        result = await self.context.client.commit(step.txn)
        if result.succeeded:
            self.context.processes.settle(step.process, result.revision)
            self._gone(process.processid, process.peer)
        return result.succeeded

    def _gone(self, processid: str, peerid: str) -> None:
        """Remove a forward from memory that has left the store."""
        known = self.outbox.entries.get(processid)
        if known is not None and known.forward.peer == peerid:
            del self.outbox.entries[processid]
        self.outbox.stale.pop((processid, peerid), None)
        self.outbox.activity.wake()

    # -- the colony's processes here -----------------------------------------------------------

    async def _sweep_inbox(self, peerid: str) -> int:
        """Cancel the colony's open processes here, found by their receipts. Return how many."""
        client, keys = self.context.client, self.context.keys
        processes, home = self.context.processes, self.context.home
        reason = f"colony {self.context.peers.name(peerid)}, where this came from, was blocked"
        count = 0
        async for items in Pages(client, keys.receipt_record(peerid, "")):
            ids = [
                receipt_record.localpid
                for receipt_record in (unpack(item.value, ReceiptRecord) for item in items)
            ]
            ids = [localpid for localpid in ids if localpid]
            for start in range(0, len(ids), _MANY):
                for process in await processes.load_many(home, ids[start : start + _MANY]):
                    if process.closed:
                        continue
                    if self._over(peerid):
                        return count
                    count += await self._cancel(process, reason)
        return count

    async def _cancel(self, process: Process, reason: str) -> bool:
        """Cancel one process, also a node of a workflow. Return False if it ended meanwhile.

        A caller's cancel of a node ends the whole workflow. This one ends only the node, and the
        workflow goes on by its own rules.
        """
        processes, seen, ended = self.context.processes, process, False

        def step(known: Process, revision: int) -> store.Transition | None:
            nonlocal seen, ended
            seen, ended = known, not known.closed
            if not ended:
                return None
            onward = processes.hooks.cancelling(known) if self._left(known) else Addition()
            return store.close(
                known,
                revision,
                State.CANCELLED,
                self.context.clock.now(),
                errors=[reason],
                extra=onward.ops,
                compare=onward.compare,
            )

        try:
            await processes.change_quietly(process.colonyname, process.processid, step)
        finally:
            # Whether or not the write happened, the store says what is to be sent.
            if self._left(seen):
                processes.hooks.submitted(seen)
        return ended

    @staticmethod
    def _left(process: Process) -> bool:
        """Return whether the process went on to another colony, which has to be told."""
        return bool(process.peer) and not process.waitforparents
