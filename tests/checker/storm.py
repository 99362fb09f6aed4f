"""A storm: two colonies, their clients, what befalls them; then calm, and the comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from colonyd.rpc import RpcError
from tests.checker.clients import Colony, Crowd
from tests.checker.comparer import compare
from tests.checker.journal import Journal, Kind, read
from tests.checker.nemeses import NEMESES, Host, able, host
from tests.support.daemons import until

__all__ = ["Report", "storm"]

_WORKERS = 3  # in each colony
_CALM = 150.0  # seconds in which everything must have ended
_QUIET = 2.0  # seconds between two nemeses, at most


@dataclass
class Report:
    """What a storm was, and what is wrong after it."""

    faults: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what has not ended, and what is known of it
    befell: list[str] = field(default_factory=list)
    told: int = 0
    processes: int = 0


async def storm(
    place: Path,
    seed: int,
    seconds: float,
    nemeses: Sequence[str] = tuple(NEMESES),
    names: Sequence[str] = ("ant", "bee"),
    program: Sequence[str] = (),
    calm: float = _CALM,
) -> Report:
    """Storm colonies in a directory for some time, and say what was told wrong.

    `program` runs instead of colonyd; everything must have ended after `calm` seconds. Raises
    TooSlowError when they can't be started or healed.
    """
    report, path = Report(), place / "journal"
    async with AsyncExitStack() as stack:
        hosts = [stack.enter_context(host(place, name)) for name in names]
        for each in hosts:
            each.program = list(program) or each.program
        async with trio.open_nursery() as nursery:
            for each in hosts:
                nursery.start_soon(trio.to_thread.run_sync, partial(each.start))
        colonies = [Colony(each, ahead=partial(getattr, each, "ahead")) for each in hosts]
        for colony in colonies:
            await stack.enter_async_context(colony.http)
        with Journal(path) as journal:
            with trio.fail_after(90):
                for colony in colonies:
                    await colony.hire(_WORKERS)
                    await _befriend(colony, colonies)
            dice = random.Random(seed)
            crowd = Crowd(journal, dice, colonies)
            async with trio.open_nursery() as nursery:
                await crowd.run(nursery)
                with trio.move_on_after(seconds):
                    await _befall(hosts, dice, nemeses, journal, report)
                await _heal(hosts, dice)
                crowd.over.set()
                if not await _calm(colonies, calm):
                    report.faults.append(f"there was work left after {calm} s of calm")
                    report.left = [line for colony in colonies for line in await _left(colony)]
                nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            final = {colony.name: await colony.final() for colony in colonies}
    told = read(path)
    for colony in colonies:
        (place / f"{colony.name}.log").write_text("\n".join(colony.daemon.events))
    report.told, report.processes = len(told), sum(map(len, final.values()))
    report.faults += compare(told, final)
    return report


async def _befriend(colony: Colony, others: Sequence[Colony]) -> None:
    """Trust the others, once they are found."""
    owner = colony.daemon.key("colony")
    for other in others:
        if other is colony:
            continue
        peer = other.daemon.key("colony").id

        async def found(peer: str = peer) -> bool:
            return peer in [each["id"] for each in await colony.insist("getpeersmsg", owner)]

        await until(60, found)
        await colony.insist("trustpeermsg", owner, peer=peer)


async def _befall(
    hosts: Sequence[Host],
    dice: random.Random,
    nemeses: Sequence[str],
    journal: Journal,
    report: Report,
) -> None:
    """One thing after the other, until cancelled; what has begun is brought to its end."""
    while True:
        await trio.sleep(_QUIET * dice.random())
        there = dice.choice(hosts)
        name = dice.choice([name for name in nemeses if able(name, there)] or [""])
        if not name:
            await trio.sleep_forever()
        await journal.note(Kind.NEMESIS, there.name, value=name)
        report.befell.append(f"{name} {there.name}")
        with trio.CancelScope(shield=True), trio.fail_after(150):
            await NEMESES[name](there, dice)


async def _heal(hosts: Sequence[Host], dice: random.Random) -> None:
    """All daemons run and answer. Clocks stay wrong, but none is behind what it showed once: a
    message that is in doubt, and signed for that time, waits until the clock has come so far.
    """
    for each in hosts:
        each.show(each.latest)

        async def well(each: Host = each) -> bool:
            try:
                return await trio.to_thread.run_sync(each.health) == 200
            except OSError:
                return False
            except Exception as error:
                if "httpx" in type(error).__module__ or "httpcore" in type(error).__module__:
                    return False
                raise

        await until(90, well, step=0.3)


async def _calm(colonies: Sequence[Colony], seconds: float) -> bool:
    """Return whether everything ended in the time: what waits, runs, or is with a peer."""

    async def ended() -> bool:
        for colony in colonies:
            # Also what is with a peer, which stands in no queue.
            if any(process["state"] < 2 for process in await colony.processes()):
                return False
        return True

    try:
        await until(seconds, ended, step=1)
    except trio.TooSlowError:
        return False
    return True


async def _left(colony: Colony) -> list[str]:
    """Return what the colony, and its log, say of each process that has not ended."""
    user, lines = colony.daemon.key("user"), list[str]()
    for process in await colony.processes():
        if process["state"] >= 2:
            continue
        pid = process["processid"]
        try:
            forward = await colony.insist("getforwardmsg", user, processid=pid)
        except RpcError as error:
            forward = str(error)
        lines += [f"{colony.name}: {process}", f"{colony.name}: {forward}"]
        lines += [line for line in colony.daemon.events if pid in line]
    return lines
