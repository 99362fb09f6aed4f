"""Protection against replay: the same signed bytes take effect once, by a marker in the store.

The rows of the table say which calls change something, and how each answers a repeat.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from colonyd.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    RpcError,
    TimedOut,
    Unavailable,
    of_status,
)
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdError, EtcdNoSpace
from node.etcd.guard import GUARD
from node.etcd.txn import Absent, DeletePrefix, Get, ModRevision, Put, Txn
from node.host.log import get_logger
from node.model.types import SECOND
from node.store import replay as store

# Seconds that a signed time may be off before its request is refused.
FRESH = 300
# Seconds after which a request that is still being served can no longer take effect.
LONGEST = 600
# Seconds from a request's time of issue until its marker is removed.
_KEEP = FRESH + LONGEST
# Bytes of an answer that is kept for a repeat.
_MOST_ANSWER = 8_192
# Refusals that are kept: the request must not succeed later. Other refusals say "try again".
_FINAL = (Invalid, Denied, NotFound, TimedOut, Unavailable)
_SWEEP = 30.0  # seconds between two sweeps
_AT_ONCE = 1000  # markers removed in one transaction, about: it keeps the store busy

_to_json = msgspec.json.Encoder().encode
log = get_logger("replay")


class Once(enum.Enum):
    """How a call that changes something is kept from happening twice."""

    # The marker is written first, the answer beside it afterwards: two more transactions.
    FIRST = "first"
    # As FIRST. The ids of what the call makes follow from its nonce: a call that a daemon began and
    # did not live to answer is run to its end.
    RESUMED = "resumed"
    # The first transaction that writes is the whole effect, and takes the marker along.
    TOGETHER = "together"


class Replayed(Conflict):
    """These bytes took effect before, or another request with their nonce did."""

    def __init__(self, marker: store.ReplayMarker) -> None:
        super().__init__("nonce: this request was served already")
        self.marker = marker


@dataclass
class Claim:
    """The one right of a request to take effect; guards the transactions of its task.

    `run` is of this try alone. `lasting` is whether the marker is never removed, `placed` whether
    it names the first key that was written.
    """

    client: EtcdClient
    key: str
    span: int
    digest: bytes
    run: bytes
    lasting: bool
    placed: bool = False
    spent: bool = False

    def _marker(self, place: str = "", status: int = 0, answer: bytes = b"") -> Put:
        marker = store.ReplayMarker(self.digest, self.run, place, status, answer)
        return Put(self.key, store.encode(marker))

    async def commit(self, send: Callable[[Txn], Awaitable[TxnResult]], txn: Txn) -> TxnResult:
        """Send the first transaction that writes with the marker, all others as they are.

        Raises Replayed, and Denied when the marker may have been removed since.
        """
        if self.spent or all(type(op) is Get for op in txn.success):
            return await send(txn)
        place = next((op.key for op in txn.success if type(op) is Put), "") if self.placed else ""
        return await self._claim(send, txn, self._marker(place))

    async def mark(self, status: int = 0, answer: bytes = b"") -> None:
        """Write the marker by itself. Raises the same errors as `commit`."""
        await self._claim(self.client.commit, Txn([], []), self._marker("", status, answer))

    async def keep(self, status: int, answer: bytes) -> None:
        """Keep the answer for a repeat. Without it, a repeat is told to look for the effect
        itself.
        """
        if len(answer) > _MOST_ANSWER:
            answer = b""
        try:
            await self.client.commit(Txn([], [self._marker("", status, answer)]))
        except EtcdError as error:
            log.warning("answer not kept", error=error)

    async def look(self) -> None:
        """Raise Replayed if the store knows the request already."""
        found = await self.client.get(self.key)
        if found is not None and not self.spent:
            raise Replayed(store.decode(found.value))

    async def _claim(
        self, send: Callable[[Txn], Awaitable[TxnResult]], txn: Txn, marker: Put
    ) -> TxnResult:
        guarded = Txn(
            [*txn.compare, Absent(self.key), *([] if self.lasting else [store.kept(self.span)])],
            [*txn.success, marker],
            [*txn.failure, Get(self.key), Get(store.FLOOR)],
        )
        while True:
            result = await send(guarded)
            if result.succeeded:
                self.spent = True
                return result
            *responses, there, floor = result.responses
            if there:
                known = store.decode(there[0].value)
                if known.run != self.run:
                    raise Replayed(known)
                # The marker is our own, of a try that got no answer.
                self.spent = True
                return await send(txn)
            if self.lasting:
                return TxnResult(False, result.revision, responses)
            if not floor:
                nothing = Put(store.FLOOR, store.number(0))
                with aside():  # `send` may take along what another request has to write
                    await self.client.commit(Txn([Absent(store.FLOOR)], [nothing]))
                continue
            if (last := int(floor[0].value)) >= self.span:
                raise Denied(
                    f"issuedat: what was signed before {(last + 1) * store.SPAN} is not known to"
                    " this store any more: the request waited too long, or a clock was set back;"
                    " if this host's clock is right now, `colony peer clock --reset` (as owner)"
                )
            return TxnResult(False, result.revision, responses)


async def look() -> None:
    """Raise Replayed if the request of this task took effect before; may cost a read.

    For calls that wait, or act before they write.
    """
    claim = GUARD.get()
    if isinstance(claim, Claim):
        await claim.look()


@contextmanager
def aside() -> Iterator[None]:
    """Exclude the transactions of the block from the request of this task."""
    token = GUARD.set(None)
    try:
        yield
    finally:
        GUARD.reset(token)


@dataclass
class ReplayGuard:
    """Makes claims, runs requests once, and removes old markers. `now` gives Unix nanoseconds."""

    client: EtcdClient
    now: Callable[[], int]
    _daemon: bytes = field(default_factory=lambda: secrets.token_bytes(8))
    _tries: Iterator[int] = field(default_factory=itertools.count)

    def claim(
        self, identity: str, nonce: str, issued: float, payload: str, *, lasting: bool = False
    ) -> Claim:
        """Return the claim of a request, which was issued at a time (Unix s)."""
        digest = hashlib.sha256(payload.encode()).digest()[:16]
        key = store.marker(identity, nonce, issued, lasting=lasting)
        run = b"%b%x" % (self._daemon, next(self._tries))
        return Claim(self.client, key, store.span(issued), digest, run, lasting)

    async def once(
        self,
        claim: Claim,
        once: Once,
        work: Callable[[], Awaitable[Any]],
        again: Callable[[str], Awaitable[Any]],
        *,
        entitled: bool,
    ) -> Any:
        """Do `work` unless the claim's request was served before; otherwise return its first
        answer.

        `again` answers a repeat of a call that took effect together with its marker, by the first
        key that it wrote. The refusal of a caller that is not `entitled` is not kept. Raises
        RpcError and EtcdError.
        """
        try:
            if once is not Once.TOGETHER:
                return await self._after(claim, work)
            return await self._together(claim, work, entitled=entitled)
        except Replayed as replayed:
            known = replayed.marker
        if known.digest != claim.digest:
            raise Denied("nonce: used already for another request")
        if known.status == 200 and known.answer:
            return msgspec.Raw(known.answer)
        if known.status not in (0, 200):
            raise of_status(known.status, known.answer.decode())
        if once is Once.TOGETHER:
            return await again(known.place)
        if once is Once.RESUMED and not known.status and not known.run.startswith(self._daemon):
            return await self._kept(claim, work)
        raise Conflict(
            "nonce: this request was begun before, and its answer is not known here; look at what"
            " it was to change, and sign a new request if that did not happen"
        )

    async def _after(self, claim: Claim, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            await claim.mark()
        except EtcdNoSpace:
            # The store now takes deletions only, and these must go on: they make room.
            await claim.look()
            log.warning("no room for a marker")
        return await self._kept(claim, work)

    async def _kept(self, claim: Claim, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do `work`, and keep its answer for a repeat."""
        try:
            value = await work()
        except RpcError as error:
            await claim.keep(error.status, error.message.encode())
            raise
        await claim.keep(200, _to_json({} if value is None else value))
        return value

    async def _together(
        self, claim: Claim, work: Callable[[], Awaitable[Any]], *, entitled: bool
    ) -> Any:
        refusal, value = None, None
        token = GUARD.set(claim)
        try:
            value = await work()
        except RpcError as error:
            if claim.spent or isinstance(error, Replayed):
                raise
            refusal = error
        finally:
            GUARD.reset(token)
        # A request that changed nothing must not do so later, either.
        if refusal is None and not claim.spent:
            await claim.mark(200, _to_json({} if value is None else value))
        if refusal is not None:
            if entitled and isinstance(refusal, _FINAL):
                try:
                    await claim.mark(refusal.status, refusal.message.encode())
                except EtcdError as error:
                    log.warning("refusal not kept", error=error)
            raise refusal
        return value

    async def latest(self) -> int:
        """Return the time of issue (Unix s) up to which markers are removed, and requests
        refused.
        """
        found = await self.client.get(store.FLOOR)
        return (int(found.value) + 1) * store.SPAN if found is not None else 0

    async def forget(self) -> None:
        """Accept requests that are signed from now on, though markers of later times were removed.

        For an owner who knows that a clock was wrong: requests signed by that clock may be repeated
        when their time comes.
        """
        present = store.number(store.span(self.now() / SECOND))
        found = await self.client.get(store.FLOOR)
        if found is not None and found.value > present:
            unchanged = ModRevision(store.FLOOR, found.mod_revision)
            await self.client.commit(Txn([unchanged], [Put(store.FLOOR, present)]))

    async def run(self) -> None:
        """Remove markers once their requests are too old to be taken, until cancelled."""
        while True:
            try:
                await self.sweep()
            except EtcdError as error:
                log.warning("sweep later", error=error)
            await trio.sleep(_SWEEP)

    async def sweep(self) -> None:
        """Remove the markers of requests that are too old to be accepted; store up to which time.

        From then on no older request is accepted, whatever a clock says.
        """
        end = store.spans(store.span(self.now() / SECOND - _KEEP))
        while True:
            found = await self.client.first(store.MARKERS, end)
            if found is None:
                return
            # Never beyond the latest marker: a clock that was ahead must not shut every client out.
            last = store.parse_span(found)
            raised = Put(store.FLOOR, store.number(last))
            for prefix in store.slices(last, await self.client.count(store.spans(last)), _AT_ONCE):
                gone = DeletePrefix(prefix)
                await self.client.commit(Txn([store.kept(last)], [raised, gone], [gone]))
