"""The outcome poller: fetches outcomes of forwards, and closes their processes with them, once.

Only the origin connects, so this works from behind NAT. The peer's inbox keeps each outcome until
the origin acknowledges it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from colonyd.errors import NotFound, RpcError
from federation.forward import chain as chains
from federation.forward import machine
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.forward.path import OriginRequest
from federation.outbox import evidence as testimony
from federation.outbox.outbox import Outbox
from federation.outbox.updates import UpdateConsumer
from federation.peers.context import Context
from federation.transport.connection import PeerConnection
from federation.transport.errors import TransportError
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, open_envelope
from federation.wire.json import apart, require_bounded
from federation.wire.messages import Attempt, Outcome, Outcomes, Pid, Poll, load
from federation.wire.sizes import SIZES
from node.etcd.errors import EtcdError, EtcdTooLarge
from node.etcd.txn import Delete, ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.numbers import beyond_float
from node.model.types import Process, State
from node.store.work import processes as store
from node.tasks.sync import gather

_POLL = 30  # seconds that a poll waits at the peer
_VAIN = 5  # answers in a row that settle nothing, before the next poll has to wait
_IDLE = 300.0  # seconds between polls of a peer that should owe nothing
_LONGEST = 60.0  # seconds between two tries of a poll
_AT_ONCE = 16  # outcomes of one answer that are settled at a time
_EVIDENCE = 65_536  # bytes of the largest malformed outcome that is kept

log = get_logger("results")


class _About(msgspec.Struct, frozen=True):
    """The fields that every outcome has, even a malformed one."""

    pid: Pid
    attempt: Attempt


@dataclass
class OutcomePoller:
    """Polls peers for outcomes and updates."""

    context: Context
    outbox: Outbox
    update_consumer: UpdateConsumer
    late: int = 0
    broken: int = 0  # outcomes that were malformed, or whose chain did not hold
    _acks: dict[str, set[str]] = field(default_factory=dict)

    # -- outcomes ----------------------------------------------------------------------------

    def _awaited(self, peerid: str) -> bool:
        if self._acks.get(peerid) or self.update_consumer.tails(peerid):
            return True
        return self.outbox.entries.outstanding(peerid) > 0

    async def poll_forever(self, connection: PeerConnection) -> None:
        """Poll one peer while it may owe outcomes, until cancelled."""
        wakeup, failures, vain = self.outbox.wakeup(connection.id), 0, 0
        # Poll once at the start: outcomes from before a crash, refusal or block are still owed.
        again = trio.current_time()
        while True:
            event, back = wakeup.event, self.outbox.returned(connection.id).event
            if not self._awaited(connection.id) and trio.current_time() < again:
                with trio.move_on_at(again):
                    await event.wait()
                continue
            before = self.outbox.outstanding(connection.id)
            try:
                told = await self.poll_once(connection)
                failures, again = 0, trio.current_time() + _IDLE
                # Repeats of settled outcomes come for a moment after a crash, or from a peer that
                # lies.
                vain = vain + 1 if told and self.outbox.outstanding(connection.id) >= before else 0
                if vain > _VAIN:
                    await trio.sleep(machine.delay(min(vain - _VAIN, 6), self.context.chance))
            except (TransportError, EtcdError, RpcError, Rejected) as error:
                failures += 1
                connection.entry.error = str(error)
                log.info("outcomes not fetched", peer=connection.id, error=error)
                pause = machine.delay(failures, self.context.chance)
                if isinstance(error, TransportError):
                    pause = max(pause, error.seconds)
                with trio.move_on_after(min(pause, _LONGEST)):
                    await back.wait()

    async def poll_once(self, connection: PeerConnection) -> int:
        """Poll for outcomes, settle them, and note their acks. Return how many outcomes came."""
        acks = sorted(self._acks.get(connection.id, set()))[:100]
        waits = self.outbox.entries.outstanding(connection.id) > 0
        follow, whole, wait = self.update_consumer.wanted(connection.id, _POLL if waits else 0)
        connection.demand_version()
        body = connection.seal(Kind.POLL, Poll(wait, acks, follow, whole))
        opened, _ = await connection.post("/v2/outcomes", body, Kind.OUTCOMES, wait)
        self._acks.get(connection.id, set()).difference_update(acks)
        answer = load(opened.payload, Outcomes)
        # Store updates first: a reader of an ended process then sees all its output, if it fits.
        more = await self.update_consumer.take(connection, answer, {each.pid for each in follow})
        await self._settle_all(connection, answer.outcomes, more)
        if answer.news:
            await self.update_consumer.pace(connection.id)
        return len(answer.outcomes)

    async def _settle_all(
        self, connection: PeerConnection, outcomes: list[bytes], more: Collection[str] | None
    ) -> None:
        """Settle outcomes, some at a time. Raises the first error, after all have been tried."""
        acks = self._acks.setdefault(connection.id, set())

        async def settle(sealed: bytes) -> None:
            acks.add(await self.settle(connection, sealed, more))

        await gather(settle, outcomes, _AT_ONCE)

    async def settle(
        self,
        connection: PeerConnection,
        sealed: bytes,
        more: Collection[str] | None = frozenset(),
        fresh: bool = False,
    ) -> str:
        """Verify one outcome and close its process. Return the process id to acknowledge.

        The peer has `more` updates of these processes; None if it may have some of any process.
        With `fresh`, the forward is read from the store, and not taken from memory.
        """
        opened = await apart(sealed, partial(self._open, connection))
        problem = False
        about = load(opened.payload, _About)
        key = self.context.keys.forward(connection.id, about.pid)
        entry = self.outbox.entries.get(about.pid)
        forward: Forward | None
        if not fresh and entry is not None and entry.forward.peer == connection.id:
            forward, revision = entry.forward, entry.revision
        else:
            found = await self.context.processes.reads.get(key)
            forward = unpack(found.value, Forward) if found else None
            revision = found.mod_revision if found else 0
        now, unchanged = self.context.clock.now(), ModRevision(key, revision)
        fits = forward is not None and forward.attempt == about.attempt
        try:
            outcome = await self._told(connection, opened, sealed, forward if fits else None)
            output = await apart(outcome.out, read_output)
        except Rejected as rejected:
            # The peer has signed it, so no repeat can be better.
            outcome, output, problem = self._nonsense(connection, about, rejected), [], True
        leaving: list[Op] = []
        rest: list[Op] = []
        if forward is not None and fits:
            evidence = b"" if problem and len(sealed) > _EVIDENCE else sealed
            remote = outcome.localpid or forward.remoteprocessid
            record = machine.concluded(forward, evidence, remote, now)
            rest = self.update_consumer.ending(
                connection.id,
                outcome.pid,
                outcome.attempt,
                more=more is None or outcome.pid in more,
            )
            place = self.context.keys.proof(outcome.pid)
            leaving = [Delete(key), Put(place, pack(record)), *rest]
        # A person let the process go on without this forward; the process has another record now.
        aside = forward is not None and fits and forward.aside
        if aside:
            leaving = [Delete(key), *rest]
        try:
            waits = fits and not aside
            closed = waits and await self._close(connection, outcome, output, leaving, unchanged)
        except EtcdTooLarge:
            # With the peer's earlier updates, the process is larger than one value may be.
            name = self.context.peers.name(connection.id)
            outcome = _failure(
                outcome, f"what peer {name} says of the end is too large to be kept here"
            )
            closed = await self._close(connection, outcome, [], leaving, unchanged)
        if closed is None or not (
            closed or await self._too_late(connection, outcome, sealed, unchanged, leaving, aside)
        ):
            # The forward has changed since it was read, or another daemon had changed it.
            return await self.settle(connection, sealed, more, True)
        # An earlier copy may have been stored, although the store's answer to that was lost.
        if rest or not fits:
            await self.update_consumer.ended(outcome.pid)
        entry = self.outbox.entries.get(outcome.pid)
        if entry is not None and entry.forward.peer == connection.id:
            if entry.busy or not closed or (outcome.pid, connection.id) in self.outbox.reading:
                self.outbox.stale[outcome.pid, connection.id] = None
            if not fits:
                self.outbox.wakeup(connection.id).wake()
            elif not entry.busy:
                self.outbox.entries.pop(outcome.pid, None)
        return outcome.pid

    def _open(self, connection: PeerConnection, sealed: bytes) -> VerifiedMessage:
        return open_envelope(
            sealed,
            kind=Kind.OUTCOME,
            audience=self.context.signer.ids,
            now=connection.seconds,
            keys=connection.key_of,
            limit=SIZES[Kind.OUTCOME].bytes,
            high_water=connection.highest,
        )

    def _nonsense(self, connection: PeerConnection, about: _About, refused: Rejected) -> Outcome:
        """Return a failure in place of a malformed outcome that the peer signed."""
        self.broken += 1
        log.warning("outcome malformed", process=about.pid, peer=connection.id, why=refused)
        name = self.context.peers.name(connection.id)
        errors = [f"peer {name} told a malformed end: {refused.message[:300]}"]
        return Outcome(about.pid, about.attempt, State.FAILED, b"[]", errors, "", "", 0, 0)

    async def _told(
        self,
        connection: PeerConnection,
        opened: VerifiedMessage,
        sealed: bytes,
        forward: Forward | None,
    ) -> Outcome:
        """Return the outcome with the executor colony's output, every signature verified.

        Each outcome of the chain has to answer the very submission of the `forward`; without a
        forward, no process waits for the outcome. An invalid chain is the peer's fault, and ends
        the process as failed: no repeat of it can be valid, and no other colony has another.
        """
        context, outcome = self.context, load(opened.payload, Outcome)
        known = await context.processes.recall(context.home, outcome.pid)
        wanted = testimony.beyond(context, known[0], connection.id) if known is not None else []
        if not outcome.below and outcome.localpid not in {
            relays.local_id(each, outcome.pid, outcome.attempt) for each in self.context.signer.ids
        }:
            raise Rejected("malformed", "outcome: it names another process there")
        # An outcome of a forward that was never sent (by our records, say after a restore) is
        # invalid.
        request = (forward.request or OriginRequest()) if forward is not None else None
        told: Outcome | None = outcome
        if not outcome.below and not wanted:
            problem = chains.unbound(outcome, request) if request else ""
        else:
            key = connection.key_of(opened.issuer) or b""
            steps = await apart(
                sealed,
                lambda data: chains.trace(
                    data, opened.issuer, key, self.context.signer.ids, context.peers.ids, request
                ),
            )
            meant = testimony.meant(context, known[0], forward, wanted) if known else {}
            told, problem = chains.conclusion(steps, wanted, meant)
        if told is not None and not problem:
            return msgspec.structs.replace(outcome, out=told.out)
        self.broken += 1
        log.warning("outcome without a valid chain", process=outcome.pid, why=problem)
        name = context.peers.name(connection.id)
        return _failure(outcome, f"what peer {name} says of the end is not proven: {problem}")

    async def _close(
        self,
        connection: PeerConnection,
        outcome: Outcome,
        output: list[object],
        leaving: Sequence[Op],
        unchanged: ModRevision,
    ) -> bool | None:
        """Close the process with its outcome, if its forward is `unchanged`.

        Return False if the process is closed already, or gone; None if the forward has changed.
        """
        mine: bool | None = False
        tried = 0

        def step(process: Process, revision: int) -> store.Transition | None:
            nonlocal mine, tried
            mine = not process.closed and process.peer == connection.id
            if not mine:
                return None
            if revision == tried:
                mine = None  # the process has not changed: the forward has
                return None
            tried = revision
            ran = msgspec.structs.replace(
                process, assignedexecutorid=connection.id, isassigned=True, attempt=outcome.attempt
            )
            return store.close(
                ran,
                revision,
                State(outcome.state),
                self.context.clock.now(),
                output=output,
                errors=outcome.errors,
                extra=leaving,
                compare=[unchanged],
            )

        try:
            process = await self.context.processes.change(self.context.home, outcome.pid, step)
        except NotFound:
            return False
        if mine:
            self.outbox.latencies.ended(process)
        return mine

    async def _too_late(
        self,
        connection: PeerConnection,
        outcome: Outcome,
        sealed: bytes,
        read: ModRevision,
        leaving: Sequence[Op],
        aside: bool,
    ) -> bool:
        """Keep an outcome that no process waits for, unless it is a repeat or the quota is full.

        Return whether the forward still is as it was `read`; otherwise nothing was written.
        """
        late: list[Op] = []
        known = await self.context.processes.load(self.context.home, outcome.pid)
        proof = await self.context.client.get(self.context.keys.proof(outcome.pid))
        record = unpack(proof.value, Forward) if proof is not None else None
        repeat = record is not None and bool(record.outcome)
        ours = known is not None and known[0].peer == connection.id
        if known is not None and record is not None and not ours and not aside:
            # The owner took the process back from that peer, and the forward is gone, too.
            aside = any(each.final and each.peer == connection.id for each in record.tried)
        wanted = (aside or (ours and not repeat)) and outcome.state != State.CANCELLED
        if wanted and self.update_consumer.peer_quotas.news(connection.id, len(sealed)):
            late = [Put(self.context.keys.late(outcome.pid), sealed)]
        ops = [*leaving, *late]
        if ops and not (await self.context.client.commit(Txn([read], ops))).succeeded:
            return False
        if late:
            self.late += 1
            log.info("outcome came late", process=outcome.pid, peer=connection.id)
        return True


def _failure(outcome: Outcome, *errors: str) -> Outcome:
    return msgspec.structs.replace(outcome, state=int(State.FAILED), out=b"[]", errors=list(errors))


def read_output(data: bytes) -> list[object]:
    """Return the output of an outcome. Raises Rejected (malformed)."""
    try:
        # The store would take deeper nesting, and never be able to return the process.
        require_bounded(data)
        value: list[object] = msgspec.json.decode(data, type=list)
    except Rejected as rejected:
        raise Rejected("malformed", f"outcome: {rejected.message}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("malformed", f"outcome: {error}") from None
    if beyond_float(data, value):
        raise Rejected("malformed", "outcome: a number beyond what a 64-bit float holds")
    return value
