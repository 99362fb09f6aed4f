"""Mailboxes: a colony that cannot be connected to polls a peer, which holds messages for it.

A mailbox carries messages and answers as they are, signed for their receivers. It reads, signs and
stores none of them; the sender's outbox outlasts a loss.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from federation.forward import machine
from federation.peers.context import Context
from federation.peers.registry import TRUSTED, Peers, PeerState
from federation.transport.connection import Carrier, PeerConnection, PeerResponse
from federation.transport.endpoint import Endpoint
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError, Unsent
from federation.wire.envelope import Kind, Rejected, VerifiedMessage
from federation.wire.messages import Collect, Parcel, Parcels, Pass, Passed, Reply, load
from federation.wire.refusals import BROUGHT, Refusal
from federation.wire.signer import Signer
from federation.wire.sizes import SIZES
from node.host.log import get_logger
from node.http.server import Request, Response
from node.tasks.containment import contained

_WAIT = 25  # seconds of a poll
_GAP = 10.0  # seconds between two polls of a colony that is there
_ANSWER = 15.0  # seconds for an answer, beside the wait that the message itself allows
_PER_SENDER, _IN_ALL = 16, 64  # messages held for one colony
_BYTES = 4_000_000  # bytes of these, a quarter of it from one sender
_ANSWERS = 16_000_000  # bytes of incomplete answers from one colony
_TOGETHER = 64_000_000  # bytes of messages and answers of all colonies
_PAGE = 2_000_000  # bytes of messages in one answer to a poll
_PART = 1_000_000  # bytes of an answer in one message
_LONGEST = SIZES[Kind.OUTCOMES].bytes  # of an answer
_SLOTS = 64  # messages that a poller works on at a time
_PATIENCE = 60.0  # seconds until a mailbox that refused is polled again

log = get_logger("mailbox")


@dataclass(eq=False)
class _PendingMessage:
    """A message that waits for its answer."""

    parcel: Parcel
    sender: str
    taken: bool = False
    parts: bytearray = field(default_factory=bytearray)
    answer: PeerResponse | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _MailboxQueue:
    """The messages held for one colony; `seen` is the time of its last poll, in trio's time."""

    held: OrderedDict[bytes, _PendingMessage] = field(default_factory=OrderedDict)
    wakeup: trio.Event = field(default_factory=trio.Event)
    polls: int = 0
    seen: float = float("-inf")
    parts: int = 0  # bytes of answers

    def wake(self) -> None:
        self.wakeup.set()
        self.wakeup = trio.Event()


@dataclass
class Mailbox:
    """The queues of the colonies that poll us. `arrived` is called for a colony that starts to."""

    signer: Signer
    peers: Peers
    arrived: Callable[[str], None]
    draining: bool = False
    _queues: dict[str, _MailboxQueue] = field(default_factory=dict)
    _count: int = 0
    _bytes: int = 0  # held for all colonies

    def open(self, peerid: str) -> bool:
        """Return whether a colony polls us, so that a message reaches it through this mailbox."""
        queue = self._queues.get(peerid)
        return queue is not None and (queue.polls > 0 or trio.current_time() - queue.seen < _GAP)

    def drain(self) -> None:
        """Answer every waiting poll now."""
        self.draining = True
        for queue in self._queues.values():
            queue.wake()

    def forget(self, peerid: str) -> None:
        """Drop the queue of a colony that is no longer trusted."""
        queue = self._queues.pop(peerid, None)
        if queue is not None:
            for held in queue.held.values():
                held.done.set()
            queue.wake()

    async def carry(
        self, peerid: str, sender: str, path: str, body: bytes, wait: float
    ) -> PeerResponse:
        """Hold a message until the colony has fetched and answered it. Raises Unsent or Lost.

        `wait` is how long the colony may wait with its answer, in seconds. Number and bytes of held
        messages are limited, for each sender as well.
        """
        if not self.open(peerid):
            raise Unsent("it does not poll us now")
        queue = self._queues[peerid]
        same = [held for held in queue.held.values() if held.sender == sender]
        total = sum(len(held.parcel.body) for held in queue.held.values()) + len(body)
        mine = sum(len(held.parcel.body) for held in same) + len(body)
        if len(queue.held) >= _IN_ALL or len(same) >= _PER_SENDER or total > _BYTES:
            raise Unsent("its mailbox is full")
        if same and mine > _BYTES // 4:
            raise Unsent("its mailbox holds too much of one sender")
        if self._bytes + len(body) > _TOGETHER:
            raise Unsent("the mailbox holds as much as it can for all")
        self._bytes += len(body)
        self._count += 1
        name = self._count.to_bytes(8, "big")
        held = queue.held[name] = _PendingMessage(
            Parcel(name, path, body, min(30, int(wait))), sender
        )
        queue.wake()
        try:
            with trio.move_on_after(_ANSWER + wait):
                await held.done.wait()
        finally:
            queue.held.pop(name, None)
            self._bytes -= len(body) + len(held.parts)
            queue.parts -= len(held.parts)
        if held.answer is None:
            raise Lost("no answer by way of the mailbox") if held.taken else Unsent("not fetched")
        return held.answer

    # -- what peers ask ----------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints at which colonies poll, and peers leave messages for them."""
        return [
            Endpoint("/v1/mail", Kind.COLLECT, self.collect),
            Endpoint("/v1/pass", Kind.PASS, self.forward),
        ]

    async def collect(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Take a colony's answers. Return messages for it, and wait if there are none.

        A request without a wait only brings answers.
        """
        wish = load(opened.payload, Collect)
        fresh = not self.open(opened.issuer)
        queue = self._queues.setdefault(opened.issuer, _MailboxQueue())
        for reply in wish.answers:
            self._answered(queue, reply)
        found: list[Parcel] = []
        queue.polls += 1
        if fresh:
            self.arrived(opened.issuer)
        try:
            with trio.move_on_after(wish.wait):
                while wish.wait and not self.draining and not (found := self._next(queue)):
                    await queue.wakeup.wait()
        finally:
            queue.polls -= 1
            queue.seen = trio.current_time()
        if self.peers.state(opened.issuer) != TRUSTED:
            raise Refusal(403, "untrusted", "this colony does not trust yours any more")
        return self.signer.seal(Kind.PARCELS, opened.issuer, Parcels(found))

    @staticmethod
    def _next(queue: _MailboxQueue) -> list[Parcel]:
        """Return the messages that were not handed out yet, as many as fit one answer."""
        found: list[Parcel] = []
        total = 0
        for held in queue.held.values():
            if not held.taken and (not found or total + len(held.parcel.body) <= _PAGE):
                held.taken = True
                found.append(held.parcel)
                total += len(held.parcel.body)
        return found

    def _answered(self, queue: _MailboxQueue, reply: Reply) -> None:
        """Add a part to an answer. Too large a part, or too many bytes in all, fails the answer."""
        held = queue.held.get(reply.id)
        if held is None or held.done.is_set():
            return
        size = len(reply.data)
        if queue.parts + size > _ANSWERS or self._bytes + size > _TOGETHER:
            held.done.set()
            return
        held.parts += reply.data
        self._bytes += size
        queue.parts += size
        if len(held.parts) > _LONGEST:
            held.done.set()
        elif not reply.more:
            held.answer = PeerResponse(reply.status, reply.after, bytes(held.parts))
            held.done.set()

    async def forward(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Carry a peer's message to a colony that polls us. Raises Refusal.

        The sender trusts nothing that we say about its fate, only what the receiver signed.
        """
        wish = load(opened.payload, Pass)
        to = self.peers.index.root(wish.to)
        if self.peers.state(to) != TRUSTED or not self.open(to):
            raise Refusal(429, "mailbox_absent", "that colony does not poll us now", again=5)
        try:
            answer = await self.carry(to, opened.issuer, wish.path, wish.body, wish.wait)
        except Unsent as error:
            raise Refusal(429, "mailbox_full", str(error), again=5) from None
        except Lost as error:
            raise Refusal(503, "mailbox_lost", str(error), again=5) from None
        passed = Passed(answer.status, answer.retry_after, answer.data)
        return self.signer.seal(Kind.PASSED, opened.issuer, passed)


async def pass_on(
    connection: PeerConnection, to: str, path: str, body: bytes, wait: float
) -> PeerResponse:
    """Send a message to the colony `to` through the peer that it polls. Raises TransportError.

    Once the mailbox has the message, nothing that the mailbox says proves that it was not
    delivered.
    """
    wish = Pass(to, path, body, min(30, int(wait)))
    sealed = connection.seal(Kind.PASS, wish)
    try:
        opened, _ = await connection.post("/v1/pass", sealed, Kind.PASSED, wait + _ANSWER)
        passed = load(opened.payload, Passed)
    except RemoteRefusal as error:
        if error.reason is not Reason.LATER:
            raise Lost(f"its mailbox: {error}") from None
        code = f"its mailbox: {error.code}"
        raise RemoteRefusal(code, error.message, Reason.LATER, seconds=error.seconds) from None
    except Rejected as error:
        raise Lost(f"its mailbox: {error}") from None
    return PeerResponse(passed.status, passed.after, passed.data, brought=True)


@dataclass
class Reachability:
    """Tells which peers are reached through a mailbox, ours or another's, and which peers we poll.

    `connections` are those to the trusted peers, by the id under which each is kept.
    """

    context: Context
    mailbox: Mailbox
    connections: Mapping[str, PeerConnection]
    _polled: dict[str, trio.Event] = field(default_factory=dict)

    def polled(self, peerid: str) -> trio.Event:
        """Return the event that is set once we poll this peer."""
        return self._polled.setdefault(self.context.peers.index.root(peerid), trio.Event())

    def mailboxes(self) -> list[str]:
        """Return the present ids of the trusted peers that we poll, as our card lists them."""
        return sorted(
            self.context.peers.known[peerid].peer.wire
            for peerid, event in self._polled.items()
            if event.is_set() and self.context.peers.state(peerid) == TRUSTED
        )

    def around(self, entry: PeerState) -> Carrier | None:
        """Return a carrier through a mailbox, ours or a peer's; None to connect directly."""
        peerid = entry.peer.id
        if self.mailbox.open(peerid):
            return functools.partial(self.mailbox.carry, peerid, self.context.signer.key.id)
        if entry.sighted or entry.proven:
            return None
        for mailbox in entry.peer.mailboxes:
            connection = self.connections.get(self.context.peers.index.root(mailbox))
            if connection is not None and connection.id != peerid:
                return functools.partial(pass_on, connection, entry.peer.wire)
        return None


@dataclass
class MailboxPoller:
    """Polls peers for messages to us, and lets `handle` answer these."""

    handle: Callable[[Request], Awaitable[Response]]
    chance: random.Random

    async def collect_forever(self, connection: PeerConnection) -> None:
        """Poll one peer until cancelled, and answer messages meanwhile."""
        slots, failures = trio.CapacityLimiter(_SLOTS), 0
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    parcels = await self._exchange(connection, Collect(_WAIT, []))
                    failures = 0
                except (TransportError, Rejected) as error:
                    failures += 1
                    log.info("mailbox not reached", peer=connection.id, error=error)
                    refused = isinstance(error, TransportError) and error.final
                    await trio.sleep(_PATIENCE if refused else machine.delay(failures, self.chance))
                    continue
                for parcel in parcels:
                    nursery.start_soon(self._work_safely, connection, parcel, slots)
                if slots.available_tokens == 0:
                    async with slots:
                        pass

    async def _exchange(self, connection: PeerConnection, wish: Collect) -> list[Parcel]:
        sealed = connection.seal(Kind.COLLECT, wish)
        opened, _ = await connection.post("/v1/mail", sealed, Kind.PARCELS, wish.wait)
        return load(opened.payload, Parcels).parcels

    async def _work_safely(
        self, connection: PeerConnection, parcel: Parcel, slots: trio.CapacityLimiter
    ) -> None:
        with contained("message of a mailbox", peer=connection.id, path=parcel.path):
            await self._work(connection, parcel, slots)

    async def _work(
        self, connection: PeerConnection, parcel: Parcel, slots: trio.CapacityLimiter
    ) -> None:
        """Answer one message. If the answer is lost, the sender repeats the message."""
        async with slots:
            if parcel.path in ("/v1/mail", "/v1/pass"):
                return
            # Without an address: the message did not come from the local network.
            request = Request("POST", parcel.path, "", {}, parcel.body, BROUGHT)
            response = await self.handle(request)
            after = dict(response.headers).get("retry-after", "")
            data = bytes(response.body)
            try:
                for start in range(0, max(1, len(data)), _PART):
                    part, more = data[start : start + _PART], start + _PART < len(data)
                    reply = Reply(parcel.id, response.status, after, part, more)
                    await self._exchange(connection, Collect(0, [reply]))
            except (TransportError, Rejected) as error:
                log.info("answer not brought to the mailbox", peer=connection.id, error=error)
