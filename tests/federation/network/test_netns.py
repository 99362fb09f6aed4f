"""Three real daemons in network namespaces, with clocks an hour apart: a network and its mishaps.

Each test leaves the colonies as it found them: trusting each other, and reachable.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.support.daemons import REPOSITORY, until
from tests.support.netns import HOUR, House, ip, require, sides, town
from tests.support.sides import Side

pytestmark = pytest.mark.slow

FURTHER = {"forward": True, "max_hops": 2}
FLOODER = "10.77.0.250"
CLOCKS = {"ant": 0, "bee": HOUR, "cat": -HOUR}


class Yard:
    """The sides of three houses."""

    def __init__(self, sides: list[Side], houses: list[House]) -> None:
        self.ant, self.bee, self.cat = sides
        self.all = sides
        self.houses = houses

    def house(self, side: Side) -> House:
        return next(house for house in self.houses if house is side.daemon)


@asynccontextmanager
async def doors(houses: list[House], workers: dict[str, Any]) -> AsyncIterator[Yard]:
    """Open a way into each house."""
    async with sides(houses) as found:
        for house, side in zip(houses, found, strict=True):
            side.worker = workers.setdefault(house.name, side.worker)
        yield Yard(found, houses)


class Village:
    """The houses and who works in them, for all tests of this module."""

    def __init__(self, houses: list[House]) -> None:
        self.houses = houses
        self.workers: dict[str, Any] = {}

    def open(self) -> Any:
        return doors(self.houses, self.workers)

    async def meet(self) -> None:
        """Let them find each other by what they announce, and trust."""
        async with self.open() as yard:
            ant, bee, cat = yard.all
            for one, other in ((ant, bee), (bee, ant), (bee, cat), (cat, bee)):
                await one.find(other)
                await one.trust(other)
            await bee.call("setpeerpolicymsg", bee.owner, peer=ant.owner.id, change=FURTHER)
            await cat.call("setpeerpolicymsg", cat.owner, peer=bee.owner.id, change=FURTHER)
            for side in yard.all:
                await side.hire()


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    require()
    with town(tmp_path_factory.mktemp("town"), CLOCKS) as houses:
        with ThreadPoolExecutor(len(houses)) as hands:
            list(hands.map(House.start, houses))
        village = Village(houses)
        trio.run(village.meet)
        yield village


async def endpoints(one: Side, other: Side) -> list[str]:
    peer = await one.peer(other)
    assert peer is not None
    return list(peer["endpoints"])


async def reached(one: Side, other: Side, address: str) -> None:
    """One has heard where the other is now."""

    async def known() -> bool:
        return address in "".join(await endpoints(one, other))

    await until(150, known)


async def errands(one: Side, target: str, last: Side, text: str, **spec: Any) -> str:
    """A process from one colony to another, through all that is between, and its end."""
    processid = await one.submit(target, args=[text], **spec)
    await last.work(text.upper(), args=[text])
    process = await one.closed(processid, 150)
    assert (process["state"], process["out"]) == (2, [text.upper()]), process["errors"]
    return processid


async def take(side: Side) -> str:
    """The next process there, which its worker has now."""
    fields = {"colonyname": side.daemon.name, "timeout": 30}
    taken = await side.call("assignprocessmsg", side.worker, **fields)
    return str(taken["processid"])


async def finish(side: Side, processid: str, output: str) -> None:
    await side.patient("closesuccessfulmsg", side.worker, processid=processid, out=[output])


async def came_back(side: Side, processid: str, output: str) -> None:
    """It ended well, and the chain of signatures holds."""
    process = await side.closed(processid, 150)
    assert (process["state"], process["out"]) == (2, [output]), process["errors"]
    await holds(side, processid)


async def told(house: House, text: str, mark: int) -> None:
    """A line of the daemon's log, after so many."""
    await trio.to_thread.run_sync(partial(house.await_event, text, after=mark, seconds=60))


async def ran(side: Side, text: str) -> int:
    """How often a process with this argument ended well here."""
    found = await side.patient("getprocessesmsg", colonyname=side.daemon.name, count=100, state=2)
    return sum(process["spec"]["args"] == [text] for process in found)


async def holds(side: Side, processid: str) -> None:
    """Every signature of the chain that an outcome came by."""
    forward = await side.forward(processid)
    assert forward["outcome"]["signaturevalid"] is True
    assert all(step["signaturevalid"] and not step["problem"] for step in forward["chain"])


async def test_they_meet_and_pass_work_on(village: Village) -> None:
    """Found by mDNS over IPv4 and IPv6; there and back, and through one to another."""
    async with village.open() as yard:
        ant, bee, cat = yard.all
        bee_house = yard.house(bee)
        local = f"[{bee_house.link_local()}%"
        known = await endpoints(ant, bee)
        assert f"{bee_house.address()}:50081" in known
        assert any(each.startswith(local) for each in known), known
        # Within a minute by either clock: an hour's difference must not count as lateness.
        soon = {"maxwaittime": 60, "maxexectime": 60}
        await errands(ant, "bee", bee, "there", **soon)
        await errands(bee, "ant", ant, "back", **soon)
        processid = await errands(ant, "bee/cat", cat, "through", **soon)
        await holds(ant, processid)
        forward = await ant.forward(processid)
        assert [step["issuer"] for step in forward["chain"]] == [bee.owner.id, cat.owner.id]


async def test_clocks_an_hour_apart_are_told(village: Village) -> None:
    """What one has of the other's clock, for people and for programs."""
    async with village.open() as yard:
        ant, bee, cat = yard.all
        for one, other, ahead in ((ant, bee, HOUR), (bee, ant, -HOUR), (cat, bee, 2 * HOUR)):
            peer = await one.peer(other)
            assert peer is not None
            assert abs(peer["clock"]["ahead"] - ahead) <= peer["clock"]["within"] + 1
            assert peer["clock"]["within"] < 20
        house = yard.house(ant)
        shown = await trio.to_thread.run_sync(lambda: house.colony("peers", "show", "bee"))
        assert "60 min ahead of ours" in shown.stdout, shown
        found = await trio.to_thread.run_sync(lambda: house.colony("doctor", "--json"))
        checks = json.loads(found.stdout)["checks"]
        told = next(check for check in checks if check["name"] == "peer clock")
        assert told["ok"] is None
        assert told["detail"] == "bee: 60 min ahead of ours"


async def test_a_partition(village: Village) -> None:
    """What was sent into it waits, what ran meanwhile comes back, and both only once."""
    async with village.open() as yard:
        ant, bee, _ = yard.all
        house = yard.house(bee)
        before = await ant.submit("bee", args=["before"])
        taken = await take(bee)
        mark = len(house.events)
        house.pull()
        await told(house, 'event="network changed"', mark)
        await finish(bee, taken, "BEFORE")
        during = await ant.submit("bee", args=["during"])

        async def tried() -> bool:
            forward = await ant.forward(during)
            assert forward["state"] in ("queued", "doubt")
            return bool(forward["attempts"])

        await until(150, tried)
        assert (await ant.call("getprocessmsg", processid=before))["state"] == 1
        house.plug()
        await bee.work("DURING", args=["during"])
        for processid, text in ((before, "before"), (during, "during")):
            await came_back(ant, processid, text.upper())
            assert await ran(bee, text) == 1


async def test_a_partition_in_the_middle(village: Village) -> None:
    """What ends at the last colony, while nobody hears of it, comes back hop by hop, once."""
    async with village.open() as yard:
        ant, bee, cat = yard.all
        processid = await ant.submit("bee/cat", args=["far"])
        taken = await take(cat)
        houses = [yard.house(bee), yard.house(cat)]
        marks = [len(house.events) for house in houses]
        for house, mark in zip(houses, marks, strict=True):
            house.pull()
            await told(house, 'event="network changed"', mark)
        await finish(cat, taken, "FAR")
        # First between the last two, so that the outcome waits in the middle.
        houses[1].plug()
        assert (await ant.call("getprocessmsg", processid=processid))["state"] == 1
        houses[0].plug()
        await came_back(ant, processid, "FAR")
        forward = await ant.forward(processid)
        assert [step["issuer"] for step in forward["chain"]] == [bee.owner.id, cat.owner.id]
        assert await ran(cat, "far") == 1
        assert await ran(bee, "far") == 1


async def test_addresses_change(village: Village) -> None:
    """Another IPv4 address; none, so that only link-local IPv6 is left; then everything new."""
    async with village.open() as yard:
        ant, bee, cat = yard.all
        house = yard.house(bee)
        first, second, third = (house.address(extra) for extra in (0, 20, 40))

        house.move(first, second)
        await reached(ant, bee, second)
        await errands(ant, "bee", bee, "second address", maxwaittime=150)
        house.ip("address", "del", f"{second}/24", "dev", "eth0")
        await errands(ant, "bee/cat", cat, "link-local only", maxwaittime=150)
        assert (await endpoints(ant, bee))[0].startswith("[fe80:")
        house.ip("link", "set", "eth0", "down")
        house.ip("link", "set", "eth0", "address", "02:00:00:00:77:02")
        house.ip("address", "add", f"{third}/24", "dev", "eth0")
        house.ip("link", "set", "eth0", "up")
        await errands(ant, "bee/cat", cat, "all is new", maxwaittime=150)
        # Where it answered last comes first: by IPv4, or by the new link-local address.
        latest = (await endpoints(ant, bee))[0]
        assert third in latest or f"[{house.link_local() or 'none yet'}%" in latest, latest
        await reached(ant, bee, third)
        await reached(cat, bee, third)
        # It hears of the others, too.
        await errands(bee, "ant", ant, "and back", maxwaittime=150)
        house.move(third, first)
        await reached(ant, bee, first)


async def test_a_reboot_of_each(village: Village) -> None:
    """Power cut, interface down and up, another start: what was on its way arrives, once."""
    async with village.open() as yard:
        ant, _, cat = yard.all
        for side in yard.all:
            house = yard.house(side)
            text = f"reboot of {house.name}"
            processid = await ant.submit("bee/cat", args=[text])
            await trio.to_thread.run_sync(house.power_cut)
            await trio.to_thread.run_sync(house.boot)
            await cat.work(text.upper(), args=[text])
            await came_back(ant, processid, text.upper())
            assert await ran(cat, text) == 1


async def test_a_clock_is_set(village: Village) -> None:
    """A jump is noticed, measured anew by the others, and costs no message and no process."""
    async with village.open() as yard:
        ant, bee, cat = yard.all
        house = yard.house(bee)
        for ahead in (0, HOUR + 1800):
            # Its own, under way: at another colony, and here.
            away = await bee.submit("cat", args=["away"], maxwaittime=4 * HOUR)
            there = await take(cat)
            home = await bee.submit("bee", args=["home"], maxwaittime=4 * HOUR)
            here = await take(bee)
            mark = len(house.events)
            house.set_clock(ahead)
            # In the midst of it, with what the others measured before.
            await finish(cat, there, "AWAY")
            await finish(bee, here, "HOME")
            soon = {"maxwaittime": 60, "maxexectime": 60}
            await errands(ant, "bee/cat", cat, f"clock {ahead}", **soon)
            await errands(bee, "ant", ant, f"clock {ahead} back", **soon)
            await came_back(bee, away, "AWAY")
            assert (await bee.closed(home))["out"] == ["HOME"]
            await told(house, "clock set by", mark)

            async def measured(ahead: int = ahead) -> bool:
                peer = await ant.peer(bee)
                assert peer is not None
                return bool(abs(peer["clock"]["ahead"] - ahead) <= peer["clock"]["within"] + 1)

            await until(150, measured)


async def test_a_hostile_neighbour(village: Village) -> None:
    """Thousands of false announcements: bounded, peers work on, and who is real is found."""
    hub = village.houses[0].hub
    ip("-n", hub, "address", "add", f"{FLOODER}/24", "dev", "br0")
    async with village.open() as yard:
        ant, bee, cat = yard.all
        house, other = yard.house(ant), yard.house(cat)
        memory, mark = _resident(house), len(house.events)
        flood = [
            *(
                "nsenter",
                f"--net=/run/netns/{hub}",
                sys.executable,
                "-m",
                "tests.support.mdns_flood",
            ),
            *(FLOODER, "--count", "60000", "--seconds", "60"),
        ]
        address = other.address(30)
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, flood, cwd=REPOSITORY, capture_stdout=True)
            await nursery.start(run)
            await told(house, 'event="discovery flooded"', mark)
            # cat is somewhere else only now, in the midst of the flood. Its peer bee hears that
            # from itself, and ant, which is none, in spite of the flood.
            other.move(other.address(), address)
            await reached(bee, cat, address)
            await errands(ant, "bee/cat", cat, "in the flood", maxwaittime=150)
            nursery.cancel_scope.cancel()

        await reached(ant, cat, address)
        peers = await ant.call("getpeersmsg", ant.owner)
        assert len(peers) <= 2 + 64
        assert _resident(house) - memory < 60_000
        other.move(address, other.address())


async def test_clocks_too_far_apart_say_so(village: Village) -> None:
    """Beyond a day nothing is made up for: the refusal tells both clocks and the difference.

    What such a clock leaves behind, the owner has forgotten.
    """
    async with village.open() as yard:
        ant, bee, _ = yard.all
        house = yard.house(bee)
        there = house.ahead
        mark = len(house.events)
        house.set_clock(30 * 24 * HOUR)
        try:
            await told(house, "clock set by", mark)
            reply = await refused(ant, "30 d ahead of ours")
            assert len(re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reply)) == 2
        finally:
            house.set_clock(there)
        # The clock is right again, and the time that it showed is remembered.
        await refused(ant, "the latest time remembered")
        run = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        found = json.loads((await run(lambda: house.colony("doctor", "--json"))).stdout)
        check = next(check for check in found["checks"] if check["name"] == "latest time")
        assert check["ok"] is False
        assert "the clock is 29 d 22 h behind the latest time remembered," in check["detail"]
        words = re.search(r"`colony (peer clock --reset)`", check["next"])
        assert words is not None
        done = await run(lambda: house.colony(*words[1].split(), "--yes", "--json"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["behind"] == 0
        await errands(ant, "bee", bee, "at peace with its clock", maxwaittime=150)


async def refused(one: Side, words: str) -> str:
    """What bee's refusal of a greeting says, once it says so."""

    async def ask() -> str:
        reply = await one.call("pingpeermsg", one.owner, peer="bee")
        return str(reply["error"]) if words in reply["error"] else ""

    return str(await until(150, ask))


def _resident(house: House) -> int:
    """KiB of memory that a daemon holds."""
    assert house.process is not None
    with open(f"/proc/{house.process.pid}/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("VmRSS")))
