"""The sender of forwards and cancels: one loop a peer, with a window, back-off, and deadlines.

`forward.machine` decides what an event means for a forward; `outbox` stores it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

import msgspec
import trio

from colonyd.errors import RpcError
from federation.forward import machine
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.outbox.entries import OutboxEntry
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError, Unsent
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect
from federation.wire.json import apart
from federation.wire.messages import (
    MOST_TOGETHER,
    Answer,
    Cancel,
    Receipt,
    Receipts,
    Submit,
    Submits,
    load,
)
from federation.wire.refusals import Proof
from node.etcd.errors import EtcdError
from node.etcd.txn import Compare, Delete, ModRevision, Txn
from node.host.log import get_logger
from node.model.codec import whole_spec
from node.model.types import Process
from node.store import keys
from node.tasks.sync import gather

_WINDOW = 8  # messages to one peer that may be under way at once
# The same for a peer that takes several submissions together, and the submissions in all of them.
_FEW, _SUBMISSIONS = 4, 64
_LARGE = 100_000  # bytes of a submission that goes alone
_TOGETHER = 1_000_000  # bytes of the submissions in one message
_APART = 300.0  # seconds for which submissions go alone to a peer that refused them together
# The states of a forward whose submission is sent.
_FIRST = (machine.ForwardState.QUEUED, machine.ForwardState.DOUBT)
# The allowed statuses of a receipt, and whether each comes with the peer's own process id.
_OF_SUBMIT = (("accepted", True), ("cancelled", False))
_OF_CANCEL = (("cancelled", False), ("cancelled", True), ("already_closed", True))

log = get_logger("delivery")


@dataclass(frozen=True)
class _Copy:
    """A copy of a submission that is stored as sent; a large one goes `alone`."""

    entry: OutboxEntry
    forward: Forward

    @property
    def alone(self) -> bool:
        return len(self.forward.envelope) > _LARGE


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
    # Tells how many submissions a peer takes in one message.
    together: Callable[[str], int] = lambda peerid: 1
    _under_way: Counter[str] = field(default_factory=Counter)  # messages, by peer
    _apart: dict[str, float] = field(default_factory=dict)  # by peer, until when (trio's time)
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
                        for entries in self._messages(connection, due):
                            for entry in entries:
                                entry.busy = True
                            self._under_way[connection.id] += 1
                            nursery.start_soon(self._deliver, connection, *entries)
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
        room = (_SUBMISSIONS if self._most(peerid) > 1 else _WINDOW) - entries.busy_of(peerid)
        if room <= 0 or self._room(peerid) <= 0:
            return [], now + 60.0  # the end of a message wakes the loop
        due = list(islice(filter(self._sendable, entries.ready(peerid, now)), room))
        later = entries.next_due(peerid)
        return due, min(now + 60.0, now + 60.0 if later is None else later)

    def _most(self, peerid: str) -> int:
        """Return how many submissions may go to a peer in one message now."""
        if trio.current_time() < self._apart.get(peerid, 0.0):
            return 1
        return min(MOST_TOGETHER, self.together(peerid))

    def _room(self, peerid: str) -> int:
        """Return how many more messages to a peer may be under way."""
        return (_FEW if self._most(peerid) > 1 else _WINDOW) - self._under_way[peerid]

    def _messages(
        self, connection: PeerConnection, due: Sequence[OutboxEntry]
    ) -> list[list[OutboxEntry]]:
        """Return the forwards of each message to send now: several first copies go together.

        What was sent in vain goes alone, also after a restart or once the peer is back, so nothing
        can keep others from being taken.
        """
        # A mailbox may keep a message, or show it again: then each has its own fate.
        most = self._most(connection.id) if connection.guide.around() is None else 1
        alone: list[list[OutboxEntry]] = []
        together: list[OutboxEntry] = []
        for entry in due:
            if most > 1 and not entry.tries and entry.forward.state is machine.ForwardState.QUEUED:
                together.append(entry)
            else:
                alone.append([entry])
        groups = [together[at : at + most] for at in range(0, len(together), most)]
        return (alone + groups)[: self._room(connection.id)]

    async def _deliver(self, connection: PeerConnection, *entries: OutboxEntry) -> None:
        """Send one message of one forward, or several submissions. Any error concerns one only."""
        held = dict.fromkeys(entries)

        def release(done: Iterable[OutboxEntry]) -> None:
            # Each as soon as it is done: a cancel of it must not wait for the others.
            for entry in done:
                del held[entry]
                entry.busy = False
                # The process may have been rerouted to another peer.
                if entry.forward.peer != connection.id:
                    self.outbox.wakeup(entry.forward.peer).wake()
            self.outbox.activity.wake()
            self.outbox.wakeup(connection.id).wake()

        async def leave(copies: Sequence[_Copy]) -> None:
            await self._send(connection, copies)
            release([copy.entry for copy in copies])

        async def submit(some: Sequence[OutboxEntry]) -> None:
            made = await gather(partial(self._copy, connection), some, MOST_TOGETHER)
            copies = [copy for copy in made if copy is not None]
            if copies and self.outbox.entries.outstanding(connection.id) == len(copies):
                # No poll is under way: one that is there when a process ends is answered at once.
                self.outbox.wakeup(connection.id).wake()
            if len(copies) < len(some):
                release({*some} - {copy.entry for copy in copies})
            await gather(leave, _parts(copies), _WINDOW // _FEW)

        try:
            if len(entries) == 1 and entries[0].forward.state == machine.ForwardState.CANCELLING:
                with self._concerning(connection, entries[0]):
                    if entries[0].to_send:
                        await self._send_cancel(connection, entries[0])
                return
            found = await gather(self._slow, entries, MOST_TOGETHER)
            slow = [entry for entry, is_slow in zip(entries, found, strict=True) if is_slow]
            await submit([entry for entry in entries if entry not in slow])
            # Each counts as sent only once its turn has come.
            await gather(submit, [[entry] for entry in slow], _WINDOW // _FEW)
        finally:
            self._under_way[connection.id] -= 1
            release(list(held))

    async def _slow(self, entry: OutboxEntry) -> bool:
        """Return whether a submission may take long, as its files have to be listed or fetched."""
        try:
            known = await self.context.processes.recall(self.context.home, entry.forward.processid)
        except (EtcdError, RpcError):
            return True  # the next read of it tells more
        fs = known[0].spec.fs if known is not None else None
        return fs is not None and bool(fs.dirs or fs.snapshots)

    @contextmanager
    def _concerning(self, connection: PeerConnection, entry: OutboxEntry) -> Iterator[None]:
        """Note an error that concerns one forward: it is sent again later."""
        try:
            yield
        except TransportError as error:
            self._back_off(entry, error.seconds)
            connection.entry.error = str(error)
        except (EtcdError, RpcError) as error:
            self._back_off(entry, 0.0)
            log.warning("forward not stored", process=entry.forward.processid, error=error)
        except Exception:
            self._back_off(entry, 0.0)
            log.exception("forward failed", process=entry.forward.processid)

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

    async def _copy(self, connection: PeerConnection, entry: OutboxEntry) -> _Copy | None:
        """Return a copy that is about to leave, stored; None if there is nothing to send."""
        with self._concerning(connection, entry):
            # Since it was planned, a receipt that another daemon got may have come in, or a cancel.
            if entry.to_send and entry.forward.state in _FIRST:
                return await self._stored_copy(connection, entry)
        return None

    async def _stored_copy(self, connection: PeerConnection, entry: OutboxEntry) -> _Copy | None:
        now, before = self.context.clock.now(), entry.forward
        made_of: list[Compare] = []
        try:
            envelope, meant = before.envelope, before.meant
            if not envelope:
                envelope, meant = await self._envelope(connection, before, made_of)
        except RpcError as error:
            await self.outbox.apply(entry, machine.unsendable(before, error.message, now), before)
            return None
        if not envelope:
            await self._give_up(entry, before)
            return None
        request = relays.request_of(envelope, relayed=bool(before.origin))
        forward = machine.sending(before, envelope, now, request)
        forward = msgspec.structs.replace(forward, meant=meant)
        # Store the copy before its first byte leaves: neither after a crash nor at another daemon
        # of this colony may it count as unsent, or as the only copy.
        if not await self.outbox.save(entry, forward, before, made_of):
            # Memory may have had an old process.
            await self.context.processes.load(self.context.home, forward.processid)
            return None
        return _Copy(entry, forward)

    async def _send(self, connection: PeerConnection, copies: Sequence[_Copy]) -> None:
        """Send copies in one message, and store what its answer means for each."""
        if len(copies) == 1:
            copy = copies[0]
            post = partial(connection.post, "/v2/submit", copy.forward.envelope, Kind.RECEIPT)
            with self._concerning(connection, copy.entry):
                await self._answered(connection, copy, post)
            return
        if connection.guide.around() is not None:
            # Since it was planned, a mailbox has become the way. It may bring each message again.
            await gather(partial(self._send, connection), [[copy] for copy in copies], len(copies))
            return
        together = Submits([copy.forward.envelope for copy in copies])
        answers: list[Answer] = []
        failure: Exception | None = None
        try:
            body = connection.seal(Kind.SUBMITS, together)
            opened, _ = await connection.post("/v2/submits", body, Kind.RECEIPTS)
            answers = load(opened.payload, Receipts).answers
            if len(answers) != len(copies):
                failure = Lost(f"{len(answers)} answers to {len(copies)} submissions")
        except Rejected as rejected:
            failure = Lost(f"the answer is not valid: {rejected}")
        except TransportError as error:
            failure = error
            if isinstance(error, RemoteRefusal):
                # It is about all of them, and says nothing about any: each is sent alone.
                if error.reason is not Reason.LATER:
                    self._apart[connection.id] = trio.current_time() + _APART
                failure = RemoteRefusal(
                    error.code, error.message, Reason.LATER, error.proof, error.seconds
                )
        except Exception as error:
            failure = error  # as for one alone, each is sent again later

        async def read(copy: _Copy, answer: Answer) -> tuple[VerifiedMessage, bytes]:
            told = PeerResponse(answer.status, str(answer.again or ""), answer.body)
            envelope = copy.forward.envelope
            return await connection.read(told, "/v2/submit", envelope, Kind.RECEIPT), answer.body

        async def failed() -> tuple[VerifiedMessage, bytes]:
            assert failure is not None
            raise failure

        async def settle(place: int) -> None:
            copy = copies[place]
            await trio.lowlevel.checkpoint()  # a signature each
            answer = partial(read, copy, answers[place]) if failure is None else failed
            with self._concerning(connection, copy.entry):
                await self._answered(connection, copy, answer)

        await gather(settle, range(len(copies)), MOST_TOGETHER)

    async def _answered(
        self,
        connection: PeerConnection,
        copy: _Copy,
        answer: Callable[[], Awaitable[tuple[VerifiedMessage, bytes]]],
    ) -> None:
        """Store what the answer to a copy means for its forward."""
        entry, forward = copy.entry, copy.forward
        try:
            opened, data = await answer()
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
                process.spec.conditions,
                colonyname=self.context.peers.spelled(beyond) if beyond else connection.wire,
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


def _parts(copies: Sequence[_Copy]) -> list[list[_Copy]]:
    """Return the copies of each message: together as many bytes as may be, or alone."""
    parts: list[list[_Copy]] = []
    size, part = 0, list[_Copy]()
    for copy in copies:
        if copy.alone:
            continue
        size += len(copy.forward.envelope)
        if size > _TOGETHER:
            parts.append(part)
            size, part = len(copy.forward.envelope), []
        part.append(copy)
    parts += [part] if part else []
    return [*parts, *([copy] for copy in copies if copy.alone)]


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
