"""The prober: exchanges hellos with peers regularly, at once after a hint, and on request.

A hello tells that a peer is there, how far its clock is off, and which keys it has.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from colonyd.errors import RpcError
from federation.forward import machine
from federation.membership.rotation import Rotation
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.transport.connection import PeerConnection
from federation.transport.endpoint import Endpoint
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError
from federation.wire.card import open_card
from federation.wire.envelope import Kind, Rejected, VerifiedMessage
from federation.wire.messages import Hello, load
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.tasks.sync import WakeUps

_PROBE = 30.0  # seconds between hellos
_HELLO = 20.0  # seconds that one may take
_AT_ONCE = 64  # hellos under way: each to a peer that is away may take seconds
_A_SECOND = 50.0  # tries, when there are many peers
_EXPECTED = (TransportError, EtcdError, RpcError, Rejected)

log = get_logger("federation")


@dataclass
class Prober:
    """Sends hellos over `connections`, by peer's id. `probes` wake the probe of one peer or all.

    `offer` returns what we offer as a mailbox, see `Hello`.
    """

    context: Context
    outbox: Outbox
    own_card: OwnCard
    rotation: Rotation
    probes: WakeUps
    connections: Mapping[str, PeerConnection]
    offer: Callable[[], int] = lambda: 0
    _slots: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_AT_ONCE), init=False
    )

    def greeted(self, peerid: str) -> None:
        """Clear the back-off of a trusted peer that said hello."""
        entry = self.context.peers.get(peerid)
        if entry is None:
            return
        entry.lastseen = self.context.clock.seconds
        self.outbox.retry_now(peerid)
        connection = self.connections.get(peerid)
        if entry.error or (connection is not None and connection.stale):
            self.probes[peerid].wake()

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which peers say hello."""
        return [Endpoint("/v1/hello", Kind.HELLO, self.answer)]

    async def answer(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Return our hello to a trusted peer's. Raises Rejected (malformed)."""
        self.greeted(opened.issuer)
        theirs, clock = load(opened.payload, Hello), self.context.clock
        if (entry := self.context.peers.get(opened.issuer)) is not None:
            entry.mailbox = theirs.mailbox
        hello = Hello(
            self.own_card.card(),
            theirs.nonce,
            clock.seconds,
            clock.latest,
            self.rotation.successors(),
            self.offer(),
        )
        return self.context.signer.seal(Kind.HELLO, opened.issuer, hello)

    async def hello(self, connection: PeerConnection) -> float:
        """Exchange signed hellos. Return the round trip in seconds. Raises TransportError."""
        await connection.connect()
        begin = trio.current_time()
        message = Hello(
            self.own_card.card(),
            secrets.token_bytes(16),
            successors=self.rotation.successors(),
            mailbox=self.offer(),
        )
        try:
            hello = await connection.greet(message)
        except RemoteRefusal as error:
            if error.reason is not Reason.UNTIMELY:
                raise
            # The refusal told the peer's clock: the next hello has times that are valid there.
            begin = trio.current_time()
            hello = await connection.greet(message)
        took = trio.current_time() - begin
        connection.entry.mailbox = hello.mailbox
        card = open_card(
            hello.card, self.context.clock.seconds, high_water=self.context.clock.floor
        )
        if card.id == connection.wire and card.sequence > connection.entry.peer.sequence:
            await self.context.peers.learn(card, hello.card, near=False)
        elif card.id == connection.wire and card.sequence == connection.entry.peer.sequence:
            connection.entry.keep(card, hello.card)
        return took

    async def probe_forever(self, connection: PeerConnection) -> None:
        """Say hello to one peer until cancelled: regularly, more and more rarely while it is away.

        A wake-up of its probe says that it may be back: then the first tries follow each other
        soon again. With many peers, tries are spread, so that there are few in a second.
        """
        wakeup, tries, away = self.probes[connection.id], 0, True
        event, uniform = wakeup.event, self.context.chance.uniform
        pause = uniform(0.0, self._spread()) if self._spread() > 1 else 0.0
        while True:
            with trio.move_on_after(pause):
                await event.wait()
            if event.is_set():
                tries, away = 0, True
            event = wakeup.event
            away = away or bool(connection.entry.error)
            try:
                async with self._slots:
                    with trio.move_on_after(_HELLO) as patience:
                        await self.hello(connection)
                if patience.cancelled_caught:
                    raise Lost(f"no hello within {_HELLO:g} s")
                connection.entry.error, tries = "", 0
                if away:
                    self.outbox.retry_now(connection.id)
                away = False
            except _EXPECTED as error:
                tries += 1
                connection.entry.error = str(error)
            pause = _PROBE * uniform(0.8, 1.0)
            if tries:
                longest = pause if self.outbox.outstanding(connection.id) else math.inf
                pause = min(longest, machine.delay(tries, self.context.chance))
                pause = max(pause, self._spread())

    def _spread(self) -> float:
        """Return the seconds over which one try at each peer is spread."""
        return len(self.connections) / _A_SECOND
