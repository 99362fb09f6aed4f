"""Large values, from outside: what upstream takes is taken, and just over a limit says which."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.errors import RpcError as Refused
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError
from federation.wire.sizes import FORWARD
from node.model.ids import new_id
from node.store import limits
from tests.federation.membership.support import friends
from tests.support.colonies import world
from tests.support.daemons import REPOSITORY, Daemon, until

MIB = 2**20

pytestmark = pytest.mark.slow


class Party:
    """The home colony's user and an executor of a type of its own."""

    def __init__(self, daemon: Daemon, client: RpcClient) -> None:
        self.colony = daemon.name
        self.type = f"t-{new_id()[:8]}"
        self.user, self.owner = daemon.key("user"), daemon.key("colony")
        self.worker = PrivateKey.generate()
        self._client = client

    async def call(self, kind: str, key: PrivateKey | None = None, **fields: Any) -> Any:
        """A call with the user's key."""
        return await self._client.call(kind, fields, key or self.user, timeout=60)

    async def join(self) -> None:
        """Register the executor."""
        executor = {
            "executorid": self.worker.id,
            "executorname": self.type,
            "executortype": self.type,
            "colonyname": self.colony,
        }
        await self.call("addexecutormsg", self.owner, executor=executor)
        name = {"colonyname": self.colony, "executorname": self.type}
        await self.call("approveexecutormsg", self.owner, **name)

    def spec(self, *args: Any, **more: Any) -> dict[str, Any]:
        """A function spec for the executor."""
        conditions = {
            "colonyname": self.colony,
            "executortype": self.type,
            "dependencies": more.pop("dependencies", []),
        }
        return {"funcname": "f", "args": list(args), "conditions": conditions, **more}

    async def submit(self, *args: Any, **more: Any) -> dict[str, Any]:
        """A process."""
        spec = self.spec(*args, **more)
        process: dict[str, Any] = await self.call("submitfuncspecmsg", spec=spec)
        return process

    async def assign(self) -> dict[str, Any]:
        """The next process for the executor."""
        wanted = {"colonyname": self.colony, "timeout": 30}
        process: dict[str, Any] = await self.call("assignprocessmsg", self.worker, **wanted)
        return process

    async def close(self, processid: str, *output: Any) -> None:
        """A successful end."""
        await self.call("closesuccessfulmsg", self.worker, processid=processid, out=list(output))

    async def say(self, processid: str, payload: bytes) -> None:
        """A message in the channel c."""
        text = base64.b64encode(payload).decode()
        message = {"name": "c", "sequence": 1, "inreplyto": 0, "payload": text}
        await self.call("channelappendmsg", self.worker, processid=processid, **message)

    async def process(self, processid: str) -> dict[str, Any]:
        """A process as it is."""
        process: dict[str, Any] = await self.call("getprocessmsg", processid=processid)
        return process


@asynccontextmanager
async def party_of(daemon: Daemon) -> AsyncIterator[Party]:
    async with daemon.client() as client:
        party = Party(daemon, client)
        await party.join()
        yield party


async def test_the_outputs_of_many_parents_reach_their_child(lone_daemon: Daemon) -> None:
    """20 parents of 100 KB: the workflow failed for them."""
    async with party_of(lone_daemon) as party:
        parents = [f"p{n}" for n in range(20)]
        specs = [party.spec(nodename=name) for name in parents]
        specs.append(party.spec(nodename="child", dependencies=parents))
        spec = {"colonyname": party.colony, "functionspecs": specs}
        graph = await party.call("submitworkflowspecmsg", spec=spec)
        told = {}
        for _ in parents:
            process = await party.assign()
            told[process["spec"]["nodename"]] = process["spec"]["nodename"] * 40_000
            await party.close(process["processid"], told[process["spec"]["nodename"]])
        child = await party.assign()
        assert child["spec"]["nodename"] == "child"
        assert child["in"] == [told[name] for name in parents]
        await party.close(child["processid"], "done")
        graphid = graph["processgraphid"]
        assert (await party.call("getprocessgraphmsg", processgraphid=graphid))["state"] == 2


async def test_more_than_an_input_takes_fails_the_child_and_says_so(lone_daemon: Daemon) -> None:
    async with party_of(lone_daemon) as party:
        parents = ["a", "b", "c", "d"]
        specs = [party.spec(nodename=name) for name in parents]
        specs.append(party.spec(nodename="child", dependencies=parents))
        spec = {"colonyname": party.colony, "functionspecs": specs}
        graph = await party.call("submitworkflowspecmsg", spec=spec)
        for _ in parents:
            process = await party.assign()
            await party.close(process["processid"], "x" * 9_000_000)

        async def ended() -> Any:
            child = await party.process(graph["processids"][4])
            return child if child["state"] == 3 else None

        child: Any = await until(20, ended)
        assert f"more than {limits.INPUT} bytes" in child["errors"][0]


@pytest.mark.parametrize("size", [700_000, 3_000_000, 11_500_000])
async def test_arguments_go_there_and_output_comes_back(lone_daemon: Daemon, size: int) -> None:
    async with party_of(lone_daemon) as party:
        text = "".join(chr(97 + n % 26) for n in range(1000)) * (size // 1000)
        submitted = await party.submit(text)
        assert submitted["spec"]["args"] == [text]
        assigned = await party.assign()
        assert assigned["spec"]["args"] == [text]
        await party.call(
            "setoutputmsg", party.worker, processid=assigned["processid"], out=[text[: size // 2]]
        )
        await party.close(assigned["processid"], text[::-1])
        ended = await party.process(assigned["processid"])
        assert ended["out"] == [text[::-1]]
        assert ended["state"] == 2
        await party.call("removeprocessmsg", processid=assigned["processid"])
        with pytest.raises(RpcError, match="404"):
            await party.process(assigned["processid"])


async def test_many_numbers_are_arguments_too(lone_daemon: Daemon) -> None:
    async with party_of(lone_daemon) as party:
        numbers = [n / 7 for n in range(90_000)]
        await party.submit(numbers)
        assert (await party.assign())["spec"]["args"] == [numbers]


async def test_attributes_lines_and_messages_may_be_large(lone_daemon: Daemon) -> None:
    async with party_of(lone_daemon) as party:
        await party.submit(channels=["c"])
        pid = (await party.assign())["processid"]
        attribute = {
            "targetid": pid,
            "targetcolonyname": party.colony,
            "attributetype": 1,
            "key": "k",
            "value": "v" * 2_000_000,
        }
        added = await party.call("addattributemsg", party.worker, attribute=attribute)
        kept = await party.call("getattributemsg", attributeid=added["attributeid"])
        assert kept["value"] == attribute["value"]
        line = "l" * 2_000_000
        await party.call("addlogmsg", party.worker, processid=pid, message=line)
        logs = {"colonyname": party.colony, "processid": pid, "count": 100, "since": 0}
        assert [each["message"] for each in await party.call("getlogsmsg", **logs)] == [line]
        said = bytes(range(256)) * 32_768
        await party.say(pid, said)
        (entry,) = await party.call("channelreadmsg", processid=pid, name="c", afterseq=0, limit=0)
        assert base64.b64decode(entry["payload"]) == said


async def test_a_body_over_the_limit_is_413_and_names_the_setting(lone_daemon: Daemon) -> None:
    async with party_of(lone_daemon) as party:
        with pytest.raises(RpcError, match=r"rpc\.max_body.*413"):
            await party.submit("x" * 12_600_000)


async def test_a_larger_body_is_a_matter_of_the_setting(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(
        "dev", COLONYD_FEDERATION__ENABLED="false", COLONYD_RPC__MAX_BODY="24MiB"
    ).start()
    text = "o" * 15_000_000
    async with party_of(daemon) as party:
        await party.submit(channels=["c"])
        pid = (await party.assign())["processid"]
        await party.say(pid, bytes(limits.MESSAGE))
        with pytest.raises(RpcError, match=rf"payload.*at most {limits.MESSAGE} .*400"):
            await party.say(pid, bytes(limits.MESSAGE + 1))
        await party.close(pid, text)
        assert (await party.process(pid))["out"] == [text]
        # A kill, and it is there still: no entry of etcd's log is larger than it can read again.
        daemon.kill()
        daemon.start()
    async with daemon.client() as client:
        again = await client.call("getprocessmsg", {"processid": pid}, party.user, timeout=60)
    assert again["out"] == [text]


async def test_a_process_as_a_whole_has_a_limit_that_is_named(lone_daemon: Daemon) -> None:
    async with party_of(lone_daemon) as party:
        await party.submit("a" * 11_000_000)
        pid = (await party.assign())["processid"]
        attribute = {"targetid": pid, "targetcolonyname": party.colony, "attributetype": 1}
        for number in range(4):
            attribute |= {"key": f"k{number}", "value": "v" * 11_900_000}
            await party.call("addattributemsg", party.worker, attribute=attribute)
        with pytest.raises(RpcError, match=rf"one value.*|takes {limits.VALUE} for one.*413"):
            await party.close(pid, "o" * 12_000_000)
        await party.close(pid, "smaller")
        assert (await party.process(pid))["out"] == ["smaller"]


async def test_what_no_peer_takes_is_refused_when_it_is_submitted(tmp_path: Path) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with pytest.raises(Refused, match=f"spec: .* at most {FORWARD}") as caught:
            await ant.submit("bee", args=["x" * FORWARD])
        assert caught.value.status == 413
        with trio.fail_after(50):
            pid = await ant.submit("bee", args=["x" * 1_300_000])
            await bee.work("y" * 1_300_000)
            assert (await ant.closed(pid)).output == ["y" * 1_300_000]


def test_the_documents_have_the_limits_of_the_code() -> None:
    text = (REPOSITORY / "docs" / "compatibility.md").read_text()
    section = text.partition("## Limits")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) MiB", section, re.MULTILINE))
    assert told == {name: str(getattr(limits, name) // MIB) for name in limits.__all__}
