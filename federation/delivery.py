"""Runs the forwards: sends what is due, fetches outcomes, and keeps store and memory in step.

What an event means for a forward is decided by `outbox`; how bytes travel, by `transport`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from federation import outbox
from federation.envelope import Kind, Refused, open_envelope
from federation.keys import Keys
from federation.messages import Cancel, Outcome, Outcomes, Poll, Receipt, Sealer, Submit, load
from federation.outbox import Act, Forward, Move
from federation.peers import Peers
from federation.transport import Later, Link, Lost, PeerRefused, TransportError, Unsent
from node.codec import pack, unpack
from node.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError, EtcdTooLarge
from node.etcd.transactions import Delete, Get, ModRevision, Op, Put, Txn
from node.hooks import Addition
from node.log import get_logger
from node.model import Process, State
from node.processes import Processes
from node.store import processes as store

__all__ = ["Bell", "Delivery", "Entry"]

_WINDOW = 8  # messages to one peer at a time
_POLL = 30  # seconds
_BATCH = 60
_OUTCOME_LIMIT = 8_000_000  # bytes

log = get_logger("delivery")


class Bell:
    """Wakes those who wait. Take `event` before looking at what may change, then wait for it."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def ring(self) -> None:
        """Wake all."""
        self.event.set()
        self.event = trio.Event()


@dataclass
class Entry:
    """A forward in the outbox; `due` in trio's time."""

    forward: Forward
    revision: int
    due: float = 0.0
    tries: int = 0
    busy: bool = False

    @property
    def to_send(self) -> bool:
        """Whether a message must go out."""
        state = self.forward.state
        if state == outbox.CANCELLING:
            return not self.forward.receipt
        return state in (outbox.QUEUED, outbox.DOUBT)


@dataclass
class Delivery:
    """The outbox of the colony `home`."""

    home: str
    sealer: Sealer
    client: EtcdClient
    processes: Processes
    peers: Peers
    keys: Keys
    high_water: Callable[[], float] = lambda: 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    late: int = 0
    _stale: dict[str, str] = field(default_factory=dict)  # process id -> peer id
    _bells: dict[str, Bell] = field(default_factory=dict)
    _acks: dict[str, set[str]] = field(default_factory=dict)
    _chance: random.Random = field(default_factory=random.Random)

    async def load(self) -> None:
        """Read the outbox."""
        items, _ = await self.client.range_all(self.keys.outbox, page=100)
        for item in items:
            forward = unpack(item.value, Forward)
            self.entries[forward.processid] = Entry(forward, item.mod_revision)

    def bell(self, peerid: str) -> Bell:
        """What wakes the tasks of one peer."""
        return self._bells.setdefault(peerid, Bell())

    def outstanding(self, peerid: str) -> int:
        """How many forwards to a peer are not finished."""
        count = sum(entry.forward.peer == peerid for entry in self.entries.values())
        return count + sum(peer == peerid and pid not in self.entries
                           for pid, peer in self._stale.items())  # fmt: skip

    def idle(self) -> bool:
        """Whether nothing is on its way out."""
        return not self._stale and not any(entry.busy for entry in self.entries.values())

    def retry_now(self, peerid: str) -> None:
        """The peer is back: forget the back-off."""
        for entry in self.entries.values():
            if entry.forward.peer == peerid and entry.tries:
                entry.due, entry.tries = 0.0, 0
        self.bell(peerid).ring()

    # -- joining the node's transactions ---------------------------------------------------

    def forwarding(self, process: Process) -> Addition:
        """The outbox entry of a new process."""
        forward = outbox.new_forward(process)
        return Addition([Put(self.keys.forward(forward.peer, forward.processid), pack(forward))])

    def cancelling(self, process: Process) -> Addition:
        """The peer must be told, unless the process certainly never left."""
        key = self.keys.forward(process.peer, process.processid)
        entry = self.entries.get(process.processid)
        now = self.sealer.now()
        if entry is not None and not entry.busy and entry.forward.state == outbox.QUEUED:
            ended = msgspec.structs.replace(entry.forward, state=outbox.CLOSED, ended=now)
            ops: list[Op] = [Delete(key), Put(self.keys.proof(process.processid), pack(ended))]
            return Addition(ops, [ModRevision(key, entry.revision)])
        forward = entry.forward if entry else outbox.new_forward(process)
        return Addition([Put(key, pack(outbox.cancelling(forward, now)))])

    def touched(self, process: Process) -> None:
        """A transaction of the node changed an entry: read it again."""
        self._stale[process.processid] = process.peer
        self.bell(process.peer).ring()

    # -- store and memory --------------------------------------------------------------------

    async def refresh(self, peerid: str) -> None:
        """Read again what others changed."""
        pids = [pid for pid, peer in self._stale.items() if peer == peerid]
        for start in range(0, len(pids), _BATCH):
            part = pids[start : start + _BATCH]
            for pid in part:
                self._stale.pop(pid, None)
            try:
                gets = [Get(self.keys.forward(peerid, pid)) for pid in part]
                result = await self.client.commit(Txn([], gets))
            except EtcdError:
                self._stale.update((pid, peerid) for pid in pids[start:])
                raise
            for pid, found in zip(part, result.responses, strict=True):
                if not found:
                    self.entries.pop(pid, None)
                elif pid not in self.entries:
                    value = unpack(found[0].value, Forward)
                    self.entries[pid] = Entry(value, found[0].mod_revision)
                else:
                    self._adopt(
                        self.entries[pid], unpack(found[0].value, Forward), found[0].mod_revision
                    )

    @staticmethod
    def _adopt(entry: Entry, forward: Forward, revision: int) -> None:
        if revision >= entry.revision:
            if forward.state != entry.forward.state:
                entry.due, entry.tries = 0.0, 0
            entry.forward, entry.revision = forward, revision

    async def _save(self, entry: Entry, forward: Forward) -> bool:
        """Write an entry; False when somebody else changed it, which is then read again."""
        key = self.keys.forward(forward.peer, forward.processid)
        txn = Txn([ModRevision(key, entry.revision)], [Put(key, pack(forward))])
        result = await self.client.commit(txn)
        if result.succeeded:
            entry.forward, entry.revision = forward, result.revision
            return True
        self._stale[forward.processid] = forward.peer
        return False

    def _leaving(self, move: Move) -> list[Op]:
        """What becomes of the entry, to be written with what becomes of the process."""
        forward = move.forward
        key = self.keys.forward(forward.peer, forward.processid)
        if move.stays:
            return [Put(key, pack(forward))]
        record = msgspec.structs.replace(
            forward, envelope=b"", ended=forward.ended or self.sealer.now()
        )
        return [Delete(key), Put(self.keys.proof(forward.processid), pack(record))]

    async def apply(self, entry: Entry, move: Move) -> None:
        """Do what follows from an event, in one transaction."""
        before, after = entry.forward, move.forward
        if move.act is Act.NOTHING:
            if move.stays:
                await self._save(entry, after)
                return
            key = self.keys.forward(after.peer, after.processid)
            txn = Txn([ModRevision(key, entry.revision)], self._leaving(move))
            if (await self.client.commit(txn)).succeeded:
                self.entries.pop(after.processid, None)
            else:
                self._stale[after.processid] = after.peer
            return

        def step(process: Process, revision: int) -> store.Step | None:
            now = self.sealer.now()
            if process.closed or process.peer != after.peer:
                return None
            ops = self._leaving(move)
            if move.act is Act.START:
                if process.state != State.WAITING:
                    return None
                return store.start(process, revision, now, ops)
            state = State.FAILED if move.act is Act.FAIL else State.CANCELLED
            return store.close(process, revision, state, now, errors=move.errors, extra=ops)

        try:
            await self.processes.change(self.home, after.processid, step)
        except RpcError as error:
            if error.status != 404:
                raise
            await self._forget(before)
        self._stale[after.processid] = after.peer
        self.bell(after.peer).ring()

    async def _forget(self, forward: Forward) -> None:
        """The process is gone from the store: so is its forward."""
        await self.client.delete(self.keys.forward(forward.peer, forward.processid))

    # -- sending -----------------------------------------------------------------------------

    async def send_forever(self, link: Link) -> None:
        """Send what is due to one peer, a few at a time, until cancelled."""
        bell = self.bell(link.id)
        failures, paused = 0, 0.0
        async with trio.open_nursery() as nursery:
            while True:
                event = bell.event
                due: list[Entry] = []
                try:
                    await self.refresh(link.id)
                    if event.is_set():
                        paused = 0.0
                    due = self._due(link.id)
                    if due and trio.current_time() >= paused:
                        await link.connect()
                        failures = 0
                        for entry in due:
                            entry.busy = True
                            nursery.start_soon(self._deliver, link, entry)
                except (TransportError, EtcdError) as error:
                    failures += 1
                    paused = trio.current_time() + outbox.delay(failures, self._chance)
                    link.entry.error = str(error)
                    log.info("peer not reached", peer=link.id, error=error)
                until = max(self._next_due(link.id), paused)
                with trio.move_on_at(until):
                    await event.wait()
                    if paused > trio.current_time():
                        # A new forward is no reason to hurry; the peer's return is.
                        failures = min(failures, 3)
                    paused = 0.0

    def _mine(self, peerid: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.forward.peer == peerid]

    def _sendable(self, entry: Entry) -> bool:
        if entry.busy or not entry.to_send:
            return False
        # What is past its delivery deadline would be refused as expired.
        return entry.forward.state == outbox.CANCELLING or (
            self.sealer.now() <= entry.forward.deliver
        )

    def _due(self, peerid: str) -> list[Entry]:
        mine = self._mine(peerid)
        room = _WINDOW - sum(entry.busy for entry in mine)
        now = trio.current_time()
        due = [entry for entry in mine if self._sendable(entry) and entry.due <= now]
        return due[: max(room, 0)]

    def _next_due(self, peerid: str) -> float:
        mine = self._mine(peerid)
        if sum(entry.busy for entry in mine) >= _WINDOW:
            return trio.current_time() + 60
        times = [entry.due for entry in mine if self._sendable(entry)]
        return min(times, default=trio.current_time() + 60)

    async def _deliver(self, link: Link, entry: Entry) -> None:
        """One message of one forward; whatever goes wrong concerns this forward only."""
        try:
            if entry.forward.state == outbox.CANCELLING:
                await self._send_cancel(link, entry)
            else:
                await self._send_submit(link, entry)
        except TransportError as error:
            self._back_off(entry, error.seconds if isinstance(error, Later) else 0.0)
            link.entry.error = str(error)
        except (EtcdError, RpcError) as error:
            self._back_off(entry, 0.0)
            log.warning("forward not stored", process=entry.forward.processid, error=error)
        except Exception:
            self._back_off(entry, 0.0)
            log.exception("forward failed", process=entry.forward.processid)
        finally:
            entry.busy = False
            self.bell(link.id).ring()

    def _back_off(self, entry: Entry, least: float) -> None:
        entry.tries += 1
        wait = max(least, outbox.delay(entry.tries, self._chance))
        entry.due = trio.current_time() + wait

    async def _send_cancel(self, link: Link, entry: Entry) -> None:
        forward = entry.forward
        body = self.sealer.seal(Kind.CANCEL, link.id, Cancel(forward.processid, forward.attempt))
        try:
            opened, data = await link.post("/v1/cancel", body, Kind.RECEIPT)
        except PeerRefused as error:
            name, now = self.peers.name(link.id), self.sealer.now()
            move = outbox.refused(forward, error.code, error.message, name, now)
            await self.apply(entry, move)
            return
        receipt = _receipt(opened.payload, forward)
        await self.apply(entry, outbox.cancelled(forward, receipt.remote, data, self.sealer.now()))

    async def _send_submit(self, link: Link, entry: Entry) -> None:
        now = self.sealer.now()
        first = not entry.forward.envelope or entry.forward.state == outbox.QUEUED
        envelope = entry.forward.envelope or await self._envelope(link, entry.forward)
        if not envelope:
            await self._forget(entry.forward)
            self._stale[entry.forward.processid] = link.id
            return
        forward = outbox.sending(entry.forward, envelope, now)
        if first:
            # In the store before the first byte leaves: a crash must not make it look unsent.
            try:
                if not await self._save(entry, forward):
                    return
            except EtcdTooLarge as error:
                name = self.peers.name(link.id)
                move = outbox.refused(forward, "too_large", str(error), name, now)
                await self.apply(entry, move)
                return
        else:
            entry.forward = forward
        try:
            opened, data = await link.post("/v1/submit", envelope, Kind.RECEIPT)
        except (Unsent, Later) as error:
            if isinstance(error, Unsent) or error.certain:
                await self._save(entry, outbox.unsent(forward, str(error)))
            else:
                entry.forward = outbox.lost(forward, str(error))
            raise
        except Lost as error:
            entry.forward = outbox.lost(forward, str(error))
            raise
        except PeerRefused as error:
            name = self.peers.name(link.id)
            move = outbox.refused(forward, error.code, error.message, name, self.sealer.now())
            log.info("forward refused", process=forward.processid, peer=link.id, code=error.code)
            await self.apply(entry, move)
            return
        receipt = _receipt(opened.payload, forward)
        await self.apply(entry, outbox.received(forward, receipt.status, receipt.remote, data))

    async def _envelope(self, link: Link, forward: Forward) -> bytes:
        """Seal the submission, b"" when the process is gone. Its bytes never change again."""
        found = await self.processes.load(self.home, forward.processid)
        if found is None or found[0].closed:
            return b""
        process = found[0]
        spec = msgspec.json.encode(process.spec)
        submit = Submit(
            forward.processid, forward.attempt, spec, process.initiatorname, hops=1, path=[]
        )
        expires = forward.deliver // 1_000_000_000 + 1
        return self.sealer.seal(Kind.SUBMIT, link.id, submit, cti=forward.cti, expires=expires)

    # -- deadlines ---------------------------------------------------------------------------

    async def expire(self) -> None:
        """End every forward whose deadline passed, whether or not its peer is there."""
        now = self.sealer.now()
        for entry in list(self.entries.values()):
            if entry.busy:
                continue
            peer = self.peers.get(entry.forward.peer)
            name = self.peers.name(entry.forward.peer)
            move = outbox.deadline_passed(entry.forward, now, name, peer.error if peer else "")
            if move is not None:
                try:
                    await self.apply(entry, move)
                    await self.refresh(entry.forward.peer)
                except RpcError as error:
                    log.warning("deadline", process=entry.forward.processid, error=error)

    # -- outcomes ----------------------------------------------------------------------------

    def _awaited(self, peerid: str) -> bool:
        if self._acks.get(peerid):
            return True
        return any(entry.forward.outstanding for entry in self._mine(peerid))

    async def poll_forever(self, link: Link) -> None:
        """Fetch outcomes from one peer while it may owe any, until cancelled."""
        bell, failures = self.bell(link.id), 0
        while True:
            event = bell.event
            if not self._awaited(link.id):
                await event.wait()
                continue
            try:
                await self.poll_once(link)
                failures = 0
            except (TransportError, EtcdError, RpcError, Refused) as error:
                failures += 1
                link.entry.error = str(error)
                log.info("outcomes not fetched", peer=link.id, error=error)
                pause = outbox.delay(failures, self._chance)
                if isinstance(error, Later):
                    pause = max(pause, error.seconds)
                await trio.sleep(min(pause, 60.0))

    async def poll_once(self, link: Link) -> None:
        """Ask for outcomes, settle them, and remember what to acknowledge."""
        acks = sorted(self._acks.get(link.id, set()))[:100]
        waits = any(entry.forward.outstanding for entry in self._mine(link.id))
        wait = _POLL if waits else 0
        body = self.sealer.seal(Kind.POLL, link.id, Poll(wait, acks))
        opened, _ = await link.post("/v1/outcomes", body, Kind.OUTCOMES, wait)
        self._acks.get(link.id, set()).difference_update(acks)
        problem: Exception | None = None
        for sealed in load(opened.payload, Outcomes).outcomes:
            try:
                pid = await self.settle(link, sealed)
            except (Refused, RpcError, EtcdError) as error:
                problem = error
                continue
            self._acks.setdefault(link.id, set()).add(pid)
        if problem is not None:
            raise problem

    async def settle(self, link: Link, sealed: bytes) -> str:
        """Verify one outcome and close its process; returns the id to acknowledge."""
        opened = open_envelope(
            sealed,
            kind=Kind.OUTCOME,
            audience=self.sealer.key.id,
            now=self.sealer.seconds,
            keys=lambda issuer: link.entry.peer.public_key if issuer == link.id else None,
            limit=_OUTCOME_LIMIT,
            high_water=self.high_water(),
        )
        outcome = load(opened.payload, Outcome)
        output = _output(outcome.out)
        key = self.keys.forward(link.id, outcome.pid)
        found = await self.client.get(key)
        now = self.sealer.now()
        forward = unpack(found.value, Forward) if found else None
        fits = forward is not None and forward.attempt == outcome.attempt
        leaving: list[Op] = []
        if forward is not None and fits:
            record = outbox.concluded(forward, sealed, outcome.localpid, now)
            leaving = [Delete(key), Put(self.keys.proof(outcome.pid), pack(record))]
        closed = await self._close(link, outcome, output, leaving) if fits else False
        if not closed:
            await self._too_late(outcome, sealed, leaving)
        entry = self.entries.get(outcome.pid)
        if fits and entry is not None and entry.forward.peer == link.id:
            if not entry.busy:
                self.entries.pop(outcome.pid, None)
            self._stale[outcome.pid] = link.id
        return outcome.pid

    async def _close(
        self, link: Link, outcome: Outcome, output: list[object], leaving: Sequence[Op]
    ) -> bool:
        """Close the process with its outcome; False when it is closed already, or gone."""
        mine = False

        def step(process: Process, revision: int) -> store.Step | None:
            nonlocal mine
            mine = not process.closed and process.peer == link.id
            if not mine:
                return None
            ran = msgspec.structs.replace(
                process, assignedexecutorid=link.id, isassigned=True, attempt=outcome.attempt
            )
            return store.close(
                ran,
                revision,
                State(outcome.state),
                self.sealer.now(),
                output=output,
                errors=outcome.errors,
                extra=leaving,
            )

        try:
            await self.processes.change(self.home, outcome.pid, step)
        except RpcError as error:
            if error.status != 404:
                raise
            return False
        return mine

    async def _too_late(self, outcome: Outcome, sealed: bytes, leaving: Sequence[Op]) -> None:
        """Nobody waits for it any more: keep it as such."""
        ops = list(leaving)
        if outcome.state != State.CANCELLED:
            self.late += 1
            ops.append(Put(self.keys.late(outcome.pid), sealed))
            log.info("outcome came late", process=outcome.pid)
        if ops:
            await self.client.commit(Txn([], ops))


def _receipt(payload: bytes, forward: Forward) -> Receipt:
    try:
        receipt = load(payload, Receipt)
    except Refused as error:
        raise Lost(f"the receipt is not valid: {error}") from None
    if receipt.pid != forward.processid or receipt.attempt != forward.attempt:
        raise Lost("the receipt is for another process")
    return receipt


def _output(data: bytes) -> list[object]:
    try:
        value: list[object] = msgspec.json.decode(data, type=list)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed", f"outcome: {error}") from None
    return value
