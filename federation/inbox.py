"""The receiving end of forwards: accept once, cancel, and keep outcomes until acknowledged.

A message gets here opened and from a trusted colony; each acceptance is one transaction.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec
import trio

from federation.envelope import MAX_LIFETIME, Kind, Opened, Refused
from federation.keys import Keys
from federation.messages import Cancel, Outcome, Outcomes, Poll, Receipt, Sealer, Submit, load
from federation.messages import cti_of as cti
from federation.peers import TRUSTED, Peers
from node.codec import pack, unpack
from node.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdTooLarge, EtcdTooManyOps
from node.etcd.transactions import Absent, Delete, Get, ModRevision, Op, Put, Txn
from node.model import FunctionSpec, Process, State
from node.processes import Processes
from node.rpc.table import MAX_DEPTH, depth_of, prune
from node.store import processes as store
from node.submission import build_process

__all__ = ["Inbox", "Marker", "Refusal", "local_id", "parse_spec"]

_MAX_HOPS = 1
_PAGE = 64  # outcomes in one answer
_PAGE_BYTES = 2_000_000  # after which no further outcome is added
_TRIES = 5


class Refusal(Exception):
    """A message turned away: HTTP status, stable code, sentence; `again` seconds for a retry."""

    def __init__(self, status: int, code: str, message: str, again: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.again = status, code, message, again


class Marker(msgspec.Struct, frozen=True):
    """That a process of another colony was received: the hash of the message, and our receipt.

    Without `localpid` it was cancelled before it came. Kept until `expires` (seconds) and the
    process is closed.
    """

    digest: bytes
    attempt: int
    localpid: str
    receipt: bytes
    expires: int


def local_id(issuer: str, pid: str, attempt: int) -> str:
    """Our id for a process of another colony: the same on every repeat."""
    return hashlib.sha3_256(f"{issuer}/{pid}/{attempt}".encode()).hexdigest()


def parse_spec(data: bytes) -> FunctionSpec:
    """Read a function spec. Raises Refusal (bad_spec)."""
    try:
        value = msgspec.json.decode(data)
        if depth_of(value) > MAX_DEPTH:
            raise Refusal(400, "bad_spec", f"nested deeper than {MAX_DEPTH}")
        return msgspec.convert(prune(value), FunctionSpec)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refusal(400, "bad_spec", f"spec: {error}") from None


@dataclass
class Inbox:
    """What other colonies have here."""

    home: str
    sealer: Sealer
    client: EtcdClient
    processes: Processes
    peers: Peers
    keys: Keys
    owed: dict[str, set[str]] = field(default_factory=dict)
    draining: bool = False
    _bells: dict[str, trio.Event] = field(default_factory=dict)

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
        if entry is None or entry.peer.state != TRUSTED:
            raise Refusal(403, "untrusted", "this colony does not trust yours")
        return entry.revision

    # -- submit --------------------------------------------------------------------------

    async def accept(self, opened: Opened, data: bytes) -> bytes:
        """Take a process in, once. Returns the sealed receipt, the first one on a repeat."""
        submit = load(opened.payload, Submit)
        if not 1 <= submit.hops <= _MAX_HOPS or len(submit.path) >= submit.hops:
            raise Refusal(400, "hops", f"{submit.hops} hops; at most {_MAX_HOPS} here")
        if self.sealer.key.id in submit.path or opened.issuer in submit.path:
            raise Refusal(400, "loop", "the process was in this colony before")
        process = self._build(opened, submit)
        receipt = Receipt(submit.pid, submit.attempt, "accepted", process.processid)
        marker = Marker(
            opened.digest,
            submit.attempt,
            process.processid,
            self._receipt(opened, receipt),
            opened.expires + MAX_LIFETIME,
        )
        key, peer = self.keys.marker(opened.issuer, submit.pid), self.keys.peer(opened.issuer)
        try:
            step = store.submit(process, data)
        except ValueError as error:
            raise Refusal(400, "bad_spec", f"spec.conditions: {error}") from None
        for _ in range(_TRIES):
            revision = self._trusted_revision(opened.issuer)
            txn = Txn(
                [Absent(key), ModRevision(peer, revision), *step.txn.compare],
                [Put(key, pack(marker)), *step.txn.success],
                [Get(key)],
            )
            try:
                result = await self.client.commit(txn)
            except (EtcdTooLarge, EtcdTooManyOps) as error:
                raise Refusal(413, "too_large", f"the store refuses it: {error}") from None
            if result.succeeded:
                self.processes.committed_submit(process, result.revision)
                return marker.receipt
            if result.responses[0]:
                return self._again(unpack(result.responses[0][0].value, Marker), opened)
            await self.peers.reload(opened.issuer)
            if self._trusted_revision(opened.issuer) == revision:
                raise Refusal(409, "id_reuse", "the process exists here without its marker")
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    def _again(self, marker: Marker, opened: Opened) -> bytes:
        if marker.localpid and marker.digest != opened.digest:
            raise Refusal(409, "id_reuse", "another message with this process id was accepted")
        return marker.receipt

    def _build(self, opened: Opened, submit: Submit) -> Process:
        spec = parse_spec(submit.spec)
        spec.conditions.colonyname = self.home
        try:
            return build_process(
                spec,
                processid=local_id(opened.issuer, submit.pid, submit.attempt),
                initiatorid=opened.issuer,
                initiatorname=f"colony/{self.peers.name(opened.issuer)}",
                colonyname=self.home,
                now=self.sealer.now(),
                origin=opened.issuer,
                notify=self.keys.owed(opened.issuer, submit.pid),
            )
        except RpcError as error:
            raise Refusal(400, "bad_spec", error.message) from None

    # -- cancel --------------------------------------------------------------------------

    async def cancel(self, opened: Opened, data: bytes) -> bytes:
        """End a process, or see to it that it never begins. Returns the sealed receipt."""
        wish = load(opened.payload, Cancel)
        key, peer = self.keys.marker(opened.issuer, wish.pid), self.keys.peer(opened.issuer)
        receipt = self._receipt(opened, Receipt(wish.pid, wish.attempt, "cancelled", ""))
        marker = Marker(opened.digest, wish.attempt, "", receipt, opened.issued + 2 * MAX_LIFETIME)
        for _ in range(_TRIES):
            revision = self._trusted_revision(opened.issuer)
            txn = Txn(
                [Absent(key), ModRevision(peer, revision)], [Put(key, pack(marker))], [Get(key)]
            )
            result = await self.client.commit(txn)
            if result.succeeded:
                return receipt
            if result.responses[0]:
                there = unpack(result.responses[0][0].value, Marker)
                return there.receipt if not there.localpid else await self._end(opened, there, wish)
            await self.peers.reload(opened.issuer)
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    async def _end(self, opened: Opened, marker: Marker, wish: Cancel) -> bytes:
        status = "cancelled"
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
        bell = self._bells.setdefault(opened.issuer, trio.Event())
        found = await self._owed(opened.issuer)
        if not found and poll.wait and not self.draining:
            with trio.move_on_after(poll.wait):
                await bell.wait()
            found = await self._owed(opened.issuer)
        return self.sealer.seal(Kind.OUTCOMES, opened.issuer, Outcomes(found))

    async def _acknowledge(self, issuer: str, pids: list[str]) -> None:
        if not pids:
            return
        ops: list[Op] = [Delete(self.keys.owed(issuer, pid)) for pid in dict.fromkeys(pids)]
        await self.client.commit(Txn([], ops))
        self.owed.get(issuer, set()).difference_update(pids)

    async def _owed(self, issuer: str) -> list[bytes]:
        prefix = self.keys.owed_to(issuer)
        listing = await self.client.range(prefix, limit=_PAGE)
        sealed: list[bytes] = []
        total = 0
        for item in listing.items:
            pid = item.key[len(prefix) :]
            sealed.append(await self._outcome(issuer, pid, item.value.decode()))
            total += len(sealed[-1])
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
            # The same bytes each time, until they would be too old to be accepted.
            ended = process.endtime // 1_000_000_000
            issued = ended if now < ended + MAX_LIFETIME - 3600 else now
        name = cti("outcome", pid, attempt)
        return self.sealer.seal(Kind.OUTCOME, issuer, outcome, cti=name, issued=issued)

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
                txn = Txn([ModRevision(item.key, item.mod_revision)], [Delete(item.key)])
                await self.client.commit(txn)


def refusal_of(refused: Refused) -> Refusal:
    """The HTTP status of a failed check."""
    statuses = {"too_large": 413, "unknown_issuer": 401, "bad_signature": 401}
    return Refusal(statuses.get(refused.code, 400), refused.code, refused.message)
