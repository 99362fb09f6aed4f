"""Bootstrap: fetches the cards at addresses from discovery and from the configuration.

An announced address proves nothing; `network.candidates` limits what it costs. `peers.registry`
keeps the colonies whose cards were fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from colonyd.errors import RpcError
from federation.forward import machine
from federation.network.candidates import AddressCandidate, CandidateQueue
from federation.network.mdns import Sighting
from federation.peers.context import Context
from federation.peers.registry import BLOCKED, PENDING, SEEN, TRUSTED, PeerState
from federation.transport.dial import fetch_cards
from federation.transport.errors import TransportError, Unsent
from federation.wire.address import is_near, source_of, split_address
from federation.wire.card import Card
from federation.wire.envelope import Rejected
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.tasks.containment import contained
from node.tasks.sync import WakeUp, WakeUps

_PATIENCE = 10.0  # seconds for a card, also from a host that sends it byte by byte
_PROBE_S = 5.0  # seconds between two probes of one peer that was announced again
_QUIET_S = 90  # ... without a fetch, after which a failure is told
_LOOKED = 4  # addresses of a pending colony that are tried again
_EXPECTED = (TransportError, EtcdError, RpcError, Rejected, ValueError)

log = get_logger("meeting")


def _plain(address: str) -> str:
    """Return the "host:port" of an https URL."""
    return address.removeprefix("https://").rstrip("/")


@dataclass
class Bootstrap:
    """Fetches cards, and wakes the `probes` of trusted peers.

    Without `wide` (`federation.global` is off), no colony is asked for the card of another one.
    Call `heard` and `forget` in one thread only.
    """

    context: Context
    probes: WakeUps
    wide: bool = False
    candidates: CandidateQueue = field(default_factory=CandidateQueue)
    _wakeup: WakeUp = field(default_factory=WakeUp)
    _probed: dict[str, float] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)

    # -- announcements -----------------------------------------------------------------------

    def heard(self, found: Sequence[Sighting]) -> None:
        """Queue strangers' announced addresses for a fetch of the card; probe trusted peers."""
        now = trio.current_time()
        for sighting in found:
            entry, address = self.context.peers.get(sighting.id), sighting.address
            state = entry.peer.state if entry is not None else SEEN
            if sighting.id == self.context.signer.key.id or state == BLOCKED:
                continue
            if entry is not None and state == TRUSTED:
                entry.sight(address)
                self._again.add(sighting.id)
            elif (
                entry is not None
                and state == PENDING
                and entry.peer.fingerprint == sighting.fingerprint
                and address in entry.addresses()
            ):
                continue
            elif self.candidates.offer(AddressCandidate(sighting.id, address), now):
                entry = self.context.peers.sighted(sighting.id, address)
            if entry is not None:
                entry.heard = self.context.clock.seconds
        self._wakeup.wake()

    def found(self, peerid: str, addresses: Sequence[str]) -> None:
        """Queue addresses that the DHT named for a colony that we look for, the best first.

        Nothing is told to a host with another certificate than a trusted peer's. Of a stranger, and
        of a peer that polls mailboxes, a card of this very id is fetched, also from a mailbox.
        """
        now, peers = trio.current_time(), self.context.peers
        if peers.is_me(peerid) or peers.state(peerid) == BLOCKED:
            return
        entry = peers.get(peerid)
        if entry is not None and entry.peer.state == TRUSTED and not entry.peer.mailboxes:
            for address in reversed(addresses):
                entry.sight(address)
            self._again.add(peerid)
        else:
            # The queue takes the host that was heard last first.
            for address in reversed(addresses):
                self.candidates.offer(AddressCandidate(peerid, address, sought=True), now)
        self._wakeup.wake()

    def forget(self) -> None:
        """Forget all results after a change of the network: an address may lead elsewhere now."""
        self.candidates.forget()

    async def run(self) -> None:
        """Fetch cards and probe peers, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                event, now = self._wakeup.event, trio.current_time()
                while (candidate := self.candidates.take(now)) is not None:
                    nursery.start_soon(self._look_safely, candidate)
                left = min(self.candidates.wait(now), self._probe_heard(now))
                with trio.move_on_after(left):
                    await event.wait()

    def _probe_heard(self, now: float) -> float:
        """Probe announced peers, each at most once in `_PROBE_S`; return seconds to the next."""
        for peerid in list(self._again):
            if self.context.peers.state(peerid) != TRUSTED:
                self._again.discard(peerid)
            elif now - self._probed.get(peerid, float("-inf")) >= _PROBE_S:
                self._again.discard(peerid)
                self._probed[peerid] = now
                self.probes[self.context.peers.index.root(peerid)].wake()
        for peerid in [each for each, at in self._probed.items() if now - at > _PROBE_S]:
            del self._probed[peerid]
        return min(
            (self._probed[each] + _PROBE_S - now for each in self._again), default=float("inf")
        )

    async def _look_safely(self, candidate: AddressCandidate) -> None:
        with contained("look at an address", address=candidate.address):
            await self._look(candidate)

    async def _look(self, candidate: AddressCandidate) -> None:
        """Fetch and store the card at a candidate's address."""
        ok, problem = False, "no card within 10 s"
        try:
            with trio.move_on_after(_PATIENCE):
                wanted = candidate.id if candidate.sought else ""
                found, _ = await self._fetch(candidate.address, wanted, sought=candidate.sought)
                ok, problem = True, ""
                root = self.context.peers.index.root
                if root(found) != root(candidate.id):
                    problem = f"another colony lives there ({found[:12]})"
        except _EXPECTED as error:
            problem = str(error)
        finally:
            self.candidates.done(candidate, trio.current_time(), ok=ok)
            self._wakeup.wake()
        if problem:
            entry = self.context.peers.get(candidate.id)
            if entry is not None and self._lost(entry):
                entry.error = problem
            # Any host can announce a wrong address: not worth a line in the log each.
            log.debug("card not fetched", address=candidate.address, error=problem)

    def _lost(self, entry: PeerState) -> bool:
        """Return whether a colony is a stranger that no other address showed lately."""
        quiet = self.context.clock.seconds - entry.lastseen > _QUIET_S
        return entry.peer.state == SEEN or (entry.peer.state == PENDING and quiet)

    async def refresh(self) -> None:
        """Queue the addresses of pending colonies for another fetch; forget strangers that are
        gone.
        """
        now = trio.current_time()
        for peerid in self.context.peers.prune(self.context.clock.seconds):
            log.info("colony is gone", peer=peerid)
        for entry in list(self.context.peers.known.values()):
            if entry.peer.state == PENDING and not entry.given:
                for address in [*entry.proven, *entry.kept_at, *entry.sighted][:_LOOKED]:
                    again = AddressCandidate(entry.peer.id, address, sought=not entry.heard)
                    self.candidates.offer(again, now)
        self._wakeup.wake()

    # -- fetching ------------------------------------------------------------------------

    async def fetch(
        self, address: str, peerid: str = "", *, unblock: bool = False
    ) -> PeerState | None:
        """Fetch and store the card at an address. `peerid`, if given, must be its id.

        Return the peer, or None for a blocked colony or ourselves. Raises TransportError.
        """
        _, entry = await self._fetch(address, peerid, unblock=unblock)
        return entry

    async def _fetch(
        self, address: str, peerid: str = "", *, unblock: bool = False, sought: bool = False
    ) -> tuple[str, PeerState | None]:
        """As `fetch`, with the id of the card. A `sought` colony is not near, wherever it is."""
        wanted = peerid if self.wide else ""
        (card, data), kept = await fetch_cards(address, self.context.clock, wanted)
        root = self.context.peers.index.root
        if peerid and root(card.id) != root(peerid):
            if kept is None or root(kept[0].id) != root(peerid):
                raise Unsent(f"{address}: another colony lives there ({card.id[:12]})")
            await self._met(address, card, data)
            return peerid, await self._kept(address, *kept)
        host, _ = split_address(address)
        near = is_near(host) and not sought
        entry = await self.context.peers.learn(
            card, data, near=near, unblock=unblock, source=source_of(host)
        )
        if entry is not None:
            entry.prove(_plain(address))
            entry.lastseen = self.context.clock.seconds
            entry.error = ""
        return card.id, entry

    async def _met(self, address: str, card: Card, data: bytes) -> None:
        """Store the card of a mailbox at whose address the card of another colony was sought."""
        host, _ = split_address(address)
        entry = await self.context.peers.learn(card, data, near=False, source=source_of(host))
        if entry is not None:
            entry.prove(_plain(address))
            entry.lastseen = self.context.clock.seconds

    async def _kept(self, address: str, card: Card, data: bytes) -> PeerState | None:
        """Store a card that a mailbox gave out. That the colony is there, it does not prove."""
        before = self.context.peers.get(card.id)
        sequence = before.peer.sequence if before is not None else -1
        host, _ = split_address(address)
        entry = await self.context.peers.learn(card, data, near=False, source=source_of(host))
        if entry is not None and entry.peer.state == TRUSTED:
            if card.sequence > sequence:
                self.probes[entry.peer.id].wake()
        elif entry is not None:
            entry.kept_at = [_plain(address)]
            entry.lastseen = self.context.clock.seconds
            entry.error = ""
        return entry

    async def meet(self, url: str, peerid: str) -> None:
        """Fetch a configured colony's card again and again; its address proves nothing either."""
        tries = 0
        while True:
            try:
                known = self.context.peers.get(peerid)
                if known is not None:
                    known.give(_plain(url))  # also while the address does not answer
                entry = await self.fetch(url, peerid)
                if entry is not None:
                    entry.give(_plain(url))
                if entry is not None and entry.peer.state in (PENDING, TRUSTED):
                    tries = 0
            except _EXPECTED as error:
                tries += 1
                log.info("configured peer not reached", url=url, error=error)
            pause = min(60.0, machine.delay(tries, self.context.chance)) if tries else 60.0
            await trio.sleep(pause)
