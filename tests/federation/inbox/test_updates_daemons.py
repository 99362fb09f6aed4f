"""Real daemons: a workflow over colonies, its logs, output, channels and files, and kills."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from colonyd.rpc import RpcError, Unreachable
from tests.support.daemons import REPOSITORY, Daemon, seeded_dice, until
from tests.support.raw import Raw
from tests.support.sides import Side, pair

Make = Callable[..., Daemon]


def node(name: str, colony: str, *after: str, **more: Any) -> dict[str, Any]:
    conditions = {"colonyname": colony, "executortype": "cli", "dependencies": list(after)}
    return {"nodename": name, "funcname": name, "conditions": conditions} | more


async def start(side: Side, *specs: dict[str, Any]) -> dict[str, Any]:
    workflow = {"colonyname": side.daemon.name, "functionspecs": list(specs)}
    graph: dict[str, Any] = await side.call("submitworkflowspecmsg", spec=workflow)
    return graph


async def take(side: Side) -> dict[str, Any]:
    fields = {"colonyname": side.daemon.name, "timeout": 30}
    process: dict[str, Any] = await side.call("assignprocessmsg", side.worker, **fields)
    return process


async def say(side: Side, process: dict[str, Any], key: Any, text: str, number: int) -> None:
    payload = base64.b64encode(text.encode()).decode()
    fields = {"processid": process["processid"], "name": "chat", "sequence": number}
    await side.call("channelappendmsg", key, payload=payload, payloadtype="data", **fields)


async def follow_log(side: Side, processid: str, *, seconds: float = 120) -> str:
    """What `colony process logs --follow` prints until the process ends."""
    command = [sys.executable, "-m", "cli.main", "--home", str(side.daemon.home)]
    command += ["--server", f"127.0.0.1:{side.daemon.port}"]
    command += ["process", "logs", processid, "--follow"]
    with trio.fail_after(seconds):
        done = await trio.run_process(command, capture_stdout=True, cwd=REPOSITORY)
    return done.stdout.decode()


async def test_a_workflow_its_logs_and_a_channel_between_two_daemons(make_daemon: Make) -> None:
    async with pair(make_daemon) as (ant, bee):
        await ant.hire()
        graph = await start(
            ant,
            node("first", "bee", channels=["chat"]),
            node("second", "ant", "first"),
            node("third", "bee", "second"),
        )
        first, second, third = graph["processids"]
        far = await take(bee)
        printed: list[str] = []

        async def watch() -> None:
            printed.append(await follow_log(ant, first))

        raw, over = await Raw.connect(ant.daemon.port), await Raw.connect(bee.daemon.port)
        chat = {"msgtype": "subscribechannelmsg", "name": "chat", "timeout": 60}
        async with raw.stream, over.stream, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await raw.ask(ant.user.hex, processid=first, **chat)
            await over.ask(bee.worker.hex, processid=far["processid"], **chat)
            near = {"processid": first}
            for number in range(1, 6):
                await say(ant, near, ant.user, f"ping {number}", number)
                assert await heard(over) == f"ping {number}"
                await say(bee, far, bee.worker, f"pong {number}", number)
                assert [await heard(raw), await heard(raw)] == [f"ping {number}", f"pong {number}"]
                assert await heard(over) == f"pong {number}"
            far_id = far["processid"]
            await bee.call("addlogmsg", bee.worker, processid=far_id, message="one\n")
            attribute = {"targetid": far_id, "key": "k", "value": "v", "attributetype": 1}
            await bee.call("addattributemsg", bee.worker, attribute=attribute)
            await bee.call("setoutputmsg", bee.worker, processid=far_id, out=["half"])

            async def shown() -> bool:
                process = await ant.call("getprocessmsg", processid=first)
                forward = await ant.forward(first)
                fields = {"colonyname": "ant", "processid": first, "count": 10}
                logs = await ant.call("getlogsmsg", **fields)
                return bool(
                    process["out"] == ["half"]
                    and [each["key"] for each in process["attributes"]] == ["k"]
                    and forward["there"]["executor"] == "smith@bee"
                    and [(each["executorname"], each["message"]) for each in logs]
                    == [("smith@bee", "one\n")]
                )

            await until(50, shown)
            await bee.call("addlogmsg", bee.worker, processid=far_id, message="two\n")
            await bee.call("closesuccessfulmsg", bee.worker, processid=far_id, out=["whole"])
        assert printed == ["one\ntwo\n"]
        near = await take(ant)
        assert (near["processid"], near["in"]) == (second, ["whole"])
        await ant.call("closesuccessfulmsg", ant.worker, processid=second, out=["on"])
        last = await take(bee)
        assert last["in"] == ["on"]
        await bee.call("closesuccessfulmsg", bee.worker, processid=last["processid"], out=["end"])
        assert (await ant.closed(third))["out"] == ["end"]
        wrong = node("first", "wasp")
        with pytest.raises(RpcError, match="neither here nor a peer"):
            await start(ant, wrong)


async def test_an_ordinary_executor_reads_the_files_of_another_colony(
    make_daemon: Make, tmp_path: Path
) -> None:
    async with pair(make_daemon) as (ant, bee):
        data = os.urandom(5 * 2**20)
        checksum = hashlib.sha256(data).hexdigest()
        await upload(ant, "/data", "big", data)
        fs = {"mount": "/m", "snapshots": [], "dirs": [{"label": "/data", "dir": "/in"}]}
        processid = await ant.submit("bee", fs=fs)
        far = await take(bee)
        (mount,) = far["spec"]["fs"]["dirs"]
        of = {"colonyname": "bee", "label": mount["label"]}
        (listed,) = await bee.call("getfilesmsg", bee.worker, **of)
        assert (listed["name"], listed["checksum"]) == ("big", checksum)
        (file,) = await bee.call("getfilemsg", bee.worker, name="big", latest=True, **of)
        assert (file["size"], file["ref"]["protocol"]) == (len(data), "colonyd")
        ticket = await bee.call(
            "fileticketmsg", bee.worker, colonyname="bee", method="GET", checksum=checksum
        )
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            reply = await http.get(f"{bee.client.url}{ticket['url']}")
        assert reply.content == data
        done = {"processid": far["processid"], "out": [checksum]}
        await bee.call("closesuccessfulmsg", bee.worker, **done)
        assert (await ant.closed(processid))["out"] == [checksum]


async def upload(side: Side, label: str, name: str, data: bytes) -> None:
    """Store a file as a member does."""
    colony, checksum = side.daemon.name, hashlib.sha256(data).hexdigest()
    wish: dict[str, Any] = {"colonyname": colony, "method": "PUT", "checksum": checksum}
    ticket = await side.call("fileticketmsg", **wish, size=len(data))
    part = ticket["partsize"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        for start in range(0, len(data), part):
            piece = data[start : start + part]
            where = f"bytes {start}-{start + len(piece) - 1}/{len(data)}"
            headers = {"content-range": where}
            reply = await http.put(
                f"{side.client.url}{ticket['url']}", content=piece, headers=headers
            )
            assert reply.status_code in (200, 201, 202, 204, 308), reply.text
    file = {
        "colonyname": colony, "label": label, "name": name, "size": len(data),
        "checksum": checksum, "checksumalg": "SHA256", "ref": {"protocol": "colonyd"},
    }  # fmt: skip
    await side.call("addfilemsg", file=file)


async def heard(raw: Raw) -> str:
    kind, entries = await raw.reply()
    assert kind == "subscribechannelmsg"
    (entry,) = entries
    return base64.b64decode(entry["payload"]).decode()


@pytest.mark.slow
async def test_a_few_kills_in_the_middle_of_a_workflow(make_daemon: Make) -> None:
    """A seed in COLONYD_TEST_SEED repeats a run; the moments are drawn from it."""
    dice = seeded_dice()
    async with pair(make_daemon) as (ant, bee):
        for number in range(4):
            victim = (ant, bee)[number % 2]
            graph = await start(ant, node("a", "bee"), node("b", "bee", "a"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill, victim, dice.random() * 0.3)
                for place, given in enumerate(([], [f"a {number}"])):
                    there = await work(bee, f"{'ab'[place]} {number}")
                    assert there["in"] == given
            for place, pid in enumerate(graph["processids"]):
                process = await ant.closed(pid)
                assert process["out"] == [f"{'ab'[place]} {number}"]
                read = partial(ant.patient, "getlogsmsg", colonyname="ant", processid=pid, count=10)

                async def complete(read: Callable[..., Any] = read) -> bool:
                    return len(await read()) >= 2

                await until(50, complete)
                assert [each["message"] for each in await read()] == ["begun", "done"]
        for side in (ant, bee):
            done = await side.patient(
                "getprocessesmsg", colonyname=side.daemon.name, count=100, state=2
            )
            assert len(done) == 8


async def kill(victim: Side, moment: float) -> None:
    await trio.sleep(moment)
    victim.daemon.kill()
    await trio.to_thread.run_sync(victim.daemon.start)


async def work(side: Side, output: str) -> dict[str, Any]:
    """Take one process, log twice, close it, however often the daemon is away."""

    async def found() -> Any:
        name = side.daemon.name
        mine = await side.patient("getprocessesmsg", colonyname=name, count=9, state=1)
        if mine:
            return mine[0]
        try:
            fields = {"colonyname": name, "timeout": 2}
            return await side.patient("assignprocessmsg", side.worker, **fields)
        except RpcError as error:
            if error.status != 404:
                raise
            return None

    process: Any = await until(60, found)
    pid, name = process["processid"], side.daemon.name
    for text in ("begun", "done"):
        # A lost reply must not become a second line.
        logs = await side.patient("getlogsmsg", colonyname=name, processid=pid, count=10)
        while text not in [each["message"] for each in logs]:
            with suppress(Unreachable, RpcError):
                await side.call("addlogmsg", side.worker, processid=pid, message=text)
            logs = await side.patient("getlogsmsg", colonyname=name, processid=pid, count=10)
    await side.patient("closesuccessfulmsg", side.worker, processid=pid, out=[output])
    return dict(process)
