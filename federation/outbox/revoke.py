"""The end of all that a blocked colony has here and we have there, taken up again until it is done.

That it is blocked stands in the store before the first end (`peers.Peers.block`); what becomes of
each forward is `forward.machine`'s to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from federation.forward import machine
from federation.forward.machine import Forward, ProcessAction
from federation.forward.receipt import ReceiptRecord
from federation.limits.accounts import Pages
from federation.outbox.outbox import Outbox, OutboxEntry
from federation.peers.context import Context
from federation.peers.registry import BLOCKED, PeerState
from node.etcd.client import KeyValue
from node.etcd.txn import Delete, ModRevision, Op, Txn
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.errors import Conflict
from node.model.types import Process, State
from node.processes.extension import Addition
from node.store.work import processes as store
from node.tasks.sync import WakeUp

_MANY = 40  # processes looked at together
_TRIES = 8
_LONGEST = 60.0  # seconds between two tries

log = get_logger("blocking")


@dataclass
class Revocation:
    """Ends things of blocked colonies, one after the other, each in one transaction.

    Every step looks at the store, ends one thing, and leaves nothing half done: a sweep that is
    cut off anywhere is simply begun again. What can be new after the block is only what we send
    ourselves (a submission under way, a workflow's next node); `Attachment.submitted` hears of it.
    """

    context: Context
    outbox: Outbox
    _begin: WakeUp = field(default_factory=WakeUp)
    _ended: WakeUp = field(default_factory=WakeUp)

    async def run(self) -> None:
        """Sweep whenever there is something to, also what a crash left undone; until cancelled."""
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
        """There may be something to end."""
        self._begin.wake()

    async def wait(self, entry: PeerState) -> None:
        """Return once all of a blocked colony has ended."""
        while entry.peer.ending:
            await self._ended.event.wait()

    def due(self) -> set[str]:
        """The colonies for which a sweep was not finished, or must be made anew."""
        peers = self.context.peers
        marked = {
            entry.peer.id
            for entry in peers.known.values()
            if entry.peer.state == BLOCKED and entry.peer.ending
        }
        sent = {entry.forward.peer for entry in self.outbox.entries.values()}
        sent.update(peerid for _, peerid in self.outbox.stale | self.outbox.reading)
        return marked | {peerid for peerid in sent if peers.state(peerid) == BLOCKED}

    def _over(self, peerid: str) -> bool:
        """Whether the owner trusts it again: then what is left goes on."""
        return self.context.peers.state(peerid) != BLOCKED

    async def sweep(self, peerid: str) -> None:
        """End all there is, then note that it is done. Raises EtcdError, RpcError: try again."""
        forwards = await self._sweep_outbox(peerid)
        processes = await self._sweep_inbox(peerid)
        if not self._over(peerid):
            await self.context.peers.ended(peerid)
            log.info("blocked", peer=peerid, forwards=forwards, processes=processes)

    # -- what we have there --------------------------------------------------------------

    async def _sweep_outbox(self, peerid: str) -> int:
        """Fail what waits or may run there; what the peer may run is in doubt, and says so."""
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
                # A copy left, a receipt came, or it went elsewhere: what it is now decides.
                found = await client.get(item.key)
            else:
                raise Conflict(f"the forward {item.key} changes too fast")
        return count

    async def _end_forward(self, item: KeyValue) -> bool:
        """End one forward and its process, if the entry is still as it was read.

        Process and entry are compared, so what was sent meanwhile is never called unsent. What
        never left and came by a route may go elsewhere instead.
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
        """The entry left the store: memory follows."""
        known = self.outbox.entries.get(processid)
        if known is not None and known.forward.peer == peerid:
            del self.outbox.entries[processid]
        self.outbox.stale.pop((processid, peerid), None)
        self.outbox.activity.wake()

    # -- what it has here ----------------------------------------------------------------

    async def _sweep_inbox(self, peerid: str) -> int:
        """Cancel what it has here: each open process of another colony has its marker."""
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
        """Cancel one process, whatever it belongs to; False when it ended meanwhile.

        Not as a caller does, to whom a node of a workflow ends with all of it: what follows for a
        workflow is what follows when such a node is cancelled there.
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
            # Whether it happened or got no answer: what is to be sent is in the store.
            if self._left(seen):
                processes.hooks.submitted(seen)
        return ended

    @staticmethod
    def _left(process: Process) -> bool:
        """Whether it went on to another colony, which is to be told."""
        return bool(process.peer) and not process.waitforparents
