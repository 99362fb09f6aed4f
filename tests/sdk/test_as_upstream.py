"""What SDKs written for the upstream server rely on, asked of a real daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from node.host.config import ConfigError, load_config
from tests.node.workflows.support import Party, party, spec
from tests.support.daemons import Daemon


async def _submit(me: Party, **more: Any) -> dict[str, Any]:
    conditions = {"colonyname": me.colony, "executortype": me.kind}
    spec = {"funcname": "f", "conditions": conditions} | more
    return dict(await me.call("submitfuncspecmsg", spec=spec))


async def _get(me: Party, processid: str) -> dict[str, Any]:
    return dict(await me.call("getprocessmsg", processid=processid))


async def _name(me: Party) -> str:
    executor = await me.call("getexecutorbyidmsg", executorid=me.key.id)
    return str(executor["executorname"])


async def test_a_repeated_close_counts_once_in_statistics(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        name = await _name(me)
        fun = {"executorname": name, "colonyname": me.colony, "funcname": "f"}
        await me.call("addfunctionmsg", me.key, fun=fun)
        for _ in range(2):
            await _submit(me)
            process = await me.assign()
            for _ in range(3):
                await me.close(process, "out")
        (function,) = await me.call("getfunctionsmsg", executorname=name)
        assert function["counter"] == 2


@pytest.mark.parametrize("end", ["successful", "failed", "cancelled"])
async def test_attributes_have_the_state_of_their_process(lone_daemon: Daemon, end: str) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        submitted = await _submit(me, env={"GIVEN": "1"})
        pid = submitted["processid"]
        assert [each["state"] for each in submitted["attributes"]] == [0]
        process = await me.assign()
        assert [each["state"] for each in process["attributes"]] == [1]
        attribute = {"targetid": pid, "key": "k", "value": "v", "attributetype": 1}
        added = await me.call("addattributemsg", me.key, attribute=attribute)
        assert added["state"] == 1
        if end == "cancelled":
            await me.call("cancelprocessmsg", processid=pid)
        else:
            await (me.close(process) if end == "successful" else me.fail(process))
        state = {"successful": 2, "failed": 3, "cancelled": 4}[end]
        found = await _get(me, pid)
        assert [each["state"] for each in found["attributes"]] == [state, state]
        kept = await me.call("getattributemsg", attributeid=added["attributeid"])
        assert kept["state"] == state


async def test_attributes_wait_again_with_their_process(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        await _submit(me, env={"GIVEN": "1"})
        pid = (await me.assign())["processid"]
        await me.call("rejectexecutormsg", me.owner, executorname=await _name(me))
        found = await _get(me, pid)
        assert (found["state"], [each["state"] for each in found["attributes"]]) == (0, [0])


async def test_an_environment_attribute_of_an_executor_is_in_the_spec(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(spec("a", kind=me.kind, env={"GIVEN": "1"}))
        process = await me.assign()
        pid = process["processid"]
        for key, kind in (("ADDED", 3), ("OUT", 1)):
            attribute = {"targetid": pid, "key": key, "value": "2", "attributetype": kind}
            added = await me.call("addattributemsg", me.key, attribute=attribute)
            assert added["targetprocessgraphid"] == graph["processgraphid"]
        assert (await _get(me, pid))["spec"]["env"] == {"GIVEN": "1", "ADDED": "2"}
        await me.close(process)
        assert (await _get(me, pid))["spec"]["env"] == {"GIVEN": "1", "ADDED": "2"}


async def _closing(me: Party, kind: str, process: dict[str, Any], **fields: Any) -> str:
    """What a close is refused with, "" when it is not."""
    try:
        await me.call(kind, me.key, processid=process["processid"], **fields)
    except RpcError as error:
        return f"{error.status} {error.message}"
    return ""


async def test_a_late_failure_with_other_errors_is_refused(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        await _submit(me)
        process = await me.assign()
        assert await _closing(me, "closefailedmsg", process, errors=["first"]) == ""
        assert await _closing(me, "closefailedmsg", process, errors=["first"]) == ""
        over = "400 the process is failed, not running"
        assert await _closing(me, "closefailedmsg", process, errors=["second"]) == over
        assert await _closing(me, "closefailedmsg", process, errors=[]) == over
        assert await _closing(me, "closesuccessfulmsg", process, out=["late"]) == over
        found = await _get(me, process["processid"])
        assert (found["state"], found["errors"], found["out"]) == (3, ["first"], [])


async def test_a_failure_after_the_end_of_the_workflow_is_refused(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(
            spec("a", kind=me.kind), spec("b", "a", kind=me.kind), spec("c", kind=me.kind)
        )
        running = {
            each["spec"]["nodename"]: each for each in (await me.assign(), await me.assign())
        }
        # The failure of a ends c as well; its executor does not know yet.
        await me.fail(running["a"])
        assert (await me.states(graph))["c"] == 3
        over = "400 the process is failed, not running"
        assert await _closing(me, "closefailedmsg", running["c"], errors=["late"]) == over
        assert (await me.nodes(graph))["c"]["errors"] == ["another node of the workflow failed"]


REREGISTER = "COLONIES_ALLOW_EXECUTOR_REREGISTER"


def test_whether_executors_may_register_again_is_set_as_upstream(tmp_path: Path) -> None:
    def allowed(**environ: str) -> bool:
        return load_config(tmp_path, {}, environ=environ).rpc.reregister

    assert not allowed()
    for text in ("true", "TRUE", "True", "t", "T", "1"):
        assert allowed(**{REREGISTER: text}), text
    for text in ("false", "F", "0", ""):
        assert not allowed(**{REREGISTER: text}), text
    assert not allowed(**{REREGISTER: "true", "COLONYD_RPC__REREGISTER": "false"})
    with pytest.raises(ConfigError, match=REREGISTER):
        allowed(**{REREGISTER: "perhaps"})


async def test_an_executor_that_crashed_registers_again(
    make_daemon: Callable[..., Daemon],
) -> None:
    alone = {"COLONYD_FEDERATION__ENABLED": "false"}
    daemon = make_daemon("dev", **alone, **{REREGISTER: "true"}).start()
    async with daemon.client() as client:
        me = await party(daemon, client)
        name, old = await _name(me), me.key
        fun = {"executorname": name, "colonyname": me.colony, "funcname": "f"}
        await me.call("addfunctionmsg", old, fun=fun)
        pid = (await _submit(me))["processid"]
        assert (await me.assign())["processid"] == pid
        executor = {"executorname": name, "executortype": me.kind, "colonyname": me.colony}
        me.key = PrivateKey.generate()
        # What is refused replaces nobody.
        wrong = executor | {"executorid": "a\nb"}
        with pytest.raises(RpcError, match="executorid"):
            await me.call("addexecutormsg", me.owner, executor=wrong)
        with pytest.raises(RpcError):
            await me.call("addexecutormsg", me.user, executor=executor | {"executorid": old.id})
        assert (await _get(me, pid))["state"] == 1
        for _ in range(2):
            new = executor | {"executorid": me.key.id}
            added = await me.call("addexecutormsg", me.owner, executor=new)
            assert (added["executorid"], added["state"]) == (me.key.id, 0)
        # It is the owner who approves it, and what its predecessor offered and ran is not its own.
        with pytest.raises(RpcError):
            await me.assign(-1)
        await me.call("approveexecutormsg", me.owner, executorname=name)
        assert await me.call("getfunctionsmsg", executorname=name) == []
        again = await me.assign()
        assert (again["processid"], again["retries"]) == (pid, 0)
        with pytest.raises(RpcError):
            await me.call("closesuccessfulmsg", old, processid=pid, out=[])
        await me.close(again)


async def test_an_executor_does_not_register_again_by_default(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        executor = {
            "executorname": await _name(me),
            "executorid": me.key.id,
            "executortype": me.kind,
            "colonyname": me.colony,
        }
        with pytest.raises(RpcError, match=r"exists already.*rpc\.reregister"):
            await me.call("addexecutormsg", me.owner, executor=executor)


@pytest.mark.parametrize("state", range(5))
async def test_an_unknown_initiator_is_an_error(lone_daemon: Daemon, state: int) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)

        async def listed(initiator: str) -> list[dict[str, Any]]:
            fields = {"executortype": "", "label": "", "initiator": initiator}
            return list(await me.call("getprocessesmsg", state=state, count=100, **fields))

        with pytest.raises(RpcError, match=r"initiator: no user or executor .* 'nobody'") as caught:
            await listed("nobody")
        assert caught.value.status == 400
        for known in (await _name(me), "colony/peer"):
            assert await listed(known) == []


async def test_a_former_member_is_no_unknown_initiator(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        key = PrivateKey.generate()
        user = {"colonyname": me.colony, "userid": key.id, "name": "former"}
        await me.call("addusermsg", me.owner, user=user)
        conditions = {"colonyname": me.colony, "executortype": me.kind}
        await me.call("submitfuncspecmsg", key, spec={"funcname": "f", "conditions": conditions})
        await me.call("removeusermsg", me.owner, name="former")
        fields = {"executortype": "", "label": "", "initiator": "former"}
        (found,) = await me.call("getprocessesmsg", state=0, count=100, **fields)
        assert found["initiatorname"] == "former"
        await me.close(await me.assign())


async def test_logs_of_what_is_unknown_are_an_error(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        pid = (await _submit(me))["processid"]
        fields = {"count": 10, "since": 0, "latest": False}
        for latest in (False, True):
            fields["latest"] = latest
            for unknown in ({"processid": "0" * 64}, {"executorname": "nobody"}):
                with pytest.raises(RpcError) as caught:
                    await me.call("getlogsmsg", **fields, **unknown)
                assert caught.value.status == 404
            assert await me.call("getlogsmsg", **fields, processid=pid) == []
            assert await me.call("getlogsmsg", **fields, executorname=await _name(me)) == []
        await me.assign()
        await me.call("addlogmsg", me.key, processid=pid, message="line")
        (line,) = await me.call("getlogsmsg", **fields, processid=pid)
        assert line["message"] == "line"
        fields["since"] = line["timestamp"]
        assert await me.call("getlogsmsg", **fields, processid=pid) == []


_EMPTY_LISTS: dict[str, dict[str, Any]] = {
    "getusersmsg": {},
    "getexecutorsmsg": {},
    "getfunctionsmsg": {"executorname": ""},
    "getlocationsmsg": {},
    "getprocessesmsg": {"count": 10, "state": 4},
    "getprocesshistmsg": {"seconds": 10, "state": 4, "executorid": ""},
    "getprocessgraphsmsg": {"count": 10, "state": 4},
    "searchlogsmsg": {"text": "x", "days": 1, "count": 10},
    "getcronsmsg": {"count": 10},
    "getgeneratorsmsg": {"count": 10},
    "getfilesmsg": {"label": "/none"},
    "getfilelabelsmsg": {},
    "getsnapshotsmsg": {},
    "getblueprintdefinitionsmsg": {},
    "getblueprintsmsg": {"namespace": "dev"},
}


def _nulls(value: Any, path: str = "$") -> list[str]:
    """Where a value from JSON is null."""
    if isinstance(value, dict):
        return [hit for key, each in value.items() for hit in _nulls(each, f"{path}.{key}")]
    if isinstance(value, list):
        return [hit for place, each in enumerate(value) for hit in _nulls(each, f"{path}[{place}]")]
    return [path] if value is None else []


async def test_lists_and_objects_are_never_null(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        name = await _name(me)
        for payloadtype, fields in _EMPTY_LISTS.items():
            found = await me.call(payloadtype, **fields)
            assert (type(found), _nulls(found)) == (list, []), payloadtype
        arg = {"name": "x", "enum": None}
        shapes: list[dict[str, Any]] = [{}, {"args": None}, {"args": [arg]}, {"args": []}]
        for more in shapes:
            own = {"executorname": name, "colonyname": me.colony, "funcname": "f"}
            added = await me.call("addfunctionmsg", me.key, fun=own | more)
            assert _nulls(added) == []
            assert len(added["args"]) == len(more.get("args") or [])
            assert _nulls(await me.call("getfunctionsmsg", executorname=name)) == []
        for fs in (None, {}, {"mount": "/m"}, {"mount": "/m", "snapshots": None, "dirs": None}):
            none = dict.fromkeys(("args", "kwargs", "env", "channels"))
            for made in (await _submit(me, fs=fs, **none), await me.assign()):
                assert _nulls(made) == []
                assert (made["spec"]["fs"]["snapshots"], made["spec"]["fs"]["dirs"]) == ([], [])
        workflow = await me.submit(spec("a", kind=me.kind, fs={"mount": "/m"}))
        assert _nulls(workflow) == []
        assert _nulls(await me.graph(workflow)) == []
        assert _nulls(await me.nodes(workflow)) == []
