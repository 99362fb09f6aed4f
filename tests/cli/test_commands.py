"""The commands from outside: help, arguments, what they print where, and exit codes.

The other end is a real HTTP server speaking the envelope, not a daemon.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli.core.errors import Failure
from cli.core.inputs import refuse_unknown
from cli.core.output import ago, output_lines, span
from cli.core.session import Session, rpc_failure
from cli.main import COMMANDS, main
from cli.ops.doctor import check_clock, check_keys, check_peer, judge_etcd, sockets_on
from cli.work.run import argument, keyword
from colonyd.keys import PrivateKey, read_key
from colonyd.replies import parse_time
from colonyd.rpc import decode, encode
from node.host.certificate import make_certificate
from node.host.home import init_home
from node.model.types import FunctionSpec
from node.version import VERSION
from tests.support.daemons import REPOSITORY
from tests.support.rpc_server import ColonyServer, Queue, Refuse

Colony = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[ColonyServer]:
    with ColonyServer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init_home(tmp_path / "home", "dev", {})
    return tmp_path / "home"


@pytest.fixture
def colony(server: ColonyServer, home: Path) -> Colony:
    def run(*args: str) -> Result:
        command = ["--home", str(home), "--server", server.address, *args]
        return CliRunner().invoke(main, command, env={}, catch_exceptions=False)

    return run


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in COMMANDS:
        if name == "demo":  # the demo is no client of a daemon and has tests of its own
            continue
        command = main.get_command(context, name)
        assert command is not None
        yield from with_parts(name, command)


def with_parts(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            if inner.hidden:  # another name of a command that is shown
                continue
            yield from with_parts(f"{name} {part}", inner)


def test_help_and_version_by_the_usual_options() -> None:
    for arguments in (["-h"], ["process", "-h"], ["run", "-h"]):
        long = CliRunner().invoke(main, [*arguments[:-1], "--help"])
        assert CliRunner().invoke(main, arguments).output == long.output != ""
    told = CliRunner().invoke(main, ["--version"])
    assert (told.exit_code, told.output) == (0, f"colony {VERSION}\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("proces", "'process'"), ("stauts", "'status'"), ("pear", "'peer'"), ("xyzzy", "")],
)
def test_a_command_that_is_misspelt_is_suggested(typed: str, meant: str) -> None:
    result = CliRunner().invoke(main, [typed])
    assert result.exit_code == 2
    assert f"No such command {typed!r}." in result.stderr
    assert ("Did you mean" in result.stderr, meant in result.stderr) == (bool(meant), True)
    assert CliRunner().invoke(main, ["process", "lss"]).exit_code == 2


@pytest.mark.parametrize("command", ["process run", "function exec", "run"])
def test_a_function_is_run_as_upstreams_documents_write_it(
    colony: Colony, server: ColonyServer, command: str
) -> None:
    conditions = {"conditions": {"colonyname": "dev"}}
    closed = {"processid": "5" * 64, "state": 2, "out": ["hello"], "spec": conditions}
    server.answers["submitfuncspecmsg"] = lambda payload, caller: closed
    server.answers["getprocessmsg"] = lambda payload, caller: closed
    options = ["--func", "say", "--args", "hello,you", "--args", "x", "--targettype", "rust"]
    limits = ["--maxexectime", "9", "--maxwaittime", "8", "--maxretries", "3"]
    result = colony(*command.split(), *options, *limits, "--wait")
    assert (result.exit_code, result.stdout) == (0, "hello\n"), result.output
    (spec,) = [said["spec"] for kind, said, _ in server.seen if kind == "submitfuncspecmsg"]
    assert (spec["funcname"], spec["args"]) == ("say", ["hello", "you", "x"])
    assert spec["conditions"]["executortype"] == "rust"
    assert (spec["maxexectime"], spec["maxwaittime"], spec["maxretries"]) == (9, 8, 3)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value)[:20])
def test_help_has_an_example_and_exit_codes(name: str, command: click.Command) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert f"colony {name}" in result.output.split("Example")[1]
    assert "69 daemon not" in result.output
    if not isinstance(command, click.Group):
        assert {"--json", "--home", "--server"} <= set(result.output.split())


def test_run_prints_the_id(colony: Colony, server: ColonyServer, home: Path) -> None:
    queue = Queue(server)
    result = colony("run", "--func", "f", "7", "x", "--kwargs", "k=v", "--max-exec", "0")
    assert (result.exit_code, result.stdout.strip()) == (0, next(iter(queue.processes)))
    _, payload, caller = server.seen[0]
    assert caller == read_key(home / "keys/user.key").id
    spec = payload["spec"]
    assert (spec["args"], spec["kwargs"], spec["maxexectime"]) == (["7", "x"], {"k": "v"}, -1)
    assert spec["conditions"]["colonyname"] == "dev"
    assert len(payload["nonce"]) == 32
    assert isinstance(payload["issuedat"], int)


def test_run_json_args_and_peer_colony(colony: Colony, server: ColonyServer) -> None:
    Queue(server)
    colony("run", "--func", "f", "--colony", "lab", "--json-args", "7", "[1]", "no json")
    spec = server.seen[0][1]["spec"]
    assert spec["args"] == [7, [1], "no json"]
    assert spec["conditions"]["colonyname"] == "lab"


def test_run_repeats_the_same_bytes_after_a_lost_reply(
    colony: Colony, server: ColonyServer
) -> None:
    queue = Queue(server)
    server.drop["submitfuncspecmsg"] = 2
    assert colony("run", "--func", "f").exit_code == 0
    assert len(queue.processes) == 1
    assert [payload["nonce"] for _, payload, _ in server.seen] == [server.seen[0][1]["nonce"]] * 3


def _closed(server: ColonyServer, queue: Queue, **end: Any) -> None:
    def submit_and_close(payload: dict[str, Any], caller: str) -> Any:
        return {**queue.submit(payload, caller)} | _end(queue, end)

    server.answers["submitfuncspecmsg"] = submit_and_close


def _end(queue: Queue, end: dict[str, Any]) -> dict[str, Any]:
    list(queue.processes.values())[-1].update(end)
    return {}


def test_run_wait_prints_output_alone(colony: Colony, server: ColonyServer) -> None:
    _closed(server, Queue(server), state=2, out=["text", 3, {"a": [1]}])
    result = colony("run", "--func", "f", "--wait")
    assert result.exit_code == 0
    assert result.stdout == 'text\n3\n{"a": [1]}\n'
    assert result.stderr == ""


@pytest.mark.parametrize(("state", "word"), [(3, "failed: boom"), (4, "cancelled")])
def test_run_wait_of_a_bad_end(colony: Colony, server: ColonyServer, state: int, word: str) -> None:
    _closed(server, Queue(server), state=state, errors=["boom"] if state == 3 else [])
    result = colony("run", "--func", "f", "--wait")
    assert result.exit_code == 1
    assert word in result.stderr
    assert "next: `colony process show" in result.stderr
    assert result.stdout == ""


def test_run_follow_tells_each_line_once_on_stderr(colony: Colony, server: ColonyServer) -> None:
    _closed(server, Queue(server), state=2, out=["done"])
    lines = [{"message": text, "timestamp": at} for at, text in ((1, "one\n"), (2, "two"))]
    server.answers["getlogsmsg"] = lambda payload, caller: [
        line for line in lines if line["timestamp"] > payload["since"]
    ]
    result = colony("run", "--func", "f", "--follow")
    assert (result.stdout, result.stderr) == ("done\n", "one\ntwo\n")


def test_run_wait_timeout(colony: Colony, server: ColonyServer) -> None:
    Queue(server)
    result = colony("run", "--func", "f", "--wait", "--timeout", "0.1")
    assert result.exit_code == 5
    assert "colony process wait 0000" in result.stderr


@pytest.mark.parametrize(
    ("status", "code"), [(400, 1), (403, 4), (404, 3), (408, 5), (500, 1), (503, 1)]
)
def test_exit_codes_of_refusals(
    colony: Colony, server: ColonyServer, status: int, code: int
) -> None:
    def refuse(payload: dict[str, Any], caller: str) -> Any:
        raise Refuse(status, "because")

    server.answers["getnodestatusmsg"] = refuse
    result = colony("status")
    assert result.exit_code == code
    assert "because" in result.stderr
    assert "next:" in result.stderr


def test_daemon_not_reachable(home: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        args = ["--home", str(home), "--server", f"127.0.0.1:{port}", "peers", "ls"]
        result = CliRunner().invoke(main, args, env={})
    assert result.exit_code == 69
    assert "colony up" in result.stderr


def test_no_home(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--home", str(tmp_path / "no"), "status"], env={})
    assert result.exit_code == 3
    assert "colony init" in result.stderr


@pytest.mark.parametrize(
    "args",
    [["run"], ["run", "--func", "f", "--kwargs", "nope"], ["worker", "--func", "x"], ["nope"]],
)
def test_usage(colony: Colony, args: list[str]) -> None:
    assert colony(*args).exit_code == 2


def test_process_ls_merges_states_and_cuts_ids(colony: Colony, server: ColonyServer) -> None:
    queue = Queue(server)
    queue.add("old", state=3, submissiontime="2025-01-01T00:00:00Z")
    queue.add("new\x1b[31m", state=0, submissiontime="2025-01-02T00:00:00.123456789Z")
    lines = colony("process", "ls").stdout.splitlines()
    assert "new" in lines[1]
    assert "\x1b" not in lines[1]
    assert lines[2].startswith("000000000000 ")
    assert [row["state"] for row in json.loads(colony("process", "ls", "--json").stdout)] == [0, 3]
    only = colony("process", "ls", "--state", "failed", "--json").stdout
    assert [row["spec"]["funcname"] for row in json.loads(only)] == ["old"]


def test_a_former_member_is_listed_by_the_states_that_know_it(
    server: ColonyServer, colony: Colony
) -> None:
    queue = Queue(server)
    queue.add("f", state=3)

    def listed(payload: dict[str, Any], caller: str) -> list[dict[str, Any]]:
        if payload["state"] != 3 or payload["initiator"] != "former":
            raise Refuse(400, f"initiator: no member {payload['initiator']!r}")
        return list(queue.processes.values())

    server.answers["getprocessesmsg"] = listed
    ls = ("process", "ls", "--initiator")
    assert len(json.loads(colony(*ls, "former", "--json").stdout)) == 1
    refused = colony(*ls, "nobody")
    assert (refused.exit_code, "no member 'nobody'" in refused.stderr) == (1, True)


@pytest.mark.parametrize("where", [(), ("--json",), ("--state", "waiting")])
def test_a_listing_that_is_too_large_shows_fewer_and_says_so(
    server: ColonyServer, colony: Colony, where: tuple[str, ...]
) -> None:
    queue = Queue(server)
    for number in range(6):
        queue.add("f", submissiontime=f"2025-01-0{number + 1}T00:00:00Z")
    largest = 5
    asked = []

    def listed(payload: dict[str, Any], caller: str) -> list[dict[str, Any]]:
        asked.append(payload["count"])
        if payload["count"] > largest:
            message = "the answer has more than 67108864 bytes; ask for less at once (count, limit)"
            raise Refuse(400, message)
        rows = list(reversed(queue.processes.values())) if payload["state"] == 0 else []
        return rows[: payload["count"]]

    server.answers["getprocessesmsg"] = listed
    shown = colony("process", "ls", *where)
    assert shown.exit_code == 0
    assert asked[:3] == [20, 10, 5]
    assert "only the newest 5" in shown.stderr
    newest = list(queue.processes)[:0:-1]
    if "--json" in where:
        assert [row["processid"] for row in json.loads(shown.stdout)] == newest
    else:
        assert [line[:12] for line in shown.stdout.splitlines()[1:]] == [i[:12] for i in newest]
    assert (
        newest[0] in json.loads(colony("process", "show", newest[0][:6], "--json").stdout).values()
    )
    largest = 0
    refused = colony("process", "ls", *where)
    assert refused.exit_code == 1
    assert "--count 5" in refused.stderr


def test_process_show_with_forward(colony: Colony, server: ColonyServer) -> None:
    queue = Queue(server)
    processid = queue.add("f", state=2, out=["x"])
    outcome = {"issuer": "ab" * 32, "issued": 1_750_000_000, "signaturevalid": True}
    server.answers["getforwardmsg"] = lambda payload, caller: {
        "processid": processid, "peer": "ab" * 32, "peername": "lab", "state": "closed",
        "attempts": 1, "lasterror": "", "remoteprocessid": "cd" * 32, "outcome": outcome,
    }  # fmt: skip
    result = colony("process", "show", processid[:6])
    assert result.exit_code == 0
    assert "signature valid" in result.stdout
    assert "lab" in result.stdout
    assert json.loads(colony("process", "show", processid, "--json").stdout)["forward"]["peer"]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (True, "✓ signature valid, for the very submission that was sent"),
        (None, "✓ signature valid; what it was asked is not known any more"),
        (False, "✗ NOT FOR WHAT WAS SENT"),
    ],
)
def test_process_show_says_what_is_valid(
    colony: Colony, server: ColonyServer, answers: bool | None, says: str
) -> None:
    processid = Queue(server).add("f", state=2, out=["x"])
    outcome = {"issuer": "ab" * 32, "issued": 1_750_000_000, "signaturevalid": True}
    named = [
        {"name": "cat", "ids": []},
        {"name": "dog", "ids": ["cd" * 32]},
        {"name": "ef" * 32, "ids": ["ef" * 32]},
    ]
    server.answers["getforwardmsg"] = lambda payload, caller: {
        "processid": processid, "peer": "ab" * 32, "state": "closed", "named": named,
        "outcome": outcome | {"answers": answers},
    }  # fmt: skip
    shown = colony("process", "show", processid).stdout
    assert says in shown
    assert "cat ? not checked: no colony is trusted here by that name, it may be any" in shown
    assert "dog ✓ checked: the colony trusted here by that name" in shown
    assert f"{'ef' * 6} ✓ checked by its id" in shown


def test_process_show_bad_signature_and_without_forward(
    colony: Colony, server: ColonyServer
) -> None:
    processid = Queue(server).add("f")
    assert colony("process", "show", processid).exit_code == 0  # getforwardmsg is unknown there
    server.answers["getforwardmsg"] = lambda payload, caller: {
        "peer": "ab", "state": "closed", "outcome": {"issuer": "x", "signaturevalid": False},
    }  # fmt: skip
    assert "SIGNATURE NOT VALID" in colony("process", "show", processid).stdout


def test_process_prefix_unknown_and_ambiguous(colony: Colony, server: ColonyServer) -> None:
    queue = Queue(server)
    queue.processes = {"aa" + "0" * 62: {}, "aa" + "1" * 62: {}}
    queue.processes = {key: {"processid": key, "state": 0} for key in queue.processes}
    assert colony("process", "show", "ff").exit_code == 3
    assert colony("process", "show", "aa").exit_code == 2


@pytest.mark.parametrize(("state", "code"), [(2, 0), (3, 1), (4, 1)])
def test_process_wait(colony: Colony, server: ColonyServer, state: int, code: int) -> None:
    processid = Queue(server).add("f", state=state, out=["done"])
    result = colony("process", "wait", processid)
    assert (result.exit_code, result.stdout) == (code, "done\n")


def test_process_cancel_and_logs(colony: Colony, server: ColonyServer) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    server.answers["getlogsmsg"] = lambda payload, caller: [
        {"message": text, "timestamp": at} for at, text in ((1, "one\n"), (2, "two"))
        if at > payload["since"]
    ]  # fmt: skip
    assert colony("process", "cancel", processid).exit_code == 0
    assert queue.processes[processid]["state"] == 4
    assert colony("process", "logs", processid, "--follow").stdout == "one\ntwo\n"


def test_peers(colony: Colony, server: ColonyServer, home: Path) -> None:
    peer: dict[str, Any] = {
        "id": "ab" * 32,
        "name": "lab",
        "state": "pending",
        "endpoints": ["10.0.0.2:50081"],
    }
    peer |= {"lastseen": 0, "error": "", "outstanding": 0}
    server.answers["getpeersmsg"] = lambda payload, caller: [peer]
    server.answers["trustpeermsg"] = lambda payload, caller: {**peer, "state": "trusted"}
    server.answers["pingpeermsg"] = lambda payload, caller: {"ok": False, "rtt": 0, "error": "no"}
    assert "lab" in colony("peers", "ls").stdout
    assert "trusted" in colony("peers", "trust", "abab").stdout
    assert server.seen[-1][1]["peer"] == "abab"
    assert server.seen[-1][2] == read_key(home / "keys/colony.key").id
    failed = colony("peers", "ping", "lab")
    assert (failed.exit_code, failed.stdout) == (1, "")


def test_the_doctor_tells_a_peer_of_another_version_from_one_that_serves() -> None:
    mismatch = "it speaks version 1"
    checks = [
        check_peer("lab", {"ok": ok, "rtt": 0.01, "error": error})
        for ok, error in ((True, ""), (True, mismatch), (False, "lost"))
    ]
    assert [check.ok for check in checks] == [True, False, False]
    assert mismatch in checks[1].detail


def test_executors(colony: Colony, server: ColonyServer) -> None:
    queue = Queue(server)
    queue.executors["w"] = {
        "executorname": "w",
        "executortype": "cli",
        "executorid": "e",
        "state": 0,
    }
    assert "pending" in colony("executor", "ls").stdout
    assert colony("executor", "approve", "w").stdout == "approved w\n"
    assert queue.executors["w"]["state"] == 1


@pytest.mark.parametrize("name", ["ex ß/é@例", "..", "ü" * 200, "a'b"])
def test_an_executor_of_any_name_is_added_named_and_signs(
    colony: Colony, server: ColonyServer, name: str
) -> None:
    queue = Queue(server)
    server.answers["addexecutorlogmsg"] = lambda payload, caller: {}
    added = colony("executor", "add", name, "--type", "tt")
    assert added.exit_code == 0
    hint = next(line for line in added.stderr.splitlines() if line.startswith("next: "))
    typed = shlex.split(hint.removeprefix("next: ").strip("`"))
    assert typed == ["colony", "executor", "approve", name]
    assert colony("executor", "log", "--as", name, "hello").exit_code == 0
    assert server.seen[-1][2] == queue.executors[name]["executorid"]


def test_a_name_for_as_that_nobody_may_have(colony: Colony) -> None:
    refused = colony("executor", "log", "--as", "a:b", "hello")
    assert (refused.exit_code, "must not have a ':'" in refused.stderr) == (2, True)


def test_init_twice(tmp_path: Path) -> None:
    args = ["--home", str(tmp_path / "h"), "init", "--name", "lab", "--json"]
    first, second = (json.loads(CliRunner().invoke(main, args, env={}).stdout) for _ in range(2))
    assert (first["created"], second["created"]) == (True, False)
    assert first["colonyid"] == second["colonyid"]
    assert CliRunner().invoke(main, [*args[:-2], "other"], env={}).exit_code == 1


def test_doctor_fails_with_next_step(colony: Colony, server: ColonyServer, home: Path) -> None:
    (home / "keys/user.key").chmod(0o644)
    result = colony("doctor")
    assert result.exit_code == 1
    assert f"chmod 0600 {home / 'keys/user.key'}" in result.stdout
    found = json.loads(colony("doctor", "--json").stdout)
    assert {check["name"] for check in found["checks"]} >= {"clock", "keys", "disk", "daemon"}


def test_doctor_parts(tmp_path: Path) -> None:
    assert check_clock(0).ok is False
    assert next(check_keys(tmp_path / "none")).ok is False
    assert judge_etcd("etcd", "etcd Version: 3.5.1\n").ok is False
    assert judge_etcd("etcd", "etcd Version: 3.5.12\n").ok is True
    line = "  1: 00000000:14E9 00000000:0000 07 0:0 0:0 0 0 0 4711 2 0 0"
    assert sockets_on(5353, f"head\n{line}\n") == {"4711"}


def test_server_address(tmp_path: Path) -> None:
    def url(environ: dict[str, str], server: str | None = None) -> str:
        return Session(str(tmp_path), server, environ=environ).url()

    assert url({}) == "http://127.0.0.1:50080"
    assert (
        url({"COLONIES_SERVER_HOST": "::1", "COLONIES_SERVER_HTTP_PORT": "1"}) == "http://[::1]:1"
    )
    both = {"COLONIES_SERVER_PORT": "2", "COLONIES_SERVER_HTTP_PORT": "1"}
    assert url(both) == "http://127.0.0.1:2"
    assert url(both, "h:3") == "http://h:3"
    assert url(both | {"COLONIES_SERVER_TLS": "True"}) == "https://127.0.0.1:2"
    with pytest.raises(Failure, match="COLONIES_SERVER_TLS is 'yes'"):
        url(both | {"COLONIES_SERVER_TLS": "yes"})
    (tmp_path / "config.toml").write_text("[rpc]\nport = 1234\n")
    assert url({}) == "http://127.0.0.1:1234"
    (tmp_path / "config.toml").write_text("[rpc]\nprot = 1234\n")
    with pytest.raises(Failure, match="prot"):
        url({})


def test_keys_from_environment(home: Path) -> None:
    key = PrivateKey.generate()
    environ = {"COLONIES_PRVKEY": key.hex, "COLONIES_COLONY_PRVKEY": "xyz"}
    session = Session(str(home), environ=environ)
    assert session.member_key() == key or session.member_key().id == key.id
    with pytest.raises(Failure) as caught:
        session.owner_key()
    assert "xyz" not in caught.value.message


def test_values() -> None:
    assert output_lines(["a", 1, None, [1]]) == ["a", "1", "null", "[1]"]
    assert parse_time("0001-01-01T01:12:12+01:12") is None
    parsed = parse_time("2025-02-03T04:05:06.123456789+01:00")
    assert parsed is not None
    assert parsed.microsecond == 123456
    assert (span(5), span(600), span(90000), ago(None)) == ("5 s", "10 min", "25 h", "")
    assert (argument("7", False), argument("7", True), argument("x", True)) == ("7", 7, "x")
    assert keyword("a=b=c", False) == ("a", "b=c")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"payload": 3}', b'{"payload": "%"}'])
def test_replies_that_are_no_envelopes(body: bytes) -> None:
    with pytest.raises(Exception, match="not a Colonies envelope"):
        decode("getprocessmsg", 200, body)


def test_unsigned_calls_only_where_the_protocol_has_them() -> None:
    assert b'"signature": ""' in encode("versionmsg", {}, None)
    with pytest.raises(ValueError, match="signed"):
        encode("getprocessmsg", {}, None)


@pytest.mark.parametrize(
    ("status", "message", "step"),
    [
        (403, "issuedat: 1 is -9 s from this server's clock", "clock"),
        (403, "the invitation was not accepted: used", "peer invite"),
        (404, "peer: none is called 'x'", "colony peer ls"),
        (404, "executorid: no executor of the caller's colonies has this id", "colony executor ls"),
        (404, "processid: no such process", "colony process ls"),
        (
            403,
            "Access denied: only its colony owner may call this",
            "which key signs",
        ),
        (404, "name: colony lab-a has no location 'x'", "colony location ls"),
        (404, "colony: no colony 'x' is hosted here", "colony colony ls"),
        (404, "it was removed meanwhile", "an `ls` command"),
        (
            404,
            "spec.conditions.colonyname: 'nosuch' is neither here nor a trusted peer",
            "colony peer trust",
        ),
        (
            413,
            "spec: 2000000 bytes with arguments and input; what goes to another colony has at most"
            " 1400000",
            "no setting raises this",
        ),
    ],
)
def test_the_next_step_follows_the_cause(status: int, message: str, step: str) -> None:
    assert step in rpc_failure(status, message).next_step


def test_errors_are_json_where_results_are(tmp_path: Path) -> None:
    for args in (
        ["--json", "--home", str(tmp_path), "process", "show", "x"],
        ["process", "show", "x", "--json", "--home", str(tmp_path)],
        ["--json", "process", "shwo"],
    ):
        done = CliRunner().invoke(main, args, env={})
        told = json.loads(done.stderr)
        assert told["error"]
        assert told["exit"] == done.exit_code != 0
        assert done.stdout == ""


def program(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *args],
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        check=False,
        **options,
    )


def test_a_host_without_an_address_says_so(tmp_path: Path) -> None:
    """The resolver's errors have numbers of their own, which are no errnos."""
    done = program("server", "alive", "--server", "host.invalid:9", "--home", str(tmp_path))
    assert b"host.invalid:9: " in done.stderr
    assert b"unknown error" not in done.stderr


def test_a_refused_connection_says_so(tmp_path: Path) -> None:
    done = program("server", "alive", "--server", "localhost:9", "--home", str(tmp_path))
    assert b"localhost:9: connection refused" in done.stderr
    assert b"sub-exception" not in done.stderr


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:99999", "from 1 to 65535"),
        ("127.0.0.1:x", "from 1 to 65535"),
        ("::1", "'[::1]:PORT'"),
        ("http://::1", "'[::1]:PORT'"),
        ("http://x y", "a blank"),
        ("http://", "empty"),
        ("[::1:5", "brackets"),
        ("ftp://x", "neither http:// nor https://"),
    ],
)
def test_what_is_no_address_is_told_as_such(home: Path, address: str, says: str) -> None:
    done = CliRunner().invoke(main, ["--home", str(home), "--server", address, "status"], env={})
    assert done.exit_code == 2
    assert "is no server's address" in done.stderr
    assert says in done.stderr


def test_another_server_at_the_port_is_named(home: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # 501 for POST
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            place = f"127.0.0.1:{other.server_address[1]}"
            args = ["--home", str(home), "--server", place]
            done = CliRunner().invoke(main, [*args, "user", "ls"], env={})
            tls = CliRunner().invoke(main, ["--server", f"https://{place}", *args[:2], "status"])
        finally:
            other.shutdown()
            thread.join()
    assert done.exit_code == 69
    assert f"{place} is not colonyd, but " in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "doctor" not in done.stderr
    assert "https://" in tls.stderr


def test_http_and_https_at_the_port_of_the_other(home: Path, tmp_path: Path) -> None:
    certificate, key, _ = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ColonyServer() as plain, ColonyServer() as wrapped:
        wrapped.http.socket = context.wrap_socket(wrapped.http.socket, server_side=True)
        for url, says in (
            (f"https://{plain.address}", "does not speak TLS; write http://"),
            (f"http://{wrapped.address}", "as a port for TLS does"),
        ):
            args = ["--home", str(home), "--server", url, "user", "ls"]
            done = CliRunner().invoke(main, args, env={})
            assert done.exit_code == 69
            assert says in done.stderr


def test_a_connection_that_is_reset_reads_as_one_that_is_closed(home: Path) -> None:
    """A port for TLS resets what it did not read whole: which of the two is a race."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            stream, _ = listener.accept()
            stream.recv(1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.close()

        thread = threading.Thread(target=reset)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        args = ["--home", str(home), "--server", url, "user", "ls"]
        done = CliRunner().invoke(main, args, env={})
        thread.join()
    assert done.exit_code == 69
    assert "as a port for TLS does" in done.stderr


def test_any_locale_and_no_stdout(tmp_path: Path) -> None:
    """What the locale has no character for is an escape; nobody reading is no traceback."""
    init_home(tmp_path / "home", "dev", {})
    environ = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    doctor = ["--home", str(tmp_path / "home"), "doctor"]
    done = program(*doctor, env=environ, stdout=subprocess.PIPE)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    assert rb"\u2713 home" in done.stdout
    done = program(*doctor, preexec_fn=lambda: os.close(1))
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    ours, theirs = os.pipe()
    os.close(ours)
    done = program(*doctor, stdout=theirs)
    os.close(theirs)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"func": "f"}, "node 1: 'func' is no field\n  next: did you mean 'funcname'?"),
        (
            {"funcname": "f", "conditions": {"executor-type": "t"}},
            "node 1: conditions: 'executor-type' is no field\n  next: did you mean 'executortype'?",
        ),
        ({"funcname": "f", "xyzzy": 1}, "node 1: 'xyzzy' is no field\n  next: the fields are: "),
    ],
)
def test_a_misspelt_field_of_a_workflow_is_named(
    tmp_path: Path, node: dict[str, Any], message: str
) -> None:
    """A daemon ignores it, as upstream does, and runs a function without a name."""
    file = tmp_path / "w.json"
    file.write_text(json.dumps([node]))
    init_home(tmp_path / "home", "dev", {})
    args = ["--home", str(tmp_path / "home"), "workflow", "submit", str(file)]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2
    assert message in done.stderr


def test_fields_in_other_case_are_fields(tmp_path: Path) -> None:
    refuse_unknown({"FuncName": "f", "conditions": {"colonyName": "x"}}, FunctionSpec, "x")
