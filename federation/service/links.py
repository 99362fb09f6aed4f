"""What a link to a trusted peer asks of the parts that know of that peer."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from federation.membership.trust import Fetch
from federation.network.monitor import Surroundings
from federation.peers import heirs
from federation.peers.context import Context
from federation.peers.registry import Known
from federation.transport.link import Carrier, Guide
from federation.transport.mailbox import Ways
from federation.transport.resolve import ways_to
from federation.wire.envelope import Rejected
from federation.wire.messages import Successor
from federation.wire.refusals import Refusal
from node.host.log import get_logger
from node.host.sync import Bells

log = get_logger("federation")


@dataclass
class PeerGuide(Guide):
    """Knows one peer. With `loopback`, addresses of this machine are tried as well."""

    entry: Known
    context: Context
    fetch: Fetch
    mailboxes: Ways
    surroundings: Surroundings
    probes: Bells
    loopback: bool = False
    # Of its own, as a name that hangs keeps a thread: only its peer's others are to wait.
    names: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def renew(self, address: str) -> None:
        """Take in the card shown at an address of the peer. Raises TransportError."""
        await self.fetch(address, self.entry.peer.id)

    def around(self) -> Carrier | None:
        """Return the way by a mailbox, if that is to be taken."""
        return self.mailboxes.around(self.entry)

    def measure(self) -> None:
        """Greet the peer now: that measures its clock."""
        self.probes[self.entry.peer.id].ring()

    async def follow(self, successors: list[Successor]) -> None:
        """Take note of the peer's change of keys. Raises Rejected."""
        try:
            await heirs.follow(self.context.peers, successors, self.context.clock.seconds)
        except Refusal as error:
            log.warning("succession refused", why=error)
            raise Rejected("unknown_issuer", str(error)) from None

    async def ways(self, address: str) -> list[str]:
        """Return where an address leads; the owner's word as it stands. Raises Unsent."""
        if address in self.entry.given:
            return [address]
        return await ways_to(address, self.surroundings.network, self.names, loopback=self.loopback)
