"""Poisoned requests to a real daemon: all that it shows afterwards is in upstream's types.

The same without a daemon, case by case, is in `test_types`.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websocket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from tests.node.http.support import Edge
from tests.sdk.samples import definition, executor, spec, workflow
from tests.support.daemons import Daemon
from tests.support.fuzz_inputs import signed
from tests.support.poison import DOSE, dosed, dumps
from tests.support.upstream import example, problem, reply_of

EXAMPLES = int(os.environ.get("COLONYD_TYPES_EXAMPLES", "150"))
WORKER = PrivateKey.generate()
IN_DEV = {"colonyname": "dev"}


class Strict:
    """A client that can read upstream's types and nothing else."""

    def __init__(self, daemon: Daemon) -> None:
        self.edge = Edge(daemon.port)
        self.port = daemon.port
        names = {"user": "user", "owner": "colony", "server": "server"}
        self.keys = {name: daemon.key(file) for name, file in names.items()}
        self.keys["worker"] = WORKER
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def call(self, who: str, payloadtype: str, fields: Any) -> Any:
        """What a call answers, read strictly; None when it is refused."""
        text = dumps({"msgtype": payloadtype, **fields})
        body = signed(payloadtype, text, self.keys[who])
        status, data = self.edge.post(body)
        deadline = time.monotonic() + 60
        while status == 503 and time.monotonic() < deadline:  # the store was slow
            status, data = self.edge.post(body)
        assert status < 500, (status, data, text)
        counts = self.accepted if status == 200 else self.refused
        counts[payloadtype] += 1
        if status != 200:
            return None
        return self.read(payloadtype, data, text)

    def read(self, payloadtype: str, envelope: bytes | str, asked: str) -> Any:
        """The payload of an answer or of a frame."""
        payload = base64.b64decode(json.loads(envelope)["payload"])
        kind = reply_of(payloadtype)
        found = problem(payload, kind) if kind else ""
        assert not found, f"{found}\nin {payload[:3000]!r}\nafter {asked[:3000]}"
        value = json.loads(payload)
        for each in value if isinstance(value, list) else [value]:
            if kind.endswith(("Cron", "Generator")):
                found = problem(each["workflowspec"], "WorkflowSpec", whole=False)
                assert not found, (found, each["workflowspec"], asked)
        return value

    def look(self, who: str, payloadtype: str, **fields: Any) -> Any:
        """A call that must be answered."""
        value = self.call(who, payloadtype, fields)
        assert value is not None, (payloadtype, fields)
        return value

    def tidy(self) -> None:
        """Remove what piles up."""
        for each in ("removeallprocessgraphsmsg", "removeallprocessesmsg"):
            self.look("owner", each, **IN_DEV, state=-1)


Poison = Callable[[Any], Any]


def executors(strict: Strict, poison: Poison) -> None:
    strict.call("owner", "addexecutormsg", poison({"executor": executor()}))
    strict.call(
        "worker",
        "updateexecutormsg",
        poison(IN_DEV | {"executorname": "worker", "capabilities": example("Capabilities")}),
    )
    strict.call(
        "worker",
        "reportallocationmsg",
        poison(IN_DEV | {"executorname": "worker", "allocations": example("Allocations")}),
    )
    for each in strict.look("user", "getexecutorsmsg", **IN_DEV):
        strict.look("user", "getexecutormsg", **IN_DEV, executorname=each["executorname"])
        strict.look("user", "getexecutorbyidmsg", **IN_DEV, executorid=each["executorid"])
    strict.call("owner", "removeexecutormsg", IN_DEV | {"executorname": "e1"})


def functions(strict: Strict, poison: Poison) -> None:
    fun = example("Function") | IN_DEV | {"executorname": "worker", "functionid": ""}
    strict.call("worker", "addfunctionmsg", poison({"fun": fun}))
    for each in strict.look("user", "getfunctionsmsg", **IN_DEV, executorname=""):
        strict.look("worker", "removefunctionmsg", functionid=each["functionid"])


def processes(strict: Strict, poison: Poison) -> None:
    """A process from its submission to its end, with all that is told of it on the way."""
    process = strict.call("user", "submitfuncspecmsg", poison({"spec": spec()}))
    if process is not None:
        strict.look("user", "getprocessmsg", processid=process["processid"])
    strict.look("user", "submitfuncspecmsg", spec=spec())
    strict.look("user", "getprocessesmsg", **IN_DEV, count=50, state=0)
    run = strict.look("worker", "assignprocessmsg", **IN_DEV, timeout=-1)
    own = {"processid": run["processid"]}
    strict.look("user", "getprocessesmsg", **IN_DEV, count=50, state=1)
    attribute = example("Attribute") | {"targetid": run["processid"]}
    added = strict.call("worker", "addattributemsg", poison({"attribute": attribute}))
    if added is not None:
        strict.look("user", "getattributemsg", attributeid=added["attributeid"])
    strict.call("worker", "addlogmsg", poison(own | {"message": "m"}))
    strict.look("user", "getlogsmsg", **IN_DEV, **own, count=10)
    said = example("channelappendmsg") | own | {"name": "chat"}
    strict.call("worker", "channelappendmsg", poison(said))
    strict.look("worker", "channelreadmsg", **own, name="chat", afterseq=0, limit=0)
    out = [1, "x", {"a": [2.5, None]}]
    strict.call("worker", "setoutputmsg", poison(own | {"out": out}))
    strict.look("user", "getprocessmsg", **own)
    if strict.call("worker", "closesuccessfulmsg", poison(own | {"out": out})) is None:
        strict.call("worker", "closefailedmsg", poison(own | {"errors": ["e"]}))
    for state in range(5):
        strict.look("user", "getprocessesmsg", **IN_DEV, count=50, state=state)
        strict.look("user", "getprocesshistmsg", **IN_DEV, executorid="", seconds=3600, state=state)


def workflows(strict: Strict, poison: Poison) -> None:
    first, second = spec(nodename="one"), spec(nodename="two")
    second["conditions"] = second["conditions"] | {"dependencies": ["one"]}
    strict.call("user", "submitworkflowspecmsg", poison({"spec": workflow(first, second)}))
    for each in strict.look("user", "getprocessgraphsmsg", **IN_DEV, count=10, state=0):
        strict.look("user", "getprocessgraphmsg", processgraphid=each["processgraphid"])
    run = strict.call("worker", "assignprocessmsg", IN_DEV | {"timeout": -1})
    if run is not None and run["processgraphid"]:
        asked = {"processgraphid": run["processgraphid"], "parentprocessid": run["processid"]}
        asked |= {"childprocessid": "", "spec": spec(nodename="three"), "insert": False}
        strict.call("worker", "addchildmsg", poison(asked))
        strict.look("user", "getprocessgraphmsg", processgraphid=run["processgraphid"])
    strict.look("user", "getprocessesmsg", **IN_DEV, count=50, state=0)


def timers(strict: Strict, poison: Poison) -> None:
    text = dumps(poison(workflow()))
    cron = example("Cron") | IN_DEV | {"name": "c", "interval": 3600, "workflowspec": text}
    strict.call("user", "addcronmsg", poison({"cron": cron | {"cronexpression": ""}}))
    for each in strict.look("user", "getcronsmsg", **IN_DEV, count=100):
        strict.look("user", "getcronmsg", cronid=each["cronid"])
        strict.call("user", "runcronmsg", {"cronid": each["cronid"]})
        strict.look("user", "removecronmsg", cronid=each["cronid"])
    generator = example("Generator") | IN_DEV | {"name": "g", "workflowspec": text}
    strict.call("user", "addgeneratormsg", poison({"generator": generator | {"trigger": 1}}))
    for each in strict.look("user", "getgeneratorsmsg", **IN_DEV, count=100):
        own = {"generatorid": each["generatorid"]}
        strict.call("user", "packgeneratormsg", poison(own | {"arg": "a"}))
        strict.look("user", "getgeneratormsg", **own)
        strict.look("user", "resolvegeneratormsg", **IN_DEV, generatorname=each["name"])
        strict.look("user", "removegeneratormsg", **own)


def files(strict: Strict, poison: Poison) -> None:
    file = example("File") | IN_DEV | {"label": "/data", "name": "f"}
    strict.call("user", "addfilemsg", poison({"file": file}))
    strict.call("user", "createsnapshotmsg", poison(IN_DEV | {"label": "/data", "name": "snap"}))
    for label in strict.look("user", "getfilelabelsmsg", **IN_DEV, name="", exact=False):
        for each in strict.look("user", "getfilesmsg", **IN_DEV, label=label["name"]):
            place = {"label": label["name"], "name": each["name"]}
            strict.look("user", "getfilemsg", **IN_DEV, **place, latest=False)
            strict.look("user", "removefilemsg", **IN_DEV, **place)
    for each in strict.look("user", "getsnapshotsmsg", **IN_DEV):
        strict.look("user", "getsnapshotmsg", **IN_DEV, snapshotid=each["snapshotid"])
    strict.look("user", "removeallsnapshotmsg", **IN_DEV)


def blueprints(strict: Strict, poison: Poison) -> None:
    asked = poison({"blueprintdefinition": definition()})
    strict.call("owner", "addblueprintdefinitionmsg", asked)
    meta = example("BlueprintMetadata") | IN_DEV | {"name": "b", "locationname": "hall"}
    own = {"kind": "Kind", "metadata": meta, "spec": {"a": {"b": "x"}}, "blueprintid": ""}
    blueprint = example("Blueprint") | own
    strict.call("owner", "addblueprintmsg", poison({"blueprint": blueprint}))
    strict.call(
        "user", "updateblueprintmsg", poison({"blueprint": blueprint, "forcegeneration": True})
    )
    status = IN_DEV | {"blueprintname": "b", "status": {"a": 1}}
    strict.call("user", "updateblueprintstatusmsg", poison(status))
    for each in strict.look("owner", "getblueprintsmsg", namespace="dev", kind="", locationname=""):
        place = {"namespace": "dev", "name": each["metadata"]["name"]}
        strict.look("user", "getblueprintmsg", **place)
        strict.call("user", "reconcileblueprintmsg", place | {"force": True})
        strict.look("user", "getblueprinthistorymsg", blueprintid=each["blueprintid"], limit=0)
        strict.look("owner", "removeblueprintmsg", **place)
    strict.look("user", "getcronsmsg", **IN_DEV, count=100)
    for each in strict.look("owner", "getblueprintdefinitionsmsg", **IN_DEV):
        name = each["metadata"]["name"]
        strict.look("user", "getblueprintdefinitionmsg", **IN_DEV, name=name)
        strict.look("owner", "removeblueprintdefinitionmsg", namespace="dev", name=name)


def members(strict: Strict, poison: Poison) -> None:
    user = example("User") | IN_DEV | {"name": "u", "userid": "d" * 64}
    strict.call("owner", "addusermsg", poison({"user": user}))
    for each in strict.look("user", "getusersmsg", **IN_DEV):
        strict.look("user", "getusermsg", **IN_DEV, name=each["name"])
        if each["userid"] == "d" * 64:
            strict.look("owner", "removeusermsg", **IN_DEV, name=each["name"])
    location = example("Location") | IN_DEV | {"name": "l", "locationid": ""}
    strict.call("owner", "addlocationmsg", poison({"location": location}))
    for each in strict.look("user", "getlocationsmsg", **IN_DEV):
        strict.look("user", "getlocationmsg", **IN_DEV, name=each["name"])
        strict.look("owner", "removelocationmsg", **IN_DEV, name=each["name"])
    colony = {"name": "other", "colonyid": "c" * 64}
    strict.call("server", "addcolonymsg", poison({"colony": colony}))
    for each in strict.look("server", "getcoloniesmsg"):
        if each["name"] != "dev":
            strict.look("server", "removecolonymsg", colonyname=each["name"])
    strict.look("user", "getcolonymsg", **IN_DEV)
    strict.look("user", "getcolonystatsmsg", **IN_DEV)
    strict.look("server", "getstatisticsmsg")
    strict.look("server", "getclustermsg")
    strict.look("user", "getpausestatusmsg", **IN_DEV)
    strict.look("user", "versionmsg")
    strict.look("user", "getserverinfomsg")


STORIES = [executors, functions, processes, workflows, timers, files, blueprints, members]


@pytest.fixture(scope="module")
def strict(lone_daemon: Daemon) -> Iterator[Strict]:
    """A strict client of a daemon with one approved executor."""
    strict = Strict(lone_daemon)
    worker = {"executorname": "worker", "executortype": "cli", "executorid": WORKER.id}
    strict.look("owner", "addexecutormsg", executor=IN_DEV | worker)
    strict.look("owner", "approveexecutormsg", **IN_DEV, executorname="worker")
    yield strict
    strict.edge.close()


def follow(strict: Strict, state: int) -> Any:
    """A socket that is told of each process that enters a state."""
    socket = websocket.create_connection(f"ws://127.0.0.1:{strict.port}/pubsub", timeout=20)
    asked = {"msgtype": "subscribeprocessesmsg", **IN_DEV, "state": state}
    asked |= {"executortype": "cli", "timeout": 600}
    socket.send(signed("subscribeprocessesmsg", json.dumps(asked), strict.keys["user"]).decode())
    return socket


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_whatever_is_accepted_is_shown_in_upstreams_types(
    strict: Strict, story: Callable[[Strict, Poison], None]
) -> None:
    @settings(
        max_examples=EXAMPLES // len(STORIES),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(DOSE, min_size=8, max_size=8))
    def run(doses: list[Any]) -> None:
        left = iter(doses)
        story(strict, lambda value: dosed(value, next(left)))
        strict.tidy()

    run()
    assert strict.accepted.total() > strict.refused.total() // 4


@pytest.mark.slow
def test_what_subscribers_are_told_is_in_upstreams_types(strict: Strict) -> None:
    """Frames of processes whose specs and outputs are odd, but accepted."""
    odd = spec(args=[10**30, -(2**63) - 1, None, {"": [1e308]}], kwargs={"Spec": {"spec": 2**64}})
    sockets = {state: follow(strict, state) for state in (0, 1, 2)}
    try:
        for _ in range(3):
            strict.look("user", "submitfuncspecmsg", spec=odd)
            run = strict.look("worker", "assignprocessmsg", **IN_DEV, timeout=20)
            own = {"processid": run["processid"]}
            strict.look("worker", "closesuccessfulmsg", **own, out=[2**63, 10**300, None])
            for state, socket in sockets.items():
                told = strict.read("subscribeprocessesmsg", socket.recv(), json.dumps(odd))
                assert (told["processid"], told["state"]) == (run["processid"], state)
    finally:
        for socket in sockets.values():
            socket.close()
    strict.tidy()
