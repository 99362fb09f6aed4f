"""Successions of other colonies: decisions about a colony hold for its new key.

`wire.succession` proves a succession; `membership.rotation` changes our own key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from federation.peers.registry import BLOCKED, TRUSTED, FormerKey, Peer, Peers
from federation.wire.envelope import MAX_LIFETIME, inspect
from federation.wire.messages import Successor
from federation.wire.refusals import Refusal
from federation.wire.succession import LIMIT, KeySuccession, prove
from node.host.log import get_logger

MOST_FORMER = 16  # former keys of a colony that are kept; the oldest is dropped
_MOST_BLOCKED = 8  # changes of key that a blocked colony's record takes, at most
_RATE = 8  # changes of key of one colony that are followed in a day, and at once

log = get_logger("peers")


def _usurped(why: str) -> Refusal:
    return Refusal(409, "usurped", why)


async def follow(peers: Peers, successors: Sequence[Successor], now: int) -> None:
    """Follow the successions of colonies that the owner decided about; `now` in seconds.

    Any colony may send any succession in a hello. Those of other colonies, and those already known,
    cost no check of a signature. Raises Rejected, or Refusal (usurped, blocked, succession_rate).
    """
    for each in successors:
        old, new = (inspect(said, limit=LIMIT).issuer for said in (each.by_old, each.by_new))
        entry = peers.known.get(old)
        if entry is None or entry.peer.state not in (TRUSTED, BLOCKED) or new in entry.peer.ids:
            continue
        await succeed(peers, prove(each), now)


async def succeed(peers: Peers, succession: KeySuccession, now: int) -> bool:
    """Give a colony that we decided about its new key, in one write; `now` in seconds.

    A colony has one successor: a second one is refused. Return True if the succession is new.
    Raises Refusal (usurped, blocked, succession_rate).
    """
    entry = peers.known.get(succession.old)
    if entry is None or entry.peer.state not in (TRUSTED, BLOCKED):
        return False
    other = peers.known.get(succession.new)
    if other is not None and other is not entry and other.revision:
        raise _usurped("the new key is that of another colony, about which was decided here")
    former = FormerKey(
        succession.old, succession.old_key, min(succession.until, now + MAX_LIFETIME)
    )

    def followed(peer: Peer) -> Peer:
        if succession.new in peer.ids:
            return peer
        if succession.old != peer.wire:
            raise _usurped(f"{succession.old[:12]} has another successor, {peer.wire[:12]}")
        # Its cards count anew: a thief of the old key may have used up the numbers.
        return msgspec.structs.replace(
            peer,
            current=succession.new,
            public_key=succession.new_key,
            sequence=-1,
            former=[former, *peer.former][:MOST_FORMER],
            card=b"",
        )

    if succession.new in entry.peer.ids:
        return False
    if other is not None and other is not entry:
        peers.known.pop(other.peer.id)  # a stranger until now
    if followed(entry.peer) is not entry.peer:
        _count(peers, succession, now)
    await peers.save(entry, followed)
    entry.latest, entry.signed = b"", (-1, 0)
    peers.index.index(entry.peer)
    log.warning("a peer changed its key", peer=entry.peer.id, now=succession.new)
    return True


def _count(peers: Peers, succession: KeySuccession, now: int) -> None:
    """Count a change of key that would be stored. Raises Refusal when it is one too many.

    Keys cost nothing: a colony can chain them without end, by way of any stranger. For a blocked
    colony this loses nothing: with a key beyond the limit it is a stranger.
    """
    entry = peers.known[succession.old]
    blocked = entry.peer.state == BLOCKED
    full = blocked and len(entry.peer.former) >= _MOST_BLOCKED
    wait = 0.0 if full else entry.changes.take(_RATE, now)
    if blocked and (full or wait):
        raise Refusal(403, "blocked", "this colony blocks yours")
    if wait:
        message = f"the colony changed its key more than {_RATE} times in a day"
        raise Refusal(429, "succession_rate", message, again=math.ceil(wait))
