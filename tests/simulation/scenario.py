"""One seed is one story: drawn from it, played in virtual time, healed, and judged.

What can happen is drawn here; how it happens is in `colony`, `actors` and `support.netns`.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import trio

from colonyd.errors import Conflict, Denied, Invalid, NotFound, RpcError, Unavailable
from federation.peers.policy import Policy
from node.etcd.errors import EtcdUnavailable
from node.host.config import RouteConfig
from tests.simulation.actors import Job, Worker, patiently, submit_and_watch
from tests.simulation.colony import WORKERS, Site
from tests.simulation.foes import EVE, MALLORY, Foes
from tests.simulation.network import Network
from tests.simulation.stage import stage
from tests.simulation.witness import Witness
from tests.simulation.world import Broken, Faults, World, key_of

__all__ = ["Result", "Story", "play", "rest"]

_PATIENCE = 8000.0  # virtual seconds that a healed world gets to come to rest
_LOOK = 2.0
_EXPECTED = tuple(
    f"{kind.__name__}("
    for kind in (EtcdUnavailable, Invalid, Denied, NotFound, Conflict, Unavailable)
)
_TROUBLES = ("split", "split", "one way", "freeze", "stop", "kill", "clock", "block")
_COLONIES = (3,) * 40 + (4, 5, 6, 7, 8)


class Result(msgspec.Struct):
    """What became of one seed. `events` counts store writes and messages."""

    seed: int
    problem: str
    trace_hash: str
    elapsed: float
    faults: dict[str, int]
    outcomes: dict[str, int]
    events: int
    trace: list[str] = []


@dataclass
class Story:
    """The plot of a seed."""

    world: World
    colonies: int
    jobs: list[tuple[int, Job]] = field(default_factory=list)
    trust: set[tuple[int, int]] = field(default_factory=set)
    length: float = 40.0
    longest: float = 8.0
    skews: list[float] = field(default_factory=list)
    policies: dict[tuple[int, int], Policy] = field(default_factory=dict)
    routes: dict[int, list[RouteConfig]] = field(default_factory=dict)
    hops: int = 1
    foes: bool = False
    introductions: bool = False
    talks: bool = True
    faults: Faults = field(default_factory=Faults)
    foe_pause: float = 6.0  # at most, between two acts of a foe
    patience: float = _PATIENCE
    troubles: tuple[str, ...] = _TROUBLES
    unrest: int = 5  # troubles, at most
    paces: tuple[float, ...] = (3.0, 6.0, 10.0)  # seconds between looks at what is due, drawn


def draw(world: World, colonies: int) -> Story:
    """Draw the plot."""
    dice = world.dice
    # Most stories are short ones: many of them find more than a few long ones do.
    short = dice.random() < (0.95 if colonies == 3 else 0.6)
    story = Story(world, colonies, length=dice.uniform(2.0, 7.0 if short else 20.0))
    story.unrest = 3 if short else 5
    story.longest = dice.choice((0.5, 4.0, 4.0 if short else 15.0))
    spread = 3600.0 if dice.random() < 0.01 else dice.choice((0.0, 0.0, 1.0, 60.0, 300.0))
    story.skews = [dice.uniform(-spread, spread) for _ in range(colonies)]
    story.foes = dice.random() < (0.15 if short else 0.3)
    story.hops = dice.choice((1, 1, 3))
    story.introductions = not short and dice.random() < 0.2
    usual = dice.randrange(colonies)
    for number in range(dice.randint(1, 2) if short else dice.randint(2, 5)):
        source = usual if short and dice.random() < 0.7 else dice.randrange(colonies)
        story.jobs.append((source, _draw_job(story, number, source, short)))
    for pair in sorted(story.trust):
        if dice.random() < 0.3:
            story.policies[pair] = _draw_policy(world)
    story.faults = _draw_faults(world)
    story.talks = bool(story.routes) or dice.random() < 0.05
    return story


def _draw_job(story: Story, number: int, source: int, short: bool) -> Job:
    dice, colonies = story.world.dice, story.colonies
    target = dice.randrange(colonies)
    if target == source or (colonies == 3 and dice.random() < 0.5):
        target = (source + (dice.random() < 0.8)) % colonies
    route_trace = [source, target]
    name = f"c{route_trace[1]}"
    if dice.random() < 0.25:
        # It names nobody: a route leads away, or not.
        name, kind = f"c{source}", dice.choice(("always", "no-executor", "waiting > 2s"))
        story.routes[source] = [RouteConfig(when=kind, to="any", retry=dice.random() < 0.8)]
    elif story.hops > 1 and dice.random() < 0.5:
        # Perhaps back to where it came from: that must be refused.
        route_trace.append(
            dice.choice([each for each in range(colonies) if each != route_trace[1]])
        )
        name = f"c{route_trace[1]}/c{route_trace[2]}"
    elif story.foes and dice.random() < 0.2:
        name = EVE
    mutual = dice.random() < 0.9
    for here, there in pairwise(route_trace):
        story.trust.add((here, there))
        if mutual:  # else who gets it does not know the sender
            story.trust.add((there, here))
    limits = dice.random()
    return Job(
        number,
        dice.uniform(0.0, story.length * 0.7),
        name,
        wait=0 if limits < 0.4 else dice.choice((2, 6, 15 if short else 40)),
        run=0 if limits < 0.2 else dice.choice((1, 4, 12 if short else 30)),
        retries=dice.choice((0, 0, 1, 3, -1)),
        cancel=dice.uniform(0.0, story.length) if dice.random() < 0.25 else None,
        decide=dice.uniform(0.0, story.length) if dice.random() < 0.15 else None,
        remove=dice.uniform(2.0, 8.0 if short else 60.0) if dice.random() < 0.1 else None,
    )


def _draw_policy(world: World) -> Policy:
    dice = world.dice
    hops = dice.randint(1, 4)
    return Policy(
        max_waiting=dice.choice((0, 1, 2)),
        max_running=dice.choice((0, 1, 2)),
        rate=dice.choice((0, 0, 2, 20)),
        forward=hops > 1,
        max_hops=hops,
    )


def _draw_faults(world: World) -> Faults:
    """Some worlds are calm, some are wild, each in its own way."""
    dice = world.dice
    wild = dice.choice((0.0, 0.3, 1.0, 1.0, 2.0))

    def rate(most: float) -> float:
        return 0.0 if dice.random() < 0.4 else wild * dice.uniform(0.0, most)

    return Faults(
        slow=rate(0.4),
        slowest=dice.choice((0.5, 5.0, 20.0)),
        drop=rate(0.15),
        late=rate(0.08),
        duplicate=rate(0.2),
        kill=rate(0.05),
        unavailable=rate(0.05),
        silent=rate(0.02),
        watch=rate(0.1),
        vanish=rate(0.15),
        fail=rate(0.3),
    )


class _Errors(logging.Handler):
    """An unexpected exception that a task survived is a fault all the same."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self.world = world
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = getattr(record, "fields", {})
        event = record.getMessage()
        if record.levelno >= logging.ERROR:
            cause = record.exc_info[1] if record.exc_info else None
            self.found.append(f"{event} {fields} {cause!r}")
            if self.world.keep and cause is not None:
                self.world.lines += traceback.format_exception(cause)
        elif event == "background task" and not _expected(str(fields.get("error"))):
            self.found.append(f"{event} {fields}")


def _expected(error: str) -> bool:
    return error.startswith(_EXPECTED)


async def _troubles(story: Story, network: Network, sites: list[Site]) -> None:
    """Partitions, frozen stores, restarts, and stepping clocks, at drawn moments."""
    dice, count = story.world.dice, story.world.dice.randint(0, story.unrest)
    moments = sorted(dice.uniform(0.0, story.length) for _ in range(count))
    async with trio.open_nursery() as nursery:
        for moment in moments:
            nursery.start_soon(_trouble, story, network, sites, moment)


async def _trouble(story: Story, network: Network, sites: list[Site], moment: float) -> None:
    world, length = story.world, story.length
    dice = world.dice
    await trio.sleep(moment)
    site = dice.choice(sites)
    lasts = dice.uniform(0.5, 0.8 * length)
    match dice.choice(story.troubles):
        case "split":
            cut = dice.randint(1, len(sites))
            group = set(dice.sample([each.key.id for each in sites], cut))
            ids = [each.key.id for each in sites]
            pairs = {(a, b) for a in ids for b in ids if (a in group) != (b in group)}
            await _split(world, network, pairs, lasts)
        case "one way":
            other = dice.choice(sites)
            await _split(world, network, {(site.key.id, other.key.id)}, lasts)
        case "freeze":
            world.fault("freeze", site.name)
            site.frozen = True
            await trio.sleep(min(lasts, 12.0))
            site.frozen = False
        case "stop":
            world.fault("stop", site.name)
            site.stop()
        case "kill":
            world.fault("kill", site.name, "at any moment")
            site.kill()
        case "block":
            await _block(world, site, dice.choice(sites), lasts)
        case "clock":
            site.skew += dice.choice((-400.0, -30.0, 30.0, 400.0))
            world.fault("clock", site.name, round(site.skew))


async def _block(world: World, site: Site, other: Site, lasts: float) -> None:
    """The owner blocks a colony, and thinks better of it."""
    if site.store.get(site.keys.peer(other.key.id)) is None:
        return
    world.fault("block", site.name, other.name)

    async def block() -> None:
        assert site.federation is not None
        await site.federation.trust_admin.block(other.key.id)

    async def trust() -> None:
        assert site.federation is not None
        await site.federation.trust_admin.trust(other.key.id)

    try:
        await patiently(site, block)
        await trio.sleep(lasts)
        await patiently(site, trust)
    except RpcError as error:
        world.note(site.name, "not decided", error)


async def _split(world: World, network: Network, pairs: set[tuple[str, str]], lasts: float) -> None:
    world.fault("split", "net", len(pairs))
    network.split |= pairs
    await trio.sleep(lasts)
    network.split -= pairs


async def _tell(story: Story, witness: Witness) -> None:
    world = story.world
    async with trio.open_nursery() as nursery:
        network = Network(world, nursery)
        sites = [
            Site(
                world,
                network,
                f"c{number}",
                skew=story.skews[number],
                pace=world.dice.choice(story.paces),
            )
            for number in range(story.colonies)
        ]
        for site in sites:
            witness.watch(site)
            site.furnish()
            site.hops, site.routes = story.hops, story.routes.get(int(site.name[1:]), [])
            site.talks = story.talks
            site.introductions = "pending" if story.introductions else "off"
        for a, b in sorted(story.trust):
            if a != b:
                sites[a].befriend(sites[b].name, story.policies.get((a, b)))
        foes = Foes(world, network, witness, sites, story.foe_pause)
        if story.foes:
            witness.foes = {key_of(name).id for name in (EVE, MALLORY)}
            network.sites[key_of(EVE).id] = foes
            for site in sites:
                site.befriend(EVE)
            nursery.start_soon(foes.run)
        world.faults = story.faults
        for site in sites:
            nursery.start_soon(site.run)
            for number in range(WORKERS):
                nursery.start_soon(Worker(world, site, site.worker(number), story.longest).run)
        async with trio.open_nursery() as plot:
            plot.start_soon(_troubles, story, network, sites)
            for source, job in story.jobs:
                plot.start_soon(submit_and_watch, sites[source], job, lambda pid: None)
            await trio.sleep(story.length)
            world.heal()
            network.split.clear()
            for site in sites:
                site.frozen, site.skew = False, 0.0
                if site.federation is not None:
                    site.federation.sight_again()
        await rest(witness, story.patience)
        nursery.cancel_scope.cancel()


async def rest(witness: Witness, patience: float) -> None:
    """Wait until the world is quiet."""
    with trio.move_on_after(patience):
        while witness.unfinished():
            await trio.sleep(_LOOK)
            witness.check()
    left = witness.unfinished()
    if left:
        witness.broken("not quiet in the end", "; ".join(left[:5]))
    witness.final()


def play(
    seed: int,
    colonies: int | None = None,
    *,
    keep: bool = False,
    tune: Callable[[Story], None] | None = None,
) -> Result:
    """Play one seed; `colonies` is drawn from 3 to 8 if not given, `tune` changes the plot."""
    world = World(seed, keep=keep)
    if colonies is None:
        colonies = world.dice.choice(_COLONIES)
    story = draw(world, colonies)
    if tune is not None:
        tune(story)
    witness = Witness(world)
    errors = _Errors(world)
    logger = logging.getLogger("colonyd")
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(errors)
    problem, elapsed = "", 0.0
    try:
        with stage(seed) as clock:
            try:
                trio.run(_tell, story, witness, clock=clock)
            finally:
                elapsed = clock.current_time()
    except* Broken as group:
        problem = witness.problem or str(_leaf(group))
    except* Exception as unexpected:
        problem = f"an exception that nobody expected: {_leaf(unexpected)!r}"
        if keep:
            world.lines += traceback.format_exception(_leaf(unexpected))
    finally:
        logger.removeHandler(errors)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    if errors.found and not problem:
        problem = f"an exception nobody expected: {errors.found[0]}"
    outcomes = Counter(
        process.state.name.lower() for process in witness.ran.values() if not process.origin
    )
    events = sum(site.store.commits for site in witness.sites.values())
    return Result(
        seed,
        problem,
        world.trace_hash,
        elapsed,
        dict(world.counts),
        dict(outcomes),
        events,
        world.lines,
    )


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
