"""Requests that are odd and that upstream answers somehow: as there, or as the documents say."""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from wsproto.events import CloseConnection, Ping
from wsproto.utilities import LocalProtocolError

from colonyd.keys import sign_payload
from colonyd.rpc import RpcError
from tests.node.workflows.support import Party, party
from tests.support.daemons import Daemon
from tests.support.raw import Raw

UNSET = "0001-01-01T00:00:00Z"

pytestmark = pytest.mark.slow


async def submit(me: Party, conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A process for the party's type of executor."""
    conditions = {"colonyname": me.colony, "executortype": me.kind} | conditions
    return dict(
        await me.call("submitfuncspecmsg", spec={"funcname": "f", "conditions": conditions} | more)
    )


@pytest.mark.parametrize(
    "conditions",
    [
        {"executornames": [""]},
        {"executornames": ["", ""]},
        {"executornames": ["*", "somebody"]},
        {"nodes": 128, "processes": 1000, "processespernode": 2**31},
    ],
)
async def test_conditions_that_keep_nobody(lone_daemon: Daemon, conditions: dict[str, Any]) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        wanted = await submit(me, conditions)
        assert (await me.assign())["processid"] == wanted["processid"]
        for name, value in conditions.items():
            assert wanted["spec"]["conditions"][name] == value


async def test_an_empty_name_among_others_is_none(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me, other = [await party(lone_daemon, client) for _ in range(2)]
        other.kind = me.kind
        name = (await me.call("getexecutorbyidmsg", executorid=me.key.id))["executorname"]
        wanted = await submit(me, {"executornames": ["", name]})
        with pytest.raises(RpcError, match="404"):
            await other.assign(-1)
        assert (await me.assign())["processid"] == wanted["processid"]


@pytest.mark.parametrize("limit", [0, -1, -2, -1_000_000])
async def test_no_limit_is_any_number_below_one(lone_daemon: Daemon, limit: int) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        limits = {"maxwaittime": limit, "maxexectime": limit, "maxretries": limit}
        wanted = await submit(me, {}, **limits)
        assert wanted["waitdeadline"] == UNSET
        taken = await me.assign()
        assert (taken["processid"], taken["execdeadline"]) == (wanted["processid"], UNSET)


async def test_a_process_that_waits_again_has_no_time_at_which_it_must_be_done(
    lone_daemon: Daemon,
) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        await submit(me, {}, maxexectime=600)
        taken = await me.assign()
        assert taken["execdeadline"] != UNSET
        name = (await me.call("getexecutorbyidmsg", executorid=me.key.id))["executorname"]
        await me.call("removeexecutormsg", me.owner, executorname=name)
        again = await me.call("getprocessmsg", processid=taken["processid"])
        assert (again["state"], again["execdeadline"]) == (0, UNSET)


async def test_the_period_of_checks_is_told_and_not_taken(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        node = {"nodename": "n", "funcname": "f", "conditions": {"executortype": me.kind}}
        flow = json.dumps({"colonyname": me.colony, "functionspecs": [node]})
        more = {"name": me.kind, "colonyname": me.colony, "workflowspec": flow, "checkerperiod": 7}
        cron = await me.call("addcronmsg", cron=more | {"interval": 3600})
        generator = await me.call("addgeneratormsg", generator=more | {"trigger": 5})
        told = [
            cron,
            generator,
            await me.call("getcronmsg", cronid=cron["cronid"]),
            await me.call("getgeneratormsg", generatorid=generator["generatorid"]),
        ]
        assert [each["checkerperiod"] for each in told] == [1000] * 4


@pytest.mark.parametrize("path", ["/api", "/api/"])
async def test_a_slash_at_the_end_is_no_other_path(lone_daemon: Daemon, path: str) -> None:
    url = f"http://127.0.0.1:{lone_daemon.port}"
    async with httpx.AsyncClient() as client:
        body = {"payloadtype": "versionmsg", "payload": "", "signature": ""}
        found = await client.post(f"{url}{path}", json=body, headers={"origin": "http://page"})
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "*"
        assert (await client.get(f"{url}/health/")).status_code == 200
        assert (await client.post(f"{url}/api//", json=body)).status_code == 404


@pytest.mark.parametrize("text", [rb'"\ud800"', rb'"\udc00\ud800"', b'"\xff"', b'"\xed\xa0\x80"'])
async def test_text_that_is_no_unicode_is_refused(lone_daemon: Daemon, text: bytes) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        inside = json.dumps(
            {
                "msgtype": "submitfuncspecmsg",
                "spec": {
                    "funcname": "f",
                    "args": ["HERE"],
                    "conditions": {"colonyname": me.colony, "executortype": me.kind},
                },
            }
        ).encode()
        payload = base64.b64encode(inside.replace(b'"HERE"', text)).decode()
        envelope = {
            "payloadtype": "submitfuncspecmsg",
            "payload": payload,
            "signature": sign_payload(me.user, payload),
        }
        async with httpx.AsyncClient() as http:
            found = await http.post(f"http://127.0.0.1:{lone_daemon.port}/api", json=envelope)
        assert found.status_code == 400
        told = json.loads(base64.b64decode(found.json()["payload"]))["message"]
        assert told.startswith("payload: ")


async def test_a_socket_outlives_the_end_of_its_process_by_half_a_minute(
    lone_daemon: Daemon,
) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        wanted = await submit(me, {})
        raw = await Raw.connect(lone_daemon.port)
        async with raw.stream:
            await raw.ask(
                me.user.hex,
                msgtype="subscribeprocessmsg",
                processid=wanted["processid"],
                executortype=me.kind,
                state=2,
                timeout=300,
            )
            await me.close(await me.assign())
            told = await raw.next()
            assert told is not None
            began = time.monotonic()
            while isinstance(ended := await raw.next(), Ping):
                with suppress(LocalProtocolError):  # the close came along with the ping
                    await raw.send(ended.response())
            assert isinstance(ended, CloseConnection)
            assert 20 < time.monotonic() - began < 50
