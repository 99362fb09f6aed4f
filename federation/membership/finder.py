"""Colonies that are not at hand, looked up by id in the DHT: lost peers, and strangers on demand.

`dht.wide` does the look-up; `bootstrap` fetches the card at each address that it finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import trio

from colonyd.errors import Invalid, NotFound
from federation.dht.lookups import MOST_ASKED
from federation.dht.wide import WideLookup
from federation.membership.bootstrap import Bootstrap
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.registry import BLOCKED, PENDING, SEEN, PeerState
from node.tasks.sync import WakeUp

_PATIENCE = 12.0  # seconds that the caller of a look-up waits
_LATELY = 90  # seconds; cards of colonies that are not trusted are fetched each minute
_IDS = 4  # our present id and the latest former ones, which peers that were away still ask for
_MAILBOXES = 64  # that are looked up at once
_OF_A_PEER = 2  # ... of one peer
_LIKE_AN_ID = 8  # characters of an id that name a colony
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass
class Finder:
    """Looks up colonies. Without `wide`, as long as `federation.global` is off, it finds none.

    `clients` returns the colonies for which we are a mailbox, and which are found through us.
    """

    context: Context
    bootstrap: Bootstrap
    outbox: Outbox
    own_card: OwnCard
    wide: WideLookup | None = None
    clients: Callable[[], Collection[str]] = lambda: ()
    _changed: WakeUp = field(default_factory=WakeUp)
    # Mailboxes that are looked up, and the peer whose card names each.
    _mailboxes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context.peers.watch(self._told)

    # -- what the look-up asks ---------------------------------------------------------------

    def ids(self) -> Collection[str]:
        """Return the ids under which we are found, and those of the clients of our mailbox."""
        return [*self.context.signer.ids[:_IDS], *self.clients()]

    def listener(self) -> int:
        """Return the port at which we listen."""
        return self.own_card.port

    def port(self) -> int:
        """Return the port at which peers connect from outside: a router's, if one forwards it."""
        return (self.wide.portmap.port if self.wide is not None else 0) or self.own_card.port

    def lost(self) -> tuple[Collection[str], Collection[str]]:
        """Return the trusted peers that do not answer, and those of them for which work waits."""
        lost = [entry.peer for entry in self.context.peers.trusted() if entry.error]
        pressing = [peer.wire for peer in lost if self.outbox.outstanding(peer.id)]
        return [peer.wire for peer in lost], pressing

    def found(self, colony: str, addresses: Sequence[str]) -> None:
        """Have the card fetched at the addresses."""
        self.bootstrap.found(colony, addresses)

    def seek_mailbox(self, colony: str, by: str) -> None:
        """Look up a mailbox that the card of the peer `by` names, a few for one peer at a time.

        Once it is found, wake the probes of the peers that name it.
        """
        if self.wide is None:
            return
        is_sought = self.wide.lookups.is_sought
        mine = [each for each, who in self._mailboxes.items() if who == by and is_sought(each)]
        if len(mine) < _OF_A_PEER and self.wide.request(colony, named=True):
            self._mailboxes.pop(colony, None)
            self._mailboxes[colony] = by
            if len(self._mailboxes) > _MAILBOXES:
                del self._mailboxes[next(iter(self._mailboxes))]

    def _told(self, peerid: str) -> None:
        """Take note of a colony that changed."""
        self._changed.wake()
        entry = self.context.peers.get(peerid)
        if peerid in self._mailboxes and entry is not None and entry.peer.public_key:
            del self._mailboxes[peerid]
            for each in self.context.peers.trusted():
                if peerid in each.peer.mailboxes:
                    self.bootstrap.probes[each.peer.id].wake()

    def ask(self, colony: str) -> None:
        """Begin to look up a colony that is not known."""
        if self.wide is not None and self.context.peers.get(colony) is None:
            self.wide.request(colony)

    # -- on demand ---------------------------------------------------------------------------

    async def locate(
        self, colony: str, patience: float = _PATIENCE, *, afresh: bool = False
    ) -> PeerState | None:
        """Return a colony whose card is known, after a look-up of `patience` seconds at most.

        Trust is unchanged. `afresh`: look up as well a colony that showed its card long ago, or
        never, as one that was introduced. None for what is neither an id nor a petname, and for a
        colony that was not found.
        """
        colony = self.context.peers.petnames.id_of(colony) or colony
        if _ID.fullmatch(colony) is None or self.context.peers.is_me(colony):
            return None
        entry = self._known(colony)
        enough = entry is not None and not (afresh and self._is_old(entry))
        if enough or self.wide is None or not self.wide.request(colony):
            return entry
        with trio.move_on_after(patience):
            while True:
                event = self._changed.event
                entry = self._known(colony)
                if entry is not None and not (afresh and self._is_old(entry)):
                    break
                await event.wait()
        return self._known(colony)

    def _known(self, colony: str) -> PeerState | None:
        entry: PeerState | None = self.context.peers.get(colony)
        return entry if entry is not None and entry.peer.public_key else None

    def _is_old(self, entry: PeerState) -> bool:
        """Return whether a colony's card was not fetched lately."""
        quiet = self.context.clock.seconds - entry.lastseen > _LATELY
        return quiet or not (entry.proven or entry.kept_at)

    def why_not_found(self, colony: str) -> str:
        """Return why a colony was not found by its id, for people."""
        if self.wide is None:
            return "it can be found by its id only where federation.global is on"
        status = self.wide.status()
        if not status.nodes:
            why = status.problem or "no other node of the DHT answers yet"
            return f"it could not be looked up: {why}"
        if not self.wide.lookups.is_sought(colony):
            return f"{MOST_ASKED} colonies are looked up at a time: try again in a minute"
        return f"it was looked up in the DHT, and nobody there is the colony {colony[:12]}"

    async def stranger(self, colony: str) -> str:
        """Return what is known of a colony that is no trusted peer, and the next step; or ""."""
        peers = self.context.peers
        wanted = peers.petnames.id_of(colony) or colony
        if len(wanted) >= _LIKE_AN_ID and any(
            each.startswith(wanted) for each in self.context.signer.ids
        ):
            return "it is the id of this colony itself, where work needs no colony named"
        if _ID.fullmatch(wanted) is None:
            try:
                entry: PeerState | None = peers.find(wanted)
            except NotFound:
                return peers.hint(colony)
            except Invalid:
                return ""
        else:
            entry = await self.locate(wanted) or peers.get(wanted)
            if entry is None:
                return self._missing(wanted)
        return self._introduced(entry) if entry is not None else ""

    def _missing(self, colony: str) -> str:
        if self.wide is None:
            return (
                "its id is not known here, and look-up by id is off: `global = true` below "
                "[federation] turns it on; or open its card (`colony card --open LINK`)"
            )
        return self.why_not_found(colony)

    def _introduced(self, entry: PeerState) -> str:
        """Return a found colony with its id, its address, and who knows it; and the next step."""
        peers, peer = self.context.peers, entry.peer
        if peer.state == BLOCKED:
            return f"it is blocked here; `colony peer trust {peer.wire[:12]}` lifts the block"
        kept = f"a mailbox at {entry.kept_at[0]}" if entry.kept_at else ""
        at = kept or next(iter(entry.addresses()), "")
        if peer.state == SEEN:
            why = f": {entry.error}" if entry.error else ""
            return f"it was announced at {at or 'no address'}, and showed no card yet{why}"
        if peer.state != PENDING:
            return ""
        called = peers.called_by(entry)
        known = [
            peers.name(each) + (f" (which calls it {called[each]!r})" if each in called else "")
            for each in peers.introducers(peer.id)
        ]
        by = f"{', '.join(known)} knows it" if known else "no peer of this colony knows it"
        mine = peers.petname(peer.id)
        # The other side may never have heard of us: a whole id is looked up there.
        here, there = peer.wire[:12], self.context.signer.key.id
        return (
            f"it was found{f' at {at}' if at else ''}, has the id {peer.wire}, calls itself "
            f"{peer.name!r}{f' (here: {mine})' if mine else ''}, and {by}: trust is missing, and "
            f"takes both sides: here `colony peer trust {here}`, there `colony peer trust {there}`"
            "; or an invitation (`colony peer invite`, `colony peer join`)"
        )
