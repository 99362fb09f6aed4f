"""Parts of federation by themselves, for tests that need no whole `Federation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from federation.forward.machine import Move
from federation.inbox.accept import Inbox
from federation.inbox.outcomes import Owing
from federation.inbox.updates import Teller
from federation.limits.accounts import Accounts
from federation.outbox.files import Depot
from federation.outbox.ledger import Detour, Ledger
from federation.outbox.sender import Delivery
from federation.outbox.updates import Follower
from federation.peers.context import Context
from federation.peers.owncard import Portrait
from federation.service.main import Federation
from federation.transport.errors import Unsent
from federation.transport.link import Carrier, Guide, Link
from node.host.config import FederationConfig
from node.model.types import Process

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

    def around(self) -> Carrier | None:
        """Return the carrier."""
        return self.carrier

    def measure(self) -> None:
        """Tell that the clock is to be measured."""
        self.measured()


class _Nowhere:
    """No routes: what one peer will not run fails."""

    def elsewhere(self, process: Process, move: Move) -> Detour | None:
        """Return None."""
        return None


class _Ungreeted:
    """Whether a peer is there is found out by sending."""

    async def hello(self, link: Link) -> None:
        """Do nothing."""


def ledger_of(context: Context) -> Ledger:
    """Return an outbox without routes."""
    return Ledger(context, _Nowhere())


def accounts_of(context: Context) -> Accounts:
    """Return the accounts of a colony's peers."""
    return Accounts(context.peers, context.clock)


def inbox_of(context: Context, ledger: Ledger | None = None) -> Inbox:
    """Return an inbox without files, members or links."""
    ledger, accounts = ledger or ledger_of(context), accounts_of(context)
    owing = Owing(context, accounts, Teller(context, Follower(context, ledger, accounts)))
    return Inbox(context, ledger, Depot(context, ledger, accounts, {}), owing, accounts)


def delivery_of(context: Context, ledger: Ledger) -> Delivery:
    """Return a sender without files, which greets nobody."""
    depot = Depot(context, ledger, accounts_of(context), {})
    return Delivery(context, ledger, depot, _Ungreeted())


def follower_of(federation: Federation) -> Follower:
    """Return another follower of a colony, as a second daemon has one."""
    return Follower(federation.context, federation.ledger, federation.inbox.accounts)


def portrait_of(context: Context) -> Portrait:
    """Return the card of a colony with the default settings."""
    return Portrait(context, FederationConfig())
