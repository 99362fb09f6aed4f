"""Two real colonies: discovery, trust, a forward and its signed outcome, cancel, absence."""

from __future__ import annotations

import pytest
import trio

from colonyd.rpc import RpcError
from tests.support.daemons import until
from tests.support.sides import Make, pair


async def test_a_forward_and_its_signed_outcome(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        processid = await ant.submit("bee", env={"A": "1"}, priority=2)
        there = await bee.work("X")
        assert there["initiatorname"] == "colony/ant"
        assert there["spec"]["conditions"]["colonyname"] == "bee"
        assert there["spec"]["args"] == ["x"]
        assert [(a["key"], a["value"]) for a in there["attributes"]] == [("A", "1")]
        process = await ant.closed(processid)
        assert (process["state"], process["out"]) == (2, ["X"])
        assert process["assignedexecutorid"] == bee.owner.id
        forward = await ant.forward(processid)
        assert forward["state"] == "closed"
        assert forward["peername"] == "bee"
        assert forward["outcome"]["issuer"] == bee.owner.id
        assert forward["outcome"]["signaturevalid"] is True
        # The other's name works as well as its id.
        by_id = await ant.submit(bee.owner.id)
        await bee.work("Y")
        assert (await ant.closed(by_id))["out"] == ["Y"]


async def test_a_failure_there_is_a_failure_here(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        processid = await ant.submit("bee")
        fields = {"colonyname": "bee", "timeout": 30}
        process = await bee.call("assignprocessmsg", bee.worker, **fields)
        failed = {"processid": process["processid"], "errors": ["broke"]}
        await bee.call("closefailedmsg", bee.worker, **failed)
        closed = await ant.closed(processid)
        assert (closed["state"], closed["errors"]) == (3, ["broke"])
        assert (await ant.forward(processid))["outcome"]["signaturevalid"] is True


async def test_a_cancel_here_reaches_the_process_there(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        processid = await ant.submit("bee")
        fields = {"colonyname": "bee", "timeout": 30}
        process = await bee.call("assignprocessmsg", bee.worker, **fields)
        await ant.call("cancelprocessmsg", processid=processid)

        async def cancelled() -> bool:
            found = await bee.call("getprocessmsg", processid=process["processid"])
            return bool(found["state"] == 4)

        await until(50, cancelled)
        assert (await ant.closed(processid))["state"] == 4


async def test_without_trust_nothing_crosses(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        blocked = await bee.call("blockpeermsg", bee.owner, peer=ant.owner.id)
        assert blocked["state"] == "blocked"
        processid = await ant.submit("bee")
        closed = await ant.closed(processid)
        assert closed["state"] == 3
        assert "refused" in closed["errors"][0]
        found = await bee.call("getprocessesmsg", colonyname="bee", count=10, state=0)
        assert found == []


async def test_an_unknown_colony_is_refused_at_submit(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, _):
        with pytest.raises(RpcError, match="neither here nor a trusted peer") as caught:
            await ant.submit("wasp")
        assert caught.value.status == 404


async def test_a_peer_that_is_down_gets_it_when_it_returns(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        await trio.to_thread.run_sync(bee.daemon.stop)
        processid = await ant.submit("bee")
        # The outbox is in the store: it survives a crash of the sender.
        ant.daemon.kill()
        await trio.to_thread.run_sync(ant.daemon.start)
        waiting = await ant.patient("getprocessmsg", processid=processid)
        assert waiting["state"] == 0
        assert (await ant.forward(processid))["state"] in ("queued", "doubt")
        await trio.to_thread.run_sync(bee.daemon.start)
        await bee.work("late but there")
        assert (await ant.closed(processid))["out"] == ["late but there"]


async def test_past_its_deadline_it_fails_and_says_so(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        await trio.to_thread.run_sync(bee.daemon.stop)
        processid = await ant.submit("bee", maxwaittime=2)
        closed = await ant.closed(processid, seconds=30)
        assert closed["state"] == 3
        assert "bee" in closed["errors"][0]
        assert "deadline" in closed["errors"][0]
