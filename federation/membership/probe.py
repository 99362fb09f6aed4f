"""Hellos: peers are greeted now and then, at once when something speaks for it, and when asked.

A hello tells that a peer is there, how far its clock is off, and by which keys it is known.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from federation.forward import machine as outbox
from federation.membership.rotation import Rotation
from federation.outbox.ledger import Ledger
from federation.peers import heirs
from federation.peers.owncard import Portrait
from federation.peers.registry import Known, Peers, Usurped
from federation.transport.errors import TransportError, Unsent
from federation.transport.link import Link, Untimely
from federation.wire.card import open_card
from federation.wire.envelope import Refused
from federation.wire.messages import Hello, Successor
from federation.wire.refusals import Refusal
from federation.wire.signer import Sealer
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.host.sync import Bell
from node.model.errors import RpcError

_PROBE = 30.0  # seconds between hellos
_EXPECTED = (TransportError, EtcdError, RpcError, Refused)

log = get_logger("federation")


@dataclass
class Greeter:
    """Greets over `links`, by peer's id; `link_to` makes one to a peer that has none."""

    sealer: Sealer
    peers: Peers
    ledger: Ledger
    portrait: Portrait
    rotation: Rotation
    high_water: Callable[[], float]
    chance: Callable[[], random.Random]
    link_to: Callable[[Known], Link]
    links: dict[str, Link] = field(default_factory=dict)
    _bells: dict[str, Bell] = field(default_factory=dict)

    def bell(self, peerid: str) -> Bell:
        """What wakes the probe of a peer."""
        return self._bells.setdefault(peerid, Bell())

    def wake(self, peerid: str) -> None:
        """Probe a peer now."""
        self.bell(peerid).ring()

    def greet_all(self) -> None:
        """Say hello to every trusted peer now."""
        for peerid in self.links:
            self.wake(peerid)

    def greeted(self, peerid: str) -> None:
        """A trusted peer said hello: it is back, so do not wait any longer."""
        entry = self.peers.get(peerid)
        if entry is None:
            return
        entry.lastseen = self.sealer.seconds
        self.ledger.retry_now(peerid)
        link = self.links.get(peerid)
        if entry.error or (link is not None and link.stale):
            self.wake(peerid)

    async def hello(self, link: Link) -> float:
        """Exchange signed hellos; returns the round trip in seconds. Raises TransportError."""
        await link.connect()
        begin = trio.current_time()
        message = Hello(
            self.portrait.card(),
            secrets.token_bytes(16),
            successors=self.rotation.successors(),
        )
        try:
            hello = await link.greet(message)
        except Untimely:
            # Its refusal told its clock: now the times of ours hold by that.
            begin = trio.current_time()
            hello = await link.greet(message)
        took = trio.current_time() - begin
        card = open_card(hello.card, self.sealer.seconds, high_water=self.high_water())
        if card.id == link.wire and card.sequence > link.entry.peer.sequence:
            await self.peers.learn(card, hello.card, near=False)
        elif card.id == link.wire and card.sequence == link.entry.peer.sequence:
            link.entry.latest = hello.card
        return took

    async def probe_forever(self, link: Link) -> None:
        """Say hello to one peer again and again, until cancelled."""
        bell, tries = self.bell(link.id), 0
        while True:
            event = bell.event
            try:
                away = bool(link.entry.error) or tries > 0
                await self.hello(link)
                link.entry.error, tries = "", 0
                if away:
                    self.ledger.retry_now(link.id)
            except _EXPECTED as error:
                tries += 1
                link.entry.error = str(error)
            pause = _PROBE * self.chance().uniform(0.8, 1.0)
            if tries:
                pause = min(pause, outbox.delay(tries, self.chance()))
            with trio.move_on_after(pause):
                await event.wait()

    async def ping(self, text: str) -> float:
        """Round trip of a signed hello in seconds. Raises TransportError, RpcError or Refused."""
        entry = self.peers.find(text)
        if not entry.peer.public_key:
            raise Unsent("no card of this colony was seen yet")
        link = self.links.get(entry.peer.id)
        if link is not None:
            return await self.hello(link)
        link = self.link_to(entry)
        try:
            return await self.hello(link)
        finally:
            await link.close()

    async def follow(self, successors: list[Successor]) -> None:
        """Take note of another colony's change of keys. Raises Refused."""
        try:
            await heirs.follow(self.peers, successors, self.sealer.seconds)
        except (Usurped, Refusal) as error:
            log.warning("succession refused", why=error)
            raise Refused("unknown_issuer", str(error)) from None
