"""A colony that goes on under another key: what was decided about it holds for its heir.

What proves a succession is in `succession`; our own change of keys is `rotation`'s.
"""

from __future__ import annotations

import msgspec

from federation.envelope import MAX_LIFETIME
from federation.peers import BLOCKED, TRUSTED, Former, Peer, Peers, Usurped
from federation.succession import Heir
from node.log import get_logger

__all__ = ["succeed"]

log = get_logger("peers")


async def succeed(peers: Peers, heir: Heir, now: int) -> bool:
    """A colony that we decided about goes on under another key; `now` in seconds.

    One write: everything else stays where it is. Whoever knows of one successor takes no other;
    True when it is new. Raises Usurped.
    """
    entry = peers.known.get(heir.old)
    if entry is None or entry.peer.state not in (TRUSTED, BLOCKED):
        return False
    other = peers.known.get(heir.new)
    if other is not None and other is not entry and other.revision:
        raise Usurped("the new key is that of another colony, about which was decided here")
    former = Former(heir.old, heir.old_key, min(heir.until, now + MAX_LIFETIME))

    def followed(peer: Peer) -> Peer:
        if heir.new in peer.ids:
            return peer
        if heir.old != peer.wire:
            raise Usurped(f"{heir.old[:12]} has another successor, {peer.wire[:12]}")
        # Its cards count anew: whoever stole the old key may have used up the numbers.
        return msgspec.structs.replace(
            peer,
            current=heir.new,
            public_key=heir.new_key,
            sequence=-1,
            former=[former, *peer.former],
            card=b"",
        )

    if heir.new in entry.peer.ids:
        return False
    if other is not None and other is not entry:
        peers.known.pop(other.peer.id)  # a stranger until now
    await peers.save(entry, followed)
    entry.latest = b""
    peers.roster.index(entry.peer)
    log.warning("a peer changed its key", peer=entry.peer.id, now=heir.new)
    return True
