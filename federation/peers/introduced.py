"""The introductions by peers: which peer introduced which colony, until it withdraws that.

`membership.gossip` exchanges messages; `peers.registry` has the decisions about a colony.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from federation.peers.registry import BLOCKED, PENDING, TRUSTED, Peer, Peers, PeerState
from federation.wire.card import Card

_MOST = 256  # introduced colonies, beside the strangers of `peers`; no further one is taken


@dataclass
class IntroductionIndex:
    """The introductions that `peers` keep with each colony."""

    peers: Peers

    async def introduce(
        self, card: Card, data: bytes, by: str, hops: int, called: str = ""
    ) -> PeerState | None:
        """Store the card of a colony that a trusted peer introduced. A new colony is pending.

        `called` is the peer's own name for it. Return None for ourselves, for a blocked colony, and
        if there are too many.
        """
        known = self.peers.known
        entry = known.get(card.id)
        if self.peers.is_me(card.id) or (entry and entry.peer.state == BLOCKED):
            return None
        if entry is not None:
            entry.called.pop(by, None)
        if entry is not None and card.id != entry.peer.wire:
            return entry
        if entry is not None and entry.peer.state == TRUSTED and called:
            entry.called[by] = called
        if entry is not None and entry.peer.state == TRUSTED:
            if card.sequence > entry.peer.sequence:
                await self.peers.learn(card, data, near=False)
            return entry
        if entry is None or not entry.introduced:
            count = sum(bool(each.introduced) for each in known.values())
            if count >= _MOST:
                return None
        if entry is None:
            entry = known.setdefault(card.id, PeerState(Peer(card.id)))
        entry.introduced[by] = hops
        if called:
            entry.called[by] = called
        if card.sequence > entry.peer.sequence or not entry.peer.public_key:
            entry.peer = msgspec.structs.replace(entry.peer.described(card, data), state=PENDING)
        entry.keep(card, data)
        return entry

    def dismiss(self, by: str, keep: Collection[str]) -> None:
        """Remove the introductions by a peer of all colonies but those in `keep`."""
        keep = {self.peers.index.root(each) for each in keep}
        for pid, entry in list(self.peers.known.items()):
            if pid not in keep:
                entry.called.pop(by, None)
                if by in entry.introduced:
                    self.withdraw(by, entry)

    def withdraw(self, by: str, entry: PeerState) -> None:
        """Remove one introduction. Delete the peer if nothing else vouches for it."""
        entry.introduced.pop(by, None)
        known_else = entry.introduced or entry.met or entry.sighted or entry.opened
        if entry.peer.state == PENDING and not known_else:
            self.peers.known.pop(entry.peer.id, None)
