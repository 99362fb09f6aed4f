"""The guide of a peer's connection: what the connection asks of the parts above it."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from federation.membership.trust import CardFetcher
from federation.network.monitor import NetworkMonitor
from federation.peers import successions
from federation.peers.context import Context
from federation.peers.registry import PeerState
from federation.transport.connection import Carrier, Guide
from federation.transport.resolve import ways_to
from federation.transport.ways import MailboxWays
from federation.wire.envelope import Rejected
from federation.wire.messages import Successor
from federation.wire.refusals import Refusal
from node.host.log import get_logger
from node.tasks.sync import WakeUps

log = get_logger("federation")


@dataclass
class PeerGuide(Guide):
    """The guide to one peer. With `loopback`, addresses of this machine are tried as well."""

    entry: PeerState
    context: Context
    fetch: CardFetcher
    mailbox_ways: MailboxWays
    monitor: NetworkMonitor
    probes: WakeUps
    loopback: bool = False
    # A limit for this peer alone: a name that hangs keeps a thread, and must not delay other peers.
    names: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def renew(self, address: str) -> None:
        """Fetch the card at an address of the peer, and store it. Raises TransportError."""
        await self.fetch(address, self.entry.peer.wire)

    def around(self) -> Carrier | None:
        """Return the way through a mailbox, or None if the peer is reached without one."""
        return self.mailbox_ways.around(self.entry)

    def measure(self) -> None:
        """Wake the probe of the peer, which measures its clock and tells that the peer is back."""
        self.probes[self.entry.peer.id].wake()

    def misled(self, mailbox: str) -> None:
        """Prefer the peer's other mailboxes for a while."""
        self.mailbox_ways.misled(mailbox, self.entry)

    async def follow(self, successors: list[Successor]) -> None:
        """Record the peer's change of keys. Raises Rejected."""
        try:
            await successions.follow(self.context.peers, successors, self.context.clock.seconds)
        except Refusal as error:
            log.warning("succession refused", why=error)
            raise Rejected("unknown_issuer", error.message) from None

    async def ways(self, address: str) -> list[str]:
        """Return where an address leads. An address that the owner configured is not checked.

        Raises Unsent.
        """
        if address in self.entry.given:
            return [address]
        return await ways_to(address, self.monitor.network, self.names, loopback=self.loopback)
