"""Who introduced whom: what a peer's word makes known, and what is forgotten when it is taken back.

Messages are exchanged by `introductions`; what is decided about a colony is in `peers.registry`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from federation.peers.registry import BLOCKED, PENDING, TRUSTED, Peer, Peers, PeerState
from federation.wire.card import Card

_MOST = 256  # beside the strangers of `peers`; the newest finds no room


@dataclass
class IntroductionIndex:
    """The introductions that `peers` keep with each colony."""

    peers: Peers

    async def introduce(self, card: Card, data: bytes, by: str, hops: int) -> PeerState | None:
        """A trusted peer showed the card of another colony: it is pending, unless known already.

        None when it is our own, of a blocked colony, or one more than there may be.
        """
        known = self.peers.known
        entry = known.get(card.id)
        if self.peers.is_me(card.id) or (entry and entry.peer.state == BLOCKED):
            return None
        if entry is not None and card.id != entry.peer.wire:
            return entry
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
        if card.sequence > entry.peer.sequence or not entry.peer.public_key:
            entry.peer = msgspec.structs.replace(entry.peer.described(card, data), state=PENDING)
        if card.sequence >= entry.peer.sequence:
            entry.latest = data
        return entry

    def dismiss(self, by: str, keep: Collection[str]) -> None:
        """A colony introduces nobody any more but those in `keep`."""
        keep = {self.peers.index.root(each) for each in keep}
        for pid, entry in list(self.peers.known.items()):
            if by in entry.introduced and pid not in keep:
                self.withdraw(by, entry)

    def withdraw(self, by: str, entry: PeerState) -> None:
        """One introduction is over; who is known by nothing else is forgotten."""
        entry.introduced.pop(by, None)
        known_else = entry.introduced or entry.met or entry.sighted
        if entry.peer.state == PENDING and not known_else:
            self.peers.known.pop(entry.peer.id, None)
