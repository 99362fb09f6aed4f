"""Colonies behind routers with NAT, and no configured address: they find each other by id.

Three routers, a small DHT of their own, and public colonies that are mailboxes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.daemons import until
from tests.support.netns import require, sides
from tests.support.routers import Host, Router, internet
from tests.support.sides import Side

pytestmark = pytest.mark.slow
pytest.importorskip("libtorrent", reason="the extra colonyd[global] is not installed")

FURTHER = {"forward": True, "max_hops": 2}
PUBLIC = ["rook", "raven", "robin", "rail"]


class Internet:
    """The hosts by name, and the routers."""

    def __init__(self, hosts: dict[str, Host], routers: list[Router]) -> None:
        self.hosts, self.routers = hosts, routers

    @asynccontextmanager
    async def sides(self) -> AsyncIterator[dict[str, Side]]:
        """Open a way into each host."""
        async with sides(self.hosts.values()) as found:
            yield dict(zip(self.hosts, found, strict=True))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    require()
    place = tmp_path_factory.mktemp("internet")
    with internet(place, PUBLIC, {"ant": 1, "bee": 2}, 3) as (hosts, routers):
        with ThreadPoolExecutor(len(hosts)) as hands:
            list(hands.map(Host.start, hosts.values()))
        yield Internet(hosts, routers)


async def join(one: Side, other: Side) -> list[str]:
    """Make trust mutual by an invitation of the other; return the addresses in it."""
    made = await other.call("invitepeermsg", other.owner, change=FURTHER)
    fields = {"token": made["token"], "change": FURTHER}
    peer = await one.client.call("joinpeermsg", fields, one.owner, 90)
    assert peer["state"] == "trusted"
    return list(made["addresses"])


async def mailboxes(side: Side) -> set[str]:
    """Return the names of the colonies whose mailboxes it polls."""
    status = await side.patient("getnodestatusmsg")
    return {each["name"] for each in status["mailboxes"]["ours"]}


async def errand(one: Side, other: Side, text: str) -> None:
    """A process goes from one colony to the other, and its outcome verifies."""
    processid = await one.submit(other.owner.id, args=[text])
    await other.work(text.upper(), args=[text])
    process = await one.closed(processid, 150)
    assert (process["state"], process["out"]) == (2, [text.upper()]), process["errors"]
    forward = await one.forward(processid)
    assert forward["outcome"]["signaturevalid"] is True
    assert forward["outcome"]["issuer"] == other.owner.id


async def carried(net: Internet, sides: dict[str, Side]) -> dict[str, int]:
    """Return how many messages each public colony carried to another."""
    counts = {}
    for name in PUBLIC:
        if net.hosts[name].process is not None:
            status = await sides[name].call("getnodestatusmsg")
            counts[name] = int(status["messages"].get("ok_pass", 0))
    return counts


async def test_colonies_behind_routers_work_together(net: Internet) -> None:
    """Found by id, peers by an invitation, a move, and mailboxes that die."""
    async with net.sides() as sides:
        ant, bee = sides["ant"], sides["bee"]
        for name in PUBLIC:
            await join(bee, sides[name])
        for side in (ant, bee):
            await side.hire()

        async def served() -> bool:
            return len(await mailboxes(bee)) == 3

        # Nobody could dial back, so bee chooses mailboxes by itself.
        await until(150, served)

        assert await join(ant, bee) == [], "an invitation without addresses"
        await errand(ant, bee, "there")
        counts = await carried(net, sides)
        used = max(counts, key=lambda name: counts[name])
        assert counts[used], "nothing but a mailbox leads there"
        assert used in await mailboxes(bee)
        known = await sides[used].peer(ant)  # bee may have introduced ant by now
        assert known is None or known["state"] == "pending", "ant is a stranger to it"

        # Both sides tell the people who run them.
        chosen = await mailboxes(bee)
        for name, words in (("bee", chosen), (used, {"mailbox", "bee ("})):
            for command in ("status", "doctor"):
                shown = await trio.to_thread.run_sync(net.hosts[name].colony, command)
                assert all(word in shown.stdout for word in words), shown

        # bee is carried to another network, while its daemon runs.
        net.hosts["bee"].move(net.routers[2])
        await errand(ant, bee, "moved")

        # The mailbox in use dies: ant goes on by another one, and bee takes the fourth.
        chosen = await mailboxes(bee)
        (spare,) = set(PUBLIC) - chosen
        await trio.to_thread.run_sync(net.hosts[used].power_cut)
        await errand(ant, bee, "one is dead")

        async def replaced() -> bool:
            return await mailboxes(bee) == set(PUBLIC) - {used}

        await until(180, replaced)

        async def told() -> bool:
            peer = await ant.peer(bee)
            return peer is not None and sides[spare].owner.id in peer["mailboxes"]

        await until(60, told)
        # The others die: ant never met the one that is left, and finds it by its id.
        for name in chosen - {used}:
            await trio.to_thread.run_sync(net.hosts[name].power_cut)
        await errand(ant, bee, "by the last one")

        # The other way: with a peer that is public, ant has a mailbox as well.
        await join(ant, sides[spare])
        await errand(bee, ant, "back")
