"""Mailboxes: a colony that cannot be connected to polls a peer, which holds messages for it.

A mailbox carries messages and answers as they are, signed for their receivers. It reads, signs and
stores none of them; the sender's outbox outlasts a loss. `reach.mailboxes` chooses mailboxes.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from federation.dht.lookups import target
from federation.forward import machine
from federation.peers.address_limit import AddressLimiter
from federation.peers.context import Context
from federation.peers.policy import TokenBucket
from federation.peers.registry import BLOCKED, TRUSTED, Peers, PeerState
from federation.transport.connection import Carrier, PeerConnection, PeerResponse
from federation.transport.endpoint import Endpoint
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError, Unsent
from federation.wire.card import Card, open_card
from federation.wire.envelope import Kind, Rejected, UnverifiedMessage, VerifiedMessage
from federation.wire.invitation import KNOCK
from federation.wire.messages import (
    MOST_INVITED,
    MOST_SENDERS,
    Collect,
    Parcel,
    Parcels,
    Pass,
    Passed,
    Reply,
    load,
)
from federation.wire.refusals import BROUGHT, Refusal
from federation.wire.signer import Signer
from federation.wire.sizes import SIZES
from node.host.log import get_logger
from node.http.server import Request, Response
from node.tasks.containment import contained, keep_going
from node.tasks.sync import WakeUp

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
_PAUSE = 1.0  # seconds between polls that bring nothing, whatever the mailbox does
_PATIENCE = 60.0  # seconds until a mailbox that refused is polled again
_ID_BYTES, _NAME_BYTES = 16, 8  # of an id and of an invitation's name, as a client tells them
_JOIN = "/v1/join"
# Messages of colonies that we do not trust: held of one, for one client, and in all.
_OF_STRANGER, _STRANGERS_EACH, _STRANGERS = 8, 32, 128
_STRANGERS_BYTES = 16_000_000  # bytes of these
# Such messages a minute: of one address (an IPv6 /64 counts as one) and in all, counted before the
# signature is checked; for one client, with their bytes, counted after.
_FROM_ADDRESS, _FROM_ALL, _FOR_CLIENT = 240, 1_200, 600
_CLIENT_BYTES = 16_000_000
_FOUND = 64  # clients that are announced and whose cards are given out
_SETTLE = 0.2  # seconds until a change is told, as others may follow
_AVOIDED = 20.0  # seconds for which a peer's other mailboxes are preferred after a failure
_ORDER = 600.0  # ... until the order of a peer's mailboxes is another one
_IN_CARD = 4  # mailboxes that a card lists
_REMEMBERED = 1024  # failures of mailboxes
_BORROWED = 64  # connections to mailboxes that are no trusted peers

log = get_logger("mailbox")


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

    def admits(self, issuer: str, wish: Pass) -> bool:
        """Return whether a colony that the mailbox does not trust may leave this message."""
        if self.senders is not None and bytes.fromhex(issuer)[:_ID_BYTES] in self.senders:
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
            with trio.move_on_after(_ANSWER + wait):
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
            queue.senders = None if told is None else frozenset(_cut(told, _ID_BYTES))
            queue.invited = frozenset(_cut(wish.invitations, _NAME_BYTES))
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

    async def forward(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Carry a message to a colony that polls us. Raises Refusal.

        The sender trusts nothing that we say about its fate, only what the receiver signed.
        """
        wish = load(opened.payload, Pass)
        to = self.peers.index.root(wish.to)
        if not self._serves(to):
            raise Refusal(429, "mailbox_absent", "that colony does not poll us now", again=5)
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


async def pass_on(
    connection: PeerConnection,
    to: str,
    path: str,
    body: bytes,
    wait: float,
    *,
    card: bytes = b"",
    knock: str = "",
) -> PeerResponse:
    """Send a message to the colony `to` through the peer that it polls. Raises TransportError.

    Our `card` is for a mailbox that does not trust us. Once the mailbox has the message, nothing
    that the mailbox says proves that it was not delivered.
    """
    wish = Pass(to, path, body, min(30, int(wait)), card, knock)
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

    `connections` are those to the trusted peers, by the id under which each is kept. `connect`
    makes one to a mailbox that is no trusted peer, and `seek` has such a mailbox looked up by id.
    `card` returns our signed card. Without `wide` (`federation.global` is off), nothing is left at
    mailboxes that are no trusted peers.
    """

    context: Context
    mailbox: Mailbox
    connections: Mapping[str, PeerConnection]
    connect: Callable[[PeerState], PeerConnection]
    card: Callable[[], bytes]
    seek: Callable[[str], object]
    wide: bool = False
    changed: WakeUp = field(default_factory=WakeUp)
    _configured: set[str] = field(default_factory=set)
    _chosen: set[str] = field(default_factory=set)
    _borrowed: dict[str, PeerConnection] = field(default_factory=dict)
    _returned: list[PeerConnection] = field(default_factory=list)
    _idle: WakeUp = field(default_factory=WakeUp)
    # When a peer's mailbox failed, by the ids of mailbox and peer.
    _failed: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)

    # -- whom we poll ------------------------------------------------------------------------

    def configure(self, peerid: str) -> None:
        """Poll a peer from now on, as the owner wrote."""
        self._configured.add(peerid)
        self.changed.wake()

    def configured(self) -> list[str]:
        """Return the ids, under which they are kept, of the trusted peers that the owner named."""
        roots = map(self.context.peers.index.root, self._configured)
        return sorted(each for each in roots if self.context.peers.state(each) == TRUSTED)

    def choose(self, peerids: Collection[str]) -> bool:
        """Poll these peers beside the configured ones. Return whether others were before."""
        if self._chosen == set(peerids):
            return False
        self._chosen = set(peerids)
        self.changed.wake()
        return True

    def polls(self, peerid: str) -> bool:
        """Return whether we poll a peer."""
        root = self.context.peers.index.root
        return root(peerid) in map(root, self._configured | self._chosen)

    async def while_polled(
        self, connection: PeerConnection, collect: Callable[[PeerConnection], Awaitable[None]]
    ) -> None:
        """Run `collect` whenever the peer is one that we poll, until cancelled."""
        while True:
            event = self.changed.event
            if self.polls(connection.id):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(collect, connection)
                    while self.polls(connection.id):
                        await event.wait()
                        event = self.changed.event
                    nursery.cancel_scope.cancel()
            else:
                await event.wait()

    def mailboxes(self) -> list[str]:
        """Return the present ids of the trusted peers that we poll, as our card lists them."""
        root, peers = self.context.peers.index.root, self.context.peers
        polled = {root(each) for each in self._configured | self._chosen}
        return sorted(
            peers.known[peerid].peer.wire for peerid in polled if peers.state(peerid) == TRUSTED
        )[:_IN_CARD]

    # -- how a peer is reached ---------------------------------------------------------------

    def around(self, entry: PeerState) -> Carrier | None:
        """Return a carrier through a mailbox, ours or a peer's; None to connect directly."""
        peerid = entry.peer.id
        if self.mailbox.open(peerid):
            return functools.partial(self.mailbox.carry, peerid, self.context.signer.key.id)
        if (entry.sighted or entry.proven) and not entry.undialed:
            return None
        return self.through(entry)

    def through(
        self, entry: PeerState, knock: Callable[[bytes], str] = lambda body: ""
    ) -> Carrier | None:
        """Return a carrier through a mailbox in the peer's card, None if none of them is known.

        One that failed lately has its turn after the others. `knock` makes the header of a join.
        """
        peers, own = self.context.peers, self.context.signer.key.id
        named = [each for each in entry.peer.mailboxes if not peers.is_me(each)]
        known = [(each, self._to(each)) for each in named if each not in entry.peer.ids]
        usable = [(name, at) for name, at in known if at is not None]
        if len(usable) < len(known):
            for name, at in known:
                if at is None and peers.index.root(name) not in self.connections:
                    self.seek(name)
        if not usable:
            return None
        now = trio.current_time()

        def turn(pair: tuple[str, PeerConnection]) -> tuple[float, str]:
            failed = self._failed.get((pair[0], entry.peer.id), 0.0)
            # Each sender has an order of its own, so that not all use the same mailbox; and another
            # one later, as a mailbox may do nothing but bring old answers again.
            order = hashlib.sha256(f"{pair[0]} {own} {now // _ORDER:.0f}".encode()).hexdigest()
            return failed if now < failed + _AVOIDED else 0.0, order

        name, connection = min(usable, key=turn)
        return functools.partial(self._pass, entry, name, connection, knock)

    async def _pass(
        self,
        entry: PeerState,
        mailbox: str,
        connection: PeerConnection,
        knock: Callable[[bytes], str],
        path: str,
        body: bytes,
        wait: float,
    ) -> PeerResponse:
        try:
            answer = await pass_on(
                connection,
                entry.peer.wire,
                path,
                body,
                wait,
                card=self.card(),
                knock=knock(body),
            )
        except TransportError:
            self.misled(mailbox, entry)
            raise
        self._failed.pop((mailbox, entry.peer.id), None)
        return msgspec.structs.replace(answer, mailbox=mailbox)

    def misled(self, mailbox: str, entry: PeerState) -> None:
        """Prefer a peer's other mailboxes for a while: this one brought nothing that is proven."""
        place = (mailbox, entry.peer.id)
        self._failed[place] = trio.current_time()
        self._failed.move_to_end(place)
        if len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)

    def _to(self, mailbox: str) -> PeerConnection | None:
        """Return a connection to a mailbox, None if its card is not known, or it is of no use."""
        peerid = self.context.peers.index.root(mailbox)
        if peerid in self.connections:
            connection = self.connections[peerid]
            return connection if self._is_direct(connection.entry) else None
        if not self.wide:
            return None
        entry, borrowed = self.context.peers.get(peerid), self._borrowed.get(peerid)
        if entry is not None and (entry.peer.state == BLOCKED or not entry.peer.public_key):
            return None
        if borrowed is not None and (entry is None or borrowed.entry is entry):
            return borrowed
        if entry is None or (entry.peer.mailboxes and not entry.proven):
            return None  # a mailbox behind a mailbox is of no use
        self._give_back(peerid)
        if len(self._borrowed) >= _BORROWED:
            self._give_back(next(iter(self._borrowed)))
        connection = self._borrowed[peerid] = self.connect(entry)
        return connection

    def _is_direct(self, entry: PeerState) -> bool:
        """Return whether we connect to a peer: a mailbox behind a mailbox is of no use.

        Two that name each other would lead to each other without end.
        """
        dialed = bool(entry.sighted or entry.proven) and not entry.undialed
        return (dialed or not entry.peer.mailboxes) and not self.mailbox.open(entry.peer.id)

    def _give_back(self, peerid: str) -> None:
        connection = self._borrowed.pop(peerid, None)
        if connection is not None:
            self._returned.append(connection)
            self._idle.wake()

    def borrowed(self) -> Iterable[PeerConnection]:
        """Return the connections to mailboxes that are no trusted peers."""
        return list(self._borrowed.values())

    async def close_unused(self) -> None:
        """Close the connections that are not used any more, until cancelled; then all."""
        try:
            while True:
                event = self._idle.event
                while self._returned:
                    await self._returned.pop().close()
                await event.wait()
        finally:
            self._returned += self._borrowed.values()
            self._borrowed.clear()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                for connection in self._returned:
                    await connection.close()


@dataclass
class MailboxTerms:
    """What we tell our mailboxes: which colonies, and joins by which invitations, we expect.

    Without `wide` (`federation.global` is off) they are told nothing. `invitations` returns names.
    """

    peers: Peers
    invitations: Callable[[], Iterable[str]]
    wide: bool = False
    changed: WakeUp = field(default_factory=WakeUp)

    def collect(self, wait: int, answers: list[Reply]) -> Collect:
        """Return a poll, or answers, with what we tell."""
        if not self.wide:
            return Collect(wait, answers)
        now = self.peers.signer.clock.seconds
        latest = heapq.nlargest(MOST_SENDERS, self.peers.trusted(), key=lambda each: each.lastseen)
        ids = [
            each
            for entry in latest
            for each in entry.peer.ids
            if entry.peer.key_of(each, now) is not None
        ]
        # In an order that does not change with each sign of life.
        chosen = sorted(ids[:MOST_SENDERS])
        named = b"".join(bytes.fromhex(each)[:_ID_BYTES] for each in chosen)
        invited = [bytes.fromhex(each) for each in self.invitations()]
        return Collect(wait, answers, named, b"".join(invited[-MOST_INVITED:]))


@dataclass
class MailboxPoller:
    """Polls peers for messages to us, and lets `handle` answer these.

    `answered` is called with the id of a peer that answered a poll.
    """

    handle: Callable[[Request], Awaitable[Response]]
    chance: random.Random
    terms: MailboxTerms | None = None
    answered: Callable[[str], None] = lambda peerid: None

    async def collect_forever(self, connection: PeerConnection) -> None:
        """Poll one peer until cancelled, and answer messages meanwhile."""
        slots, failures = trio.CapacityLimiter(_SLOTS), 0
        async with trio.open_nursery() as nursery:
            if self.terms is not None and self.terms.wide:
                tell = functools.partial(self._tell_forever, connection, self.terms)
                nursery.start_soon(keep_going, "terms of a mailbox", tell)
            while True:
                began = trio.current_time()
                try:
                    parcels = await self._exchange(connection, self._poll(_WAIT))
                    failures = 0
                    self.answered(connection.id)
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
                if not parcels:
                    await trio.sleep_until(began + _PAUSE)

    def _poll(self, wait: int) -> Collect:
        return self.terms.collect(wait, []) if self.terms is not None else Collect(wait, [])

    async def _tell_forever(self, connection: PeerConnection, terms: MailboxTerms) -> None:
        """Tell a mailbox at once whom we expect, while a poll waits there."""
        told = terms.collect(0, [])
        while True:
            event = terms.changed.event
            if (now := terms.collect(0, [])) != told:
                try:
                    await self._exchange(connection, now)
                    told = now
                except (TransportError, Rejected) as error:
                    log.debug("mailbox not told", peer=connection.id, error=error)
            await event.wait()
            await trio.sleep(_SETTLE)

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
            headers = {KNOCK: parcel.knock} if parcel.knock else {}
            request = Request("POST", parcel.path, "", headers, parcel.body, BROUGHT)
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
