"""The owner's decisions about other colonies: trust, policy, block."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

import trio

from colonyd.errors import Conflict
from federation.outbox.revoke import Revocation
from federation.peers.context import Context
from federation.peers.policy import Policy
from federation.peers.registry import BLOCKED, PeerState
from federation.transport.errors import TransportError
from node.processes.assignment import Assigner

PATIENCE = 3.0  # seconds that the caller of a block waits for the revocation


class CardFetcher(Protocol):
    """Fetches the card at an address. Raises TransportError."""

    def __call__(
        self, address: str, peerid: str = "", *, unblock: bool = False
    ) -> Awaitable[PeerState | None]: ...


@dataclass
class TrustAdmin:
    """Makes the owner's decisions. Each is stored before any part of federation is told."""

    context: Context
    assigner: Assigner
    revocation: Revocation
    fetch: CardFetcher

    async def trust(self, text: str, policy: Policy | None = None) -> PeerState:
        """Trust a colony; fetch its card first if necessary. Raises RpcError."""
        entry = self.context.peers.find(text)
        if not entry.peer.public_key:
            unblock = entry.peer.state == BLOCKED
            problems: list[str] = []
            for address in entry.addresses():
                try:
                    await self.fetch(address, entry.peer.id, unblock=unblock)
                    break
                except (TransportError, ValueError) as error:
                    problems.append(str(error))
            else:
                reason = "; ".join(problems) or "no address is known"
                raise Conflict(f"its card can't be fetched: {reason}")
        trusted = await self.context.peers.trust(entry.peer.id, policy)
        self.assigner.wake_all()  # more of its processes may run than before
        return trusted

    async def set_policy(self, text: str, policy: Policy | None) -> PeerState:
        """Change what a trusted colony may do here; None for the default. Raises RpcError."""
        entry = await self.context.peers.set_policy(self.context.peers.find(text).peer.id, policy)
        self.assigner.wake_all()
        return entry

    async def forget(self, text: str) -> PeerState:
        """Forget a colony that is not trusted, and the block of one. Raises NotFound, Conflict."""
        return await self.context.peers.forget(text)

    async def block(self, text: str) -> PeerState:
        """Block a colony, and end all forwards to it and processes from it. Raises NotFound.

        What has not ended after `PATIENCE` seconds ends later, after a restart too.
        """
        entry = await self.context.peers.block(self.context.peers.find(text).peer.id)
        with trio.move_on_after(PATIENCE):
            await self.revocation.wait(entry)
        return entry
