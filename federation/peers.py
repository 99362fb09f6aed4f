"""The other colonies: what is known of each, and whether it is trusted.

Decisions (trusted, blocked) are in the store; hints, pending cards and liveness only in memory,
so strangers cannot fill the store. Who speaks to a peer is in `transport`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from federation.card import Card
from federation.keys import Keys
from node.codec import pack, unpack
from node.errors import bad, conflict, missing
from node.etcd.client import EtcdClient
from node.etcd.transactions import Get, ModRevision, Put, Txn
from node.log import get_logger

__all__ = ["BLOCKED", "PENDING", "SEEN", "TRUSTED", "Known", "Peer", "Peers"]

SEEN, PENDING, TRUSTED, BLOCKED = "seen", "pending", "trusted", "blocked"
_MAX_STRANGERS = 64  # of each of seen and pending; the oldest makes room
_MAX_ADDRESSES = 8
_TRIES = 5

log = get_logger("peers")


class Peer(msgspec.Struct, frozen=True):
    """What is kept of a colony; key, name and addresses come from its signed `card`."""

    id: str
    state: str = SEEN
    name: str = ""
    public_key: bytes = b""
    sequence: int = -1
    fingerprint: str = ""
    endpoints: list[str] = []
    card: bytes = b""


@dataclass
class Known:
    """A peer as this daemon sees it now. `revision` is its key's, 0 when it is not stored."""

    peer: Peer
    revision: int = 0
    lastseen: int = 0  # seconds since the epoch, of a signed answer
    error: str = ""
    sighted: list[str] = field(default_factory=list)  # "host:port" hints, newest first

    def addresses(self) -> list[str]:
        """Where to try, best first."""
        return list(dict.fromkeys([*self.sighted, *self.peer.endpoints]))

    def sight(self, address: str) -> None:
        """Put an address first."""
        self.sighted = [address, *(at for at in self.sighted if at != address)][:_MAX_ADDRESSES]


@dataclass
class Peers:
    """The registry of `home`, whose own id is `me`. `changed` hears of every peer that changes."""

    client: EtcdClient
    keys: Keys
    me: str
    lan: bool = False
    changed: Callable[[str], None] = lambda _: None
    known: dict[str, Known] = field(default_factory=dict)

    async def load(self) -> None:
        """Read all decisions."""
        items, _ = await self.client.range_all(self.keys.peers)
        for item in items:
            peer = unpack(item.value, Peer)
            self.known[peer.id] = Known(peer, item.mod_revision)

    async def reload(self, peerid: str) -> None:
        """Another daemon may have decided: read one peer again."""
        found = await self.client.get(self.keys.peer(peerid))
        if found is not None:
            entry = self.known.setdefault(peerid, Known(Peer(peerid)))
            entry.peer, entry.revision = unpack(found.value, Peer), found.mod_revision
        elif peerid in self.known and self.known[peerid].revision:
            del self.known[peerid]
        self.changed(peerid)

    # -- asking --------------------------------------------------------------------------

    def get(self, peerid: str) -> Known | None:
        """The peer with this id."""
        return self.known.get(peerid)

    def state(self, peerid: str) -> str:
        """Its state, or "" when it was never heard of."""
        entry = self.known.get(peerid)
        return entry.peer.state if entry else ""

    def public_key(self, peerid: str) -> bytes | None:
        """Its key once a card has proven it."""
        entry = self.known.get(peerid)
        return entry.peer.public_key or None if entry else None

    def name(self, peerid: str) -> str:
        """What to call it in messages for people."""
        entry = self.known.get(peerid)
        return (entry.peer.name if entry else "") or peerid[:12]

    def trusted(self) -> list[Known]:
        """All trusted peers."""
        return [entry for entry in self.known.values() if entry.peer.state == TRUSTED]

    def named(self, text: str) -> str | None:
        """Id of the one trusted peer with this id or name; None for none or several."""
        if self.state(text) == TRUSTED:
            return text
        found = [entry.peer.id for entry in self.trusted() if entry.peer.name == text]
        return found[0] if len(found) == 1 else None

    def find(self, text: str) -> Known:
        """The peer with this id, unique beginning of an id (8 or more), or name.

        Raises RpcError 404, or 400 when several fit.
        """
        found = [self.known[text]] if text in self.known else []
        if not found:
            found = [entry for entry in self.known.values() if text and entry.peer.name == text]
        if not found and len(text) >= 8:
            found = [entry for pid, entry in self.known.items() if pid.startswith(text)]
        if not found:
            raise missing(f"peer: no colony {text[:80]!r} is known here")
        if len(found) > 1:
            ids = ", ".join(sorted(entry.peer.id[:12] for entry in found))
            raise bad(f"peer: {text[:80]!r} may be {ids}; give the beginning of the id")
        return found[0]

    # -- learning ------------------------------------------------------------------------

    def sighted(self, peerid: str, address: str) -> Known | None:
        """An address was announced, proving nothing. None for ourselves and for blocked ones."""
        if peerid == self.me or self.state(peerid) == BLOCKED:
            return None
        if peerid not in self.known:
            self._make_room(SEEN)
            self.known[peerid] = Known(Peer(peerid))
        self.known[peerid].sight(address)
        return self.known[peerid]

    def _make_room(self, state: str) -> None:
        strangers = [pid for pid, entry in self.known.items() if entry.peer.state == state]
        if len(strangers) >= _MAX_STRANGERS:
            del self.known[strangers[0]]

    async def learn(
        self, card: Card, data: bytes, *, near: bool, unblock: bool = False
    ) -> Known | None:
        """Take in a card that proved itself; None when it is our own or of a blocked colony.

        A card that is not newer changes nothing. `near`: it came over the local network, so
        that `trust = "lan"` trusts it. `unblock`: the owner asks for one blocked before it was met.
        """
        if card.id == self.me or (self.state(card.id) == BLOCKED and not unblock):
            return None
        entry = self.known.get(card.id)
        fresh = Peer(
            card.id,
            entry.peer.state if entry and entry.peer.state == TRUSTED else PENDING,
            card.name,
            card.public_key,
            card.sequence,
            card.fingerprint,
            card.endpoints,
            data,
        )
        if entry is None or not entry.peer.public_key:
            self._make_room(PENDING)
            entry = self.known.setdefault(card.id, Known(fresh))
            entry.peer = fresh
            log.info("colony proved itself", peer=card.id, called=card.name)
        elif card.sequence > entry.peer.sequence:
            if entry.peer.state == TRUSTED:
                await self._save(entry, fresh)
            else:
                entry.peer = fresh
        if self.lan and near and entry.peer.state == PENDING:
            await self.trust(card.id)
        self.changed(card.id)
        return entry

    # -- deciding ------------------------------------------------------------------------

    async def _save(self, entry: Known, peer: Peer) -> None:
        key = self.keys.peer(peer.id)
        for _ in range(_TRIES):
            txn = Txn([ModRevision(key, entry.revision)], [Put(key, pack(peer))], [Get(key)])
            result = await self.client.commit(txn)
            if result.succeeded:
                entry.peer, entry.revision = peer, result.revision
                self.changed(peer.id)
                return
            there = result.responses[0]
            entry.revision = there[0].mod_revision if there else 0
            if there:
                stored = unpack(there[0].value, Peer)
                # Another daemon's decision: a block outlasts a card, a newer card an older one.
                if stored.state == BLOCKED and peer.state != BLOCKED:
                    entry.peer = stored
                    self.changed(peer.id)
                    return
                if stored.sequence > peer.sequence:
                    peer = msgspec.structs.replace(stored, state=peer.state)
        raise conflict("the peer's record changes too fast; try again")

    async def trust(self, peerid: str) -> Known:
        """Let a colony whose card is known send work here. Raises RpcError 404 or 409."""
        entry = self.find(peerid)
        if not entry.peer.public_key:
            raise conflict("no card of this colony was seen yet; is its daemon reachable?")
        if entry.peer.state == BLOCKED:
            # The only way back: the owner says so. The store must not restore the block.
            await self.reload(peerid)
            entry = self.find(peerid)
        peer = msgspec.structs.replace(entry.peer, state=TRUSTED)
        if entry.peer.state == BLOCKED:
            key = self.keys.peer(peer.id)
            txn = Txn([ModRevision(key, entry.revision)], [Put(key, pack(peer))])
            result = await self.client.commit(txn)
            if not result.succeeded:
                raise conflict("the peer's record changed meanwhile; try again")
            entry.peer, entry.revision = peer, result.revision
            self.changed(peer.id)
        elif entry.peer.state != TRUSTED:
            await self._save(entry, peer)
        log.info("peer trusted", peer=peer.id, called=peer.name)
        return entry

    async def block(self, peerid: str) -> Known:
        """Refuse a colony from now on; the tombstone stays. Raises RpcError 404."""
        entry = self.find(peerid)
        await self._save(entry, msgspec.structs.replace(entry.peer, state=BLOCKED))
        log.info("peer blocked", peer=peerid, called=entry.peer.name)
        return entry
