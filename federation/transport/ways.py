"""The ways by mailboxes: to peers, by theirs or by ours, and to us, by the peers that we poll.

`mailbox` has the queues that we keep for others, `polling` fetches what others keep for us.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from federation.peers.context import Context
from federation.peers.registry import BLOCKED, TRUSTED, PeerState
from federation.transport.connection import MAILBOX_WAIT, Carrier, PeerConnection, PeerResponse
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError
from federation.transport.mailbox import ANSWER, Mailbox
from federation.wire.envelope import Kind, Rejected
from federation.wire.messages import Pass, Passed, load
from node.tasks.sync import WakeUp

_AVOIDED = 20.0  # seconds for which a peer's other mailboxes are preferred after a failure
_ORDER = 600.0  # ... until the order of a peer's mailboxes is another one
_IN_CARD = 4  # mailboxes that a card lists
_REMEMBERED = 1024  # failures of mailboxes
_BORROWED = 64  # connections to mailboxes that are no trusted peers


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
        opened, _ = await connection.post("/v1/pass", sealed, Kind.PASSED, wait + ANSWER)
        passed = load(opened.payload, Passed)
    except RemoteRefusal as error:
        if error.reason is not Reason.LATER:
            raise Lost(f"its mailbox: {error}") from None
        code = f"its mailbox: {error.code}"
        seconds = min(error.seconds, MAILBOX_WAIT)
        raise RemoteRefusal(code, error.message, Reason.LATER, seconds=seconds) from None
    except Rejected as error:
        raise Lost(f"its mailbox: {error}") from None
    return PeerResponse(passed.status, passed.after, passed.data, brought=True)


@dataclass
class MailboxWays:
    """Tells which peers are reached through a mailbox, ours or another's, and which peers we poll.

    `connections` are those to the trusted peers, by the id under which each is kept. `connect`
    makes one to a mailbox that is no trusted peer, and `seek` has such a mailbox looked up: its id,
    and that of the peer whose card names it. `card` returns our signed card. Without
    `wide` (`federation.global` is off), nothing is left at mailboxes that are no trusted peers.
    """

    context: Context
    mailbox: Mailbox
    connections: Mapping[str, PeerConnection]
    connect: Callable[[PeerState], PeerConnection]
    card: Callable[[], bytes]
    seek: Callable[[str, str], object]
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
            lacking = [
                name
                for name, at in known
                if at is None and peers.index.root(name) not in self.connections
            ]
            # Few are looked up at once, so each has its turn.
            for name in self.context.chance.sample(lacking, len(lacking)):
                self.seek(name, entry.peer.id)
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
