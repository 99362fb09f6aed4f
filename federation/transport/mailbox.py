"""Mailboxes: a colony that cannot be connected to polls a peer, which holds messages for it.

A mailbox carries messages and answers as they are, signed for their receivers. It reads, signs and
stores none of them; the sender's outbox outlasts a loss. `ways` leads to other mailboxes, `polling`
fetches from ours, and `reach.mailboxes` chooses ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from federation.dht.lookups import target
from federation.peers.address_limit import AddressLimiter
from federation.peers.policy import TokenBucket
from federation.peers.registry import TRUSTED, Peers
from federation.transport.connection import PeerResponse
from federation.transport.endpoint import Endpoint
from federation.transport.errors import Lost, Unsent
from federation.wire.card import Card, open_card
from federation.wire.envelope import Kind, Rejected, UnverifiedMessage, VerifiedMessage, inspect
from federation.wire.messages import (
    INVITED_BYTES,
    SENDER_BYTES,
    Collect,
    Parcel,
    Parcels,
    Pass,
    Passed,
    Reply,
    load,
)
from federation.wire.refusals import Refusal
from federation.wire.signer import Signer
from federation.wire.sizes import SIZES

ANSWER = 15.0  # seconds for an answer, beside the wait that the message itself allows
_GAP = 10.0  # seconds between two polls of a colony that is there
_PER_SENDER, _IN_ALL = 16, 64  # messages held for one colony
_BYTES = 4_000_000  # bytes of these, a quarter of it from one sender
_ANSWERS = 16_000_000  # bytes of incomplete answers from one colony
_TOGETHER = 64_000_000  # bytes of messages and answers of all colonies
_PAGE = 2_000_000  # bytes of messages in one answer to a poll
_LONGEST = SIZES[Kind.OUTCOMES].bytes  # of an answer
_JOIN = "/v1/join"
# Messages of colonies that we do not trust: held of one, for one client, and in all.
_OF_STRANGER, _STRANGERS_EACH, _STRANGERS = 8, 32, 128
_STRANGERS_BYTES = 16_000_000  # bytes of these
# Such messages a minute: of one address (an IPv6 /64 counts as one) and in all, counted before the
# signature is checked; for one client, with their bytes, counted after.
_FROM_ADDRESS, _FROM_ALL, _FOR_CLIENT = 240, 1_200, 600
_CLIENT_BYTES = 16_000_000
_FOREIGN = 20  # messages a minute for one client that another colony signed than the sender
_FOUND = 64  # clients that are announced and whose cards are given out


@dataclass(eq=False)
class _PendingMessage:
    """A message that waits for its answer."""

    parcel: Parcel
    sender: str
    stranger: bool = False
    taken: bool = False
    parts: bytearray = field(default_factory=bytearray)
    answer: PeerResponse | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _MailboxQueue:
    """The messages held for one colony; `seen` is the time of its last poll, in trio's time.

    `senders` and `invited` are what the colony said of those who may leave messages, None if it
    does not want to be found by this mailbox.
    """

    held: OrderedDict[bytes, _PendingMessage] = field(default_factory=OrderedDict)
    wakeup: trio.Event = field(default_factory=trio.Event)
    polls: int = 0
    seen: float = float("-inf")
    parts: int = 0  # bytes of answers
    senders: frozenset[bytes] | None = None
    invited: frozenset[bytes] = frozenset()
    rate: TokenBucket = field(default_factory=TokenBucket)  # of strangers' messages
    bytes_rate: TokenBucket = field(default_factory=TokenBucket)
    foreign: TokenBucket = field(default_factory=TokenBucket)  # messages signed by another colony

    def admits(self, issuer: str, wish: Pass) -> bool:
        """Return whether a colony that the mailbox does not trust may leave this message."""
        if self.senders is not None and bytes.fromhex(issuer)[:SENDER_BYTES] in self.senders:
            return True
        if wish.path != _JOIN or len(wish.body) > SIZES[Kind.JOIN].bytes:
            return False
        name = wish.knock.partition(" ")[0]
        return any(name == each.hex() for each in self.invited)

    def wake(self) -> None:
        self.wakeup.set()
        self.wakeup = trio.Event()


@dataclass
class Mailbox:
    """The queues of the colonies that poll us. `arrived` is called for a colony that starts to.

    With `strangers`, colonies that we do not trust may leave messages, as the receivers say, and
    receivers are found through us.
    """

    signer: Signer
    peers: Peers
    arrived: Callable[[str], None]
    strangers: bool = False
    draining: bool = False
    _limiter: AddressLimiter = field(
        default_factory=lambda: AddressLimiter(_FROM_ADDRESS, _FROM_ALL)
    )
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

    def clients(self) -> list[str]:
        """Return the present ids of the colonies that poll us and want to be found through us."""
        found = [
            self.peers.known[peerid].peer.wire
            for peerid, queue in self._queues.items()
            if queue.senders is not None and self._serves(peerid)
        ]
        return found[:_FOUND] if self.strangers else []

    def card_of(self, key: str) -> bytes | None:
        """Return the signed card of a colony that is found through us, by its key in the DHT."""
        for peerid in self.clients():
            if target(peerid).hex() == key:
                entry = self.peers.known[peerid]
                return entry.latest or entry.peer.card or None
        return None

    def served(self) -> dict[str, int]:
        """Return how many messages are held for each colony that polls us, by its present id."""
        return {
            self.peers.known[peerid].peer.wire: len(queue.held)
            for peerid, queue in self._queues.items()
            if self._serves(peerid)
        }

    def _serves(self, peerid: str) -> bool:
        return self.open(peerid) and self.peers.state(peerid) == TRUSTED

    async def carry(
        self,
        peerid: str,
        sender: str,
        path: str,
        body: bytes,
        wait: float,
        *,
        knock: str = "",
        stranger: bool = False,
    ) -> PeerResponse:
        """Hold a message until the colony has fetched and answered it. Raises Unsent or Lost.

        `wait` is how long the colony may wait with its answer, in seconds. Number and bytes of held
        messages are limited, for each sender as well, and more for a `stranger`.
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
        if stranger:
            self._demand_room(queue, sender, len(body))
        self._bytes += len(body)
        self._count += 1
        name = self._count.to_bytes(8, "big")
        held = queue.held[name] = _PendingMessage(
            Parcel(name, path, body, min(30, int(wait)), knock), sender, stranger
        )
        queue.wake()
        try:
            with trio.move_on_after(ANSWER + wait):
                await held.done.wait()
        finally:
            queue.held.pop(name, None)
            self._bytes -= len(body) + len(held.parts)
            queue.parts -= len(held.parts)
        if held.answer is None:
            raise Lost("no answer by way of the mailbox") if held.taken else Unsent("not fetched")
        return held.answer

    def _demand_room(self, queue: _MailboxQueue, sender: str, size: int) -> None:
        """Raise Unsent if there is no room for a message of a colony that we do not trust."""
        here = [held for held in queue.held.values() if held.stranger]
        every = [
            held for each in self._queues.values() for held in each.held.values() if held.stranger
        ]
        if (
            sum(held.sender == sender for held in here) >= _OF_STRANGER
            or len(here) >= _STRANGERS_EACH
            or len(every) >= _STRANGERS
            or sum(len(held.parcel.body) for held in every) + size > _STRANGERS_BYTES
        ):
            raise Unsent("the mailbox holds no more of colonies that it does not trust")
        now = trio.current_time()
        if queue.rate.take(_FOR_CLIENT, now) or queue.bytes_rate.take(_CLIENT_BYTES, now, size):
            raise Unsent("that colony got too much by this mailbox within a minute")

    # -- what peers ask ----------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints at which colonies poll, and peers leave messages for them."""
        return [
            Endpoint("/v1/mail", Kind.COLLECT, self.collect),
            Endpoint("/v1/pass", Kind.PASS, self.forward, guest=self.guest),
        ]

    async def collect(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Take a colony's answers. Return messages for it, and wait if there are none.

        A request without a wait only brings answers.
        """
        wish = load(opened.payload, Collect)
        fresh = not self.open(opened.issuer)
        queue = self._queues.setdefault(opened.issuer, _MailboxQueue())
        if wish.senders is not None or wish.wait:
            # A poll without senders is of a colony that does not, or no longer, want to be found.
            told = wish.senders
            queue.senders = None if told is None else frozenset(_cut(told, SENDER_BYTES))
            queue.invited = frozenset(_cut(wish.invitations, INVITED_BYTES))
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

    def guest(self, seen: UnverifiedMessage, remote: str) -> Card:
        """Return the card by which to check a message of a colony that we do not trust.

        Raises Refusal or Rejected. Whether the receiver wants the message is asked first, then the
        rate of the address: only then a signature is checked, that of the card.
        """
        wish = load(seen.payload, Pass)
        queue = self._queues.get(self.peers.index.root(wish.to))
        if (
            not self.strangers
            or queue is None
            or not self._serves(self.peers.index.root(wish.to))
            or not queue.admits(seen.issuer, wish)
        ):
            raise _closed()
        if wait := self._limiter.take(remote, trio.current_time()):
            message = "too many messages of colonies that this mailbox does not trust"
            raise Refusal(429, "mailbox_rate", message, again=int(wait) + 1)
        clock = self.signer.clock
        card = open_card(wish.card, clock.seconds, high_water=clock.floor)
        if card.id != seen.issuer:
            raise Rejected("unknown_issuer", "the card is another colony's")
        return card

    def _count_foreign(self, to: str, sender: str, body: bytes) -> None:
        """Count a message in the name of another colony than its sender. Raises Refusal.

        It may be of the sender's former key, or false: then it counts at the receiver for that
        colony, and for us, so fewer are taken than the receiver checks.
        """
        try:
            issuer = inspect(body, limit=len(body)).issuer
        except Rejected:
            return  # the receiver refuses it unchecked
        if self.peers.index.root(issuer) == self.peers.index.root(sender):
            return
        if wait := self._queues[to].foreign.take(_FOREIGN, trio.current_time()):
            message = "too many messages signed by other colonies than their senders"
            raise Refusal(429, "mailbox_sender", message, again=int(wait) + 1)

    async def forward(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Carry a message to a colony that polls us. Raises Refusal.

        The sender trusts nothing that we say about its fate, only what the receiver signed.
        """
        wish = load(opened.payload, Pass)
        to = self.peers.index.root(wish.to)
        if not self._serves(to):
            raise Refusal(429, "mailbox_absent", "that colony does not poll us now", again=5)
        self._count_foreign(to, opened.issuer, wish.body)
        stranger = self.peers.state(opened.issuer) != TRUSTED
        try:
            answer = await self.carry(
                to,
                opened.issuer,
                wish.path,
                wish.body,
                wish.wait,
                knock=wish.knock,
                stranger=stranger,
            )
        except Unsent as error:
            raise Refusal(429, "mailbox_full", str(error), again=5) from None
        except Lost as error:
            raise Refusal(503, "mailbox_lost", str(error), again=5) from None
        passed = Passed(answer.status, answer.retry_after, answer.data)
        return self.signer.seal(Kind.PASSED, opened.issuer, passed)


def _cut(data: bytes, size: int) -> list[bytes]:
    """Return the pieces of `size` bytes; what is left at the end counts for nothing."""
    return [data[start : start + size] for start in range(0, len(data) - size + 1, size)]


def _closed() -> Refusal:
    """Return the refusal of a stranger's message, the same for every reason."""
    return Refusal(
        403,
        "mailbox_closed",
        "this mailbox does not trust your colony, and no colony that polls it expects this message",
    )
