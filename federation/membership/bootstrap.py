"""Bootstrap: fetches the cards at addresses from discovery and from the configuration.

An announced address proves nothing; `network.candidates` limits what it costs. `peers.registry`
keeps the colonies whose cards were fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from federation.forward import machine
from federation.network.candidates import AddressCandidate, CandidateQueue
from federation.network.mdns import Sighting
from federation.peers.context import Context
from federation.peers.registry import BLOCKED, PENDING, SEEN, TRUSTED, PeerState
from federation.transport.connection import fetch_card
from federation.transport.errors import TransportError, Unsent
from federation.wire.address import is_near, source_of, split_address
from federation.wire.envelope import Rejected
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.model.errors import RpcError
from node.tasks.containment import contained
from node.tasks.sync import WakeUp, WakeUps

_PATIENCE = 10.0  # seconds for a card, also from a host that sends it byte by byte
_PROBE_S = 5.0  # seconds between two probes of one peer that was announced again
_EXPECTED = (TransportError, EtcdError, RpcError, Rejected, ValueError)

log = get_logger("meeting")


def _plain(address: str) -> str:
    """Return the "host:port" of an https URL."""
    return address.removeprefix("https://").rstrip("/")


@dataclass
class Bootstrap:
    """Fetches cards, and wakes the `probes` of trusted peers.

    Call `heard` and `forget` in one thread only.
    """

    context: Context
    probes: WakeUps
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
                self.context.peers.sighted(sighting.id, address)
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
                found, _ = await self._fetch(candidate.address)
                ok, problem = True, ""
                if found != candidate.id:
                    problem = f"another colony lives there ({found[:12]})"
        except _EXPECTED as error:
            problem = str(error)
        finally:
            self.candidates.done(candidate, trio.current_time(), ok=ok)
            self._wakeup.wake()
        if problem:
            entry = self.context.peers.get(candidate.id)
            if entry is not None and entry.peer.state == SEEN:
                entry.error = problem
            # Any host can announce a wrong address: not worth a line in the log each.
            log.debug("card not fetched", address=candidate.address, error=problem)

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
        self, address: str, peerid: str = "", *, unblock: bool = False
    ) -> tuple[str, PeerState | None]:
        card, data = await fetch_card(address, self.context.clock)
        root = self.context.peers.index.root
        if peerid and root(card.id) != root(peerid):
            raise Unsent(f"{address}: another colony lives there ({card.id[:12]})")
        host, _ = split_address(address)
        near = is_near(host)
        entry = await self.context.peers.learn(
            card, data, near=near, unblock=unblock, source=source_of(host)
        )
        if entry is not None:
            entry.prove(_plain(address))
            entry.error = ""
        return card.id, entry

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
