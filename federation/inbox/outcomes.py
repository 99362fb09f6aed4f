"""The outcome queue: outcomes owed to other colonies, until they acknowledge them, and updates.

Colonies poll for them (`/v2/outcomes`). `inbox.accept` takes their submissions and cancels.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from dataclasses import dataclass, field

import msgspec
import trio

from federation.forward import chain as chains
from federation.forward.machine import Forward
from federation.forward.path import OriginRequest
from federation.forward.receipt import request_in
from federation.inbox.updates import UpdatePublisher
from federation.limits.accounts import PeerQuotas
from federation.peers.context import Context
from federation.peers.registry import TRUSTED, trusted_revision
from federation.wire.envelope import MAX_LIFETIME, Kind, VerifiedMessage, inspect
from federation.wire.messages import Outcome, Outcomes, Poll, load
from federation.wire.signer import cti_of
from federation.wire.sizes import SIZES
from node.etcd.txn import Delete, Op, Txn
from node.model.codec import unpack
from node.model.types import Process, State
from node.tasks.sync import gather

_PAGE = 64  # outcomes in one answer
_TOGETHER = 8  # outcomes made at a time: each may have megabytes
_PAGE_BYTES = 2_000_000  # of outcomes in one answer, unless one alone is larger
_ERRORS = 1_000  # errors of one process that are sent
_WEIGHT = 8  # processes in a poll that count as one message
_LOOK = 10.0  # seconds after which polls look for what another daemon of this colony wrote


@dataclass
class OutcomeQueue:
    """Answers the polls of other colonies. `owed` holds the ids of their processes, by colony.

    `owed` mirrors the store as far as this daemon knows; every listing corrects it.
    """

    context: Context
    peer_quotas: PeerQuotas
    update_publisher: UpdatePublisher
    owed: dict[str, set[str]] = field(default_factory=dict)
    draining: bool = False
    wakeups: dict[str, trio.Event] = field(default_factory=dict)
    _looked: float = -math.inf  # when they last did, in trio's time

    async def load(self) -> None:
        """Read from the store which outcomes are owed. Raises EtcdError."""
        before = {issuer: set(pids) for issuer, pids in self.owed.items()}
        items, _ = await self.context.client.range_all(self.context.keys.owed_all)
        listed: dict[str, set[str]] = {}
        for item in items:
            issuer, pid = item.key[len(self.context.keys.owed_all) :].split("/")
            listed.setdefault(issuer, set()).add(pid)
        for issuer in {**before, **self.owed, **listed}:
            self._correct(issuer, before.get(issuer, set()), listed.get(issuer, set()))

    def _correct(self, issuer: str, before: set[str], listed: set[str]) -> None:
        """Set `owed` to what the store `listed`, with the newer changes since `before`."""
        now = self.owed.get(issuer, set())
        self.owed[issuer] = (listed | (now - before)) - (before - now)

    def closed(self, process: Process) -> None:
        """Queue the outcome of another colony's process, and wake that colony's poll."""
        pid = process.notify.rpartition("/")[2]
        self.owed.setdefault(process.origin, set()).add(pid)
        self.update_publisher.ended(process)
        self._wake(process.origin)

    def progressed(self, process: Process) -> None:
        """Note an update of another colony's process, and wake that colony's poll."""
        self.update_publisher.progressed(process)
        self._wake(process.origin)

    def blocked(self, issuer: str) -> None:
        """End the waiting poll of a blocked colony now, with a refusal."""
        self._wake(issuer)

    def _wake(self, issuer: str) -> None:
        wakeup = self.wakeups.pop(issuer, None)
        if wakeup is not None:
            wakeup.set()

    def drain(self) -> None:
        """Answer every waiting poll now."""
        self.draining = True
        for issuer in list(self.wakeups):
            self._wake(issuer)

    async def outcomes(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Delete acknowledged outcomes; then return owed ones, and wait if there are none."""
        poll = load(opened.payload, Poll)
        # The processes of a poll count as some more messages.
        self.peer_quotas.weigh(opened, (len(poll.follow or ()) + len(poll.ack)) // _WEIGHT)
        await self._acknowledge(opened.issuer, poll.ack)
        until = trio.current_time() + poll.wait
        while True:
            wakeup = self.wakeups.setdefault(opened.issuer, trio.Event())
            found = await self._owed(opened.issuer)
            # Also of a colony that gets updates all the time, and never waits for long.
            if trio.current_time() >= self._looked + _LOOK:
                self._looked = trio.current_time()
                self.update_publisher.look_again()
            # Read updates after the outcomes, so that an ended process has all of its updates.
            news, cut = await self.update_publisher.news(opened.issuer, poll, found)
            now = trio.current_time()
            if found or news or self.draining or now >= until:
                break
            await self._rest(opened.issuer, poll, wakeup, until)
            # The colony may have been blocked while it waited: then what is owed is kept, but not
            # sent.
            trusted_revision(self.context.peers, opened.issuer)
        answer = Outcomes(list(found.values()), news, cut)
        return self.context.signer.seal(Kind.OUTCOMES, opened.issuer, answer)

    async def _rest(self, issuer: str, poll: Poll, wakeup: trio.Event, until: float) -> None:
        """Wait until a poll may have an answer: an outcome, or an update that is due."""
        look = self._looked + _LOOK
        while True:
            due = self.update_publisher.due(issuer) if poll.follow is not None else math.inf
            with trio.move_on_at(min(until, look, due)) as quiet:
                await wakeup.wait()
            if quiet.cancelled_caught:
                return
            entry = self.context.peers.get(issuer)
            if (
                self.owed.get(issuer)
                or self.draining
                or entry is None
                or entry.peer.state != TRUSTED
                # Another poll of the colony took the update, perhaps in vain.
                or self.update_publisher.due(issuer) == math.inf
            ):
                return
            wakeup = self.wakeups.setdefault(issuer, trio.Event())

    async def _acknowledge(self, issuer: str, pids: list[str]) -> None:
        if not pids:
            return
        ops: list[Op] = [Delete(self.context.keys.owed(issuer, pid)) for pid in dict.fromkeys(pids)]
        await self.context.client.commit(Txn([], ops))
        self.owed.get(issuer, set()).difference_update(pids)

    async def _owed(self, issuer: str) -> dict[str, bytes]:
        """Return some of the outcomes that a colony has not acknowledged, by its process ids."""
        owed = await self._some_owed(issuer)
        sealed: dict[str, bytes] = {}
        total = 0

        def make(item: tuple[str, str]) -> Awaitable[bytes]:
            return self._outcome(issuer, *item)

        largest = _PAGE_BYTES  # the first is made alone
        while len(sealed) < len(owed) and total < _PAGE_BYTES:
            # Their reads go together. As many are made as probably fit.
            count = max(1, min(_TOGETHER, (_PAGE_BYTES - total) // largest))
            part = owed[len(sealed) : len(sealed) + count]
            for outcome in await gather(make, part, _TOGETHER):
                total, largest = total + len(outcome), max(len(outcome), largest if sealed else 1)
                if sealed and total > _PAGE_BYTES:
                    return sealed
                sealed[owed[len(sealed)][0]] = outcome
        return sealed

    async def _some_owed(self, issuer: str) -> list[tuple[str, str]]:
        """Return some processes whose outcomes are owed: a colony's id of each, and ours."""
        prefix, before = self.context.keys.owed_to(issuer), set(self.owed.get(issuer, ()))
        listing = await self.context.client.range(prefix, limit=_PAGE)
        listed = {item.key[len(prefix) :]: item.value.decode() for item in listing.items}
        if not listing.more:
            self._correct(issuer, before, set(listed))
        return list(listed.items())

    async def _outcome(self, issuer: str, pid: str, localpid: str) -> bytes:
        attempt, request = 1, OriginRequest()
        received = await self.update_publisher.place(issuer, pid, localpid=localpid)
        if received is not None:
            attempt = received.attempt
            request = await request_in(self.context.client, self.context.home, received)
        loaded = await self.context.processes.ended(self.context.home, localpid)
        now = self.context.clock.seconds
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
                list(process.errors[:_ERRORS]),
                localpid,
                process.assignedexecutorid,
                process.starttime,
                process.endtime,
            )
            if process.peer:
                outcome = await self._carry(process, outcome)
            # Sign with the end's time, so that repeats have the same bytes, while that is accepted.
            ended = process.endtime // 1_000_000_000
            # After a clock that was ahead at the end and was set back, the end is in the future.
            issued = ended if ended <= now < ended + MAX_LIFETIME - 3600 else now
        outcome = msgspec.structs.replace(outcome, asked=request.digest, origin=request.origin)
        name = cti_of("outcome", pid, attempt)
        sealed = self.context.signer.seal(Kind.OUTCOME, issuer, outcome, cti=name, issued=issued)
        if len(sealed) <= SIZES[Kind.OUTCOME].bytes:
            return sealed
        # JSON may be several times as long as the stored value: then send the end without output.
        message = f"the output is too large to be sent: {len(sealed)} bytes"
        outcome = msgspec.structs.replace(
            outcome, state=int(State.FAILED), out=b"[]", errors=[message], below=b"", keys=[]
        )
        return self.context.signer.seal(Kind.OUTCOME, issuer, outcome, cti=name, issued=issued)

    async def _carry(self, process: Process, outcome: Outcome) -> Outcome:
        """Return a relay's outcome with the one that it received, for the origin to check."""
        found = await self.context.client.get(self.context.keys.proof(process.processid))
        if found is None:
            return outcome
        record = unpack(found.value, Forward)
        below = record.outcome
        if not below:
            kept = await self.context.client.get(self.context.keys.apart(process.processid))
            below = kept.value if kept else b""
        if not below:
            return outcome
        key = self.context.peers.public_key(inspect(below, limit=len(below)).issuer)
        return chains.carried(outcome, below, key or b"")
