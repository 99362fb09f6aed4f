"""History: what is past its time leaves the store whole, is never lost, and any change shows."""

from __future__ import annotations

import base64
import gzip
import json
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from node.archive.chain import Chain, ChainHead, files, records, verify
from node.archive.retention import Retention
from node.etcd.client import EtcdClient, TxnResult, open_client
from node.etcd.txn import Txn
from node.host.config import AUTO, ConfigError, HistoryConfig, Keep, load_config
from node.model.ids import new_id
from node.model.types import (
    FunctionSpec,
    Process,
    State,
)
from node.store import keys
from tests.node.archive.support import JANUARY, MONTH, _assign, colony, hire, place
from tests.support.daemons import Daemon, seeded_dice, until
from tests.support.processes import retention as retention_of


def entry(name: str) -> dict[str, Any]:
    return {"kind": "process", "id": name, "logs": []}


def written(directory: Path) -> list[str]:
    return [record["id"] for record in records(directory)]


# -- files -----------------------------------------------------------------------------------


def test_a_chain_goes_on_over_months_and_restarts(tmp_path: Path) -> None:
    chain = Chain.open(tmp_path / "c", ChainHead())
    chain.append([entry("a"), entry("b")], JANUARY)
    head = chain.append([entry("c")], JANUARY + MONTH)
    again = Chain.open(tmp_path / "c", head)
    assert (again.head, again.trouble) == (head, "")
    # A clock that went back does not write into a month that is over.
    again.append([entry("d")], JANUARY)
    names = [path.name for path in files(tmp_path / "c")]
    assert names == ["2026-01.jsonl.gz", "2026-02.jsonl.gz"]
    assert written(tmp_path / "c") == ["a", "b", "c", "d"]
    found = verify(tmp_path / "c", head.digest)
    assert (found.records, found.problems, found.contains) == (4, [], True)
    assert found.head == again.head
    assert not verify(tmp_path / "c", "0" * 64).contains
    path = files(tmp_path / "c")[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_batch_cut_off_at_any_byte_is_as_if_never_written(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    chain = Chain.open(directory, ChainHead())
    head = chain.append([entry("a")], JANUARY)
    path = files(directory)[0]
    whole = path.stat().st_size
    chain.append([entry("b"), entry("c")], JANUARY)
    data = path.read_bytes()
    for cut in [*range(whole, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:cut])
        assert written(directory) == ["a"]
        assert verify(directory).problems == []
        again = Chain.open(directory, head)
        assert (again.head, again.trouble) == (head, "")
        assert path.read_bytes() == data[:whole]
        again.append([entry("b")], JANUARY)
        assert written(directory) == ["a", "b"]


def test_every_kind_of_change_shows(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    chain = Chain.open(directory, ChainHead())
    for name in "abcd":
        chain.append([entry(name)], JANUARY)
    path = files(directory)[0]
    data = path.read_bytes()
    lines = gzip.decompress(data).splitlines()
    other = lines[1].replace(b'"b"', b'"x"')
    for changed, says in (
        ([lines[0], other, *lines[2:]], "record 3 does not follow the record 2 that is there"),
        ([lines[0], *lines[2:]], "record 3 follows record 1"),
        ([*lines[:2], lines[1], *lines[2:]], "record 2 follows record 2"),
        ([lines[1], lines[0], *lines[2:]], "record 2 follows record 0"),
        ([lines[0], b"{}", *lines[1:]], "no record"),
    ):
        path.write_bytes(gzip.compress(b"\n".join(changed) + b"\n"))
        assert says in verify(directory).problems[0]
    # Where not even the compression was done anew.
    path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    assert "damaged after byte" in verify(directory).problems[0]


def test_damage_is_put_aside_and_a_lost_end_stays_in_sight(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    chain = Chain.open(directory, ChainHead())
    chain.append([entry("a")], JANUARY)
    path = files(directory)[0]
    whole = path.stat().st_size
    head = chain.append([entry("b")], JANUARY)
    rest = b"\0" * 100
    path.write_bytes(path.read_bytes()[:whole] + rest)
    again = Chain.open(directory, head)
    assert "damaged after byte" in again.trouble
    assert again.head == head
    (aside,) = directory.glob("*.damaged-*")
    assert aside.read_bytes() == rest
    again.append([entry("c")], JANUARY)
    assert written(directory) == ["a", "c"]
    assert verify(directory).problems == ["2026-01.jsonl.gz: record 3 follows record 1"]
    # With the whole directory gone, too.
    empty = Chain.open(tmp_path / "d", head)
    assert empty.trouble == "it ends with record 0, the store knows of 2"


def test_a_full_disk_leaves_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.open(tmp_path / "c", ChainHead())
    head = chain.append([entry("a")], JANUARY)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("node.archive.chain.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            chain.append([entry("b")], JANUARY)
    assert chain.head == head
    chain.append([entry("c")], JANUARY)
    assert written(tmp_path / "c") == ["a", "c"]
    assert verify(tmp_path / "c").problems == []


def test_configuration(tmp_path: Path) -> None:
    assert load_config(tmp_path, {}, environ={}).history == HistoryConfig()
    assert HistoryConfig().keep.auto
    for text, seconds in (
        ("30d", 2_592_000),
        ("12 h", 43_200),
        ("90", 90),
        ("forever", 0),
        ("0", 0),
        ("2w", 1_209_600),
        ("auto", AUTO),
    ):
        found = load_config(tmp_path, {}, environ={"COLONYD_HISTORY__KEEP": text})
        assert found.history.keep == seconds
        assert found.history.keep.auto == (text == "auto")
    for text in ("30 days", "-1", "d", "1.5h"):
        with pytest.raises(ConfigError, match=r"history\.keep: .*30d.*auto"):
            load_config(tmp_path, {}, environ={"COLONYD_HISTORY__KEEP": text})
    upstream = {"COLONIES_RETENTION": "true", "COLONIES_RETENTION_POLICY": "604800"}
    assert load_config(tmp_path, {}, environ=upstream).history.keep == 604_800
    off = upstream | {"COLONIES_RETENTION": "false"}
    assert load_config(tmp_path, {}, environ=off).history.keep == AUTO
    ours = upstream | {"COLONYD_HISTORY__KEEP": "1d"}
    assert load_config(tmp_path, {}, environ=ours).history.keep == 86_400


# -- the store -------------------------------------------------------------------------------


class Died(BaseException):
    """The daemon was killed."""


class Mortal(EtcdClient):
    """A client whose daemon dies `at` a write, `before` or after it happens."""

    writes = 0
    at = 0
    before = True

    async def commit(self, txn: Txn) -> TxnResult:
        if not txn.success or all(type(op).__name__.startswith("Get") for op in txn.success):
            return await super().commit(txn)
        self.writes += 1
        if self.writes == self.at and self.before:
            raise Died
        result = await super().commit(txn)
        if self.writes == self.at:
            raise Died
        return result


async def sweep(retention: Retention) -> int:
    """Move what is past its time, as the daemon does now and then."""
    return await retention.sweep(retention.processes.clock.now() - retention.config.keep * 10**9)


def keeping(days: int, *states: Any) -> HistoryConfig:
    if not states:
        return HistoryConfig(keep=Keep(days * 86_400))
    return HistoryConfig(keep=Keep(days * 86_400), states=list(states))


@pytest.mark.slow
async def test_what_is_past_its_time_leaves_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.archive.retention._LINES", 10)
    monkeypatch.setattr("node.archive.retention._PAGE", 7)
    async with place(tmp_path) as (here, _):
        old = await here.closed("old")
        for number in range(31):
            await here.log(old.processid, f"line {number}")
        failed = await here.closed("bad", State.FAILED)
        await here.log("", "of no process")
        here.days = 3
        young = await here.closed("young")
        await here.log(young.processid, "young line")
        retention = retention_of(here.node, tmp_path, keeping(1, "successful"))
        await sweep(retention)
        assert await sweep(retention) == 0
        found = list(records(tmp_path / "history" / "dev"))
        (process,) = [r for r in found if r["kind"] == "process"]
        assert process["id"] == old.processid
        assert process["process"]["output"] == ["old"]
        assert [each["state"] for each in process["process"]["attributes"]] == [2]
        assert process["submission"] == "signed bytes"
        parts = [r["logs"] for r in found if r["kind"] == "logs"] + [process["logs"]]
        messages = [line["message"] for part in parts for line in part]
        assert messages == [f"line {number}" for number in range(31)]
        assert [r["log"]["message"] for r in found if r["kind"] == "log"] == ["of no process"]
        # Nothing of it is left, all of the others is there.
        left = await here.keys()
        assert not [key for key in left if old.processid in key]
        assert keys.process("dev", failed.processid) in left
        assert await here.node.processes.load("dev", old.processid) is None
        lines = [key for key in left if key.startswith(keys.executor_logs("dev", "worker"))]
        assert len(lines) == 1
        # With all states, the other one as well.
        retention.config = keeping(1)
        await sweep(retention)
        here.days = 9
        await sweep(retention)
        assert await here.keys() == []
        assert verify(tmp_path / "history" / "dev").problems == []


@pytest.mark.slow
async def test_a_workflow_leaves_as_a_whole_once_all_of_it_is_over(tmp_path: Path) -> None:
    async with place(tmp_path) as (here, _), trio.open_nursery() as nursery:
        await nursery.start(here.node.workflows.run)
        first = FunctionSpec(nodename="a", funcname="f")
        last = FunctionSpec(nodename="b", funcname="g")
        last.conditions.dependencies = ["a"]
        first.conditions.executortype = last.conditions.executortype = "cli"
        graph = await here.node.workflows.submit(
            "dev",
            [first, last],
            graphid=new_id(),
            initiatorid=here.user.id,
            initiatorname="u",
            submission=b"signed graph",
        )
        retention = retention_of(here.node, tmp_path, keeping(1))
        nodes = await here.node.workflows.nodes(graph)
        pid = nodes[0].processid
        await here.node.processes.change(
            "dev", pid, lambda it, revision: _assign(it, revision, here.executor, here.now())
        )
        await here.node.processes.close(
            "dev", pid, here.executor.executorid, State.SUCCESSFUL, output=["x"]
        )
        here.days = 3
        assert await sweep(retention) == 0
        await here.node.workflows.cancel("dev", graph.processgraphid)
        assert await sweep(retention) == 0
        here.days = 6
        assert await sweep(retention) == 3
        found = list(records(tmp_path / "history" / "dev"))
        assert [r["kind"] for r in found] == ["process", "process", "workflow"]
        assert found[2]["id"] == graph.processgraphid
        assert found[2]["submission"] == "signed graph"
        assert await here.keys() == []
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_kill_at_any_write_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon dies before or after each of its writes in turn, and a new one goes on."""
    monkeypatch.setattr("node.archive.retention._OPERATIONS", 5)
    async with place(tmp_path) as (here, etcd):
        expected: set[str] = set()
        deaths = 0
        for at in range(1, 30):
            for before in (True, False):
                some = [(await here.closed(f"{at} {before} {n}")).processid for n in range(3)]
                await here.log(some[0], "line")
                await here.log("", f"{at} {before}")
                expected.update(some)
                here.days += 3
                async with open_client(etcd.target) as plain:
                    mortal = Mortal(plain._channel, 5.0)
                    node = await here.adopt(here.another(mortal))
                    mortal.at, mortal.before, mortal.writes = at, before, 0
                    retention = retention_of(node, tmp_path, keeping(1))
                    try:
                        await sweep(retention)
                    except Died:
                        deaths += 1
            if mortal.writes < at:
                break
        here.days += 3
        await sweep(retention_of(await here.adopt(here.another(here.client)), tmp_path, keeping(1)))
        directory = tmp_path / "history" / "dev"
        found = [r for r in records(directory) if r["kind"] == "process"]
        assert {r["id"] for r in found} == expected
        assert all(r["submission"] == "signed bytes" for r in found)
        assert verify(directory).problems == []
        assert await here.keys() == []
        assert deaths >= 10


@pytest.mark.slow
async def test_what_federation_still_needs_stays(tmp_path: Path) -> None:
    async with place(tmp_path) as (here, _):
        process = await here.closed("x")
        here.days = 3
        hooks = here.node.processes.hooks
        owed = ["colony ant has not fetched the outcome yet"]
        hooks.removable = lambda it: owed[0]  # type: ignore[method-assign, assignment]

        async def record(it: Process) -> dict[str, Any]:
            return {"outcome": b"\1\2"}

        hooks.record = record  # type: ignore[method-assign, assignment]
        retention = retention_of(here.node, tmp_path, keeping(1))
        assert await sweep(retention) == 0
        assert await here.node.processes.load("dev", process.processid) is not None
        owed[0] = ""
        assert await sweep(retention) == 1
        (found,) = records(tmp_path / "history" / "dev")
        assert found["forward"] == {"outcome": "AQI="}


# -- the daemon and the command --------------------------------------------------------------


@pytest.mark.slow
async def test_a_daemon_and_the_command(make_daemon: Callable[..., Daemon]) -> None:
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_HISTORY__KEEP": "2"}
    daemon = await trio.to_thread.run_sync(lambda: make_daemon("dev", **environ).start())
    user, owner, worker = daemon.key("user"), daemon.key("colony"), PrivateKey.generate()
    async with daemon.client() as client:
        member = {"executorname": "w", "executorid": worker.id, "executortype": "cli"}
        member["colonyname"] = "dev"
        await client.call("addexecutormsg", {"executor": member}, owner)
        await client.call("approveexecutormsg", member, owner)
        spec = {
            "funcname": "say",
            "args": ["hi"],
            "conditions": {"colonyname": "dev", "executortype": "cli"},
        }
        process = await client.call("submitfuncspecmsg", {"spec": spec}, user)
        pid = process["processid"]
        await client.call("assignprocessmsg", {"colonyname": "dev", "timeout": 5}, worker)
        line = {"processid": pid, "message": "a line of it"}
        await client.call("addlogmsg", line, worker)
        mark = len(daemon.events)
        await client.call("closesuccessfulmsg", {"processid": pid, "out": ["done"]}, worker)

        def moved() -> str:
            return daemon.await_event('event="moved to history"', after=mark)

        await trio.to_thread.run_sync(moved)

        async def gone() -> bool:
            rows = await client.call(
                "getprocessesmsg", {"colonyname": "dev", "count": 9, "state": 2}, user
            )
            return rows == []

        await until(50, gone)
    rows = json.loads(colony(daemon, "history", "ls", "--json").stdout)
    assert [row["processid"] for row in rows] == [pid]
    assert "say(hi)" in colony(daemon, "history", "ls", "--state", "successful").stdout
    assert colony(daemon, "history", "ls", "--func", "other").stdout == ""
    shown = colony(daemon, "history", "show", pid[:12]).stdout
    assert "a line of it" in shown
    assert "done" in shown
    assert "state" in shown
    whole = json.loads(colony(daemon, "history", "show", pid, "--json").stdout)
    payload = whole["submission"].partition(".")[0]
    assert json.loads(base64.b64decode(payload))["spec"]["args"] == ["hi"]
    colony(daemon, "history", "show", "ffffffffffff", code=3)
    verdict = json.loads(colony(daemon, "history", "verify", "--json").stdout)
    assert verdict["records"] >= 1
    colony(daemon, "history", "verify", "--contains", verdict["head"])
    colony(daemon, "history", "verify", "--contains", "0" * 64, code=1)
    (path,) = files(daemon.home / "history" / "dev")
    data = gzip.decompress(path.read_bytes()).replace(b'"done"', b'"gone"', 1)
    path.write_bytes(gzip.compress(data + data))
    assert "problem: " in colony(daemon, "history", "verify", code=1).stderr


@pytest.mark.slow
async def test_kills_of_a_daemon_lose_nothing(make_daemon: Callable[..., Daemon]) -> None:
    """Killed at moments drawn by COLONYD_TEST_SEED, while it moves what is due."""
    dice = seeded_dice()
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false")
    await trio.to_thread.run_sync(daemon.start)
    user = daemon.key("user")
    expected: set[str] = set()
    fields = {"colonyname": "dev", "count": 100, "state": 4}
    async with daemon.client() as client:
        conditions = {"colonyname": "dev", "executortype": "cli"}
        for number in range(60):
            spec = {"funcname": "f", "args": [number], "conditions": conditions}
            process = await client.call("submitfuncspecmsg", {"spec": spec}, user)
            await client.call("cancelprocessmsg", {"processid": process["processid"]}, user)
            expected.add(process["processid"])
    assert daemon.stop() == 0
    daemon.environ["COLONYD_HISTORY__KEEP"] = "1"
    for _ in range(2):
        mark = len(daemon.events)
        await trio.to_thread.run_sync(daemon.start)
        await trio.to_thread.run_sync(partial(daemon.await_event, "event=leads", after=mark))
        await trio.sleep(dice.random() * 0.15)
        await trio.to_thread.run_sync(daemon.kill)
    await trio.to_thread.run_sync(daemon.start)

    async def gone() -> bool:
        async with daemon.client() as client:
            return await client.call("getprocessesmsg", fields, user) == []

    await until(50, gone)
    assert daemon.stop() == 0
    directory = daemon.home / "history" / "dev"
    assert set(written(directory)) == expected
    assert verify(directory).problems == []
    assert not [line for line in daemon.events if "not what was written" in line]


def test_a_disk_that_was_full_is_no_tampering(tmp_path: Path) -> None:
    """A batch that found no room leaves nothing behind, whatever part of it was written."""
    chain = Chain.open(tmp_path / "history", ChainHead())
    entries = [{"kind": "process", "id": os.urandom(32).hex()} for _ in range(500)]
    chain.append(entries, 10**18)
    (path,) = files(tmp_path / "history")
    size = path.stat().st_size
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1, 50, 5_000, 9_000):
        # As a full disk: a part is written, and then there is no room.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, most[1]))
        try:
            with pytest.raises(OSError, match="large"):
                chain.append(entries, 10**18)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        assert path.stat().st_size == size
    head = chain.append(entries, 10**18)
    assert not verify(tmp_path / "history").problems
    again = Chain.open(tmp_path / "history", head)
    assert (again.trouble, again.head) == ("", head)


# -- a store that fills up -------------------------------------------------------------------


async def cycle(client: Any, user: PrivateKey, worker: PrivateKey, **spec: Any) -> dict[str, Any]:
    """Submit, assign and close a process; gives it as the store has it then."""
    conditions = {"colonyname": "dev", "executortype": "cli"}
    full = {"funcname": "measure", "conditions": conditions, **spec}
    await client.call("submitfuncspecmsg", {"spec": full}, user)
    given = await client.call("assignprocessmsg", {"colonyname": "dev", "timeout": 10}, worker)
    fields = {"processid": given["processid"]}
    await client.call("closesuccessfulmsg", {**fields, "out": [1.5]}, worker)
    closed: dict[str, Any] = await client.call("getprocessmsg", fields, user)
    return closed


@pytest.mark.slow
async def test_what_left_is_still_read_by_its_id(make_daemon: Callable[..., Daemon]) -> None:
    """As it was, by whoever might read it before and nobody else, and after a restart, too."""
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_HISTORY__KEEP": "1"}
    daemon = await trio.to_thread.run_sync(lambda: make_daemon("dev", **environ).start())
    user, owner, stranger = daemon.key("user"), daemon.key("colony"), PrivateKey.generate()
    before: dict[str, Any] = {}
    async with daemon.client() as client:
        worker = await hire(client, owner)
        colony_of_others = {"colonyid": stranger.id, "name": "other"}
        await client.call("addcolonymsg", {"colony": colony_of_others}, daemon.key("server"))
        others = await hire(client, stranger, "other")
        for number in range(20):
            closed = await cycle(client, user, worker, args=[number], env={"N": str(number)})
            before[closed["processid"]] = closed

        async def gone() -> bool:
            fields = {"colonyname": "dev", "count": 100, "state": 2}
            return await client.call("getprocessesmsg", fields, user) == []

        await until(50, gone)
        for key in (user, worker):
            for pid, closed in before.items():
                assert await client.call("getprocessmsg", {"processid": pid}, key) == closed
        for pid in [*before][:3]:
            with pytest.raises(RpcError, match="no process") as refused:
                await client.call("getprocessmsg", {"processid": pid}, others)
            assert refused.value.status == 404
            with pytest.raises(RpcError) as refused:
                await client.call("getprocessmsg", {"processid": pid}, PrivateKey.generate())
            assert refused.value.status == 403
        for name in ("", "x", "f" * 64, "../../keys/user.key", "a/b"):
            with pytest.raises(RpcError) as refused:
                await client.call("getprocessmsg", {"processid": name}, user)
            assert refused.value.status == 404
    assert daemon.stop() == 0
    await trio.to_thread.run_sync(daemon.start)
    async with daemon.client() as client:
        for pid, closed in before.items():
            assert await client.call("getprocessmsg", {"processid": pid}, user) == closed
