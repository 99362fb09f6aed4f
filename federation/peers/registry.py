"""The registry of peers: what is known of each colony, and whether it is trusted.

Decisions (trusted, blocked) are in the store. Announced addresses, pending cards and liveness are
in memory only, so strangers cannot fill the store. `introduced` has introductions, `successions`
changes of keys, `transport.connection` the connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound
from federation.peers.keys import Keys
from federation.peers.log_limit import LogLimiter
from federation.peers.petnames import Petnames
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
from node.etcd.txn import Compare, Delete, Get, ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
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

_MAX_STRANGERS = 64  # in each of the states seen and pending; the oldest makes room
GONE = 300  # seconds after which a stranger that neither answers nor is announced is forgotten
_MAX_LAN = 256  # trusted peers from which on `trust = "lan"` trusts no more
_TRIES = 5
_RECORD = "the peer's record"
_SETTLING = 3.0  # seconds to find out whether a block without an answer was written

log = get_logger("peers")


@dataclass
class Peers:
    """The registry of the colony that `signer` signs for.

    `default` is the policy of peers without a policy of their own. `share_names`: introductions
    have our petnames.
    """

    client: EtcdClient
    keys: Keys
    signer: Signer
    lan: bool = False
    known: dict[str, PeerState] = field(default_factory=dict)
    default: Policy = field(default_factory=Policy)
    share_names: bool = True
    index: PeerIndex = field(init=False)
    petnames: Petnames = field(init=False)
    _watchers: list[Callable[[str], None]] = field(default_factory=list)
    # Trusted peers by name; None until it is asked for after a change.
    _names: dict[str, list[str]] | None = None
    _log_limiter: LogLimiter = field(default_factory=LogLimiter)

    def __post_init__(self) -> None:
        self.known = self.index = PeerIndex(self.known)
        self.petnames = Petnames(self.client, self.keys, self.share_names)

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call `watcher` with the id of every peer that changes, from now on."""
        self._watchers.append(watcher)

    def _changed(self, peerid: str) -> None:
        self._names = None
        for watcher in self._watchers:
            watcher(peerid)

    def set_default(self, policy: Policy) -> None:
        """Set the policy of peers without a policy of their own."""
        self.default = policy

    async def load(self) -> None:
        """Read all decisions from the store."""
        items, _ = await self.client.range_all(self.keys.peers)
        for item in items:
            peer = unpack(item.value, Peer)
            self.known[peer.id] = PeerState(peer, item.mod_revision)
            self.index.index(peer)
        await self.petnames.load()

    async def reload(self, peerid: str) -> None:
        """Read one peer again, about which another daemon may have decided."""
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
        """Read all decisions again: of other daemons, and our own whose answer was lost.

        Raises EtcdError.
        """
        items, _ = await self.client.range_all(self.keys.peers)
        for item in items:
            if item.mod_revision > self._revision(item.key.removeprefix(self.keys.peers)):
                self._adopt(unpack(item.value, Peer), item.mod_revision)
        await self.petnames.load()

    def _revision(self, peerid: str) -> int:
        entry = self.known.get(peerid)
        return entry.revision if entry else 0

    def _adopt(self, stored: Peer, revision: int, entry: PeerState | None = None) -> bool:
        """Take a stored peer into memory. Return False if memory has that revision or a later one.

        A stranger's `entry`, which may have made room for others meanwhile, is put back.
        """
        entry = self.known.setdefault(stored.id, entry or PeerState(stored))
        if revision <= entry.revision:
            return False
        entry.peer, entry.revision, self._names = stored, revision, None
        self.index.index(stored)
        for each in stored.ids:
            # Under its new key it may have been a stranger until now.
            if each != stored.id:
                self.known.pop(each, None)
        self._changed(stored.id)
        return True

    # -- queries -----------------------------------------------------------------------------

    def get(self, peerid: str) -> PeerState | None:
        """Return the peer with this id."""
        return self.known.get(peerid)

    def state(self, peerid: str) -> str:
        """Return a peer's state, or "" for an unknown colony."""
        entry = self.known.get(peerid)
        return entry.peer.state if entry else ""

    def public_key(self, peerid: str) -> bytes | None:
        """Return a peer's proven key of this id, present or former, however old."""
        entry = self.known.get(peerid)
        return entry.peer.key_of(peerid, 0) if entry else None

    def ids(self, peerid: str) -> list[str]:
        """Return all ids of the colony with this id."""
        entry = self.known.get(peerid)
        return entry.peer.ids if entry else [peerid]

    def names(self, peerid: str) -> set[str]:
        """Return a colony's ids, name, and petname if it has one."""
        names = {peerid, self.name(peerid), self.petname(peerid), *self.ids(peerid)}
        return names - {""}

    def petname(self, peerid: str) -> str:
        """Return the name that our owner gave a colony, or "". No message to peers has it."""
        return self.petnames.of(self.index.root(peerid))

    def name(self, peerid: str) -> str:
        """Return the name that a colony gave itself, for messages that peers may read as well."""
        entry = self.known.get(peerid)
        return (entry.peer.name if entry else "") or peerid[:12]

    def name_if_known(self, peerid: str) -> str:
        """Return a peer's name, or "" if no peer has that id."""
        return self.name(peerid) if self.get(peerid) is not None else ""

    def policy(self, peerid: str) -> Policy:
        """Return a peer's policy."""
        entry = self.known.get(peerid)
        return (entry.peer.policy if entry else None) or self.default

    def trusted(self) -> list[PeerState]:
        """Return all trusted peers."""
        return [entry for entry in self.known.values() if entry.peer.state == TRUSTED]

    def named(self, text: str, *, ours: bool = True) -> str | None:
        """Return the id of the one trusted peer with this id or name; None for none or several.

        `ours`: our petnames count.
        """
        if self.state(text) == TRUSTED:
            return self.index.root(text)
        found = self._called(text, ours=ours)
        return found[0] if len(found) == 1 else None

    def taken(self, peer: Peer) -> bool:
        """Return whether another trusted colony has this peer's name.

        Such a peer is not trusted automatically: work for that name would go nowhere. The owner
        decides.
        """
        owner = self.petnames.id_of(peer.name)
        return owner not in ("", peer.id) or any(
            each != peer.id for each in self._called(peer.name)
        )

    def meant(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of trusted colonies, and of those with a petname, by these names or ids.

        If several are trusted under one name, it has the ids of all of them.
        """
        found: dict[str, list[str]] = {}
        for name in names:
            trusted = [name] if self.state(name) == TRUSTED else self._called(name)
            if owner := self.petnames.id_of(name):
                trusted = [owner]
            if trusted:
                found[name] = [other for each in trusted for other in self.ids(each)]
        return found

    def widened(self, meant: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
        """Return an earlier result of `meant`, with the ids that those colonies have since."""
        return {
            name: list(dict.fromkeys(other for each in ids for other in (each, *self.ids(each))))
            for name, ids in meant.items()
        }

    def spelled(self, target: str) -> str:
        """Return a target with ids for our petnames, which mean nothing to a peer."""
        return "/".join(
            self.present(owner) if (owner := self.petnames.id_of(name)) else name
            for name in target.split("/")
        )

    def present(self, peerid: str) -> str:
        """Return the present id of the colony that is kept under an id."""
        entry = self.known.get(peerid)
        return entry.peer.wire if entry is not None else peerid

    def toward(
        self,
        target: str,
        avoid: Collection[str] = (),
        *,
        further: bool = True,
        asked: bool = False,
    ) -> str:
        """Return the id of the trusted peer that leads to a target ("cat", "bee/cat"), or "".

        The peer is none of `avoid`. With `further`, it may be one that introduced the target. If a
        peer `asked`, our petnames count if they are shared.
        """
        name, avoid = target.partition("/")[0], {self.index.root(each) for each in avoid}
        ours = not asked or self.petnames.shared
        peer = self.named(name, ours=ours)
        # What goes on for a peer keeps its target, so no petname leads further than to a peer.
        further = further and not (asked and ours and self.petnames.id_of(name))
        if peer is None and further and not self._called(name, ours=ours):
            # Only the owner knows which of two colonies of one name is meant.
            found = self._led_to(name, ours=ours)
            ways = self.introducers(found[0]) if len(found) == 1 else []
            peer = next((way for way in ways if way not in avoid), None)
        return "" if peer is None or peer in avoid else peer

    def _called(self, name: str, *, ours: bool = True) -> list[str]:
        """Return the ids of the trusted peers with a name. A petname is that of one colony."""
        if ours and (owner := self.petnames.id_of(name)):
            return [owner] if self.state(owner) == TRUSTED else []
        if self._names is None:
            self._names = {}
            for entry in self.trusted():
                self._names.setdefault(entry.peer.name, []).append(entry.peer.id)
        return [each for each in self._names.get(name, ()) if self.state(each) == TRUSTED]

    def _led_to(self, name: str, *, ours: bool = True) -> list[str]:
        """Return the ids of pending colonies with a name or id that a trusted peer introduced.

        A stranger without an introduction does not count: it could take any name.
        """
        owner = self.petnames.id_of(name) if ours else ""
        return [
            pid
            for pid, entry in self.known.items()
            if (pid == owner if owner else name in (pid, entry.peer.wire, entry.peer.name))
            and entry.peer.state == PENDING
            and self.introducers(pid)
        ]

    def ambiguity(self, target: str, *, further: bool = True) -> str:
        """Return the colonies that an ambiguous target may mean, as a message; else ""."""
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
        """Return the ids of trusted peers that introduced a colony, nearest to it first."""
        entry = self.known.get(peerid)
        introduced = entry.introduced if entry else {}
        found = [by for by in introduced if self.state(by) == TRUSTED]
        return sorted(found, key=lambda by: (introduced[by], by))

    def find(self, text: str) -> PeerState:
        """Return the peer with this id, petname, unique beginning of an id (8 or more characters),
        or name; "bee/lab" is the colony that the peer bee calls lab.

        Raises NotFound, or Invalid if several fit.
        """
        owner = self.petnames.id_of(text)
        found = [self.known[each] for each in (text, owner) if each in self.known][:1]
        if owner and not found:
            raise NotFound(f"peer: {text!r} is your name for {owner}, which is not known here now")
        if not found and "/" in text:
            found = self._so_called(*text.split("/", 1))
        if not found:
            # A name may look like the beginning of another's id: then both fit.
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
            hint = self.hint(text)
            raise NotFound(
                f"peer: no colony {text[:80]!r} is known here{'; ' if hint else ''}{hint}"
            )
        if len(found) > 1:
            ids = ", ".join(sorted(entry.peer.id[:12] for entry in found))
            raise Invalid(f"peer: {text[:80]!r} may be {ids}; give the beginning of the id")
        return found[0]

    def _so_called(self, by: str, name: str) -> list[PeerState]:
        """Return the colonies that the trusted peer `by` calls so. Raises NotFound, Invalid."""
        witness = self.find(by).peer
        return [each for each in self.known.values() if each.called.get(witness.id) == name]

    def called_by(self, entry: PeerState) -> dict[str, str]:
        """Return what trusted peers call a colony, by the peer's id."""
        return {by: name for by, name in entry.called.items() if self.state(by) == TRUSTED}

    def hint(self, text: str) -> str:
        """Return which peers call a colony so, or "": their word counts only if it is asked for."""
        ways = [
            f"{self.petname(by) or self.name(by)}/{name}"
            for entry in self.known.values()
            for by, name in self.called_by(entry).items()
            if name == text
        ]
        if not ways:
            return ""
        return f"peers call one so: to go by their word, say {' or '.join(ways[:4])}"

    # -- learning ------------------------------------------------------------------------

    def sighted(self, peerid: str, address: str) -> PeerState | None:
        """Add an announced, unproven address. Return None for ourselves and blocked colonies."""
        if self.is_me(peerid) or self.state(peerid) == BLOCKED:
            return None
        if peerid not in self.known:
            self._make_room(SEEN)
            self.known[peerid] = PeerState(Peer(peerid))
        self.known[peerid].sight(address)
        return self.known[peerid]

    def is_me(self, peerid: str) -> bool:
        """Return whether an id is ours, present or former."""
        return peerid in self.signer.ids

    def _make_room(self, state: str) -> None:
        strangers = [
            pid
            for pid, entry in self.known.items()
            if entry.peer.state == state and not (entry.introduced or entry.opened)
        ]
        if len(strangers) >= _MAX_STRANGERS:
            # Remove the oldest from the host with most, so that one host cannot push out all
            # others.
            count = Counter(self.known[pid].source for pid in strangers)
            most = max(count.values())
            del self.known[next(pid for pid in strangers if count[self.known[pid].source] == most)]

    async def learn(
        self, card: Card, data: bytes, *, near: bool, unblock: bool = False, source: str = ""
    ) -> PeerState | None:
        """Store a verified card. Return None if it is our own or a blocked colony's.

        A card that is not newer changes nothing. `near`: it came over the local network, so `trust
        = "lan"` trusts it. `unblock`: the owner asks for a colony that was blocked before it was
        met. `source` is the host that sent the card.
        """
        if self.is_me(card.id) or (self.state(card.id) == BLOCKED and not unblock):
            return None
        entry = self.known.get(card.id)
        if entry is not None and card.id != entry.peer.wire:
            return entry  # signed with a former key

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
        entry.keep(card, data)
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
        """Return whether `trust = "lan"` may trust yet another colony."""
        return len(self.trusted()) < _MAX_LAN

    # -- decisions ---------------------------------------------------------------------------

    async def save(self, entry: PeerState, decide: Callable[[Peer], Peer]) -> None:
        """Store what `decide` makes of the stored peer, which another daemon may have changed.

        A block stays: only the owner's `trust` lifts it, and that takes another way.
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
                # Take value and revision together: else a later write would undo a block.
                self._adopt(unpack(there[0].value, Peer), there[0].mod_revision, entry)
            else:
                entry.revision = 0
        raise Conflict(f"{_RECORD} changes too fast; try again")

    async def trust(
        self, peerid: str, policy: Policy | None = None, *, distance: int = 0
    ) -> PeerState:
        """Trust a colony whose card is known. Raises NotFound or Conflict.

        Without a `policy` it keeps its own, or has the default. `distance` is the hops of an
        introduction that is the only reason for trust.
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
        """Lift a block, as the owner asked: the stored block must not win."""
        entry, key = self.find(peerid), self.keys.peer(peerid)
        # The sweep of the block, or another daemon, may write at the same moment.
        peer, revision = await update(
            self.client, key, Peer, lambda there: trusted(there or entry.peer), what=_RECORD
        )
        self._adopt(peer, revision)
        return self.find(peerid)

    def set_back(self, now: int) -> None:
        """Let no peer be seen later than now (seconds since the epoch): a clock was set back."""
        for entry in self.known.values():
            entry.lastseen, entry.heard = min(entry.lastseen, now), min(entry.heard, now)

    def prune(self, now: int) -> list[str]:
        """Forget strangers that neither answered nor were announced since `GONE`; return their ids.

        `now` is in seconds since the epoch. Introduced, configured and opened colonies stay.
        """
        gone = [
            pid
            for pid, entry in self.known.items()
            if entry.peer.state in (SEEN, PENDING)
            and not (entry.introduced or entry.given or entry.opened)
            and now - self._last(entry) > GONE
        ]
        for pid in gone:
            del self.known[pid]
            self._changed(pid)
        return gone

    @staticmethod
    def _last(entry: PeerState) -> int:
        # A pending colony has shown its card: from then on announcements are not enough.
        return entry.lastseen if entry.peer.state == PENDING else max(entry.lastseen, entry.heard)

    async def forget(self, peerid: str) -> PeerState:
        """Remove a colony that is not trusted from the list, and from the store if it was blocked.

        If it is there, it appears again, as a stranger. Raises NotFound, Conflict.
        """
        entry = self.find(peerid)
        if entry.peer.state == TRUSTED:
            raise Conflict("the colony is trusted; block it first, which ends what is under way")
        if entry.peer.ending:
            raise Conflict("what it has here is still being ended; try again in a moment")
        if entry.revision:
            key = self.keys.peer(entry.peer.id)
            result = await self.client.commit(
                Txn([ModRevision(key, entry.revision)], [Delete(key)])
            )
            if not result.succeeded:
                await self.reload(entry.peer.id)
                raise Conflict("the decision about the colony changed meanwhile; look at it again")
        self.known.pop(entry.peer.id, None)
        self._changed(entry.peer.id)
        log.info("peer forgotten", peer=entry.peer.id, called=entry.peer.name)
        return entry

    async def call(self, peerid: str, name: str) -> None:
        """Give the colony that is kept under an id our owner's name for it.

        Raises Invalid, Conflict and EtcdError.
        """
        await self.petnames.give(peerid, name)
        self._changed(peerid)

    async def unname(self, peerid: str) -> None:
        """Take back our owner's name for a colony. Raises NotFound and EtcdError."""
        await self.petnames.remove(peerid)
        self._changed(peerid)

    async def set_policy(self, peerid: str, policy: Policy | None) -> PeerState:
        """Change what a trusted colony may do here; None for the default. Raises RpcError."""
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
        """Trust a colony in one transaction with `ops`. Return False if `compare` does not hold.

        A blocked colony stays blocked (False as well) unless the owner asks to `unblock`. Raises
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
        """Block a colony; its record stays. Raises NotFound.

        The same write sets `ending`: after a crash, the revocation goes on by that.
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
        """Read a peer again after a write without an answer, so that its result holds at once."""
        with trio.move_on_after(_SETTLING, shield=True):
            try:
                await self.reload(peerid)
            except EtcdError as error:
                log.warning("decision not read again", peer=peerid, error=error)

    async def ended(self, peerid: str) -> None:
        """Store that the revocation of a colony is done, if the colony is still blocked."""
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
    """Return the revision of a trusted colony's record. Raises Refusal (blocked, untrusted)."""
    entry = peers.get(issuer)
    if entry is not None and entry.peer.state == BLOCKED:
        raise Refusal(403, "blocked", "this colony blocks yours")
    if entry is None or entry.peer.state != TRUSTED:
        raise Refusal(403, "untrusted", "this colony does not trust yours")
    return entry.revision
