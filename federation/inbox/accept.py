"""The inbox: accepts submissions of other colonies once, and cancels them.

`inbox.outcomes` sends the outcomes. A message comes here verified and from a trusted colony; each
acceptance is one transaction.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import trio

from colonyd.errors import Conflict, RpcError
from federation.forward import path as relays
from federation.forward.path import OriginRequest, RelayedRequest, local_id
from federation.forward.receipt import ReceiptRecord, ReceivedProcess, request_in
from federation.inbox.outcomes import OutcomeQueue
from federation.inbox.tombstones import Tombstones
from federation.inbox.usage import UsageScan
from federation.limits.accounts import PeerQuotas
from federation.limits.decoding import load_large
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.policy import SubmissionLimiter, explained, onward, violation_of
from federation.peers.registry import BLOCKED, TRUSTED, trusted_revision
from federation.transport.endpoint import Endpoint
from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, VerifiedMessage, inspect
from federation.wire.json import apart, require_bounded
from federation.wire.messages import Cancel, Receipt, Submit, load
from federation.wire.refusals import Refusal, refusal_of, store_full
from federation.wire.signer import cti_of
from node.etcd.client import TxnResult
from node.etcd.errors import EtcdTooLarge, EtcdTooManyOps
from node.etcd.pressure import Need
from node.etcd.txn import Absent, Compare, Get, ModRevision, Put, Txn
from node.model.codec import pack, unpack
from node.model.json import prune
from node.model.numbers import beyond_float
from node.model.types import SECOND, FunctionSpec, Process
from node.processes.assignment import Assigner, Claim, PollRefused
from node.processes.extension import Addition
from node.processes.spec import build_process
from node.store.work import processes as store

_TRIES = 5
_RECEIPT_RECORD = 1300  # bytes of a receipt record with its key, about
_PROCESS = 1500  # bytes of a process without its spec, about


def parse_spec(data: bytes) -> FunctionSpec:
    """Return a parsed function spec. Raises Refusal (bad_spec)."""
    try:
        require_bounded(data)
        value = msgspec.json.decode(data)
        if beyond_float(data, value):
            raise Refusal(400, "bad_spec", "spec: a number beyond what a 64-bit float holds")
        return msgspec.convert(prune(value), FunctionSpec)
    except (msgspec.DecodeError, ValueError, RecursionError, Rejected) as error:
        raise Refusal(400, "bad_spec", f"spec: {error}") from None


def parse_input(data: bytes) -> list[Any]:
    """Return the parsed input of a workflow's node. Raises Refusal (bad_input)."""
    if not data:
        return []
    try:
        require_bounded(data)
        value: list[Any] = msgspec.json.decode(data, type=list)
        if beyond_float(data, value):
            raise Refusal(400, "bad_input", "input: a number beyond what a 64-bit float holds")
    except (msgspec.DecodeError, ValueError, RecursionError, Rejected) as error:
        raise Refusal(400, "bad_input", f"input: {error}") from None
    return value


@dataclass
class Inbox:
    """Accepts and cancels processes of other colonies.

    `outbox` has those that are passed on; `file_transfer` fetches their files; `assigner` has the
    polls that wait for work here.
    """

    context: Context
    assigner: Assigner
    outbox: Outbox
    file_transfer: FileTransfer
    outcome_queue: OutcomeQueue
    peer_quotas: PeerQuotas
    limiter: SubmissionLimiter = field(default_factory=SubmissionLimiter)
    usage_scan: UsageScan = field(init=False)

    def __post_init__(self) -> None:
        self.usage_scan = UsageScan(self.context, self.peer_quotas, self.outcome_queue)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints at which peers submit, cancel, and poll."""
        tombstones = Tombstones(self.context, self.peer_quotas)
        return [
            Endpoint("/v2/submit", Kind.SUBMIT, self.accept, keep=tombstones.keep),
            Endpoint("/v2/submits", Kind.SUBMITS, None, each="/v2/submit"),
            Endpoint("/v2/cancel", Kind.CANCEL, self.cancel),
            Endpoint("/v2/outcomes", Kind.POLL, self.outcome_queue.outcomes),
        ]

    def removable(self, process: Process) -> str:
        """Return why a process must not be removed, or ""."""
        if not process.origin or not process.notify:
            return ""
        name = self.context.peers.name(process.origin)
        if not process.closed:
            return f"the process came from colony {name}; cancel it, so that it hears of its end"
        if process.notify.rpartition("/")[2] in self.outcome_queue.owed.get(process.origin, ()):
            return f"colony {name} has not fetched the outcome yet"
        return ""

    def _receipt(self, opened: VerifiedMessage, receipt: Receipt) -> bytes:
        name = cti_of("receipt", opened.cti.hex(), receipt.status)
        return self.context.signer.seal(Kind.RECEIPT, opened.issuer, receipt, cti=name)

    def _trust_in(self, issuer: str, peer: str) -> list[ModRevision]:
        """Return what a transaction must compare, so that it fails if a block came first.

        `peer` is the colony that the process is passed on to, or "".
        """
        trusted = [
            ModRevision(
                self.context.keys.peer(issuer), trusted_revision(self.context.peers, issuer)
            )
        ]
        if peer:
            entry = self.context.peers.get(peer)
            if entry is None or entry.peer.state != TRUSTED:
                raise Refusal(404, "no_way", "the colony that leads there is trusted no more")
            trusted.append(ModRevision(self.context.keys.peer(peer), entry.revision))
        return trusted

    # -- submit --------------------------------------------------------------------------

    async def accept(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Accept a process, once. Return the signed receipt; on a repeat, the first one."""
        submit = await load_large(opened.payload, Submit)
        try:
            outer = msgspec.structs.replace(opened, issuer=opened.wire)
            asked = await apart(
                submit.inner,
                lambda _: relays.unwrap(
                    outer, submit, self.context.signer.ids, len(data), self._same
                ),
            )
        except Rejected as error:
            raise refusal_of(error) from None
        if any(self.context.peers.state(each) == BLOCKED for each in asked.ids):
            raise Refusal(403, "blocked", "this colony blocks one that the process was in")
        spec = await apart(asked.first.spec, parse_spec)
        given = await apart(asked.first.input, parse_input)
        process = self._build(opened, submit, asked, spec, given)
        # A process that is passed on has its submission in the outbox, too.
        left = _left_by(asked.first, 2 * len(data) if process.peer else len(data))
        full = self.context.client.pressure.refuses(Need.GROWS)
        forbidden = None if full else self._enter(opened.issuer, process, submit, len(data), left)
        if full or forbidden is not None:
            # An accepted process stays accepted, whatever the policy says now.
            receipt_record = await self._receipt_record(opened, submit)
            if receipt_record is not None:
                return self._again(receipt_record, opened, asked.request)
            if forbidden is None:
                raise store_full()
            raise forbidden
        fresh = True
        try:
            needed = asked.first.files is not None and not process.peer
            # A repeat needs no files.
            if needed and await self._receipt_record(opened, submit) is None:
                fresh = False
                await self.file_transfer.bring(opened, submit, asked.first, process)
                fresh = True
            answer, fresh = await self._take_in(opened, data, submit, process, asked.request, left)
        except Refusal as refusal:
            fresh = not refusal.certain
            raise
        finally:
            # After an error the outcome is unknown; the watch tells what is in the store.
            self.limiter.leave(opened.issuer, used=fresh)
            self.peer_quotas.settle(opened.issuer, left + _RECEIPT_RECORD, left=fresh)
        return answer

    async def _receipt_record(
        self, opened: VerifiedMessage, submit: Submit
    ) -> ReceiptRecord | None:
        """Return the record of an earlier copy of a submission, or None."""
        found = await self.context.client.get(
            self.context.keys.receipt_record(opened.issuer, submit.pid)
        )
        receipt_record = unpack(found.value, ReceiptRecord) if found else None
        return (
            receipt_record
            if receipt_record is not None and receipt_record.concerns(opened)
            else None
        )

    def _same(self, one: str, other: str) -> bool:
        """Return whether two ids are of one colony, as far as we know."""
        return self.context.peers.index.root(one) == self.context.peers.index.root(other)

    def _enter(
        self, issuer: str, process: Process, submit: Submit, size: int, left: int
    ) -> Refusal | None:
        """Reserve a place for a submission. Return the refusal if the policy forbids it.

        `left` is how many bytes the submission takes in the store beside its receipt record.

        The node's index, which the watch rebuilds, counts waiting processes. A counter in the
        transaction would be exact for several daemons of one colony, too, but every start, retry
        and end of a process would have to write it. So several daemons may together accept some
        more than the limit: those they took before they heard of each other.
        """
        policy = self.context.peers.policy(issuer)
        hops = len(submit.path) + 1
        problem = violation_of(policy, process.spec, size=size, hops=hops)
        if problem is None and process.spec.conditions.colonyname != self.context.home:
            problem = onward(policy, hops=hops, limit=submit.hops)
            if problem is None and not process.peer:
                name = process.spec.conditions.colonyname[:80]
                why = self.context.peers.ambiguity(process.spec.conditions.colonyname)
                why = why or f"no way leads from here to a colony {name!r}"
                problem = Refusal(404, "no_way", why)
        if problem is not None:
            further = process.spec.conditions.colonyname != self.context.home
            name = self.context.peers.name(issuer)
            return explained(
                problem, self.context.home, name, hops=hops, limit=submit.hops, further=further
            )
        waiting = self.context.processes.queue.count_of(issuer) + self.outbox.relayed(issuer)
        problem = self.limiter.enter(issuer, policy, waiting, trio.current_time())
        if problem is None:
            problem = self.peer_quotas.take(issuer, left + _RECEIPT_RECORD)
            if problem is not None:
                self.limiter.leave(issuer, used=False)
        return problem

    async def _take_in(
        self,
        opened: VerifiedMessage,
        data: bytes,
        submit: Submit,
        process: Process,
        request: OriginRequest,
        left: int,
    ) -> tuple[bytes, bool]:
        """Store receipt record and process, once. Return the receipt, and whether they are new.

        If a poll waits that may have the process, it is assigned in the same transaction.
        """
        receipt = Receipt(
            submit.pid,
            submit.attempt,
            "accepted",
            process.processid,
            request.digest,
            request.origin,
        )
        receipt_record = ReceiptRecord(
            opened.digest,
            submit.attempt,
            process.processid,
            self._receipt(opened, receipt),
            opened.expires + MAX_LIFETIME,
            asked=request.digest,
            origin=request.origin,
            left=left,
        )
        key = self.context.keys.receipt_record(opened.issuer, submit.pid)
        addition = Addition()
        if process.peer:
            # From here on it is a forward like any other.
            addition = self.context.processes.hooks.forwarding(process)
        try:
            queued = store.submit(process, data, addition.ops)
        except ValueError as error:
            raise Refusal(400, "bad_spec", f"spec.conditions: {error}") from None
        free: Compare = Absent(key)

        async def commit(claim: Claim | None) -> TxnResult:
            step = queued if claim is None else claim.step
            txn = Txn(
                [free, *trusted, *addition.compare, *step.txn.compare],
                # The process first: a repeat of the poll's request finds what it got by this key.
                [*step.txn.success, Put(key, pack(receipt_record))],
                [Get(key)],
            )
            send = self.context.client.commit if claim is None else claim.commit
            result = await send(txn)
            if result.succeeded:
                received = ReceivedProcess(
                    process.processid, submit.attempt, request.digest, request.origin
                )
                self.outcome_queue.update_publisher.received(opened.issuer, submit.pid, received)
                self.context.processes.committed_submit(step.process, result.revision)
                if claim is not None:
                    claim.stored = step.process
            return result

        claims = True
        for _ in range(_TRIES):
            trusted = self._trust_in(opened.issuer, process.peer)
            claiming = self.assigner.claiming(process, data) if claims else nullcontext()
            try:
                with self.context.processes.telling(process), claiming as claim:
                    result = await commit(claim)
            except (EtcdTooLarge, EtcdTooManyOps) as error:
                raise Refusal(413, "too_large", f"the store refuses it: {error}") from None
            except PollRefused:
                # As a submission of our own, it claims one poll: all may be of such requests.
                claims = False
                continue
            if result.succeeded:
                return receipt_record.receipt, True
            if result.responses[0]:
                there = unpack(result.responses[0][0].value, ReceiptRecord)
                if there.concerns(opened):
                    return self._again(there, opened, request), False
                if free != (other := ModRevision(key, result.responses[0][0].mod_revision)):
                    free = other
                    continue
            for each in filter(None, (opened.issuer, process.peer)):
                await self.context.peers.reload(each)
            if self._trust_in(opened.issuer, process.peer) == trusted:
                raise Refusal(409, "id_reuse", "the process exists here without its marker")
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    def _again(
        self, receipt_record: ReceiptRecord, opened: VerifiedMessage, request: OriginRequest
    ) -> bytes:
        if receipt_record.kept is not None:
            raise Refusal(
                receipt_record.kept.status, receipt_record.kept.code, receipt_record.kept.message
            )
        if receipt_record.localpid and receipt_record.digest != opened.digest:
            raise Refusal(409, "id_reuse", "another message with this process id was accepted")
        return self._first_receipt(receipt_record, opened, request)

    def _first_receipt(
        self,
        receipt_record: ReceiptRecord,
        opened: VerifiedMessage,
        request: OriginRequest | None = None,
    ) -> bytes:
        """Return the first receipt again; a new one if its time is in the future by our clock.

        A receipt of an earlier release does not name its `request`; then return a new one that
        does.
        """
        seen = inspect(receipt_record.receipt, limit=len(receipt_record.receipt))
        receipt = load(seen.payload, Receipt)
        old = bool(receipt.remote) and not receipt.asked and request is not None
        if seen.issued <= self.context.clock.seconds and not old:
            return receipt_record.receipt
        if old and request is not None:
            receipt = msgspec.structs.replace(receipt, asked=request.digest, origin=request.origin)
        return self.context.signer.seal(Kind.RECEIPT, opened.issuer, receipt, cti=seen.cti)

    def _build(
        self,
        opened: VerifiedMessage,
        submit: Submit,
        asked: RelayedRequest,
        spec: FunctionSpec,
        given: list[Any],
    ) -> Process:
        target, peer = submit.target if submit.path else spec.conditions.colonyname, ""
        if relays.is_mine(target, self.context.home, self.context.signer.ids):
            target = self.context.home
        else:
            peer = self.context.peers.toward(target, asked.ids, asked=True)
        spec.conditions.colonyname = target
        try:
            process = build_process(
                spec,
                processid=local_id(opened.wire, submit.pid, submit.attempt),
                initiatorid=opened.issuer,
                initiatorname=f"colony/{self.context.peers.name(opened.issuer)}",
                colonyname=self.context.home,
                now=self.context.clock.now(),
                origin=opened.issuer,
                notify=self.context.keys.owed(opened.issuer, submit.pid),
                peer=peer,
            )
        except RpcError as error:
            raise Refusal(400, "bad_spec", error.message) from None
        process.input = given
        policy, taken = self.context.peers.policy(opened.issuer), len(submit.path) + 1
        if onward(policy, hops=taken, limit=submit.hops) is None:
            process.hops = min(submit.hops, policy.max_hops) - taken
        if peer and process.waitdeadline:
            # No colony waits for it after the submission has expired.
            process.waitdeadline = min(process.waitdeadline, opened.expires * SECOND)
        return process

    # -- cancel --------------------------------------------------------------------------

    async def cancel(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Cancel a process, or make sure that it never starts. Return the signed receipt.

        The record for a process that never came counts against the colony's quota.
        """
        wish = load(opened.payload, Cancel)
        found = await self.context.client.get(
            self.context.keys.receipt_record(opened.issuer, wish.pid)
        )
        there = unpack(found.value, ReceiptRecord) if found else None
        if there is not None and there.localpid:
            return await self._end(opened, there, wish)
        if there is not None and there.kept is None:
            return self._first_receipt(there, opened)
        full = self.peer_quotas.tombstone(opened.issuer, _RECEIPT_RECORD)
        if full is not None:
            raise full
        written = True  # without an answer, it may have happened
        try:
            answer, written = await self._prevent(opened, wish)
        except Refusal:
            written = False
            raise
        finally:
            self.peer_quotas.settle(opened.issuer, _RECEIPT_RECORD, left=written and there is None)
        return answer

    async def _prevent(self, opened: VerifiedMessage, wish: Cancel) -> tuple[bytes, bool]:
        """Store a record so that a process never starts. Return the receipt, and if it is new."""
        client, keys = self.context.client, self.context.keys
        key, peer = keys.receipt_record(opened.issuer, wish.pid), keys.peer(opened.issuer)
        if client.pressure.refuses(Need.WORKS) and await client.get(key) is None:
            raise store_full()  # a full store takes no record for a process that never came
        receipt = self._receipt(opened, Receipt(wish.pid, wish.attempt, "cancelled", ""))
        receipt_record = ReceiptRecord(
            opened.digest, wish.attempt, "", receipt, opened.issued + 2 * MAX_LIFETIME
        )
        free: Compare = Absent(key)
        for _ in range(_TRIES):
            revision = trusted_revision(self.context.peers, opened.issuer)
            txn = Txn(
                [free, ModRevision(peer, revision)], [Put(key, pack(receipt_record))], [Get(key)]
            )
            result = await self.context.client.commit(txn)
            if result.succeeded:
                return receipt, True
            if result.responses[0]:
                there = unpack(result.responses[0][0].value, ReceiptRecord)
                if there.kept is not None:
                    # Any other message of this id is cancelled as well.
                    if free != (other := ModRevision(key, result.responses[0][0].mod_revision)):
                        free = other
                        continue
                elif not there.localpid:
                    return self._first_receipt(there, opened), False
                else:
                    return await self._end(opened, there, wish), False
            await self.context.peers.reload(opened.issuer)
        raise Refusal(503, "busy", "the peer's record changes too fast", again=1)

    async def _end(
        self, opened: VerifiedMessage, receipt_record: ReceiptRecord, wish: Cancel
    ) -> bytes:
        status: Literal["cancelled", "already_closed"] = "cancelled"
        try:
            await self.context.processes.cancel(self.context.home, receipt_record.localpid)
        except Conflict as error:
            raise Refusal(503, "busy", error.message, again=1) from None
        except RpcError:
            status = "already_closed"
        request = await request_in(self.context.client, self.context.home, receipt_record)
        answer = Receipt(
            wish.pid,
            receipt_record.attempt,
            status,
            receipt_record.localpid,
            request.digest,
            request.origin,
        )
        return self._receipt(opened, answer)

    # -- cleaning up -------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Delete expired receipt records of closed processes, and count the usage of each colony.

        Raises EtcdError.
        """
        await self.outcome_queue.load()
        await self.usage_scan.take(self.context.clock.seconds)


def _left_by(first: Submit, size: int) -> int:
    """Return how many bytes a submission takes in the store, about: process, submission, files."""
    files = sum(
        600 + 3 * (len(each.label) + len(each.name)) + 2 * len(each.ref)
        for each in first.files or ()
    )
    return 2 * size + _PROCESS + files
