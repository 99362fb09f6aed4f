"""How the traffic between colonies grows with their number: a calm world, counted.

Nothing fails here; what must hold when things do is in `witness`. What the numbers say is in
docs/scale.md.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Literal

import msgspec
import trio

from node.host.config import RouteConfig
from node.model.types import State
from node.store import keys
from tests.simulation.actors import Job, Worker, submit_and_watch
from tests.simulation.colony import Site
from tests.simulation.network import Network
from tests.simulation.stage import stage
from tests.simulation.world import World

__all__ = ["ALL", "FURTHEST", "Kind", "Mode", "Traffic", "measure", "neighbours", "table"]

Mode = Literal["pending", "trust"]

ALL = 0  # instead of a number of peers: everybody trusts everybody
FURTHEST = 3  # hops from where a newcomer is trusted, at which it is looked for
_WARM = 60.0  # virtual seconds until everybody has met everybody it will
_LATEST = 40.0  # seconds of a minute after which nothing is submitted: it has time to end
_SPREAD = 15.0  # seconds that a newcomer's card has to get around
_KNOCK = 1.0  # ... to say hello first, as a stranger
_GLANCE = 0.1  # seconds between looks for it
_PACE = 0.5  # seconds between looks at deadlines and offers, as the daemon has it
_NEWCOMER = "new"
_PATHS = {
    "hello": "/v1/hello",
    "capabilities": "/v1/capabilities",
    "introductions": "/v1/introductions",
    "submit": "/v2/submit",
    "outcomes": "/v2/outcomes",
}


class Kind(msgspec.Struct, frozen=True):
    """Exchanges (a request and its answer), and the bytes of both bodies, in thousands."""

    exchanges: float
    kilobytes: float


class Traffic(msgspec.Struct, frozen=True):
    """What `colonies` with `peers` each said, for each colony and minute of work.

    `bootstrap` is each one's share of the first minute, `known` how many others each has the card
    of in the end, the least and the most. `spread` has for each number of hops the seconds until
    everybody so far from where a newcomer was trusted knew of it; None for never.
    """

    colonies: int
    peers: float
    known: tuple[int, int]
    bootstrap: Kind
    kinds: dict[str, Kind]
    spread: list[float | None]
    submitted: int
    successful: int

    @property
    def total(self) -> Kind:
        """All kinds together."""
        every = self.kinds.values()
        return Kind(sum(each.exchanges for each in every), sum(each.kilobytes for each in every))


def neighbours(colonies: int, peers: int) -> list[list[int]]:
    """Whom each one trusts: a ring, and on it the nearest on both sides."""
    reach = (peers + 1) // 2 if peers != ALL else colonies
    reach = min(reach, colonies // 2)
    near = [far for step in range(1, reach + 1) for far in (step, -step)]
    return [sorted({(here + far) % colonies for far in near} - {here}) for here in range(colonies)]


def _hops(neighbours: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    """How far from `start` others are, up to the furthest looked at."""
    found, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        if found[here] == FURTHEST:
            continue
        for there in neighbours[here]:
            if there not in found:
                found[there] = found[here] + 1
                queue.append(there)
    return found


class _Crowd:
    """The colonies of a world, calm and busy."""

    def __init__(self, world: World, nursery: trio.Nursery, mode: Mode) -> None:
        self.world, self.nursery, self.mode = world, nursery, mode
        self.network = Network(world, nursery)
        self.sites: list[Site] = []
        self.submitted: list[set[str]] = []

    def add(self, name: str, friends: Iterable[str]) -> Site:
        """Found a colony that trusts others."""
        site = Site(self.world, self.network, name, pace=_PACE)
        site.furnish()
        site.introductions = self.mode
        site.routes = [RouteConfig(to="any")]
        for each in friends:
            site.befriend(each)
        self.nursery.start_soon(site.run)
        self.nursery.start_soon(Worker(self.world, site, site.worker(0), 0.5).run)
        self.sites.append(site)
        self.submitted.append(set())
        return site

    def employ(self, minutes: int, rate: int) -> None:
        """Have everybody submit so many processes a minute, each to be routed to anybody."""
        for site, submitted in zip(self.sites, self.submitted, strict=True):
            for number in range(minutes * rate):
                at = 60.0 * (number // rate) + self.world.dice.uniform(0.0, _LATEST)
                job = Job(number, at, site.name, 0, 0, 0)
                self.nursery.start_soon(submit_and_watch, site, job, submitted.add)

    def successful(self) -> int:
        """How many of those submitted came to a good end where they were submitted."""
        return sum(
            item.key.rpartition("/")[2] in submitted
            for site, submitted in zip(self.sites, self.submitted, strict=True)
            for item in site.store.items(keys.closed_prefix(site.name, State.SUCCESSFUL))
        )

    def known(self) -> list[int]:
        """How many others each one has the card of."""
        daemons = [site.federation for site in self.sites if site.federation is not None]
        return [
            sum(bool(entry.peer.public_key) for entry in daemon.peers.known.values())
            for daemon in daemons
        ]

    def degree(self) -> float:
        """How many peers one trusts, on average."""
        daemons = [site.federation for site in self.sites if site.federation is not None]
        return fmean(len(daemon.peers.trusted()) for daemon in daemons)

    async def spread(self, distances: dict[int, int]) -> list[float | None]:
        """Have the first colony trust a newcomer; for each hop, when the last one knows it."""
        first = self.sites[0]
        site = self.add(_NEWCOMER, [first.name])
        await site.arrived.wait()
        await trio.sleep(_KNOCK)
        newcomer, federation = site.key.id, first.federation
        assert federation is not None
        await first.call(federation.trust_admin.trust, newcomer)
        begin = trio.current_time()
        found: list[float | None] = [None] * (FURTHEST + 1)
        waiting = set(distances)
        while waiting and trio.current_time() - begin < _SPREAD:
            waiting = {number for number in waiting if not self._knows(number, newcomer)}
            for hops in set(distances.values()) - {distances[number] for number in waiting}:
                if found[hops] is None:
                    found[hops] = trio.current_time() - begin
            await trio.sleep(_GLANCE)
        return found[1:]

    def _knows(self, number: int, colony: str) -> bool:
        federation = self.sites[number].federation
        return federation is not None and colony in federation.peers.known


def _kinds(traffic: Counter[str], volume: Counter[str], share: float) -> dict[str, Kind]:
    return {
        name: Kind(traffic[path] / share, volume[path] / share / 1000)
        for name, path in _PATHS.items()
    }


async def _count(colonies: int, peers: int, minutes: int, rate: int, mode: Mode) -> Traffic:
    world = World(colonies, most_steps=sys.maxsize)
    around = neighbours(colonies, peers)
    async with trio.open_nursery() as nursery:
        crowd = _Crowd(world, nursery, mode)
        for here, others in enumerate(around):
            crowd.add(f"c{here}", (f"c{there}" for there in others))
        network = crowd.network
        await trio.sleep(_WARM)
        met, met_volume = network.traffic.copy(), network.volume.copy()
        crowd.employ(minutes, rate)
        await trio.sleep(60.0 * minutes)
        spent, volume = network.traffic - met, network.volume - met_volume
        first = _kinds(met, met_volume, colonies).values()
        known = crowd.known()
        found = Traffic(
            colonies,
            crowd.degree(),
            (min(known), max(known)),
            Kind(sum(each.exchanges for each in first), sum(each.kilobytes for each in first)),
            _kinds(spent, volume, colonies * minutes),
            [],
            sum(map(len, crowd.submitted)),
            crowd.successful(),
        )
        spread = await crowd.spread(_hops(around, 0))
        nursery.cancel_scope.cancel()
    return msgspec.structs.replace(found, spread=spread)


def measure(
    colonies: int, peers: int = 4, minutes: int = 2, rate: int = 3, mode: Mode = "pending"
) -> Traffic:
    """Count the traffic of a world of colonies that each trust so many others, or `ALL`.

    Each submits `rate` processes a minute that a route sends to any peer; `mode` is what
    `introductions` is set to. It takes about 0.4 s of CPU for each colony with 4 peers.
    """
    logger = logging.getLogger("colonyd")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    count = functools.partial(_count, colonies, peers, minutes, rate, mode)
    try:
        with stage(colonies) as clock:
            return trio.run(count, clock=clock)
    finally:
        logger.setLevel(level)


def table(rows: Iterable[Traffic]) -> Iterator[str]:
    """As lines of Markdown, each as soon as it is known: exchanges / kB a colony and minute."""
    hops = [f"{number} hops" if number > 1 else "1 hop" for number in range(1, FURTHEST + 1)]
    head = ["colonies", "peers", "known", "first minute", *_PATHS, "all", *hops, "done"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---:|" * len(head)
    for row in rows:
        least, most = row.known
        cells = [
            str(row.colonies),
            f"{row.peers:.0f}",
            str(least) if least == most else f"{least}–{most}",
            _cell(row.bootstrap),
            *(_cell(row.kinds[name]) for name in _PATHS),
            _cell(row.total),
            *("–" if each is None else f"{each:.1f} s" for each in row.spread),
            f"{row.successful}/{row.submitted}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _cell(kind: Kind) -> str:
    return f"{kind.exchanges:.1f} / {kind.kilobytes:.1f}"
