"""The search for mailboxes of our own, while nobody can connect to us: chosen, told, replaced.

`mailboxes` chooses, `transport.polling` polls, and `verdict` knows whether we are reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from colonyd.errors import RpcError
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.registry import Peers
from federation.reach.mailboxes import STRANGERS, MailboxOffer, MailboxPlan
from federation.reach.verdict import Reach, Verdict
from federation.transport.mailbox import Mailbox
from federation.transport.ways import MailboxWays
from node.etcd.errors import EtcdError
from node.host.config import FederationConfig
from node.host.log import get_logger
from node.tasks.sync import WakeUps

_LOOK = 5.0  # seconds between looks at the mailboxes

log = get_logger("mailbox")


@dataclass
class MailboxSeeker:
    """Chooses our mailboxes, and names them in our card."""

    context: Context
    reach: Reach
    mailbox_ways: MailboxWays
    own_card: OwnCard
    probes: WakeUps
    plan: MailboxPlan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = MailboxPlan(self.context.chance)

    def answered(self, peerid: str) -> None:
        """Note that a mailbox answered a poll."""
        self.plan.answered(peerid, trio.current_time())

    async def run(self) -> None:
        """Look for mailboxes until cancelled."""
        while True:
            event = self.reach.changed.event
            try:
                await self.look()
            except (EtcdError, RpcError) as error:
                log.warning("card not renewed", error=error)  # it is renewed within a minute
            with trio.move_on_after(_LOOK):
                await event.wait()

    async def look(self) -> None:
        """Choose the mailboxes, and tell peers if they are others than before."""
        now, seconds = trio.current_time(), self.context.clock.seconds
        offers = {
            entry.peer.id: MailboxOffer(entry.mailbox, now - max(0, seconds - entry.lastseen))
            for entry in self.context.peers.trusted()
            if entry.mailbox and not entry.peer.mailboxes
        }
        chosen = self.plan.choose(self.reach.verdict, offers, self.mailbox_ways.configured(), now)
        if not self.mailbox_ways.choose(chosen):
            return
        log.info("mailboxes chosen", peers=",".join(map(self.context.peers.name, chosen)))
        await self.own_card.polls(self.mailbox_ways.mailboxes())
        self.probes.wake()


def mailbox_offer(settings: FederationConfig, reach: Reach) -> int:
    """Return what we offer peers as a mailbox, see `Hello`."""
    mailbox = settings.mailbox
    if not (settings.wide and mailbox.offer) or reach.verdict is Verdict.UNREACHABLE:
        return 0
    return STRANGERS if mailbox.strangers else 1


def mailbox_status(
    peers: Peers, mailbox: Mailbox, mailbox_ways: MailboxWays
) -> dict[str, list[dict[str, Any]]]:
    """Return, for people, the mailboxes that we poll, and for whom we hold how many messages."""
    return {
        "ours": [{"id": each, "name": peers.name(each)} for each in mailbox_ways.mailboxes()],
        "held": [
            {"id": each, "name": peers.name(each), "messages": count}
            for each, count in mailbox.served().items()
        ],
    }
