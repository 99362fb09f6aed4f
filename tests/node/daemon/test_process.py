"""The daemon as a process: signals, restarts, kills, refusals, open ports, the edge of `/api`."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from colonyd.keys import PrivateKey, sign_payload
from colonyd.rpc import RpcClient, RpcError, encode
from node.etcd.client import open_client
from node.store.replay import FLOOR, SPAN, number, span
from tests.node.daemon.support import ALONE, SPEC
from tests.support.daemons import REPOSITORY, Daemon, until

Make = Callable[..., Daemon]


def envelope(daemon: Daemon, payload: bytes, payloadtype: str, key: PrivateKey) -> dict[str, str]:
    text = base64.b64encode(payload).decode()
    return {"payloadtype": payloadtype, "payload": text, "signature": sign_payload(key, text)}


def post(daemon: Daemon, body: bytes) -> tuple[int, Any]:
    """Post bytes; return the status and the error's or reply's payload."""
    answer = httpx.post(f"http://127.0.0.1:{daemon.port}/api", content=body, timeout=20)
    reply = answer.json()
    return answer.status_code, json.loads(base64.b64decode(reply["payload"]))


@pytest.mark.parametrize(
    ("fields", "status", "names"),
    [
        (b"[]", 400, "object"),
        (b"null", 400, "object"),
        (b"{", 400, "payload"),
        (b'{"msgtype":"other"}', 400, "msgtype"),
        (b'{"msgtype":"submitfuncspecmsg"}', 400, "spec"),
        (b'{"msgtype":"submitfuncspecmsg","spec":7}', 400, "spec"),
        (b'{"msgtype":"submitfuncspecmsg","spec":{"priority":"x"}}', 400, "spec.priority"),
        (b'{"msgtype":"submitfuncspecmsg","spec":{"priority":1.5}}', 400, "spec.priority"),
        (b'{"msgtype":"submitfuncspecmsg","spec":{"priority":NaN}}', 400, "payload"),
        (b'{"msgtype":"submitfuncspecmsg","spec":{"env":{"a":1}}}', 400, "spec.env"),
        (b'{"msgtype":"submitfuncspecmsg","spec":' + b"[" * 5000 + b"}", 400, "payload"),
        (
            b'{"msgtype":"submitfuncspecmsg","spec":{"args":' + b"[" * 99 + b"]" * 99 + b"}}",
            400,
            "nested",
        ),
    ],
)
def test_bad_payloads_name_the_field(
    lone_daemon: Daemon, fields: bytes, status: int, names: str
) -> None:
    key = lone_daemon.key("user")
    body = json.dumps(envelope(lone_daemon, fields, "submitfuncspecmsg", key)).encode()
    got, failure = post(lone_daemon, body)
    assert got == status == failure["status"]
    assert names in failure["message"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"priority": 50_001}, "spec.priority"),
        ({"maxexectime": 10**12}, "spec.maxexectime"),
        ({"env": {str(n): "" for n in range(101)}}, "spec.env"),
        ({"conditions": {"colonyname": "dev", "executortype": "a/b"}}, "executortype"),
        ({"conditions": {"colonyname": "dev", "executortype": "c", "cpu": "1"}}, "cpu"),
        ({"conditions": {"colonyname": "dev", "executortype": "c", "mem": "9XB"}}, "mem"),
    ],
)
def test_bad_specs_name_the_field_and_leave_nothing(
    lone_daemon: Daemon, change: dict[str, Any], names: str
) -> None:
    key = lone_daemon.key("user")
    fields: dict[str, Any] = {"msgtype": "submitfuncspecmsg", "spec": SPEC | change}
    body = json.dumps(envelope(lone_daemon, json.dumps(fields).encode(), fields["msgtype"], key))
    status, failure = post(lone_daemon, body.encode())
    assert status == 400
    assert names in failure["message"]


def test_bad_envelopes(lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    good = envelope(lone_daemon, b'{"msgtype":"getusersmsg"}', "getusersmsg", key)
    for change, status in (
        ({"signature": "00"}, 403),
        ({"signature": "zz" * 65}, 403),
        ({"signature": "ff" * 65}, 403),
        ({"payload": "ü"}, 403),
        ({"payloadtype": "nosuchmsg"}, 403),
        ({"payload": 7}, 400),
    ):
        assert post(lone_daemon, json.dumps(good | change).encode())[0] == status
    assert post(lone_daemon, b"not json")[0] == 400
    assert post(lone_daemon, b"")[0] == 400
    assert post(lone_daemon, b"x" * 17_000_000)[0] == 413


async def test_a_repeated_submit_is_one_process(lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    body = encode("submitfuncspecmsg", {"spec": SPEC}, key)
    first, again = post(lone_daemon, body)[1], post(lone_daemon, body)[1]
    assert first["processid"] == again["processid"]
    other = json.loads(body)
    payload = json.loads(base64.b64decode(other["payload"]))
    payload["spec"]["funcname"] = "g"
    changed = envelope(lone_daemon, json.dumps(payload).encode(), "submitfuncspecmsg", key)
    status, failure = post(lone_daemon, json.dumps(changed).encode())
    assert (status, failure["message"][:5]) == (403, "nonce")


async def test_a_replay_gets_the_first_answer_and_changes_nothing(lone_daemon: Daemon) -> None:
    new = {"name": "eve", "userid": PrivateKey.generate().id, "colonyname": "dev"}
    owner = lone_daemon.key("colony")
    added = encode("addusermsg", {"user": new}, owner)
    first = post(lone_daemon, added)
    assert first[0] == 200
    removed = encode("removeusermsg", {"colonyname": "dev", "name": "eve"}, owner)
    assert post(lone_daemon, removed)[0] == 200
    assert post(lone_daemon, added) == first
    users = post(lone_daemon, encode("getusersmsg", {"colonyname": "dev"}, lone_daemon.key("user")))
    assert "eve" not in [user["name"] for user in users[1]]


async def test_a_stale_request_tells_both_clocks(lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    fields = {"msgtype": "getusersmsg", "colonyname": "dev", "nonce": "n" * 16, "issuedat": 1}
    body = envelope(lone_daemon, json.dumps(fields).encode(), "getusersmsg", key)
    status, failure = post(lone_daemon, json.dumps(body).encode())
    assert status == 403
    assert "issuedat: 1 is -" in failure["message"]
    assert "this server's clock" in failure["message"]


async def test_without_peers_the_owner_may_end_what_a_clock_that_was_ahead_left(
    lone_daemon: Daemon,
) -> None:
    """Else nothing that is signed is taken until the clock has come that far, a year later."""
    owner = lone_daemon.key("colony")
    async with open_client(f"unix:{lone_daemon.home}/etcd/localhost:1") as store:
        await store.put(FLOOR, number(span(time.time() + 86_400)))
    spec = encode("submitfuncspecmsg", {"spec": SPEC}, lone_daemon.key("user"))
    status, failure = post(lone_daemon, spec)
    assert status == 403
    assert "colony peer clock --reset" in failure["message"]
    told = post(lone_daemon, encode("getclockmsg", {}, owner))[1]
    assert 86_000 < told["behind"] <= 86_500
    assert post(lone_daemon, encode("resetclockmsg", {}, owner))[1]["behind"] <= 60
    # What was signed in the last minute is not known any more; what is signed from then on is.
    fields = {"msgtype": "submitfuncspecmsg", "spec": SPEC, "nonce": "m" * 16}
    payload = json.dumps(fields | {"issuedat": int(time.time()) + SPAN}).encode()
    body = envelope(lone_daemon, payload, "submitfuncspecmsg", lone_daemon.key("user"))
    assert post(lone_daemon, json.dumps(body).encode())[0] == 200


def test_health_and_unknown_paths(lone_daemon: Daemon) -> None:
    assert lone_daemon.health() == 200
    assert httpx.get(f"http://127.0.0.1:{lone_daemon.port}/nosuch").status_code == 404


def listening(pid: int) -> set[str]:
    """Inodes of the TCP sockets that a process listens on."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(fd))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                found.add(columns[1])
    return found


def test_the_store_has_no_open_port(lone_daemon: Daemon) -> None:
    assert lone_daemon.process is not None
    assert len(listening(lone_daemon.process.pid)) == 1
    assert listening(lone_daemon.etcd_pid) == set()


async def _submit(client: RpcClient, key: PrivateKey) -> dict[str, Any]:
    process: dict[str, Any] = await client.call("submitfuncspecmsg", {"spec": SPEC}, key)
    return process


async def test_sigterm_answers_long_polls_and_exits_0(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE)
    await trio.to_thread.run_sync(daemon.start)
    owner, executor = daemon.key("colony"), PrivateKey.generate()
    async with daemon.client() as client, trio.open_nursery() as nursery:
        await _join(client, owner, executor)

        async def poll() -> None:
            fields = {"colonyname": "dev", "timeout": 60}
            with pytest.raises(RpcError, match="stopping"):
                await client.call("assignprocessmsg", fields, executor, 60)

        nursery.start_soon(poll)

        async def heard() -> bool:
            fields = {"colonyname": "dev", "executorname": "ada"}
            found = await client.call("getexecutormsg", fields, daemon.key("user"))
            return not found["lastheardfromtime"].startswith("0001")

        await until(50, heard)
        assert await trio.to_thread.run_sync(daemon.stop) == 0
    assert any("event=stopped" in line for line in daemon.events)


async def _join(client: RpcClient, owner: PrivateKey, executor: PrivateKey) -> None:
    new = {
        "executorid": executor.id,
        "executorname": "ada",
        "executortype": "cli",
        "colonyname": "dev",
    }
    await client.call("addexecutormsg", {"executor": new}, owner)
    name = {"colonyname": "dev", "executorname": "ada"}
    await client.call("approveexecutormsg", name, owner)


@pytest.mark.parametrize("victim", ["daemon", "etcd"])
async def test_nothing_is_lost_by_a_kill(make_daemon: Make, victim: str) -> None:
    daemon = make_daemon("dev", **ALONE)
    await trio.to_thread.run_sync(daemon.start)
    user, executor = daemon.key("user"), PrivateKey.generate()
    async with daemon.client() as client:
        await _join(client, daemon.key("colony"), executor)
        waiting = await _submit(client, user)
        poll = {"colonyname": "dev", "timeout": 5}
        running = await client.call("assignprocessmsg", poll, executor)
        second = await _submit(client, user)
        assert running["processid"] == waiting["processid"]
        if victim == "daemon":
            daemon.kill()
            await trio.to_thread.run_sync(daemon.start)
        else:
            mark = len(daemon.events)
            daemon.kill_etcd()
            await trio.to_thread.run_sync(
                lambda: daemon.await_event('event="etcd serves"', after=mark)
            )
    async with daemon.client() as client:

        async def close() -> bool:
            fields = {"processid": running["processid"], "out": ["done"]}
            try:
                await client.call("closesuccessfulmsg", fields, executor)
            except RpcError as error:
                if error.status != 503:
                    raise
                return False
            return True

        await until(50, close)
        got = await client.call("assignprocessmsg", poll, executor)
        assert got["processid"] == second["processid"]
        first = await client.call("getprocessmsg", {"processid": running["processid"]}, user)
        assert (first["state"], first["out"]) == (2, ["done"])


def test_a_second_daemon_on_the_home_is_refused(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE).start()
    again = subprocess.run(
        [sys.executable, "-m", "cli.daemon.colonyd", "--home", str(daemon.home), "--port", "0"],
        cwd=REPOSITORY,
        env=dict(os.environ) | ALONE,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert again.returncode == 69
    assert "Traceback" not in again.stderr
    assert str(daemon.home) in again.stderr
    assert daemon.health() == 200


def test_a_bad_setting_is_named_and_exits_78(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("[rpc]\nprot = 1\n")
    result = subprocess.run(
        [sys.executable, "-m", "cli.daemon.colonyd", "--home", str(home)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 78
    assert "rpc.prot" in result.stderr
    assert "did you mean 'port'" in result.stderr


def test_sighup_rereads_and_keeps_the_old_on_error(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE).start()
    assert daemon.process is not None
    config = daemon.home / "config.toml"
    for text, event in (
        ('[log]\nlevel = "debug"\n', 'event="configuration read"'),
        ('[log]\nlevel = "loud"\n', 'event="configuration kept"'),
    ):
        config.write_text(text)
        mark = len(daemon.events)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.await_event(event, after=mark)
    assert daemon.health() == 200
    # What can be is in force at once, what can't be is named, each time.
    for text, event in (
        ('[history]\nkeep = "7d"\n[rpc]\nreplay = "strict"\n', 'applied="history.keep, log.level"'),
        ('[history]\nkeep = "7d"\n[rpc]\nreplay = "strict"\n', "settings=rpc.replay"),
        ("", "applied=history.keep"),
    ):
        config.write_text(text)
        mark = len(daemon.events)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.await_event(event, after=mark)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(20) == 0


def test_no_secret_in_the_log(make_daemon: Make) -> None:
    daemon = make_daemon("dev", COLONYD_LOG__LEVEL="debug", **ALONE).start()
    post(daemon, b"{}")
    keys = [path.read_text().strip() for path in (daemon.home / "keys").iterdir()]
    daemon.stop()
    assert len(keys) == 3
    assert not [line for line in daemon.events for key in keys if key in line]


def test_a_daemon_has_not_loaded_grpcio(lone_daemon: Daemon) -> None:
    """Its library would be 10 MB of a small machine's memory, for a client that nobody calls."""
    assert lone_daemon.process is not None
    mapped = Path(f"/proc/{lone_daemon.process.pid}/maps").read_text("utf-8")
    assert "coincurve" in mapped  # libraries are named there by their packages
    assert "grpc" not in mapped
