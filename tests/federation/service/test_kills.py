"""Kills at random moments of a forward: accepted once there, closed once here, right output."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio

from colonyd.rpc import encode
from tests.support.daemons import Daemon, seeded_dice
from tests.support.sides import Side, pair

Make = Callable[..., Daemon]

# Seconds in which a forward between idle daemons begins and ends; kills fall within it.
_SPAN = 0.3


@pytest.mark.slow
async def test_twenty_kills(make_daemon: Make) -> None:
    """A seed in COLONYD_TEST_SEED repeats a run; the moments are drawn from it."""
    dice = seeded_dice()
    async with pair(make_daemon) as (ant, bee):
        expected: dict[str, str] = {}
        for number in range(20):
            victim = dice.choice([ant, bee])
            below = dice.random() < 0.4
            await _forward_with_a_kill(ant, bee, victim, below, dice, number, expected)
        done = await ant.patient("getprocessesmsg", colonyname="ant", count=100, state=2)
        assert {p["processid"]: p["out"][0] for p in done} == expected
        for state in (0, 1, 3, 4):
            assert (
                await ant.patient("getprocessesmsg", colonyname="ant", count=9, state=state) == []
            )
        there = await bee.patient("getprocessesmsg", colonyname="bee", count=100, state=2)
        assert sorted(p["out"][0] for p in there) == sorted(expected.values())
        for processid in expected:
            assert (await ant.forward(processid))["outcome"]["signaturevalid"] is True


async def _forward_with_a_kill(
    ant: Side,
    bee: Side,
    victim: Side,
    below: bool,
    dice: random.Random,
    number: int,
    expected: dict[str, str],
) -> None:
    moment = dice.random() * _SPAN
    output = f"output {number}"

    async def kill() -> None:
        await trio.sleep(moment)
        if below:
            mark = len(victim.daemon.events)
            victim.daemon.kill_etcd()
            await trio.to_thread.run_sync(
                lambda: victim.daemon.await_event('event="etcd serves"', after=mark)
            )
        else:
            victim.daemon.kill()
            await trio.to_thread.run_sync(victim.daemon.start)

    async with trio.open_nursery() as nursery:
        spec = {
            "funcname": "upper",
            "args": [output],
            "conditions": {"colonyname": "bee", "executortype": "cli"},
        }
        # The same bytes until there is an answer: a lost reply must not become a second process.
        body = encode("submitfuncspecmsg", {"spec": spec}, ant.user)
        nursery.start_soon(kill)
        process = await ant.send(body)
        processid = str(process["processid"])
        expected[processid] = output
        await bee.work(output, args=[output])
    closed = await ant.closed(processid, seconds=90)
    assert (closed["state"], closed["out"]) == (2, [output])
