"""The other colonies: what is known of each, and whether it is trusted.

Decisions (trusted, blocked) are in the store; hints, pending cards and liveness only in memory,
so strangers cannot fill the store. Whom peers introduce is in `introduced`, what becomes of one
that changes its key in `successions`, who speaks to a peer in `transport.connection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from federation.peers.keys import Keys
from federation.peers.log_limit import LogLimiter
from federation.peers.policy import Policy
from federation.peers.record import (
    BLOCKED,
    PENDING,
    SEEN,
    TRUSTED,
    FormerKey,
    Peer,
    PeerIndex,
    PeerState,
)
from federation.wire.card import Card
from federation.wire.refusals import Refusal
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.txn import Compare, Get, ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.errors import Conflict, Invalid, NotFound
from node.store.update import Unmet, update

__all__ = [
    "BLOCKED",
    "PENDING",
    "SEEN",
    "TRUSTED",
    "FormerKey",
    "Peer",
    "PeerState",
    "Peers",
    "trusted_revision",
]

_MAX_STRANGERS = 64  # of each of seen and pending; the oldest makes room
_MAX_LAN = 256  # trusted ones, after which `trust = "lan"` trusts no more
_TRIES = 5
_RECORD = "the peer's record"
_SETTLING = 3.0  # seconds to find out what became of a block that got no answer

log = get_logger("peers")


@dataclass
class Peers:
    """The registry of the colony that `signer` signs for.

    `default` is the policy of peers that have none of their own.
    """

    client: EtcdClient
    keys: Keys
    signer: Signer
    lan: bool = False
    known: dict[str, PeerState] = field(default_factory=dict)
    default: Policy = field(default_factory=Policy)
    index: PeerIndex = field(init=False)
    _watchers: list[Callable[[str], None]] = field(default_factory=list)
    _log_limiter: LogLimiter = field(default_factory=LogLimiter)

    def __post_init__(self) -> None:
        self.known = self.index = PeerIndex(self.known)

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call `watcher` with the id of every peer that changes, from now on."""
        self._watchers.append(watcher)

    def _changed(self, peerid: str) -> None:
        for watcher in self._watchers:
            watcher(peerid)

    def set_default(self, policy: Policy) -> None:
        """Let `policy` hold for the peers that have none of their own."""
        self.default = policy

    async def load(self) -> None:
        """Read all decisions."""
        items, _ = await self.client.range_all(self.keys.peers)
        for item in items:
            peer = unpack(item.value, Peer)
            self.known[peer.id] = PeerState(peer, item.mod_revision)
            self.index.index(peer)

    async def reload(self, peerid: str) -> None:
        """Another daemon may have decided: read one peer again."""
        peerid = self.index.root(peerid)
        before = self._revision(peerid)
        found = await self.client.get(self.keys.peer(peerid))
        if found is not None:
            if self._adopt(unpack(found.value, Peer), found.mod_revision):
                return
        elif before and self._revision(peerid) == before:
            del self.known[peerid]
        self._changed(peerid)

    async def look_again(self) -> None:
        """Take over what other daemons decided, and what our own writes came to that got no answer.

        Raises EtcdError.
        """
        items, _ = await self.client.range_all(self.keys.peers)
        for item in items:
            self._adopt(unpack(item.value, Peer), item.mod_revision)

    def _revision(self, peerid: str) -> int:
        entry = self.known.get(peerid)
        return entry.revision if entry else 0

    def _adopt(self, stored: Peer, revision: int, entry: PeerState | None = None) -> bool:
        """A peer as the store has it; False if memory is of that revision, or of a later one.

        A stranger's `entry` may have made room for others meanwhile: it is put back.
        """
        entry = self.known.setdefault(stored.id, entry or PeerState(stored))
        if revision <= entry.revision:
            return False
        entry.peer, entry.revision = stored, revision
        self.index.index(stored)
        for each in stored.ids:
            # Under its new key it may have been a stranger, until now.
            if each != stored.id:
                self.known.pop(each, None)
        self._changed(stored.id)
        return True

    # -- asking --------------------------------------------------------------------------

    def get(self, peerid: str) -> PeerState | None:
        """The peer with this id."""
        return self.known.get(peerid)

    def state(self, peerid: str) -> str:
        """Its state, or "" when it was never heard of."""
        entry = self.known.get(peerid)
        return entry.peer.state if entry else ""

    def public_key(self, peerid: str) -> bytes | None:
        """Its key once a card has proven it, also one that it had before, however long ago."""
        entry = self.known.get(peerid)
        return entry.peer.key_of(peerid, 0) if entry else None

    def ids(self, peerid: str) -> list[str]:
        """All ids of the colony with this one."""
        entry = self.known.get(peerid)
        return entry.peer.ids if entry else [peerid]

    def names(self, peerid: str) -> set[str]:
        """All by which a colony may be called: its ids and its name."""
        return {peerid, self.name(peerid), *self.ids(peerid)}

    def name(self, peerid: str) -> str:
        """What to call it in messages for people."""
        entry = self.known.get(peerid)
        return (entry.peer.name if entry else "") or peerid[:12]

    def name_if_known(self, peerid: str) -> str:
        """What to call it, or "" when no peer has that id."""
        return self.name(peerid) if self.get(peerid) is not None else ""

    def policy(self, peerid: str) -> Policy:
        """What it may do here."""
        entry = self.known.get(peerid)
        return (entry.peer.policy if entry else None) or self.default

    def trusted(self) -> list[PeerState]:
        """All trusted peers."""
        return [entry for entry in self.known.values() if entry.peer.state == TRUSTED]

    def named(self, text: str) -> str | None:
        """Id of the one trusted peer with this id or name; None for none or several."""
        if self.state(text) == TRUSTED:
            return self.index.root(text)
        found = self._called(text)
        return found[0] if len(found) == 1 else None

    def taken(self, peer: Peer) -> bool:
        """Whether another trusted colony has the name of one that is to be trusted on its own.

        With two of one name, work addressed by it goes nowhere: that is for the owner to decide.
        """
        return any(each != peer.id for each in self._called(peer.name))

    def meant(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of the colonies that are trusted here under some of these names or ids.

        Of several that are trusted under one name, the ids of all of them.
        """
        found: dict[str, list[str]] = {}
        for name in names:
            trusted = [name] if self.state(name) == TRUSTED else self._called(name)
            if trusted:
                found[name] = [other for each in trusted for other in self.ids(each)]
        return found

    def widened(self, meant: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
        """Return what `meant` gave at some time, with the ids that those colonies have since."""
        return {
            name: list(dict.fromkeys(other for each in ids for other in (each, *self.ids(each))))
            for name, ids in meant.items()
        }

    def toward(self, target: str, avoid: Collection[str] = (), *, further: bool = True) -> str:
        """Id of the trusted peer that leads to a target such as "cat" or "bee/cat", or "".

        `avoid` are colonies that it must not be. With `further`, one that introduced the target
        will do.
        """
        name, avoid = target.partition("/")[0], {self.index.root(each) for each in avoid}
        peer = self.named(name)
        if peer is None and further and not self._called(name):
            # Of two of one name, nobody but the owner knows which is meant.
            found = self._led_to(name)
            ways = self.introducers(found[0]) if len(found) == 1 else []
            peer = next((way for way in ways if way not in avoid), None)
        return "" if peer is None or peer in avoid else peer

    def _called(self, name: str) -> list[str]:
        """Ids of the trusted peers of a name."""
        return [entry.peer.id for entry in self.trusted() if entry.peer.name == name]

    def _led_to(self, name: str) -> list[str]:
        """Ids of the pending colonies of a name or id to which a trusted peer leads.

        A stranger that nobody introduced is none of them: it could take any name.
        """
        return [
            pid
            for pid, entry in self.known.items()
            if name in (pid, entry.peer.wire, entry.peer.name)
            and entry.peer.state == PENDING
            and self.introducers(pid)
        ]

    def ambiguity(self, target: str, *, further: bool = True) -> str:
        """Return which colonies a target may mean, if they are several; else ""."""
        name = target.partition("/")[0]
        if self.named(name) is not None:
            return ""
        found = self._called(name)
        kind = "trusted here"
        if not found and further:
            found, kind = self._led_to(name), "introduced here"
        if len(found) < 2:
            return ""
        ids = ", ".join(sorted(self.known[each].peer.wire[:12] for each in found))
        return f"{name[:80]!r} is the name of {len(found)} colonies {kind} ({ids}): give the id"

    def introducers(self, peerid: str) -> list[str]:
        """Ids of the trusted peers that introduced a colony, the nearest to it first."""
        entry = self.known.get(peerid)
        introduced = entry.introduced if entry else {}
        found = [by for by in introduced if self.state(by) == TRUSTED]
        return sorted(found, key=lambda by: (introduced[by], by))

    def find(self, text: str) -> PeerState:
        """The peer with this id, unique beginning of an id (8 or more), or name.

        Raises NotFound, or Invalid when several fit.
        """
        found = [self.known[text]] if text in self.known else []
        if not found:
            # A name may look like the beginning of another's id: then both are meant.
            found = [
                entry
                for entry in self.known.values()
                if (text and entry.peer.name == text)
                or (
                    len(text) >= 8
                    and any(each.startswith(text) for each in (entry.peer.id, *entry.peer.ids))
                )
            ]
        if not found:
            raise NotFound(f"peer: no colony {text[:80]!r} is known here")
        if len(found) > 1:
            ids = ", ".join(sorted(entry.peer.id[:12] for entry in found))
            raise Invalid(f"peer: {text[:80]!r} may be {ids}; give the beginning of the id")
        return found[0]

    # -- learning ------------------------------------------------------------------------

    def sighted(self, peerid: str, address: str) -> PeerState | None:
        """An address was announced, proving nothing. None for ourselves and for blocked ones."""
        if self.is_me(peerid) or self.state(peerid) == BLOCKED:
            return None
        if peerid not in self.known:
            self._make_room(SEEN)
            self.known[peerid] = PeerState(Peer(peerid))
        self.known[peerid].sight(address)
        return self.known[peerid]

    def is_me(self, peerid: str) -> bool:
        """Whether an id is ours, or was."""
        return peerid in self.signer.ids

    def _make_room(self, state: str) -> None:
        strangers = [
            pid
            for pid, entry in self.known.items()
            if entry.peer.state == state and not entry.introduced
        ]
        if len(strangers) >= _MAX_STRANGERS:
            # The oldest of whoever has brought most: it is not to push out all the others.
            count = Counter(self.known[pid].source for pid in strangers)
            most = max(count.values())
            del self.known[next(pid for pid in strangers if count[self.known[pid].source] == most)]

    async def learn(
        self, card: Card, data: bytes, *, near: bool, unblock: bool = False, source: str = ""
    ) -> PeerState | None:
        """Take in a card that proved itself; None when it is our own or of a blocked colony.

        A card that is not newer changes nothing. `near`: it came over the local network, so
        that `trust = "lan"` trusts it. `unblock`: the owner asks for one blocked before it was met.
        `source` is the host that it came from.
        """
        if self.is_me(card.id) or (self.state(card.id) == BLOCKED and not unblock):
            return None
        entry = self.known.get(card.id)
        if entry is not None and card.id != entry.peer.wire:
            return entry  # by a key that it has no more

        def described(peer: Peer) -> Peer:
            return peer.described(card, data) if card.sequence > peer.sequence else peer

        if entry is None or not entry.peer.public_key:
            self._make_room(PENDING)
            entry = self.known.setdefault(card.id, PeerState(Peer(card.id)))
            entry.peer = msgspec.structs.replace(described(entry.peer), state=PENDING)
            entry.source = source
            if (more := self._log_limiter.line(trio.current_time())) is not None:
                log.info("colony proved itself", peer=card.id, called=card.name, **more)
        elif card.sequence > entry.peer.sequence:
            if entry.peer.state == TRUSTED:
                before = entry.peer.said
                await self.save(entry, described)
                if entry.peer.said not in ("", before):
                    log.warning(
                        "a peer calls itself otherwise; the name as trusted stays",
                        peer=card.id,
                        called=entry.peer.name,
                        now=entry.peer.said,
                    )
            else:
                entry.peer = msgspec.structs.replace(described(entry.peer), state=PENDING)
        entry.met = True
        if card.sequence >= entry.peer.sequence:
            entry.latest = data
        if self.lan and near and entry.peer.state == PENDING and self._room_for_trust():
            if self.taken(entry.peer):
                log.warning(
                    "not trusted: another peer has its name", peer=card.id, called=card.name
                )
            else:
                await self.trust(card.id)
        self._changed(card.id)
        return entry

    def _room_for_trust(self) -> bool:
        """Whether the network may make yet another colony trusted by being there."""
        return len(self.trusted()) < _MAX_LAN

    # -- deciding ------------------------------------------------------------------------

    async def save(self, entry: PeerState, decide: Callable[[Peer], Peer]) -> None:
        """Store what `decide` makes of the peer as stored: another daemon may have changed it.

        A block outlasts everything but the owner's `trust`, which does not come this way.
        """
        key = self.keys.peer(entry.peer.id)
        for _ in range(_TRIES):
            peer = decide(entry.peer)
            if entry.peer.state == BLOCKED and peer.state != BLOCKED:
                return
            txn = Txn([ModRevision(key, entry.revision)], [Put(key, pack(peer))], [Get(key)])
            result = await self.client.commit(txn)
            if result.succeeded:
                self._adopt(peer, result.revision, entry)
                return
            there = result.responses[0]
            if there:
                # Value and revision together: with the one alone, a later write would undo a block.
                self._adopt(unpack(there[0].value, Peer), there[0].mod_revision, entry)
            else:
                entry.revision = 0
        raise Conflict(f"{_RECORD} changes too fast; try again")

    async def trust(
        self, peerid: str, policy: Policy | None = None, *, distance: int = 0
    ) -> PeerState:
        """Let a colony whose card is known send work here. Raises NotFound or Conflict.

        Without a `policy` it keeps the one it has, or has the default one. `distance` is for one
        that is trusted for an introduction alone.
        """
        entry = self.find(peerid)
        if not entry.peer.public_key:
            raise Conflict("no card of this colony was seen yet; is its daemon reachable?")

        def trusted(peer: Peer) -> Peer:
            return msgspec.structs.replace(
                peer.renamed(),
                state=TRUSTED,
                policy=policy or peer.policy,
                ending=False,
                distance=distance,
            )

        if entry.peer.state == BLOCKED:
            entry = await self._unblock(entry.peer.id, trusted)
        elif entry.peer != trusted(entry.peer):
            await self.save(entry, trusted)
        log.info("peer trusted", peer=entry.peer.id, called=entry.peer.name)
        return entry

    async def _unblock(self, peerid: str, trusted: Callable[[Peer], Peer]) -> PeerState:
        """The only way back: the owner says so. The store must not restore the block."""
        entry, key = self.find(peerid), self.keys.peer(peerid)
        # The sweep of the block, or another daemon, may write at the same moment.
        peer, revision = await update(
            self.client, key, Peer, lambda there: trusted(there or entry.peer), what=_RECORD
        )
        self._adopt(peer, revision)
        return self.find(peerid)

    async def set_policy(self, peerid: str, policy: Policy | None) -> PeerState:
        """Change what a trusted colony may do here, None for the default. Raises RpcError."""
        entry = self.find(peerid)
        if entry.peer.state != TRUSTED:
            raise Conflict(f"the colony is {entry.peer.state}; a policy is for trusted ones")
        await self.save(entry, lambda peer: msgspec.structs.replace(peer, policy=policy))
        log.info("policy changed", peer=entry.peer.id, called=entry.peer.name)
        return entry

    async def admit(
        self,
        card: Card,
        data: bytes,
        policy: Policy | None,
        *,
        compare: Sequence[Compare],
        ops: Sequence[Op],
        unblock: bool = False,
    ) -> bool:
        """Trust a colony in one transaction with `ops`, if `compare` holds; False if it does not.

        A blocked one stays blocked, False as well, unless the owner asks to `unblock`. Raises
        Conflict after too many races.
        """
        key = self.keys.peer(self.index.root(card.id))

        def admitted(known: Peer | None) -> Peer | None:
            there = known or Peer(card.id)
            if there.state == BLOCKED and not unblock:
                return None
            newer = card.sequence > there.sequence
            peer = there.described(card, data) if newer else there
            return msgspec.structs.replace(
                peer if there.state == TRUSTED else peer.renamed(),
                state=TRUSTED,
                policy=policy or there.policy,
                ending=False,
                distance=0,
            )

        try:
            peer, revision = await update(
                self.client, key, Peer, admitted, what=_RECORD, compare=compare, ops=ops
            )
        except Unmet:
            return False
        if peer is None:
            await self.reload(card.id)
            return False
        self._adopt(peer, revision)
        log.info("peer trusted", peer=card.id, called=peer.name)
        return True

    async def block(self, peerid: str) -> PeerState:
        """Refuse a colony from now on; the tombstone stays. Raises NotFound.

        `ending` is set in the same write: whoever finds it after a crash ends the rest.
        """
        entry, answered = self.find(peerid), False
        try:
            await self.save(
                entry, lambda peer: msgspec.structs.replace(peer, state=BLOCKED, ending=True)
            )
            answered = True
        finally:
            if not answered:
                await self._settle(entry.peer.id)
        log.info("peer blocked", peer=entry.peer.id, called=entry.peer.name)
        return entry

    async def _settle(self, peerid: str) -> None:
        """A write got no answer, or nobody waits for it: what it came to holds at once."""
        with trio.move_on_after(_SETTLING, shield=True):
            try:
                await self.reload(peerid)
            except EtcdError as error:
                log.warning("decision not read again", peer=peerid, error=error)

    async def ended(self, peerid: str) -> None:
        """All that a blocked colony had here, and we there, is ended; if it is still blocked."""
        entry = self.known.get(peerid)
        if entry is None or entry.peer.state != BLOCKED or not entry.peer.ending:
            return
        key = self.keys.peer(entry.peer.id)
        peer = msgspec.structs.replace(entry.peer, ending=False)
        result = await self.client.commit(
            Txn([ModRevision(key, entry.revision)], [Put(key, pack(peer))])
        )
        if result.succeeded:
            self._adopt(peer, result.revision)
        else:
            await self.reload(peerid)


def trusted_revision(peers: Peers, issuer: str) -> int:
    """The revision of a trusted colony's record. Raises Refusal (blocked, untrusted)."""
    entry = peers.get(issuer)
    if entry is not None and entry.peer.state == BLOCKED:
        raise Refusal(403, "blocked", "this colony blocks yours")
    if entry is None or entry.peer.state != TRUSTED:
        raise Refusal(403, "untrusted", "this colony does not trust yours")
    return entry.revision
