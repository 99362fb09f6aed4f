"""Parts of federation by themselves, for tests that need no whole `Federation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from federation.forward.machine import Effect
from federation.inbox.accept import Inbox
from federation.inbox.outcomes import OutcomeQueue
from federation.inbox.updates import UpdatePublisher
from federation.limits.accounts import PeerQuotas
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox, Reroute
from federation.outbox.sender import Sender
from federation.outbox.updates import UpdateConsumer
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.service.main import Federation
from federation.transport.connection import Carrier, Guide, PeerConnection
from federation.transport.errors import Unsent
from node.host.config import FederationConfig
from node.model.types import Process
from node.processes.assignment import Assigner

__all__ = [
    "Led",
    "accounts_of",
    "delivery_of",
    "follower_of",
    "inbox_of",
    "ledger_of",
    "portrait_of",
]


@dataclass
class Led(Guide):
    """Leads a link by `carrier`, if there is one; no card is ever renewed."""

    carrier: Carrier | None = None
    measured: Callable[[], None] = lambda: None

    async def renew(self, address: str) -> None:
        """Raise Unsent."""
        raise Unsent(address)

    async def ways(self, address: str) -> list[str]:
        """Return the address."""
        return [address]

    def around(self) -> Carrier | None:
        """Return the carrier."""
        return self.carrier

    def measure(self) -> None:
        """Tell that the clock is to be measured."""
        self.measured()


class _Nowhere:
    """No routes: what one peer will not run fails."""

    def elsewhere(self, process: Process, move: Effect) -> Reroute | None:
        """Return None."""
        return None


class _Ungreeted:
    """Whether a peer is there is found out by sending."""

    async def hello(self, connection: PeerConnection) -> None:
        """Do nothing."""


def ledger_of(context: Context) -> Outbox:
    """Return an outbox without routes."""
    return Outbox(context, _Nowhere())


def accounts_of(context: Context) -> PeerQuotas:
    """Return the accounts of a colony's peers."""
    return PeerQuotas(context.peers, context.clock)


def inbox_of(
    context: Context, outbox: Outbox | None = None, assigner: Assigner | None = None
) -> Inbox:
    """Return an inbox without files, members or links; without an assigner, nobody polls."""
    outbox, accounts = outbox or ledger_of(context), accounts_of(context)
    assigner = assigner or Assigner(context.processes, lambda executor: executor)
    owing = OutcomeQueue(
        context, accounts, UpdatePublisher(context, UpdateConsumer(context, outbox, accounts))
    )
    files = FileTransfer(context, outbox, accounts, {})
    return Inbox(context, assigner, outbox, files, owing, accounts)


def delivery_of(context: Context, outbox: Outbox) -> Sender:
    """Return a sender without files, which greets nobody."""
    depot = FileTransfer(context, outbox, accounts_of(context), {})
    return Sender(context, outbox, depot, _Ungreeted())


def follower_of(federation: Federation) -> UpdateConsumer:
    """Return another follower of a colony, as a second daemon has one."""
    return UpdateConsumer(federation.context, federation.outbox, federation.inbox.peer_quotas)


def portrait_of(context: Context) -> OwnCard:
    """Return the card of a colony with the default settings."""
    return OwnCard(context, FederationConfig())
