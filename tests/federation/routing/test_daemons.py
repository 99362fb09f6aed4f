"""Three real colonies: ant has routes, bee and cat take what they lead to, and each is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.sides import Side

ROUTES = """
[[routes]]
func = "always-*"
to = "bee"

[[routes]]
func = "next-*"
to = ["bee", "cat"]

[[routes]]
func = "only-*"
to = "bee"

[[routes]]
func = "late-*"
when = "waiting > 6s"
to = ["cat", "bee"]

[[routes]]
executortype = "busy"
to = "any"

[[routes]]
func = "none-*"
when = "no-executor"
to = ["nobody", "cat"]
"""
# Bytes of a submission that bee takes; its statement says so, which nobody looks at beforehand.
SMALL = 1500


class Hive:
    """The three of them. `worker` of each is of type cli; there are executors of other types."""

    def __init__(self, daemons: dict[str, Daemon]) -> None:
        self.daemons = daemons
        self.keys: dict[tuple[str, str], PrivateKey] = {}


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    """Started, befriended and furnished once for all tests here."""
    base = tmp_path_factory.mktemp("hive")
    alone = {"COLONYD_FEDERATION__DISCOVERY": "false"}
    daemons = {name: Daemon(base / name, name, alone) for name in ("ant", "bee", "cat")}
    for name, daemon in daemons.items():
        daemon.home.mkdir(mode=0o700)
        others = ("bee", "cat") if name == "ant" else ("ant",)
        peers = [f'[[peers]]\nurl = "127.0.0.1:{daemons[other].peer_port}"' for other in others]
        settings = "\n".join(peers) + (ROUTES if name == "ant" else "")
        (daemon.home / "config.toml").write_text(settings)
    found = Hive(daemons)
    try:
        trio.run(_furnish, found)
        yield found
    finally:
        for daemon in daemons.values():
            if daemon.process is not None:
                daemon.process.send_signal(signal.SIGCONT)
                daemon.process.terminate()
        for daemon in daemons.values():
            if daemon.process is not None:
                daemon.stop()


async def _furnish(hive: Hive) -> None:
    async with trio.open_nursery() as nursery:
        for daemon in hive.daemons.values():
            nursery.start_soon(partial(trio.to_thread.run_sync, daemon.start))
    async with _sides(hive) as (ant, bee, cat):
        for side in (ant, bee, cat):
            for executortype in ("cli", "rare", "busy"):
                await _hire(hive, side, executortype, heard=(side, executortype) != (ant, "rare"))
        for number in range(4):
            await bee.submit("bee", funcname=f"own-{number}", conditions=_conditions("busy", "bee"))
        for one in (bee, cat):
            await ant.find(one)
            await one.find(ant)
            await one.trust(ant)
            await ant.trust(one)
        change = {"peer": "ant", "change": {"max_body": SMALL}}
        await bee.call("setpeerpolicymsg", bee.owner, **change)
        for one in (bee, cat):
            await until(50, lambda one=one: _offers(ant, one))


async def _offers(ant: Side, one: Side) -> bool:
    peer = await ant.call("getpeermsg", ant.owner, peer=one.owner.id)
    return bool(peer["capabilities"])


def _conditions(executortype: str, colony: str) -> dict[str, Any]:
    return {"colonyname": colony, "executortype": executortype}


async def _hire(hive: Hive, side: Side, executortype: str, *, heard: bool) -> None:
    name, key = f"smith-{executortype}", PrivateKey.generate()
    colony = side.daemon.name
    new = {"executorid": key.id, "executorname": name, "executortype": executortype}
    await side.call("addexecutormsg", side.owner, executor=new | {"colonyname": colony})
    await side.call("approveexecutormsg", side.owner, colonyname=colony, executorname=name)
    hive.keys[colony, executortype] = key
    if heard:
        with pytest.raises(RpcError, match="no process is waiting"):
            await side.call("assignprocessmsg", key, colonyname=colony, timeout=-1)


@asynccontextmanager
async def _sides(hive: Hive) -> AsyncIterator[tuple[Side, Side, Side]]:
    async with (
        hive.daemons["ant"].client() as first,
        hive.daemons["bee"].client() as second,
        hive.daemons["cat"].client() as third,
    ):
        clients = zip(hive.daemons.values(), (first, second, third), strict=True)
        ant, bee, cat = (Side(daemon, client) for daemon, client in clients)
        for side in (ant, bee, cat):
            side.worker = hive.keys.get((side.daemon.name, "cli"), side.worker)
        yield ant, bee, cat


async def _way(ant: Side, processid: str) -> dict[str, Any]:
    """The forward of a process, {} when there is none."""
    try:
        return await ant.forward(processid)
    except RpcError as error:
        if error.status != 404:
            raise
        return {}


async def test_always_goes_to_the_peer_at_submission(hive: Hive) -> None:
    async with _sides(hive) as (ant, bee, _):
        processid = await ant.submit("ant", funcname="always-up", args=["x"])
        route_trace = await ant.forward(processid)
        assert route_trace["peer"] == bee.owner.id
        assert route_trace["route"] == (
            'route 1 (func "always-*", always → bee): bee is the only peer that can'
        )
        there = await bee.work("X", args=["x"])
        assert there["spec"]["conditions"]["colonyname"] == "bee"
        assert (await ant.closed(processid))["out"] == ["X"]
        assert (await ant.forward(processid))["outcome"]["signaturevalid"] is True


async def test_what_no_route_matches_stays_and_who_names_a_peer_means_it(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, cat):
        stays = await ant.submit("ant", funcname="plain")
        named = await ant.submit("cat", funcname="always-up")
        bound = {"conditions": _conditions("cli", "ant") | {"executornames": ["smith-cli"]}}
        tied = await ant.submit("ant", funcname="always-up", **bound)
        assert await _way(ant, stays) == {} == await _way(ant, tied)
        route_trace = await ant.forward(named)
        assert (route_trace["peer"], route_trace["route"]) == (cat.owner.id, "")
        await cat.work("named")
        assert (await ant.closed(named))["out"] == ["named"]
        await ant.work("plain")
        await ant.work("tied")
        assert (await ant.closed(stays))["state"] == (await ant.closed(tied))["state"] == 2


async def test_without_an_executor_it_goes_where_there_is_one(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, cat):
        here = await ant.submit("ant", funcname="none-here")
        away = await ant.submit("ant", funcname="none-x", conditions=_conditions("rare", "ant"))
        assert await _way(ant, here) == {}
        assert (await ant.forward(away))["peername"] == "cat"
        cat.worker = hive.keys["cat", "rare"]
        await cat.work("rare")
        assert (await ant.closed(away))["out"] == ["rare"]
        await ant.work("here")
        assert (await ant.closed(here))["out"] == ["here"]


async def test_what_waits_too_long_is_sent_away_and_not_before(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, cat):
        begin = trio.current_time()
        early = await ant.submit("ant", funcname="late-early")
        late = await ant.submit("ant", funcname="late-late")
        assert await _way(ant, early) == {}
        await ant.work("taken here in time")
        route_trace: Any = await until(50, lambda: _way(ant, late))
        assert trio.current_time() - begin > 6
        assert route_trace["peername"] == "cat"
        assert "waiting > 6 s" in route_trace["route"]
        assert await _way(ant, early) == {}
        await cat.work("late")
        assert (await ant.closed(late))["out"] == ["late"]


async def test_of_any_the_least_busy_gets_it(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, cat):
        cat.worker = hive.keys["cat", "busy"]
        spec = {"funcname": "f", "conditions": _conditions("busy", "ant")}
        # bee has four of its own waiting: the first few all go to cat.
        ids = [await ant.submit("ant", **spec) for _ in range(3)]
        ways = [await ant.forward(processid) for processid in ids]
        assert [route_trace["peername"] for route_trace in ways] == ["cat"] * 3
        assert "load 0.00, of 2 that can" in ways[0]["route"]
        for _ in ids:
            await cat.work("done")
        for processid in ids:
            assert (await ant.closed(processid))["state"] == 2


async def test_refused_by_the_first_it_is_run_by_the_second(hive: Hive) -> None:
    async with _sides(hive) as (ant, bee, cat):
        processid = await ant.submit("ant", funcname="next-big", args=["x" * SMALL])
        await cat.work("big")
        assert (await ant.closed(processid))["out"] == ["big"]
        route_trace = await ant.forward(processid)
        assert route_trace["peername"] == "cat"
        assert [tried["peername"] for tried in route_trace["tried"]] == ["bee"]
        assert route_trace["tried"][0]["error"].startswith("peer bee refused: policy_body: ")
        assert route_trace["tried"][0]["final"] is True
        assert await bee.call("getprocessesmsg", colonyname="bee", count=9, state=1) == []


async def test_refused_by_all_it_waits_here_or_fails_naming_each(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, __):
        big = ["x" * SMALL]
        back = await ant.submit("ant", funcname="only-big", args=big)
        route_trace: Any = await until(50, lambda: _returned(ant, back))
        assert route_trace["tried"][0]["peername"] == "bee"
        await ant.work("here after all", args=big)
        assert (await ant.closed(back))["out"] == ["here after all"]
        await ant.call("rejectexecutormsg", ant.owner, colonyname="ant", executorname="smith-rare")
        spec = {"funcname": "only-big", "args": big, "conditions": _conditions("rare", "ant")}
        failed = await ant.closed(await ant.submit("ant", **spec))
        assert failed["state"] == 3
        assert len(failed["errors"]) == 1
        assert failed["errors"][0].startswith("peer bee refused: policy_body: ")


async def _returned(ant: Side, processid: str) -> dict[str, Any] | None:
    route_trace = await _way(ant, processid)
    return route_trace if route_trace.get("state") == "returned" else None


async def test_in_doubt_it_is_not_sent_to_another(hive: Hive) -> None:
    async with _sides(hive) as (ant, bee, cat):
        assert bee.daemon.process is not None
        # Its kernel takes what is sent; nobody can tell whether it did.
        bee.daemon.process.send_signal(signal.SIGSTOP)
        try:
            spec = {"funcname": "next-doubt", "maxwaittime": 30, "maxexectime": 60}
            processid = await ant.submit("ant", **spec)
            begin = trio.current_time()
            while trio.current_time() < begin + 10.5:  # its share of the time is long over
                route_trace = await ant.forward(processid)
                assert route_trace["peername"] == "bee"
                assert route_trace["state"] in ("queued", "doubt")
                await trio.sleep(0.1)
            assert route_trace["state"] == "doubt"
        finally:
            bee.daemon.process.send_signal(signal.SIGCONT)
        await bee.work("it had it all along")
        closed = await ant.closed(processid)
        assert (closed["state"], closed["out"]) == (2, ["it had it all along"])
        assert await cat.call("getprocessesmsg", colonyname="cat", count=9, state=0) == []


async def test_explain_tells_each_route_and_each_peer(hive: Hive) -> None:
    async with _sides(hive) as (ant, *_):
        spec = {"funcname": "late-x", "conditions": _conditions("cli", "ant")}
        reply = await ant.call("explainroutemsg", ant.owner, spec=spec)
        assert (reply["stays"], reply["why"]) == (True, "the time of no matching route has come")
        assert [route["matches"] for route in reply["routes"]] == [
            False, False, False, True, False, False,
        ]  # fmt: skip
        later = await ant.call("explainroutemsg", ant.owner, spec=spec, age=7)
        assert [choice["name"] for choice in later["choices"]] == ["cat"]
        none = {"funcname": "none-x", "conditions": _conditions("unheard", "ant")}
        stays = await ant.call("explainroutemsg", ant.owner, spec=none)
        assert stays["stays"] is True
        assert [(peer["name"], peer["why"]) for peer in stays["routes"][5]["peers"]] == [
            ("nobody", "no such trusted peer"),
            ("cat", 'it offers us no executor of type "unheard"'),
        ]
        with pytest.raises(RpcError) as denied:
            await ant.call("explainroutemsg", spec=spec)
        assert denied.value.status == 403
        text = await trio.to_thread.run_sync(_colony, ant, json.dumps(spec), "explain", "-")
        assert "stays here: the time of no matching route has come" in text
        listing = await trio.to_thread.run_sync(_colony, ant, "", "ls")
        assert "always-*" in listing
        assert "waiting > 6 s" in listing


def _colony(ant: Side, stdin: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "cli.main", "--home", str(ant.daemon.home)]
    server = ["--server", f"127.0.0.1:{ant.daemon.port}"]
    run = subprocess.run(
        [*command, *server, "routes", *arguments],
        cwd=REPOSITORY,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return run.stdout


async def test_a_graph_sends_its_nodes_when_they_are_ready(hive: Hive) -> None:
    async with _sides(hive) as (ant, bee, _):
        nodes = [
            {"nodename": "one", "funcname": "plain", "conditions": _conditions("cli", "ant")},
            {
                "nodename": "two",
                "funcname": "always-two",
                "conditions": _conditions("cli", "ant") | {"dependencies": ["one"]},
            },
            {
                "nodename": "root",
                "funcname": "always-root",
                "conditions": _conditions("cli", "ant"),
            },
        ]
        workflow = {"colonyname": "ant", "functionspecs": nodes}
        graph = await ant.call("submitworkflowspecmsg", spec=workflow)
        ids = graph["processids"]
        found = [await ant.call("getprocessmsg", processid=processid) for processid in ids]
        by_name = {process["spec"]["nodename"]: process["processid"] for process in found}
        assert (await ant.forward(by_name["root"]))["peername"] == "bee"
        assert await _way(ant, by_name["two"]) == {}
        await bee.work("root")
        fields = {"colonyname": "ant", "timeout": 10}
        first = await ant.call("assignprocessmsg", ant.worker, **fields)
        await ant.call("closesuccessfulmsg", ant.worker, processid=first["processid"], out=[])
        assert (await ant.forward(by_name["two"]))["peername"] == "bee"
        await bee.work("two")
        assert (await ant.closed(by_name["two"]))["out"] == ["two"]


async def test_a_node_takes_the_outputs_of_its_parents_along(hive: Hive) -> None:
    async with _sides(hive) as (ant, _, cat):
        first = {"executortype": "cli"}
        second = {"executortype": "rare", "dependencies": ["one", "other"]}
        third = {"executortype": "cli", "dependencies": ["two"]}
        nodes = [
            {"nodename": "one", "funcname": "plain-one", "conditions": first},
            {"nodename": "other", "funcname": "plain-other", "conditions": first},
            {"nodename": "two", "funcname": "none-two", "conditions": second},
            {"nodename": "three", "funcname": "plain-three", "conditions": third},
        ]
        workflow = {"colonyname": "ant", "functionspecs": nodes}
        graph = await ant.call("submitworkflowspecmsg", spec=workflow)
        found = [await ant.call("getprocessmsg", processid=each) for each in graph["processids"]]
        ids = {process["spec"]["nodename"]: process["processid"] for process in found}
        outputs: dict[str, list[Any]] = {
            "plain-one": ["1", {"a": [None, 1.5]}],
            "plain-other": ["ü"],
        }
        for _ in outputs:
            node = await _assign(ant)
            await _close(ant, node, outputs[node["spec"]["funcname"]])
        route_trace = await ant.forward(ids["two"])
        assert route_trace["peername"] == "cat"
        assert route_trace["route"].startswith('route 6 (func "none-*", no-executor → nobody, cat)')
        cat.worker = hive.keys["cat", "rare"]
        there = await _assign(cat)
        assert there["spec"]["funcname"] == "none-two"
        assert there["in"] == ["1", {"a": [None, 1.5]}, "ü"]
        await _close(cat, there, ["out of cat"])
        last = await _assign(ant)
        assert (last["processid"], last["in"]) == (ids["three"], ["out of cat"])
        await _close(ant, last, ["end"])
        done = await ant.call("getprocessgraphmsg", processgraphid=graph["processgraphid"])
        assert done["state"] == 2
        assert (await ant.forward(ids["two"]))["outcome"]["signaturevalid"] is True


async def _assign(side: Side) -> dict[str, Any]:
    fields = {"colonyname": side.daemon.name, "timeout": 20}
    process: dict[str, Any] = await side.call("assignprocessmsg", side.worker, **fields)
    return process


async def _close(side: Side, process: dict[str, Any], out: list[Any]) -> None:
    fields = {"processid": process["processid"], "out": out}
    await side.call("closesuccessfulmsg", side.worker, **fields)


async def test_a_workflow_with_a_node_for_an_unknown_colony_is_refused_whole(hive: Hive) -> None:
    async with _sides(hive) as (ant, *_):
        last = _conditions("cli", "nobody") | {"dependencies": ["one"]}
        nodes = [
            {"nodename": "one", "funcname": "plain", "conditions": _conditions("cli", "ant")},
            {"nodename": "two", "funcname": "plain", "conditions": last},
        ]
        with pytest.raises(RpcError) as refused:
            await ant.call(
                "submitworkflowspecmsg", spec={"colonyname": "ant", "functionspecs": nodes}
            )
        assert refused.value.status == 400
        assert "functionspecs[1].conditions.colonyname: 'nobody' is neither" in str(refused.value)
        assert await ant.call("getprocessesmsg", colonyname="ant", count=9, state=0) == []
