"""The sender of forwards and cancels: one loop a peer, with a window, back-off, and deadlines.

`forward.machine` decides what an event means for a forward; `outbox` stores it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import msgspec
import trio

from federation.forward import machine
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.outbox.entries import OutboxEntry
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.transport.connection import PeerConnection
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError, Unsent
from federation.wire.envelope import Kind, Rejected, inspect
from federation.wire.json import apart
from federation.wire.messages import Cancel, Receipt, Submit, load
from federation.wire.refusals import Proof
from node.etcd.errors import EtcdError
from node.etcd.txn import Compare, Delete, ModRevision, Txn
from node.host.log import get_logger
from node.model.codec import whole_spec
from node.model.errors import RpcError
from node.model.types import Process
from node.store import keys

_WINDOW = 8  # messages to one peer that may be under way at once
# The allowed statuses of a receipt, and whether each comes with the peer's own process id.
_OF_SUBMIT = (("accepted", True), ("cancelled", False))
_OF_CANCEL = (("cancelled", False), ("cancelled", True), ("already_closed", True))

log = get_logger("delivery")


class Greeting(Protocol):
    """Asks a peer for a sign of life; `membership.probe`, which stands above, implements it."""

    async def hello(self, connection: PeerConnection) -> object:
        """Exchange signed hellos. Raises what `PeerConnection.post` raises."""


@dataclass
class Sender:
    """Sends the forwards of the outbox. `file_transfer` lists the files of a process."""

    context: Context
    outbox: Outbox
    file_transfer: FileTransfer
    greeting: Greeting
    hops: int = 1  # hops that our own processes may take, unless their target names more
    # Forwards already moved for a change of the clock that is not complete for all forwards.
    _shifted: set[str] = field(default_factory=set)

    def _late(self) -> int:
        """Return the time (Unix ns) by which deadlines are judged."""
        return self.context.processes.clock.late()

    # -- sending -----------------------------------------------------------------------------

    async def send_forever(self, connection: PeerConnection) -> None:
        """Send due messages to one peer, a few at a time, until cancelled."""
        wakeup = self.outbox.wakeup(connection.id)
        failures = 0
        async with trio.open_nursery() as nursery:
            while True:
                event, again = wakeup.event, trio.current_time() + 60
                try:
                    await self.outbox.refresh(connection.id)
                    due, again = self._plan(connection.id)
                    if due and trio.current_time() >= self._paused(connection.id):
                        connection.demand_version()
                        await connection.connect()
                        if connection.unheard:
                            # A message that waits in a mailbox is in doubt, even if it never leaves
                            # the mailbox.
                            await self.greeting.hello(connection)
                        elif connection.unmeasured:
                            try:
                                await self.greeting.hello(connection)
                            except RemoteRefusal as error:
                                if not error.final:  # the forward will get the same refusal
                                    raise
                        failures = 0
                        # A forward that was due before the peer was reached may have been rerouted
                        # since.
                        due, again = self._plan(connection.id)
                        for entry in due:
                            entry.busy = True
                            nursery.start_soon(self._deliver, connection, entry)
                    elif due:
                        again = self._paused(connection.id)
                except (TransportError, EtcdError, RpcError, Rejected) as error:
                    # The peer is not reached: one back-off for all forwards, and nothing is
                    # written.
                    failures += 1
                    pause = machine.delay(failures, self.context.chance)
                    again = self.outbox.paused[connection.id] = trio.current_time() + pause
                    connection.entry.error = str(error)
                    if failures == 1:
                        connection.guide.measure()  # its probe may be in a long pause
                    log.info(
                        "peer not reached", peer=connection.id, error=error, retry=round(pause, 1)
                    )
                with trio.move_on_at(again):
                    await event.wait()

    def _paused(self, peerid: str) -> float:
        return self.outbox.paused.get(peerid, 0.0)

    def _sendable(self, entry: OutboxEntry) -> bool:
        # Past its delivery deadline, a submission would be refused as expired.
        cancelling = entry.forward.state is machine.ForwardState.CANCELLING
        return cancelling or self._late() <= entry.forward.deliver

    def _plan(self, peerid: str) -> tuple[list[OutboxEntry], float]:
        """Return the forwards to send now, and when to plan again if no wake-up comes first."""
        entries, now = self.outbox.entries, trio.current_time()
        room = _WINDOW - entries.busy_of(peerid)
        if room <= 0:
            return [], now + 60.0  # the end of a message wakes the loop
        due = list(islice(filter(self._sendable, entries.ready(peerid, now)), room))
        later = entries.next_due(peerid)
        return due, min(now + 60.0, now + 60.0 if later is None else later)

    async def _deliver(self, connection: PeerConnection, entry: OutboxEntry) -> None:
        """Send one message of one forward. Any error concerns this forward only."""
        try:
            if not entry.to_send:
                return  # a receipt that another daemon got came in since it was planned
            if entry.forward.state == machine.ForwardState.CANCELLING:
                await self._send_cancel(connection, entry)
            else:
                await self._send_submit(connection, entry)
        except TransportError as error:
            self._back_off(entry, error.seconds)
            connection.entry.error = str(error)
        except (EtcdError, RpcError) as error:
            self._back_off(entry, 0.0)
            log.warning("forward not stored", process=entry.forward.processid, error=error)
        except Exception:
            self._back_off(entry, 0.0)
            log.exception("forward failed", process=entry.forward.processid)
        finally:
            entry.busy = False
            self.outbox.activity.wake()
            self.outbox.wakeup(connection.id).wake()
            # The process may have been rerouted to another peer.
            self.outbox.wakeup(entry.forward.peer).wake()

    def _back_off(self, entry: OutboxEntry, least: float) -> None:
        entry.tries += 1
        wait = max(least, machine.delay(entry.tries, self.context.chance))
        entry.due = trio.current_time() + wait

    async def _send_cancel(self, connection: PeerConnection, entry: OutboxEntry) -> None:
        forward = entry.forward
        body = connection.seal(Kind.CANCEL, Cancel(forward.processid, forward.attempt))
        try:
            opened, data = await connection.post("/v2/cancel", body, Kind.RECEIPT)
        except RemoteRefusal as error:
            if not error.final or error.proof is Proof.CARRIED:
                raise  # a relay of the message may have made the refusal up
            name, now = self.context.peers.name(connection.id), self.context.clock.now()
            effect = machine.refused(forward, error.code, error.message, name, now)
            await self.outbox.apply(entry, effect, forward)
            return
        receipt = _receipt(opened.payload, forward, self._there(forward), _OF_CANCEL)
        effect = machine.cancelled(forward, receipt.remote, data, self.context.clock.now())
        await self.outbox.apply(entry, effect, forward)

    async def _send_submit(self, connection: PeerConnection, entry: OutboxEntry) -> None:
        now, before = self.context.clock.now(), entry.forward
        made_of: list[Compare] = []
        try:
            envelope, meant = before.envelope, before.meant
            if not envelope:
                envelope, meant = await self._envelope(connection, before, made_of)
        except RpcError as error:
            await self.outbox.apply(entry, machine.unsendable(before, error.message, now), before)
            return
        if not envelope:
            await self._give_up(entry, before)
            return
        request = relays.request_of(envelope, relayed=bool(before.origin))
        forward = machine.sending(before, envelope, now, request)
        forward = msgspec.structs.replace(forward, meant=meant)
        # Store the copy before its first byte leaves: neither after a crash nor at another daemon
        # of this colony may it count as unsent, or as the only copy.
        if not await self.outbox.save(entry, forward, before, made_of):
            # Memory may have had an old process.
            await self.context.processes.load(self.context.home, forward.processid)
            return
        try:
            opened, data = await connection.post("/v2/submit", envelope, Kind.RECEIPT)
        except TransportError as error:
            if not isinstance(error, RemoteRefusal) or not error.final:
                await self._not_taken(entry, forward, error)
                raise
            name, now = self.context.peers.name(connection.id), self.context.clock.now()
            effect = machine.refused(forward, error.code, error.message, name, now, error.proof)
            log.info(
                "forward refused", process=forward.processid, peer=connection.id, code=error.code
            )
            await self.outbox.apply(entry, effect, forward)
            return
        receipt = _receipt(opened.payload, forward, self._there(forward), _OF_SUBMIT)
        effect = machine.received(forward, receipt.status, receipt.remote, data)
        if not await self.outbox.apply(entry, effect, forward):
            self._back_off(entry, 0.0)

    async def _not_taken(self, entry: OutboxEntry, forward: Forward, error: TransportError) -> None:
        """Record that a copy got no receipt, and may still get one."""
        text, proof = str(error), error.proof if isinstance(error, RemoteRefusal) else Proof.NONE
        if isinstance(error, RemoteRefusal) and error.reason is Reason.UNTIMELY:
            after = machine.untimely(forward, text, proof.certain)
            await self.outbox.save(entry, after, forward)
        elif isinstance(error, Unsent) or proof.certain:
            await self.outbox.save(entry, machine.unsent(forward, text), forward)
        elif entry.forward is forward:
            # Only if the forward is unchanged: a cancel that came meanwhile must not be lost.
            entry.forward = machine.lost(forward, text)

    def _there(self, forward: Forward) -> set[str]:
        """Return the ids that a process may have at the peer, one for each of our keys."""
        return {
            relays.local_id(each, forward.processid, forward.attempt)
            for each in self.context.signer.ids
        }

    async def _give_up(self, entry: OutboxEntry, before: Forward) -> None:
        """Delete the forward of a process that ended unsent, unless a cancel changed it."""
        if entry.forward is before:
            key = self.context.keys.forward(before.peer, before.processid)
            await self.context.client.commit(Txn([ModRevision(key, entry.revision)], [Delete(key)]))
        self.outbox.mark(before)

    async def _envelope(
        self, connection: PeerConnection, forward: Forward, made_of: list[Compare]
    ) -> tuple[bytes, dict[str, list[str]]]:
        """Return the signed submission; b"" if the process is gone. It never changes again.

        The second value holds, by name, the ids of the colonies beyond the peer that we know. The
        caller stores it only if the process still is as remembered (`made_of`).
        """
        found = await self.context.processes.recall(self.context.home, forward.processid)
        if found is not None and found[0].closed:
            found = await self.context.processes.load(self.context.home, forward.processid)
        if found is None or found[0].closed:
            return b"", {}
        made_of.append(ModRevision(keys.process(self.context.home, forward.processid), found[1]))
        process, target = found[0], found[0].spec.conditions.colonyname
        expires = forward.deliver // 1_000_000_000 + 1
        home = (self.context.home, *self.context.signer.ids)
        beyond = relays.onward_target(target, self.context.peers.names(connection.id), home)
        meant: dict[str, list[str]] = {}
        if process.origin:
            submit, latest = await self._passed_on(process, forward, beyond)
            expires = min(expires, latest)
        else:
            conditions = msgspec.structs.replace(
                process.spec.conditions, colonyname=beyond or connection.wire
            )
            spec = msgspec.structs.replace(process.spec, conditions=conditions)
            meant = self.context.peers.meant(relays.segments(beyond) if beyond else [])
            submit = Submit(
                forward.processid,
                forward.attempt,
                msgspec.json.encode(whole_spec(spec)),
                process.initiatorname,
                hops=relays.hops_for(target, self.hops),
                path=[],
                input=msgspec.json.encode(process.input) if process.input else b"",
                files=await self.file_transfer.gather(process),
            )
        return connection.seal(Kind.SUBMIT, submit, cti=forward.cti, expires=expires), meant

    async def _passed_on(
        self, process: Process, forward: Forward, beyond: str
    ) -> tuple[Submit, int]:
        """Return the submission of another colony's process, with that colony's signed words."""
        received = await self.context.client.get(
            keys.submission(self.context.home, process.processid)
        )
        if received is None:
            raise Rejected("malformed", "the submission that asked for it is gone")
        issuer = inspect(received.value, limit=len(received.value)).issuer
        known = {issuer: self.context.peers.public_key(issuer) or b""}
        return await apart(
            received.value,
            lambda data: relays.passed_on(data, forward.processid, forward.attempt, beyond, known),
        )

    # -- deadlines ---------------------------------------------------------------------------

    async def clock_set(self, by: int, before: int) -> None:
        """Move the deadlines of all forwards by `by` ns, for a clock that was set at `before` (ns).

        After an error, call it again: no forward is moved twice. Raises EtcdError.
        """
        await self.outbox.refresh_all()
        for pid, entry in list(self.outbox.entries.items()):
            while pid not in self._shifted and self.outbox.entries.get(pid) is entry:
                forward = entry.forward
                if await self.outbox.save(entry, machine.shifted(forward, by, before), forward):
                    self._shifted.add(pid)
                else:
                    await self.outbox.refresh_all()
        self._shifted.clear()
        self.outbox.activity.wake()

    async def expire(self) -> None:
        """End every forward whose deadline has passed, whether or not its peer is reached."""
        await self.outbox.refresh_all()
        now = self._late()
        for entry in self.outbox.entries.late(now):
            if entry.busy or self.outbox.entries.get(entry.forward.processid) is not entry:
                continue
            peer = self.context.peers.get(entry.forward.peer)
            name, problem = (
                self.context.peers.name(entry.forward.peer),
                ((peer.error or peer.peer.mismatch) if peer else ""),
            )
            away = machine.stranded(entry.forward, now, name, problem)
            effect = machine.deadline_passed(entry.forward, now, name, problem)
            if effect is not None or away is not None:
                try:
                    if away is not None and await self.outbox.reroute(entry, away):
                        continue
                    if effect is None:
                        continue
                    await self.outbox.apply(entry, effect, entry.forward)
                    await self.outbox.refresh_all()
                except RpcError as error:
                    log.warning("deadline", process=entry.forward.processid, error=error)


def _receipt(
    payload: bytes, forward: Forward, there: Collection[str], answers: Collection[tuple[str, bool]]
) -> Receipt:
    """Return the receipt. Its status is one of `answers`, its process id one of `there`.

    Raises Lost for any other receipt: it counts as no answer.
    """
    try:
        receipt = load(payload, Receipt)
    except Rejected as error:
        raise Lost(f"the receipt is not valid: {error}") from None
    if receipt.pid != forward.processid or receipt.attempt != forward.attempt:
        raise Lost("the receipt is for another process")
    if receipt.remote and receipt.remote not in there:
        raise Lost("the receipt is not valid: it names another process there")
    if (receipt.status, bool(receipt.remote)) not in answers:
        raise Lost(f"the receipt is not valid: {receipt.status} is no answer to this")
    request = forward.request
    # A cancel that overtook the submission has no receipt of it; for another daemon's forward we
    # may not know the request.
    if receipt.remote and request is not None:
        if not receipt.asked:
            raise Lost("the receipt is not valid: it does not say which submission it is for")
        if relays.OriginRequest(receipt.origin, receipt.asked) != request:
            raise Lost("the receipt is not valid: it is for another submission")
    return receipt
