"""Cards as links: those that we show, and those that our owner opens.

An opened card proves itself as any other, and makes its colony pending. `trust` has the decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from colonyd.errors import Conflict, Invalid, NotFound
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.registry import BLOCKED, PENDING, PeerState
from federation.wire.card import CARD_LIMIT, card_of, open_card
from federation.wire.cardlink import LinkError, read_link, write_link
from federation.wire.envelope import Rejected, inspect

_MOST = 256  # opened cards of colonies that the owner has not decided about
# By the code of a check: what is wrong with a card, and what to do.
_FALSE = "do not use it, and ask the colony's owner for the card over another channel"
_PROBLEMS = {
    "bad_signature": f"somebody changed it after it was signed: {_FALSE}",
    "unknown_issuer": f"its id is not the hash of its key: {_FALSE}",
    "wrong_kind": "it is another message than a card: ask for what `colony card --link` prints",
    "expired": "it is out of date: ask for what `colony card --link` prints there now",
    "not_yet_valid": "it is from the future: compare the clocks of both hosts (`colony doctor`)",
}


@dataclass
class CardDesk:
    """Shows cards and opens links."""

    context: Context
    own_card: OwnCard

    def show(self, entry: PeerState | None) -> dict[str, Any]:
        """Return the card of a peer, or our own (None), with its link. Raises NotFound."""
        data = self.own_card.card() if entry is None else entry.latest or entry.peer.card
        if not data:
            raise NotFound("peer: no card of this colony was seen yet; is its daemon reachable?")
        card = card_of(inspect(data, limit=CARD_LIMIT))
        fields: dict[str, Any] = msgspec.structs.asdict(card)
        fields["publickey"] = fields.pop("public_key").hex()
        return fields | {
            "link": write_link(data),
            "expired": card.expires <= self.context.clock.seconds,
            "mine": entry is None,
        }

    async def open(self, text: str) -> PeerState:
        """Check the card in a link, and store it: a new colony is pending.

        Raises Invalid, which says what is wrong with the link; and Conflict for our own card, a
        blocked colony, and more than 256 opened cards.
        """
        peers, clock = self.context.peers, self.context.clock
        try:
            data = read_link(text)
            card = open_card(data, clock.seconds, high_water=clock.floor)
        except LinkError as error:
            raise Invalid(f"link: {error}") from None
        except Rejected as rejected:
            told = _PROBLEMS.get(rejected.code, "it is no valid card: ask for a new one")
            raise Invalid(f"link: {told} ({rejected})") from None
        if peers.is_me(card.id):
            raise Conflict("link: it is this colony's own card; open it at the other colony")
        if peers.state(card.id) == BLOCKED:
            raise Conflict(
                f"link: the colony {card.id[:12]} is blocked here; `colony peer trust "
                f"{card.id[:12]}` lifts the block"
            )
        waiting = sum(each.opened and each.peer.state == PENDING for each in peers.known.values())
        if waiting >= _MOST and peers.get(card.id) is None:
            raise Conflict(
                f"link: {_MOST} opened cards wait for a decision; `colony peer forget` removes one"
            )
        entry = await peers.learn(card, data, near=False)
        if entry is None:
            raise Conflict(
                "link: the decision about the colony changed meanwhile; look at it again"
            )
        if entry.peer.state == PENDING:
            entry.opened = True
        return entry
