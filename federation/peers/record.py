"""The record of a peer, and the index that finds it under each of its ids.

`peers.registry` decides about trust, `introduced` about introductions, `successions` about new
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from federation.peers.clock import PeerClock
from federation.peers.policy import Policy, TokenBucket
from federation.wire.card import VERSION, Card, versions_in

SEEN, PENDING, TRUSTED, BLOCKED = "seen", "pending", "trusted", "blocked"
_MAX_ADDRESSES = 8  # announced addresses of one colony
_MAX_PROVEN = 4


class FormerKey(msgspec.Struct, frozen=True):
    """A former key of a colony; it is valid `until` (seconds since the epoch)."""

    id: str
    public_key: bytes
    until: int


class Peer(msgspec.Struct, frozen=True):
    """The stored record of a colony; key, name and addresses come from its signed `card`.

    Its records are kept under its first `id` for ever. After a change of its key it calls itself
    `current`, and `former` has the earlier keys, the latest first.

    Without a `policy` the default one holds. `distance` is 0 for a colony that the owner decided
    about; for one trusted because of an introduction alone, it is the hops of that. `ending`: it
    was blocked, and its processes here and our forwards to it have not all ended.

    `name` is its name when it was trusted. Work is addressed by it, so a later card does not change
    it. If a later card has another name, that is in `said` until the owner trusts the colony again.
    """

    id: str
    state: str = SEEN
    name: str = ""
    public_key: bytes = b""
    sequence: int = -1
    fingerprint: str = ""
    endpoints: list[str] = []
    card: bytes = b""
    policy: Policy | None = None
    ending: bool = False
    distance: int = 0
    mailboxes: list[str] = []
    current: str = ""
    former: list[FormerKey] = []
    said: str = ""

    @property
    def wire(self) -> str:
        """Return the colony's present id, which messages to it name."""
        return self.current or self.id

    @property
    def ids(self) -> list[str]:
        """Return all ids of the colony."""
        return [self.wire, *(each.id for each in self.former)]

    @property
    def mismatch(self) -> str:
        """Return why its card's versions allow no exchange of processes, or ""."""
        versions = versions_in(self.card)
        if not versions or VERSION in versions:
            return ""
        spoken = ", ".join(map(str, versions))
        older = "its" if max(versions) < VERSION else "this colony's"
        return (
            f"it speaks version {spoken} of the federation protocol, and this colony version "
            f"{VERSION}: upgrade {older} daemon"
        )

    def described(self, card: Card, data: bytes) -> Peer:
        """Return the peer with what its card says; its name and the decisions about it stay."""
        kept = self.name if self.state in (TRUSTED, BLOCKED) and self.name else card.name
        return msgspec.structs.replace(
            self,
            name=kept,
            said="" if card.name == kept else card.name,
            public_key=card.public_key,
            sequence=card.sequence,
            fingerprint=card.fingerprint,
            endpoints=card.endpoints,
            mailboxes=card.mailboxes,
            card=data,
        )

    def renamed(self) -> Peer:
        """Return the peer with its present card's name, after our owner decided about it."""
        return msgspec.structs.replace(self, name=self.said or self.name, said="")

    def key_of(self, issuer: str, now: float) -> bytes | None:
        """Return the key that the colony may sign with as `issuer` at a time, in seconds."""
        if issuer == self.wire:
            return self.public_key or None
        return next(
            (each.public_key for each in self.former if each.id == issuer and now < each.until),
            None,
        )


@dataclass
class PeerState:
    """A peer as this daemon sees it now. `revision` is that of its record, 0 if not stored."""

    peer: Peer
    revision: int = 0
    lastseen: int = 0  # seconds since the epoch, of a signed answer or of its card's fetch
    heard: int = 0  # ... of a stranger's last announcement, which proves nothing
    error: str = ""
    source: str = ""  # the host that sent its card, while it is a stranger
    sighted: list[str] = field(default_factory=list)  # "host:port", unproven, newest first
    proven: list[str] = field(default_factory=list)  # where it answered, latest first
    given: list[str] = field(default_factory=list)  # by the owner
    clock: PeerClock = field(default_factory=PeerClock)
    # hops, by the id of the introducing peer
    introduced: dict[str, int] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)  # its petname at the introducing peer
    opened: bool = False  # the owner opened its card: it stays until it is forgotten
    met: bool = False  # we exchanged a message with it
    mailbox: int = 0  # what it offers to hold for us, see `Hello`
    kept_at: list[str] = field(default_factory=list)  # where a mailbox gave out its card
    undialed: bool = False  # no address led to it at the last try
    latest: bytes = b""  # its card as last signed, which lives longer than the stored one
    signed: tuple[int, int] = (-1, 0)  # ... and its number and when it expires
    changes: TokenBucket = field(default_factory=lambda: TokenBucket(period=86_400.0))  # of its key

    def addresses(self) -> list[str]:
        """Return the addresses to try, best first."""
        return list(dict.fromkeys([*self.proven, *self.given, *self.sighted, *self.peer.endpoints]))

    def keep(self, card: Card, data: bytes) -> None:
        """Keep a card as the one signed last, unless a later one is known."""
        if card.sequence >= self.peer.sequence and (card.sequence, card.expires) >= self.signed:
            self.latest, self.signed = data, (card.sequence, card.expires)

    def sight(self, address: str) -> None:
        """Add an announced address, after all proven ones."""
        self.undialed = self.undialed and address in self.sighted
        self.sighted = [address, *(at for at in self.sighted if at != address)][:_MAX_ADDRESSES]

    def give(self, address: str) -> None:
        """Add an address that the owner named: it is tried, wherever it leads."""
        if address not in self.given:
            self.given = [address, *self.given][:_MAX_PROVEN]

    def prove(self, address: str) -> None:
        """Add an address at which the peer answered."""
        self.undialed = False
        self.proven = [address, *(at for at in self.proven if at != address)][:_MAX_PROVEN]


class PeerIndex(dict[str, PeerState]):
    """Peers by the id under which they are kept, found under every id that they have."""

    def __init__(self, known: Mapping[str, PeerState]) -> None:
        super().__init__(known)
        self._roots: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}
        for entry in known.values():
            self.index(entry.peer)

    def index(self, peer: Peer) -> None:
        """Index a peer under its other ids, and under no id that it no longer has."""
        for each in self._others.pop(peer.id, ()):
            if self._roots.get(each) == peer.id:
                del self._roots[each]
        others = [each for each in peer.ids if each != peer.id]
        if others:
            self._others[peer.id] = others
            self._roots.update(dict.fromkeys(others, peer.id))

    def root(self, peerid: str) -> str:
        """Return the id under which a peer is kept."""
        return self._roots.get(peerid, peerid)

    def __getitem__(self, peerid: str) -> PeerState:
        return super().__getitem__(self.root(peerid))

    def __contains__(self, peerid: object) -> bool:
        return isinstance(peerid, str) and super().__contains__(self.root(peerid))

    def get(self, peerid: str, default: Any = None) -> Any:
        """Return the peer with an id."""
        return super().get(self.root(peerid), default)
