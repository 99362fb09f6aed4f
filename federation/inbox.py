"""The receiving end of forwards: accept once, cancel, and keep outcomes until acknowledged.

A message gets here opened and from a trusted colony; each acceptance is one transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import trio

from federation import chains, relays
from federation.envelope import MAX_LIFETIME, Kind, Opened, Refused, inspect
from federation.keys import Keys
from federation.messages import Cancel, Outcome, Outcomes, Poll, Receipt, Sealer, Submit, load
from federation.messages import cti_of as cti
from federation.outbox import Forward
from federation.peers import BLOCKED, TRUSTED, Peers
from federation.policy import Breach, Meter, breach, onward
from federation.relays import Asked, BadPath, local_id
from federation.telling import Teller
from node.codec import pack, unpack
from node.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdTooLarge, EtcdTooManyOps
from node.etcd.transactions import Absent, Compare, Delete, Get, ModRevision, Op, Put, Txn
from node.hooks import Addition
from node.model import SECOND, FunctionSpec, Process, State
from node.processes import Processes
from node.rpc.table import MAX_DEPTH, depth_of, prune
from node.store import processes as store
from node.submission import build_process

__all__ = ["Inbox", "Kept", "Marker", "Refusal", "local_id", "parse_spec"]

_PAGE = 64  # outcomes in one answer
_PAGE_BYTES = 2_000_000  # after which no further outcome is added
_TRIES = 5
_LOOK = 10.0  # seconds after which a poll looks for what another daemon of this colony wrote


class Refusal(Exception):
    """A message turned away: HTTP status, stable code, sentence; `again` seconds for a retry.

    `kept`: no copy of it was taken, nor will one be.
    """

    def __init__(self, status: int, code: str, message: str, again: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.again = status, code, message, again
        self.kept = False


class Kept(msgspec.Struct, frozen=True):
    """With which refusal a message is answered for good."""

    status: int
    code: str
    message: str


class Marker(msgspec.Struct, frozen=True):
    """That a process of another colony was received: the hash of the message, and our receipt.

    Without `localpid` it was cancelled before it came, or refused for good (`kept`). It stays until
    `expires` (seconds) and the process is closed.
    """

    digest: bytes
    attempt: int
    localpid: str
    receipt: bytes
    expires: int
    kept: Kept | None = None

    def concerns(self, opened: Opened) -> bool:
        """Whether it decides about a submission: a refusal does about the same bytes only."""
        return self.kept is None or self.digest == opened.digest


def parse_spec(data: bytes) -> FunctionSpec:
    """Read a function spec. Raises Refusal (bad_spec)."""
    try:
        value = msgspec.json.decode(data)
        if depth_of(value) > MAX_DEPTH:
            raise Refusal(400, "bad_spec", f"nested deeper than {MAX_DEPTH}")
        return msgspec.convert(prune(value), FunctionSpec)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refusal(400, "bad_spec", f"spec: {error}") from None


def parse_input(data: bytes) -> list[Any]:
    """Read what a node of a workflow gets from those before it. Raises Refusal (bad_input)."""
    if not data:
        return []
    try:
        value: list[Any] = msgspec.json.decode(data, type=list)
        if depth_of(value) > MAX_DEPTH:
            raise Refusal(400, "bad_input", f"input: nested deeper than {MAX_DEPTH}")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refusal(400, "bad_input", f"input: {error}") from None
    return value


def _nowhere(target: str, path: Sequence[str]) -> str:
    return ""


async def _no_files(opened: Opened, submit: Submit, first: Submit, process: Process) -> None:
    raise Refusal(409, "no_files", "this colony keeps no files")


def _none(issuer: str) -> int:
    return 0


@dataclass
class Inbox:
    """What other colonies have here.

    `way_to` gives the trusted peer that leads to another colony, by the target and the ids of
    those that had the process already, or "". `relayed` counts a colony's processes on their way.
    """

    home: str
    sealer: Sealer
    client: EtcdClient
    processes: Processes
    peers: Peers
    keys: Keys
    owed: dict[str, set[str]] = field(default_factory=dict)
    draining: bool = False
    meter: Meter = field(default_factory=Meter)
    way_to: Callable[[str, Sequence[str]], str] = _nowhere
    relayed: Callable[[str], int] = _none
    teller: Teller = field(init=False)
    bring: Callable[[Opened, Submit, Submit, Process], Awaitable[None]] = _no_files
    _bells: dict[str, trio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.teller = Teller(self.home, self.client, self.processes, self.keys)

    async def load(self) -> None:
        """Read which outcomes are owed."""
        items, _ = await self.client.range_all(self.keys.owed_all)
        for item in items:
            issuer, pid = item.key[len(self.keys.owed_all) :].split("/")
            self.owed.setdefault(issuer, set()).add(pid)

    def closed(self, process: Process) -> None:
        """A process of another colony ended: wake its poll."""
        pid = process.notify.rpartition("/")[2]
        self.owed.setdefault(process.origin, set()).add(pid)
        self._ring(process.origin)

    def progressed(self, process: Process) -> None:
        """There is something new of a process of another colony: wake its poll."""
        self.teller.progressed(process)
        self._ring(process.origin)

    def blocked(self, issuer: str) -> None:
        """A colony was blocked: its waiting polls end now, with a refusal."""
        self._ring(issuer)

    def _ring(self, issuer: str) -> None:
        bell = self._bells.pop(issuer, None)
        if bell is not None:
            bell.set()

    def drain(self) -> None:
        """Answer every waiting poll now."""
        self.draining = True
        for issuer in list(self._bells):
            self._ring(issuer)

    def removable(self, process: Process) -> str:
        """Why a process must stay, or ""."""
        if not process.origin or not process.notify:
            return ""
        name = self.peers.name(process.origin)
        if not process.closed:
            return f"the process came from colony {name}; cancel it, so that it hears of its end"
        if process.notify.rpartition("/")[2] in self.owed.get(process.origin, ()):
            return f"colony {name} has not fetched the outcome yet"
        return ""

    def _receipt(self, opened: Opened, receipt: Receipt) -> bytes:
        name = cti("receipt", opened.cti.hex(), receipt.status)
        return self.sealer.seal(Kind.RECEIPT, opened.issuer, receipt, cti=name)

    def _trusted_revision(self, issuer: str) -> int:
        entry = self.peers.get(issuer)
        if entry is not None and entry.peer.state == BLOCKED:
            raise Refusal(403, "blocked", "this colony blocks yours")
        if entry is None or entry.peer.state != TRUSTED:
            raise Refusal(403, "untrusted", "this colony does not trust yours")
        return entry.revision

    def _trust_in(self, issuer: str, peer: str) -> list[ModRevision]:
        """What a transaction demands, so that no block that it overlooks can precede it.

        `peer` is whom the process goes on to, if it does.
        """
        trusted = [ModRevision(self.keys.peer(issuer), self._trusted_revision(issuer))]
        if peer:
            entry = self.peers.get(peer)
            if entry is None or entry.peer.state != TRUSTED:
                raise Refusal(404, "no_way", "the colony that leads there is trusted no more")
            trusted.append(ModRevision(self.keys.peer(peer), entry.revision))
        return trusted

    # -- submit --------------------------------------------------------------------------

    async def accept(self, opened: Opened, data: bytes) -> bytes:
        """Take a process in, once. Returns the sealed receipt, the first one on a repeat."""
        submit = load(opened.payload, Submit)
        try:
            outer = msgspec.structs.replace(opened, issuer=opened.wire)
            asked = relays.unwrap(outer, submit, self.sealer.ids, len(data), self._same)
        except BadPath as error:
            raise Refusal(400, error.code, error.message) from None
        if any(self.peers.state(each) == BLOCKED for each in asked.ids):
            raise Refusal(403, "blocked", "this colony blocks one that the process was in")
        process = self._build(opened, submit, asked)
        forbidden = self._enter(opened.issuer, process, submit, len(data))
        if forbidden is not None:
            # What was accepted stays so, whatever the policy says by now.
            marker = await self._marker(opened, submit)
            if marker is not None:
                return self._again(marker, opened)
            raise Refusal(
                forbidden.status, forbidden.code, forbidden.message, again=forbidden.again
            )
        fresh = True
        try:
            needed = asked.first.files is not None and not process.peer
            # A repeat needs nothing more.
            if needed and await self._marker(opened, submit) is None:
                fresh = False
                await self.bring(opened, submit, asked.first, process)
                fresh = True
            answer, fresh = await self._take_in(opened, data, submit, process)
        finally:
            # After an error the outcome is unknown; what is in the store, the watch tells.
            self.meter.leave(opened.issuer, used=fresh)
        return answer

    async def _marker(self, opened: Opened, submit: Submit) -> Marker | None:
        """What was decided about a submission before."""
        found = await self.client.get(self.keys.marker(opened.issuer, submit.pid))
        marker = unpack(found.value, Marker) if found else None
        return marker if marker is not None and marker.concerns(opened) else None

    def _same(self, one: str, other: str) -> bool:
        """Whether two ids are of one colony, as far as we know."""
        return self.peers.roster.root(one) == self.peers.roster.root(other)

    def _enter(self, issuer: str, process: Process, submit: Submit, size: int) -> Breach | None:
        """Hold a place for a submission, or say what the policy has against it.

        What waits is counted by the node's index, which the watch rebuilds. A counter in the
        transaction would be exact for several daemons of one colony too, but each start, retry and
        end of such a process would have to change it. So daemons may together let in what they
        took at the same moment, before they heard of each other.
        """
        policy = self.peers.policy(issuer)
        hops = len(submit.path) + 1
        problem = breach(policy, process.spec, size=size, hops=hops)
        if problem is None and process.spec.conditions.colonyname != self.home:
            problem = onward(policy, hops=hops, limit=submit.hops)
            if problem is None and not process.peer:
                name = process.spec.conditions.colonyname[:80]
                problem = Breach("no_way", f"no way leads from here to a colony {name!r}", 404)
        if problem is not None:
            return problem
        waiting = self.processes.queue.count_of(issuer) + self.relayed(issuer)
        return self.meter.enter(issuer, policy, waiting, trio.current_time())

    async def _take_in(
        self, opened: Opened, data: bytes, submit: Submit, process: Process
    ) -> tuple[bytes, bool]:
        """Store marker and process, once: the receipt, and whether they are new."""
        receipt = Receipt(submit.pid, submit.attempt, "accepted", process.processid)
        marker = Marker(
            opened.digest,
            submit.attempt,
            process.processid,
            self._receipt(opened, receipt),
            opened.expires + MAX_LIFETIME,
        )
        key = self.keys.marker(opened.issuer, submit.pid)
        addition = Addition()
        if process.peer:
            # From here on it is a forward like any other.
            addition = self.processes.hooks.forwarding(process)
        try:
            step = store.submit(process, data, addition.ops)
        except ValueError as error:
            raise Refusal(400, "bad_spec", f"spec.conditions: {error}") from None
        free: Compare = Absent(key)
        for _ in range(_TRIES):
            trusted = self._trust_in(opened.issuer, process.peer)
            txn = Txn(
                [free, *trusted, *addition.compare, *step.txn.compare],
                [Put(key, pack(marker)), *step.txn.success],
                [Get(key)],
            )
            try:
                with self.processes.telling(process):
                    result = await self.client.commit(txn)
            except (EtcdTooLarge, EtcdTooManyOps) as error:
                raise Refusal(413, "too_large", f"the store refuses it: {error}") from None
            if result.succeeded:
                self.processes.committed_submit(process, result.revision)
                return marker.receipt, True
            if result.responses[0]:
                there = unpack(result.responses[0][0].value, Marker)
                if there.concerns(opened):
                    return self._again(there, opened), False
                if free != (other := ModRevision(key, result.responses[0][0].mod_revision)):
                    free = other
                    continue
            for each in filter(None, (opened.issuer, process.peer)):
                await self.peers.reload(each)
            if self._trust_in(opened.issuer, process.peer) == trusted:
                raise Refusal(409, "id_reuse", "the process exists here without its marker")
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    def _again(self, marker: Marker, opened: Opened) -> bytes:
        if marker.kept is not None:
            raise Refusal(marker.kept.status, marker.kept.code, marker.kept.message)
        if marker.localpid and marker.digest != opened.digest:
            raise Refusal(409, "id_reuse", "another message with this process id was accepted")
        return self._first_receipt(marker, opened)

    def _first_receipt(self, marker: Marker, opened: Opened) -> bytes:
        """The same bytes again, unless they are of a future that our clock was in once."""
        seen = inspect(marker.receipt, limit=len(marker.receipt))
        if seen.issued <= self.sealer.seconds:
            return marker.receipt
        receipt = load(seen.payload, Receipt)
        return self.sealer.seal(Kind.RECEIPT, opened.issuer, receipt, cti=seen.cti)

    def _build(self, opened: Opened, submit: Submit, asked: Asked) -> Process:
        spec = parse_spec(asked.first.spec)
        target, peer = submit.target if submit.path else spec.conditions.colonyname, ""
        if relays.is_mine(target, self.home, self.sealer.ids):
            target = self.home
        else:
            peer = self.way_to(target, asked.ids)
        spec.conditions.colonyname = target
        try:
            process = build_process(
                spec,
                processid=local_id(opened.wire, submit.pid, submit.attempt),
                initiatorid=opened.issuer,
                initiatorname=f"colony/{self.peers.name(opened.issuer)}",
                colonyname=self.home,
                now=self.sealer.now(),
                origin=opened.issuer,
                notify=self.keys.owed(opened.issuer, submit.pid),
                peer=peer,
            )
        except RpcError as error:
            raise Refusal(400, "bad_spec", error.message) from None
        process.input = parse_input(asked.first.input)
        policy, taken = self.peers.policy(opened.issuer), len(submit.path) + 1
        if onward(policy, hops=taken, limit=submit.hops) is None:
            process.hops = min(submit.hops, policy.max_hops) - taken
        if peer and process.waitdeadline:
            # Nobody waits for it any longer than the message that asked for it holds.
            process.waitdeadline = min(process.waitdeadline, opened.expires * SECOND)
        return process

    # -- cancel --------------------------------------------------------------------------

    async def cancel(self, opened: Opened, data: bytes) -> bytes:
        """End a process, or see to it that it never begins. Returns the sealed receipt."""
        wish = load(opened.payload, Cancel)
        key, peer = self.keys.marker(opened.issuer, wish.pid), self.keys.peer(opened.issuer)
        receipt = self._receipt(opened, Receipt(wish.pid, wish.attempt, "cancelled", ""))
        marker = Marker(opened.digest, wish.attempt, "", receipt, opened.issued + 2 * MAX_LIFETIME)
        free: Compare = Absent(key)
        for _ in range(_TRIES):
            revision = self._trusted_revision(opened.issuer)
            txn = Txn([free, ModRevision(peer, revision)], [Put(key, pack(marker))], [Get(key)])
            result = await self.client.commit(txn)
            if result.succeeded:
                return receipt
            if result.responses[0]:
                there = unpack(result.responses[0][0].value, Marker)
                if there.kept is not None:
                    # Whatever else comes under this id is cancelled as well.
                    if free != (other := ModRevision(key, result.responses[0][0].mod_revision)):
                        free = other
                        continue
                elif not there.localpid:
                    return self._first_receipt(there, opened)
                else:
                    return await self._end(opened, there, wish)
            await self.peers.reload(opened.issuer)
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    async def _end(self, opened: Opened, marker: Marker, wish: Cancel) -> bytes:
        status: Literal["cancelled", "already_closed"] = "cancelled"
        try:
            await self.processes.cancel(self.home, marker.localpid)
        except RpcError as error:
            if error.status == 409:
                raise Refusal(503, "busy", error.message, again=1) from None
            status = "already_closed"
        answer = Receipt(wish.pid, marker.attempt, status, marker.localpid)
        return self._receipt(opened, answer)

    # -- outcomes ------------------------------------------------------------------------

    async def outcomes(self, opened: Opened, data: bytes) -> bytes:
        """Forget what was acknowledged, then give what is owed, waiting for it if need be."""
        poll = load(opened.payload, Poll)
        await self._acknowledge(opened.issuer, poll.ack)
        until = trio.current_time() + poll.wait
        while True:
            bell = self._bells.setdefault(opened.issuer, trio.Event())
            found = await self._owed(opened.issuer)
            # After the outcomes, so that nothing is missing of what has ended.
            news, cut = await self.teller.news(opened.issuer, poll, found)
            now = trio.current_time()
            if found or news or self.draining or now >= until:
                break
            with trio.move_on_at(min(until, now + _LOOK)) as quiet:
                await bell.wait()
            if quiet.cancelled_caught:
                self.teller.look_again()
            # It may have been blocked while it waited: what is owed is kept, and not served.
            self._trusted_revision(opened.issuer)
        answer = Outcomes(list(found.values()), news, cut)
        return self.sealer.seal(Kind.OUTCOMES, opened.issuer, answer)

    async def _acknowledge(self, issuer: str, pids: list[str]) -> None:
        if not pids:
            return
        ops: list[Op] = [Delete(self.keys.owed(issuer, pid)) for pid in dict.fromkeys(pids)]
        await self.client.commit(Txn([], ops))
        self.owed.get(issuer, set()).difference_update(pids)

    async def _owed(self, issuer: str) -> dict[str, bytes]:
        """Some of the outcomes that a colony has not acknowledged, by its process ids."""
        prefix = self.keys.owed_to(issuer)
        listing = await self.client.range(prefix, limit=_PAGE)
        sealed: dict[str, bytes] = {}
        total = 0
        for item in listing.items:
            pid = item.key[len(prefix) :]
            sealed[pid] = await self._outcome(issuer, pid, item.value.decode())
            total += len(sealed[pid])
            if total > _PAGE_BYTES:
                break
        return sealed

    async def _outcome(self, issuer: str, pid: str, localpid: str) -> bytes:
        found = await self.client.get(self.keys.marker(issuer, pid))
        attempt = unpack(found.value, Marker).attempt if found else 1
        loaded = await self.processes.load(self.home, localpid)
        now = self.sealer.seconds
        if loaded is None:
            gone = ["the process was removed before its outcome was fetched"]
            outcome = Outcome(pid, attempt, int(State.FAILED), b"[]", gone, localpid, "", 0, 0)
            issued = now
        else:
            process = loaded[0]
            outcome = Outcome(
                pid,
                attempt,
                int(process.state),
                msgspec.json.encode(process.output),
                list(process.errors),
                localpid,
                process.assignedexecutorid,
                process.starttime,
                process.endtime,
            )
            if process.peer:
                outcome = await self._carry(process, outcome)
            # The same bytes each time, until they would be too old to be accepted.
            ended = process.endtime // 1_000_000_000
            # Or in the future, when our clock was ahead at the end and was set back since.
            issued = ended if ended <= now < ended + MAX_LIFETIME - 3600 else now
        name = cti("outcome", pid, attempt)
        return self.sealer.seal(Kind.OUTCOME, issuer, outcome, cti=name, issued=issued)

    async def _carry(self, process: Process, outcome: Outcome) -> Outcome:
        """A relay's outcome goes with the one that it was told itself, for its origin to check."""
        found = await self.client.get(self.keys.proof(process.processid))
        if found is None:
            return outcome
        record = unpack(found.value, Forward)
        below = record.outcome
        if not below:
            kept = await self.client.get(self.keys.apart(process.processid))
            below = kept.value if kept else b""
        if not below:
            return outcome
        key = self.peers.public_key(inspect(below, limit=len(below)).issuer)
        return chains.carried(outcome, below, key or b"")

    async def sweep(self) -> None:
        """Forget markers whose time is over and whose process is done with."""
        items, _ = await self.client.range_all(self.keys.markers)
        for item in items:
            marker = unpack(item.value, Marker)
            issuer, pid = item.key[len(self.keys.markers) :].split("/")
            if marker.expires > self.sealer.seconds or pid in self.owed.get(issuer, ()):
                continue
            loaded = marker.localpid and await self.processes.load(self.home, marker.localpid)
            if not loaded or loaded[0].closed:
                gone = [Delete(item.key), Delete(self.keys.hearing(issuer, pid))]
                txn = Txn([ModRevision(item.key, item.mod_revision)], gone)
                await self.client.commit(txn)


def refusal_of(refused: Refused) -> Refusal:
    """The HTTP status of a failed check."""
    statuses = {"too_large": 413, "unknown_issuer": 401, "bad_signature": 401}
    return Refusal(statuses.get(refused.code, 400), refused.code, refused.message)
