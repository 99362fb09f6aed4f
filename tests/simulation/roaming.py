"""Colonies on the internet: they move, hide behind routers, die and come back, and find each other.

Nobody has a configured address. What must hold is in `witness`; what it costs is counted here and
told in docs/scale.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from federation.dht.lookups import target
from node.model.types import State
from node.store import keys
from tests.simulation.actors import Job, Worker, submit_and_watch
from tests.simulation.internet import DhtCost, Internet, Roamer, plugged
from tests.simulation.scale import Kind, neighbours
from tests.simulation.scenario import rest
from tests.simulation.stage import stage
from tests.simulation.witness import Witness
from tests.simulation.world import Faults, World

__all__ = ["Found", "Roaming", "roam", "roaming_table"]

_PEERS = 4
_HIDDEN = (3, 6, 9)  # of ten colonies, those behind routers; the neighbours of each are not
_FIRST_OF_TWO = (0, 4, 7)  # ... and the first of two neighbours that are not
_WARM = 40.0  # virtual seconds until everybody has met everybody it will
_FAULTS = Faults(drop=0.01, slow=0.1, slowest=1.0)
# Of all colonies, in the whole time: those that move, alone or with a peer at the same moment, and
# those that die, half of them to come back elsewhere.
_ALONE, _TOGETHER, _DYING = 0.1, 0.1, 0.1
_AWAY = (20.0, 60.0)  # seconds that a dead one is away
_TROUBLED = 0.7  # of the time, in which all that happens
_PATIENCE = 900.0  # virtual seconds for all to end afterwards
_PACE = 2.0  # seconds between looks at deadlines and offers
_LOST = 300.0  # seconds after which a peer counts as not found again
_LOOK = 0.5
_PATHS = {
    "hello": "/v1/hello",
    "capabilities": "/v1/capabilities",
    "submit": "/v2/submit",
    "outcomes": "/v2/outcomes",
    "mailboxes": ("/v1/mail", "/v1/pass"),
    "dial-backs and cards": ("/v1/dial", "/v1/card"),
}


class Found(msgspec.Struct, frozen=True):
    """Seconds from a colony's announcement until a peer of it had it again, sorted; see `at`."""

    seconds: list[float]

    def at(self, share: float) -> float:
        """Return the time within which that share was found; 0 if there was nothing to find."""
        if not self.seconds:
            return 0.0
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


class Roaming(msgspec.Struct, frozen=True):
    """What `colonies` said, for each colony and minute, and how soon they found each other.

    `kinds` are exchanges and kB between colonies, `dht` queries sent and kB with their answers, by
    formula. `handshakes` are all connections that were tried, `strayed` those with false addresses,
    on average and the most of one colony in one minute. `alone` is after moves of one side of two
    peers, `together` of both.
    """

    colonies: int
    kinds: dict[str, Kind]
    dht: Kind
    lookups: float
    handshakes: float
    strayed: float
    most_strayed: int
    alone: Found
    together: Found
    moves: int
    deaths: int
    submitted: int
    successful: int
    settled: float  # seconds after the last trouble until all work had ended

    @property
    def total(self) -> Kind:
        """All between colonies."""
        every = self.kinds.values()
        return Kind(sum(each.exchanges for each in every), sum(each.kilobytes for each in every))


@dataclass
class _Land:
    """The colonies of a world, and what was seen of them."""

    world: World
    nursery: trio.Nursery
    internet: Internet
    witness: Witness
    sites: list[Roamer] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    submitted: set[str] = field(default_factory=set)
    moves: int = 0
    deaths: int = 0
    sought: int = 0  # peers that moved and are not found again yet

    def settle(self, colonies: int) -> None:
        """Found all colonies: each trusts its neighbours on a ring."""
        for number in range(colonies):
            hidden = number % 10 in _HIDDEN
            site = Roamer(self.world, self.internet, f"c{number}", hidden=hidden, pace=_PACE)
            self.sites.append(site)
        for site, others in zip(self.sites, neighbours(colonies, _PEERS), strict=True):
            site.furnish()
            self.witness.watch(site)
            for each in others:
                site.know(self.sites[each])
            self.nursery.start_soon(site.run)
            self.nursery.start_soon(Worker(self.world, site, site.worker(0), 0.5).run)

    def employ(self, seconds: float, rate: float) -> None:
        """Have everybody submit processes to its peers, so many a minute."""
        dice = self.world.dice
        for here, others in enumerate(neighbours(len(self.sites), _PEERS)):
            for number in range(round(rate * seconds / 60.0)):
                to = self.sites[dice.choice(others)].name
                job = Job(number, dice.uniform(0.0, seconds), to, 0, 0, 0)
                site = self.sites[here]
                self.nursery.start_soon(submit_and_watch, site, job, self.submitted.add)

    def trouble(self, seconds: float) -> None:
        """Have colonies move and die within that time."""
        dice, size = self.world.dice, len(self.sites)
        free = set(range(size))

        def some(share: float, of: list[int]) -> list[int]:
            count = max(1, round(share * size))
            return dice.sample(of, min(count, len(of)))

        # Two that anybody can connect to: neither is told by a mailbox where the other is.
        pairs = [here for here in range(size - 1) if here % 10 in _FIRST_OF_TWO]
        for here in some(_TOGETHER / 2, pairs):
            pair = self.sites[here : here + 2]
            self.nursery.start_soon(self._move, pair, dice.uniform(0, seconds))
            free -= {here, here + 1}
        for here in some(_ALONE, sorted(free)):
            self.nursery.start_soon(self._move, [self.sites[here]], dice.uniform(0, seconds))
            free.discard(here)
        for turn, here in enumerate(some(_DYING, sorted(free))):
            away = turn % 2 == 1
            self.nursery.start_soon(self._die, self.sites[here], dice.uniform(0, seconds), away)

    async def _die(self, site: Roamer, after: float, elsewhere: bool) -> None:
        await trio.sleep(after)
        self.deaths += 1
        self.world.fault("loss", site.name)
        site.absence = self.world.dice.uniform(*_AWAY)
        site.kill()
        if elsewhere:
            site.move()

    async def _move(self, group: Sequence[Roamer], after: float) -> None:
        await trio.sleep(after)
        for site in group:
            site.move()
            self.moves += 1
        ids = {site.key.id for site in group}
        for site in group:
            if site.hidden:
                continue  # nobody connects to it before or after
            for other in self.sites:
                if other.key.id in site.friends:
                    into = self.together if other.key.id in ids else self.alone
                    self.nursery.start_soon(self._watch, other, site, into)

    async def _watch(self, other: Roamer, site: Roamer, into: list[float]) -> None:
        """Measure until `other` has `site` again, if both are there all the while."""
        self.sought += 1
        try:
            await self._find(other, site, into)
        finally:
            self.sought -= 1

    async def _find(self, other: Roamer, site: Roamer, into: list[float]) -> None:
        lives, moves = (other.kills, site.kills), (other.moves, site.moves)
        key, address = target(site.key.id), site.address
        begin: float | None = None
        limit = trio.current_time() + _LOST
        while (other.kills, site.kills, other.moves, site.moves) == (*lives, *moves):
            now = trio.current_time()
            begin = self.internet.dht.announced.get((key, address)) if begin is None else begin
            assert other.federation is not None
            entry = other.federation.peers.get(site.key.id)
            assert entry is not None
            if address in entry.peer.endpoints and not entry.error:
                into.append(now - begin if begin is not None else 0.0)
                return
            if now > limit:
                into.append(float("inf"))
                return
            await trio.sleep(_LOOK)

    def successful(self) -> int:
        """How many of those submitted came to a good end where they were submitted."""
        return sum(
            item.key.rpartition("/")[2] in self.submitted
            for site in self.sites
            for item in site.store.items(keys.closed_prefix(site.name, State.SUCCESSFUL))
        )


def _counted(internet: Internet, share: float) -> dict[str, Kind]:
    kinds = {}
    for name, paths in _PATHS.items():
        each = (paths,) if isinstance(paths, str) else paths
        exchanges = sum(internet.traffic[path] for path in each)
        kinds[name] = Kind(exchanges / share, sum(internet.volume[at] for at in each) / share / 1e3)
    return kinds


async def _play(colonies: int, minutes: float, rate: float, hostile: float, others: int) -> Roaming:
    world = World(colonies, most_steps=sys.maxsize)
    witness = Witness(world)
    seconds = 60.0 * minutes
    async with trio.open_nursery() as nursery:
        internet = Internet(world, nursery, hostile, others)
        with plugged(internet):
            land = _Land(world, nursery, internet, witness)
            land.settle(colonies)
            await trio.sleep(_WARM)
            world.faults = _FAULTS
            internet.traffic.clear()
            internet.volume.clear()
            internet.strayed.clear()
            internet.handshakes = 0
            dht, before = internet.dht, internet.dht.queries
            lookups = dht.lookups
            land.employ(seconds * _TROUBLED, rate)
            land.trouble(seconds * _TROUBLED)
            await trio.sleep(seconds)
            share = colonies * minutes
            queries = dht.queries - before
            kinds, handshakes = _counted(internet, share), internet.handshakes / share
            strayed, looked = internet.strayed.copy(), (dht.lookups - lookups) / share
            end = trio.current_time()
            await rest(witness, _PATIENCE)
            settled = trio.current_time() - end
            while land.sought:  # noqa: ASYNC110
                await trio.sleep(_LOOK)
            nursery.cancel_scope.cancel()
    each = queries / share + DhtCost.KEEPING
    return Roaming(
        colonies,
        kinds,
        Kind(each, each * DhtCost.BYTES / 1e3),
        looked,
        handshakes,
        sum(strayed.values()) / share,
        max(strayed.values(), default=0),
        Found(sorted(land.alone)),
        Found(sorted(land.together)),
        land.moves,
        land.deaths,
        len(land.submitted),
        land.successful(),
        settled,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("colonyd")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def roam(
    colonies: int, minutes: float = 2, rate: float = 1.5, hostile: float = 0.1, others: int = 0
) -> Roaming:
    """Play colonies that move, hide, die and find each other; raises Broken if work ends wrong.

    Each submits `rate` processes a minute, each to one of its 4 peers. `hostile` is the share of
    the DHT's nodes that lie; `others` are nodes of it that are no colonies.
    """
    with _quiet(), stage(colonies) as clock:
        return trio.run(_play, colonies, minutes, rate, hostile, others, clock=clock)


def roaming_table(rows: Iterable[Roaming]) -> Iterator[str]:
    """As lines of Markdown, each as soon as it is known."""
    head = [
        "colonies", *_PATHS, "all", "DHT", "look-ups", "handshakes", "false", "most false",
        "moves", "losses", "found again, one moved", "both moved", "done",
    ]  # fmt: skip
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---:|" * len(head)
    for row in rows:
        cells = [
            str(row.colonies),
            *(_cell(kind) for kind in row.kinds.values()),
            _cell(row.total),
            _cell(row.dht),
            f"{row.lookups:.2f}",
            f"{row.handshakes:.1f}",
            f"{row.strayed:.2f}",
            str(row.most_strayed),
            str(row.moves),
            str(row.deaths),
            _times(row.alone),
            _times(row.together),
            f"{row.successful}/{row.submitted}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _cell(kind: Kind) -> str:
    return f"{kind.exchanges:.1f} / {kind.kilobytes:.1f}"


def _times(found: Found) -> str:
    if not found.seconds:
        return "–"
    return " / ".join(f"{found.at(share):.1f}" for share in (0.5, 0.99, 1.0)) + " s"
