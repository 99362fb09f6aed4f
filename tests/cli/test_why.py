"""`colony process why` tells what the page tells: each reason, from a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from cli.work.why import Answers, Kind, explain, find_why
from colonyd.rpc import RpcError
from tests.cli.ui.scene import Scene, federate
from tests.support.daemons import REPOSITORY, Daemon, until

pytestmark = pytest.mark.slow
Row = dict[str, Any]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Scene]]:
    """A workshop, and a foundry that it trusts; orchard is trusted and silent."""
    place: Path = tmp_path_factory.mktemp("why")
    alone = {"COLONYD_FEDERATION__DISCOVERY": "false"}
    daemons = [Daemon(place / name, name, alone) for name in ("workshop", "foundry", "orchard")]
    try:
        here, there, silent = (Scene(daemon.start()) for daemon in daemons)
        there.hire("smith", "anvil")
        there.offer("smith", "forge")
        federate(here, there)
        federate(here, silent)
        silent.daemon.stop()
        yield here, there
    finally:
        for daemon in daemons:
            if daemon.process is not None:
                daemon.stop()


@pytest.fixture(scope="module")
def here(yard: tuple[Scene, Scene]) -> Scene:
    return yard[0]


def told(scene: Scene, processid: str, kind: str) -> str:
    """What `process why` prints, once the reason is of that kind."""
    seen: list[Row] = []

    async def is_so() -> bool:
        seen.append(json.loads(scene.colony("process", "why", processid, "--json")))
        return bool(seen[-1]["kind"] == kind)

    with suppress(trio.TooSlowError):
        trio.run(until, 30, is_so)
    assert seen[-1]["kind"] == kind, seen[-1]
    return scene.colony("process", "why", processid[:12])


def test_nobody(here: Scene) -> None:
    here.hire("robot-arm", "arm", approve=False)
    wanted = here.submit("weld", "welder", maxwaittime=86_400)
    text = told(here, wanted, "nobody")
    assert f'{wanted[:12]} waits: nobody can take it: no executor of type "welder"' in text
    assert 'it asks for an executor of type "welder"' in text
    assert "it fails if nobody has taken it in 24 h" in text
    assert "next: start one, such as `colony worker --type welder" in text
    named = here.submit("weld", "arm", conditions={"executornames": ["gpu-9"]})
    assert 'no executor "gpu-9" of type "arm" is registered' in told(here, named, "nobody")
    text = told(here, here.submit("lift", "arm"), "nobody")
    assert 'executor "robot-arm" of type "arm" waits for approval' in text
    assert "next: `colony executor approve robot-arm`" in text


def test_busy_silent_paused_and_running(here: Scene) -> None:
    here.hire("gpu-1", "gpu")
    first = here.submit("render", "gpu", "harbour")
    text = told(here, first, "silent")
    assert "waits: 1 executor could take it, and none asks for work" in text
    assert "gpu-1 does not ask for work; it was never heard from" in text
    assert "next: is the program of that executor running" in text
    here.take("gpu-1")
    assert "it does not wait: it is running" in told(here, first, "running")
    second = here.submit("render", "gpu", "dunes")
    text = told(here, second, "busy")
    assert "waits: the only executor that could take it, gpu-1, is busy" in text
    assert f"gpu-1 runs render ({first[:12]}), which started" in text
    here.colony("pause")
    try:
        text = told(here, second, "paused")
        assert "waits: assignments are paused in this colony" in text
        assert "next: resume them: `colony resume`" in text
    finally:
        here.colony("resume")


def test_parents(here: Scene) -> None:
    edges: dict[str, list[str]] = {"fetch": [], "clean": ["fetch"], "publish": ["clean", "fetch"]}
    nodes = [
        {
            "nodename": name,
            "funcname": name,
            "conditions": {
                "colonyname": here.name,
                "executortype": "loom",
                "dependencies": before,
            },
        }
        for name, before in edges.items()
    ]
    spec = {"colonyname": here.name, "functionspecs": nodes}
    graph = here.call("submitworkflowspecmsg", spec=spec)["processgraphid"]
    fields = {"colonyname": here.name, "processgraphid": graph, "state": -1, "count": 10}
    ids = {
        row["spec"]["nodename"]: row["processid"] for row in here.call("getprocessesmsg", **fields)
    }
    text = told(here, ids["publish"], "parents")
    assert "waits: it waits for 2 processes of its workflow" in text
    for name in ("fetch", "clean"):
        assert f"  {name} ({ids[name][:12]}) is waiting" in text
    assert "next: `colony process why " in text


@contextmanager
def asking(scene: Scene, name: str, **fields: str) -> Iterator[None]:
    """Let an executor ask for work, until it is removed."""

    def ask() -> None:
        with suppress(RpcError):
            key = scene.executors[name]
            scene.call("assignprocessmsg", key, colonyname=scene.name, timeout=30, **fields)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        named = {"colonyname": scene.name, "executorname": name}
        scene.call("removeexecutormsg", "colony", **named)
        thread.join(40)


def test_resources(here: Scene) -> None:
    here.hire("tiny", "mill")
    large = here.submit("mill", "mill", conditions={"cpu": "4000m"})
    with asking(here, "tiny", availablecpu="100m"):
        text = told(here, large, "resources")
    assert "waits: no executor that asks for work has the CPU or memory that it wants" in text
    assert "it wants cpu 4000m" in text


def test_a_route_is_told_with_what_the_owner_may_know() -> None:
    process = {"processid": "ab" * 32, "state": 0}
    peers = [
        {"name": "foundry", "eligible": True, "why": "it can take it"},
        {"name": "orchard", "eligible": False, "why": "it is away"},
    ]
    explained = {"why": "it waits an hour first", "routes": [{"peers": peers}]}
    told = {"route": 'route 1 (func "late-*")'}
    full = explain(Answers(process, None, told, route=explained))
    assert [each.text for each in full.reasons] == [
        'the route is: route 1 (func "late-*")',
        "now: it waits an hour first",
        "orchard: it is away",
    ]
    lesser = explain(Answers(process, None, told))
    assert (lesser.kind, lesser.headline) == (Kind.ROUTE, full.headline)
    assert lesser.reasons == full.reasons[:1]


def test_a_peer(yard: tuple[Scene, Scene]) -> None:
    here, there = yard
    sent = here.submit("forge", "anvil", conditions={"colonyname": there.name})

    async def accepted() -> bool:
        async with here.daemon.client() as client:
            fields = {"processid": sent}
            found = await client.call("getforwardmsg", fields, here.daemon.key("user"))
            return bool(found["state"] == "accepted")

    trio.run(until, 30, accepted)
    text = told(here, sent, "forwarded")
    assert "waits: colony foundry has accepted it, where it is waiting" in text
    assert "next: look at it there: process " in text
    away = here.submit("prune", "anvil", conditions={"colonyname": "orchard"})
    text = told(here, away, "away")
    assert "waits: it is for orchard, which does not answer" in text
    assert "the last error: " in text
    assert "`colony peer ping orchard`" in text
    listed = json.loads(here.colony("process", "ls", "--state", "waiting", "--json"))
    assert away in [row["processid"] for row in listed], "it waits, though in no queue here"
    listed = json.loads(here.colony("process", "ls", "--executor-type", "other", "--json"))
    assert away not in [row["processid"] for row in listed]
    lesser = as_member(here, away)
    assert "waits: it is for orchard, which does not answer" in lesser
    assert "last heard from" not in lesser


def as_member(scene: Scene, processid: str) -> str:
    """What `process why` prints for somebody who has only a member's key, and no home."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))},
        "COLONIES_PRVKEY": (scene.daemon.home / "keys" / "user.key").read_text().strip(),
        "COLONIES_COLONY_NAME": scene.name,
        "COLONYD_HOME": str(scene.daemon.home / "nowhere"),
    }
    command = ["--server", scene.url, "process", "why", processid]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *command],
        cwd=REPOSITORY, env=environ, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Counting:
    """Calls of the member, counted."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.kinds = scene, list[str]()

    async def call(self, payloadtype: str, fields: Row, timeout: float = 10.0) -> Any:
        self.kinds.append(payloadtype)
        async with self.scene.daemon.client() as client:
            return await client.call(payloadtype, fields, self.scene.daemon.key("user"), timeout)


def test_a_handful_of_calls_and_soon(here: Scene) -> None:
    here.hire("idle", "idle")
    waiting, caller = (
        here.submit("f", "idle", conditions={"executornames": ["idle"]}),
        Counting(here),
    )
    assert trio.run(find_why, caller, None, waiting, 0.0).kind is Kind.SILENT
    assert len(caller.kinds) <= 5
