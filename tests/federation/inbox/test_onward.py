"""What a peer sent, and nobody here can run, goes on by our own routes: as far as it may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from federation.peers.policy import Policy
from federation.routing.rules import read_routes
from federation.wire.messages import Capabilities, Offer
from node.host.config import RouteConfig
from node.model.types import State
from tests.support.colonies import Colony, world
from tests.support.daemons import until

ANYWHERE = RouteConfig(when="no-executor", to="any")


@asynccontextmanager
async def wake(path: Path, hops: int, **further: object) -> AsyncIterator[list[Colony]]:
    """Four colonies that all trust each other, and send on what they can't run to whoever offers.

    Each believes that all the others can run it, and none of its own executors is there.
    """
    async with world(path) as colonies:
        all_of_them = [await colonies.add(name, hops=hops) for name in ("ant", "bee", "cat", "dog")]
        for one in all_of_them:
            one.fed.router.routes = read_routes([ANYWHERE])
            for other in all_of_them:
                if other is not one:
                    await one.trust(other, **further)
                    said = Capabilities(2**60, types={"t": Offer(["*"], executors=1)})
                    one.fed.capability_cache.take(other.key.id, said)
        with trio.fail_after(40):
            yield all_of_them


def holder(colonies: list[Colony]) -> Colony | None:
    """The colony in whose queue a process waits that can't go on."""
    return next((each for each in colonies if each.waiting()), None)


async def settled(colonies: list[Colony]) -> Colony:
    """The colony where a process stays, whose router looked at it in vain."""
    found: list[Colony] = []

    async def stays() -> bool:
        now = holder(colonies)
        if now is None:
            return False
        await now.fed.requeuer.tick()
        found[:] = [now]
        return holder(colonies) is now and not now.fed.outbox.entries

    await until(50, stays)
    return found[0]


async def ends_at(colonies: list[Colony], target: str) -> list[str]:
    """The colonies that a process passes on its way from ant to where it stays, and is run."""
    ant = colonies[0]
    processid = await ant.submit(target)
    last = await settled(colonies)
    await last.work("done")
    process = await ant.closed(processid)
    assert (process.state, process.output) == (State.SUCCESSFUL, ["done"])
    steps = await ant.steps(processid)
    assert [step.problem for step in steps] == [""] * len(steps)
    assert steps[-1].issuer == last.key.id
    for each in colonies:
        assert each.fed.server.counters["loop"] == 0, "nobody is asked that had it"
    names = {each.key.id: each.name for each in colonies}
    return [names[step.issuer] for step in steps]


@pytest.mark.parametrize("hops", [1, 2, 3])
async def test_it_goes_on_for_as_many_hops_as_its_origin_allows(tmp_path: Path, hops: int) -> None:
    async with wake(tmp_path, hops, forward=True, max_hops=4) as colonies:
        way = await ends_at(colonies, "bee")
        assert len(way) == hops
        assert way[0] == "bee"
        assert len({*way, "ant"}) == hops + 1


async def test_in_a_ring_it_stays_where_nobody_is_left_who_did_not_have_it(tmp_path: Path) -> None:
    async with wake(tmp_path, 4, forward=True, max_hops=4) as colonies:
        way = await ends_at(colonies, "cat")
        assert way[0] == "cat"
        assert sorted(way) == ["bee", "cat", "dog"]


async def test_the_policy_of_each_says_how_far(tmp_path: Path) -> None:
    async with wake(tmp_path, 4, forward=True, max_hops=2) as colonies:
        assert len(await ends_at(colonies, "bee")) == 2


async def test_without_forward_it_stays(tmp_path: Path) -> None:
    async with wake(tmp_path, 4, forward=False, max_hops=4) as colonies:
        assert await ends_at(colonies, "bee") == ["bee"]


async def test_who_may_send_on_no_more_has_what_waits_kept_here(tmp_path: Path) -> None:
    async with wake(tmp_path, 4, forward=True, max_hops=4) as colonies:
        ant, bee, *_ = colonies
        routes, bee.fed.router.routes = bee.fed.router.routes, []
        processid = await ant.submit("bee")
        await bee.until(lambda: bool(bee.waiting()))
        await bee.fed.trust_admin.set_policy(ant.key.id, Policy(max_hops=4))
        bee.fed.router.routes = routes
        assert await settled(colonies) is bee
        await bee.work("done")
        assert (await ant.closed(processid)).state == State.SUCCESSFUL
