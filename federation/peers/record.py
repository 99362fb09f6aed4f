"""What is kept of another colony, and the list in which it is found under each of its ids.

What becomes of it is decided in `peers.registry` (trust), `introduced` and `successions` (a new
key).
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
_MAX_ADDRESSES = 8  # that were announced, of one colony
_MAX_PROVEN = 4


class FormerKey(msgspec.Struct, frozen=True):
    """A key that a colony had before; it still counts `until` (seconds since the epoch)."""

    id: str
    public_key: bytes
    until: int


class Peer(msgspec.Struct, frozen=True):
    """What is kept of a colony; key, name and addresses come from its signed `card`.

    Its things are kept under the `id` by which it became known, for ever. Once it has changed its
    key it calls itself `current`, and `former` has the keys before, the latest first.

    Without a `policy` the default one holds. `distance` is 0 for a colony that the owner decided
    about, else by how many hops it was introduced that is trusted for that alone. `ending`: it was
    blocked, and what it has here and we have there is not all ended yet.

    `name` is the one under which it was trusted: work is addressed by it, so a later card does not
    change it. What that card calls the colony is in `said`, until the owner trusts it again; "" if
    it is the same.
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
        """The id by which it calls itself, and is to be called."""
        return self.current or self.id

    @property
    def ids(self) -> list[str]:
        """All ids that are its own."""
        return [self.wire, *(each.id for each in self.former)]

    @property
    def mismatch(self) -> str:
        """Return why no processes can be exchanged with it, by the versions in its card, or ""."""
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
        """The peer with what its card says; what was decided about it stays, its name too."""
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
        """The peer under the name that its card has now: its owner here decided about it."""
        return msgspec.structs.replace(self, name=self.said or self.name, said="")

    def key_of(self, issuer: str, now: float) -> bytes | None:
        """The key with which it may sign as `issuer` at a time, in seconds."""
        if issuer == self.wire:
            return self.public_key or None
        return next(
            (each.public_key for each in self.former if each.id == issuer and now < each.until),
            None,
        )


@dataclass
class PeerState:
    """A peer as this daemon sees it now. `revision` is its key's, 0 when it is not stored."""

    peer: Peer
    revision: int = 0
    lastseen: int = 0  # seconds since the epoch, of a signed answer
    error: str = ""
    source: str = ""  # the host that its card came from, while it is a stranger
    sighted: list[str] = field(default_factory=list)  # "host:port" hints, newest first
    proven: list[str] = field(default_factory=list)  # where it was, latest first
    given: list[str] = field(default_factory=list)  # the owner's word
    clock: PeerClock = field(default_factory=PeerClock)
    introduced: dict[str, int] = field(default_factory=dict)  # hops, by the id of the introducer
    met: bool = False  # it spoke to us, or we to it
    latest: bytes = b""  # its card as last signed, which outlives the one that is stored
    changes: TokenBucket = field(default_factory=lambda: TokenBucket(period=86_400.0))  # of its key

    def addresses(self) -> list[str]:
        """Where to try, best first."""
        return list(dict.fromkeys([*self.proven, *self.given, *self.sighted, *self.peer.endpoints]))

    def sight(self, address: str) -> None:
        """Somebody says that it is at an address: after all where it has been."""
        self.sighted = [address, *(at for at in self.sighted if at != address)][:_MAX_ADDRESSES]

    def give(self, address: str) -> None:
        """The owner says that it is at an address: it is tried, wherever it leads."""
        if address not in self.given:
            self.given = [address, *self.given][:_MAX_PROVEN]

    def prove(self, address: str) -> None:
        """It was at an address."""
        self.proven = [address, *(at for at in self.proven if at != address)][:_MAX_PROVEN]


class PeerIndex(dict[str, PeerState]):
    """Peers by the id under which they are kept, found under every id that they have."""

    def __init__(self, known: Mapping[str, PeerState]) -> None:
        super().__init__(known)
        self._roots: dict[str, str] = {}
        for entry in known.values():
            self.index(entry.peer)

    def index(self, peer: Peer) -> None:
        """Find a peer under its other ids as well, and under none that it has no more."""
        ids = peer.ids
        for each in [each for each, root in self._roots.items() if root == peer.id]:
            if each not in ids:
                del self._roots[each]
        for each in ids:
            if each != peer.id:
                self._roots[each] = peer.id

    def root(self, peerid: str) -> str:
        """The id under which a peer is kept."""
        return self._roots.get(peerid, peerid)

    def __getitem__(self, peerid: str) -> PeerState:
        return super().__getitem__(self.root(peerid))

    def __contains__(self, peerid: object) -> bool:
        return isinstance(peerid, str) and super().__contains__(self.root(peerid))

    def get(self, peerid: str, default: Any = None) -> Any:
        """The peer with an id."""
        return super().get(self.root(peerid), default)
