"""Every group of commands against a real daemon: what people type, and what it says back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from colonyd.keys import PrivateKey, read_key, write_key
from tests.support.daemons import Daemon

pytestmark = pytest.mark.slow

Colony = Callable[..., Result]


@pytest.fixture
def colony(lone_daemon: Daemon) -> Colony:
    """The command as the daemon's owner types it; exit codes other than 0 must be asked for."""

    def run(*args: str, code: int = 0, text: str | None = None, **environ: str) -> Result:
        command = ["--home", str(lone_daemon.home)]
        command += ["--server", f"127.0.0.1:{lone_daemon.port}", *args]
        result = CliRunner().invoke(main, command, env=environ, input=text, catch_exceptions=False)
        assert result.exit_code == code, f"{args}: {result.output}"
        return result

    return run


def out(result: Result) -> str:
    return result.stdout.strip()


def value(result: Result) -> Any:
    return json.loads(result.stdout)


def executor(colony: Colony, name: str, kind: str) -> str:
    """An approved executor of its own type, so that no test takes another's work."""
    return out(colony("executor", "create", name, "--type", kind))


def workflow(tmp_path: Path, kind: str) -> str:
    conditions: dict[str, Any] = {"executortype": kind}
    after = conditions | {"dependencies": ["first"]}
    specs = [
        {"nodename": "first", "funcname": "f", "conditions": conditions},
        {"nodename": "last", "funcname": "g", "conditions": after},
    ]
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(specs))
    return str(file)


def test_users(colony: Colony, lone_daemon: Daemon, tmp_path: Path) -> None:
    made = value(colony("user", "add", "alice", "--email", "a@b", "--json"))
    assert read_key(Path(made["keyfile"])).id == made["userid"]
    other = PrivateKey.generate()
    assert out(colony("user", "add", "bob", "--id", other.id)) == other.id
    assert "next: " in colony("user", "add", "bob", "--id", other.id, code=1).stderr
    assert {"alice", "bob"} <= {row["name"] for row in value(colony("user", "ls", "--json"))}
    assert "a@b" in colony("user", "show", "alice").stdout
    assert value(colony("user", "show", other.id, "--json"))["name"] == "bob"
    assert colony("user", "show", "nobody", code=3).stderr.startswith("error: ")

    # Alice's own home: her key, and the name of the colony.
    home = tmp_path / "alice"
    (home / "keys").mkdir(parents=True)
    (home / "colony").write_text("dev\n")
    write_key(home / "keys/user.key", read_key(Path(made["keyfile"])))
    new = out(colony("--home", str(home), "user", "change-id"))
    assert read_key(home / "keys/user.key").id == new != made["userid"]
    assert value(colony("user", "show", "alice", "--json"))["userid"] == new
    assert colony("--home", str(home), "user", "ls").stdout.count("alice") == 1
    old = read_key(home / "keys/user.key.old").hex
    assert colony("user", "ls", code=4, COLONIES_PRVKEY=old).stdout == ""
    colony("user", "rm", "alice")
    assert "alice" not in colony("user", "ls").stdout


def test_executors_and_functions(colony: Colony, lone_daemon: Daemon, tmp_path: Path) -> None:
    spec = tmp_path / "e.json"
    hardware = [{"model": "pi", "cores": 4}]
    spec.write_text(json.dumps({"executortype": "cam", "capabilities": {"hardware": hardware}}))
    colony("location", "add", "hall", "--lat", "65.6", "--long", "22.1", "--description", "big")
    added = colony("executor", "add", "cam-1", "--spec", str(spec), "--location", "hall")
    assert "executor approve cam-1" in added.stderr
    assert "pending" in colony("executor", "ls", "--type", "cam").stdout
    colony("function", "register", "shoot", "--as", "cam-1", code=4)  # not approved yet
    colony("executor", "approve", "cam-1")
    functionid = out(
        colony("function", "register", "shoot", "--as", "cam-1", "--description", "photo")
    )
    shown = value(colony("executor", "show", "cam-1", "--json"))
    assert shown["functions"][0]["functionid"] == functionid
    (pi,) = shown["capabilities"]["hardware"]
    # With upstream's zero values for what was not told.
    assert pi == pi | hardware[0]
    assert (pi["nodes"], pi["mem"], pi["network"]) == (0, "", [])
    assert (shown["state"], shown["locationname"]) == (1, "hall")
    assert "shoot" in colony("function", "ls", "--executor", "cam-1").stdout
    assert "cam-1" in colony("executor", "show", out(added)).stdout

    colony("executor", "log", "--as", "cam-1", "lens cleaned")
    assert colony("log", "get", "-e", "cam-1").stdout == "lens cleaned\n"
    assert "lens cleaned" in colony("log", "search", "lens cl").stdout
    assert "lens cleaned" in colony("log", "search", "cleaned", "--print").stdout

    new = out(colony("executor", "change-id", "--as", "cam-1"))
    assert new != out(added)
    assert lone_daemon.key("executor-cam-1").id == new
    assert value(colony("executor", "show", "cam-1", "--json"))["executorid"] == new
    colony("function", "rm", "shoot", "--as", "cam-1")
    assert colony("function", "ls", "--executor", "cam-1").stdout == ""
    colony("executor", "reject", "cam-1")
    colony("executor", "rm", "cam-1")
    assert "cam-1" not in colony("executor", "ls").stdout
    assert "unregistered" in colony("executor", "ls", "--all", "--filter", "cam").stdout
    assert value(colony("location", "show", "hall", "--json"))["lat"] == 65.6
    assert "hall" in colony("location", "ls").stdout
    colony("location", "rm", "hall")
    colony("location", "show", "hall", code=3)


def test_a_process_by_hand(colony: Colony) -> None:
    executor(colony, "hand-1", "hand")
    me = ["--as", "hand-1"]
    colony("process", "assign", *me, code=3)
    processid = out(
        colony("run", "--func", "f", "x", "--executor-type", "hand", "--executor", "hand-1",
               "--env", "A=B", "--label", "mine", "--kwargs", "k=v")
    )  # fmt: skip
    short = processid[:10]
    me_as_user = value(colony("process", "show", short, "--json"))["initiatorname"]
    for filters in (["--label", "mine"], ["--executor-type", "hand"], ["--initiator", me_as_user]):
        assert short in colony("process", "ls", *filters).stdout
    assert short not in colony("process", "ls", "--label", "other").stdout
    colony("process", "ls", "--label", "a", "--initiator", "b", code=2)
    assert "'nobody'" in colony("process", "ls", "--initiator", "nobody", code=1).stderr
    taken = value(colony("process", "assign", *me, "--cpu", "1000m", "--json"))
    assert taken["processid"] == processid
    assert (taken["spec"]["args"], taken["spec"]["env"]) == (["x"], {"A": "B"})
    assert (taken["spec"]["kwargs"], taken["spec"]["label"]) == ({"k": "v"}, "mine")
    colony("log", "add", short, "one", *me)
    colony("log", "add", short, "two", *me)
    assert colony("log", "get", "-p", short, "--first", "--count", "1").stdout == "one\n"
    assert colony("log", "get", "-p", short, "--count", "1").stdout == "two\n"
    assert colony("log", "get", "-p", short, "--since", "1h", "-t").stdout.count("hand-1: ") == 2
    attribute = out(colony("attribute", "add", short, "frames", "24", *me))
    assert "24" in colony("attribute", "get", attribute).stdout
    colony("process", "output", short, "half", *me)
    assert value(colony("process", "show", short, "--json"))["out"] == ["half"]
    colony("process", "close", short, "done", "[42]", "--json-out", *me)
    assert colony("process", "wait", short).stdout == "done\n[42]\n"
    assert colony("log", "get", "-p", short, "--follow").stdout == "one\ntwo\n"
    stats = value(colony("process", "stats", "--json"))
    assert stats["successful"] >= 1
    assert processid[:12] in colony("process", "hist").stdout

    failing = out(colony("run", "--func", "g", "--executor-type", "hand"))
    colony("process", "assign", *me)
    colony("process", "fail", failing, "boom", *me)
    assert "boom" in colony("process", "wait", failing, code=1).stderr
    colony("process", "rm", failing)
    colony("process", "show", failing, code=3)

    waiting = out(colony("run", "--func", "h", "--executor-type", "hand"))
    colony("process", "pause")
    assert colony("process", "status").stdout == "paused\n"
    assert "paused" in colony("process", "assign", *me, code=1).stderr
    assert "PAUSED" in colony("top", "--once").stdout
    assert waiting[:12] in colony("top").stdout
    colony("process", "resume")
    assert colony("process", "status").stdout == "running\n"
    colony("process", "cancel", waiting)
    assert "--yes" in colony("process", "rm-all", "--state", "cancelled", code=2).stderr
    colony("process", "rm-all", "--state", "cancelled", "--yes")
    colony("process", "show", waiting, code=3)


def test_a_spec_from_a_file(colony: Colony, tmp_path: Path) -> None:
    executor(colony, "spec-1", "spec")
    spec = {"funcname": "f", "args": [1], "kwargs": {"a": 1}, "maxretries": 2, "label": "l"}
    spec |= {"conditions": {"executortype": "spec", "cpu": "500m"}, "env": {"A": "B"}}
    text = json.dumps(spec)
    colony("run", code=2)
    full = value(colony("run", "--spec", "-", "--kwargs", "b=c", "--env", "C=D", "--json",
                        text=text))  # fmt: skip
    kept = full["spec"]
    assert (kept["funcname"], kept["args"], kept["kwargs"]) == ("f", [1], {"a": 1, "b": "c"})
    assert (kept["maxretries"], kept["maxexectime"], kept["label"]) == (2, -1, "l")
    assert (kept["env"], kept["conditions"]["cpu"]) == ({"A": "B", "C": "D"}, "500m")
    assert kept["conditions"]["colonyname"] == "dev"
    over = value(colony("run", "--spec", "-", "--func", "g", "2", "--max-retries", "5", "--json",
                        text=text))["spec"]  # fmt: skip
    assert (over["funcname"], over["args"], over["maxretries"]) == ("g", ["2"], 5)


def test_workflows(colony: Colony, tmp_path: Path) -> None:
    executor(colony, "flow-1", "flow")
    me = ["--as", "flow-1"]
    file = workflow(tmp_path, "flow")
    graphid = out(colony("workflow", "submit", "-", text=Path(file).read_text()))
    short = graphid[:10]
    first = value(colony("process", "assign", *me, "--json"))
    assert first["spec"]["nodename"] == "first"
    lines = colony("workflow", "show", short).stdout.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["first", "running"], ["last", "waiting"]]
    assert lines[-1].startswith("  last")
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"nodename": "more", "funcname": "h",
                                 "conditions": {"executortype": "flow"}}))  # fmt: skip
    added = out(
        colony("process", "add-child", graphid, first["processid"], "--spec", str(child), *me)
    )
    colony("workflow", "wait", short, "--timeout", "0.1", code=5)
    colony("process", "close", first["processid"], "7", *me)
    for _ in range(2):
        taken = value(colony("process", "assign", *me, "--timeout", "5", "--json"))
        assert taken["in"] == ["7"]
        word = "more" if taken["processid"] == added else "last"
        colony("process", "close", taken["processid"], word, *me)
    assert colony("workflow", "wait", short).stdout == "last\nmore\n"
    assert short in colony("workflow", "ls", "--state", "successful").stdout
    stopped = out(colony("workflow", "submit", file))
    colony("workflow", "cancel", stopped[:10])
    assert "cancelled" in colony("workflow", "wait", stopped, code=1).stderr
    colony("workflow", "rm", stopped)
    colony("workflow", "show", stopped, code=3)
    colony("workflow", "rm-all", code=2)
    colony("workflow", "rm-all", "--state", "successful", "--yes")
    assert colony("workflow", "ls").stdout == ""


def test_crons_and_generators(colony: Colony, tmp_path: Path) -> None:
    file = workflow(tmp_path, "later")
    colony("cron", "add", "--name", "x", "--workflow", file, code=2)
    colony("cron", "add", "--name", "x", "--workflow", file, "--cron", "* *", code=1)
    cronid = out(colony("cron", "add", "--name", "nightly", "--workflow", file,
                        "--cron", "0 30 2 * * *", "--wait-previous"))  # fmt: skip
    colony("cron", "add", "--name", "beat", "--workflow", file, "--every", "3600", "--random")
    table = colony("cron", "ls").stdout
    assert "0 30 2 * * *" in table
    assert "every 3600 s, at random" in table
    shown = value(colony("cron", "show", "nightly", "--json"))
    assert (shown["cronid"], shown["waitforprevprocessgraph"]) == (cronid, True)
    ran = value(colony("cron", "run", cronid[:8], "--json"))
    assert ran["prevprocessgraphid"]
    assert ran["prevprocessgraphid"][:12] in colony("workflow", "ls").stdout
    colony("cron", "rm", "nightly")
    colony("cron", "show", "nightly", code=3)
    colony("cron", "rm", "beat")

    colony("generator", "add", "--name", "g", "--workflow", file, "--trigger", "0", code=2)
    made = out(colony("generator", "add", "--name", "frames", "--workflow", file, "--trigger", "9"))
    colony("generator", "pack", "frames", "a", "b")
    colony("generator", "pack", made[:8], "c")
    assert value(colony("generator", "show", "frames", "--json"))["queuesize"] == 3
    assert "frames" in colony("generator", "ls").stdout
    colony("generator", "rm", "frames")
    colony("generator", "show", "frames", code=3)
    colony("workflow", "rm-all", "--yes")


def test_channels(colony: Colony) -> None:
    executor(colony, "talk-1", "talk")
    me = ["--as", "talk-1"]
    processid = out(colony("run", "--func", "f", "--executor-type", "talk", "--channel", "chat"))
    colony("process", "assign", *me)
    colony("channel", "send", processid[:10], "chat", "left")
    colony("channel", "send", processid, "chat", *me, text="right")
    assert colony("channel", "read", processid, "chat").stdout == "left\nright\n"
    assert colony("channel", "read", processid, "chat", "--after", "1", *me).stdout == "right\n"
    entries = value(colony("channel", "read", processid, "chat", "--json"))
    assert [entry["type"] for entry in entries] == ["data", "data"]
    assert entries[0]["sequence"] < entries[1]["sequence"]
    colony("channel", "send", processid, "chat", "--end", *me)
    assert colony("channel", "follow", processid, "chat").stdout == "left\nright\n"
    colony("channel", "read", processid, "other", code=3)
    colony("process", "close", processid, *me)


def test_colonies_and_server(colony: Colony, lone_daemon: Daemon) -> None:
    made = value(colony("colony", "add", "annex", "--json"))
    assert read_key(Path(made["keyfile"])).id == made["colonyid"]
    assert "annex" in colony("colony", "ls").stdout
    assert value(colony("colony", "show", "--json"))["name"] == "dev"
    colony("colony", "show", "annex", code=4)
    owner = read_key(Path(made["keyfile"])).hex
    annex = {"COLONIES_COLONY_NAME": "annex", "COLONIES_COLONY_PRVKEY": owner}
    me = lone_daemon.key("user").id
    colony("user", "add", "me", "--id", me, **annex)
    assert "annex" in colony("colony", "show", "annex").stdout
    assert value(colony("colony", "stats", "annex", "--json"))["colonies"] == 1
    new = PrivateKey.generate()
    changed = colony("colony", "change-id", "--id", new.id, "--yes", **annex)
    assert "restart" in changed.stderr
    colony("user", "rm", "me", code=4, **annex)
    annex["COLONIES_COLONY_PRVKEY"] = new.hex
    colony("user", "rm", "me", **annex)
    colony("colony", "rm", "annex", code=2)
    colony("colony", "rm", "annex", "--yes")
    assert "annex" not in colony("colony", "ls").stdout

    assert value(colony("server", "info", "--json"))["backends"][0]["port"] == lone_daemon.port
    assert value(colony("server", "stats", "--json"))["colonies"] == 1
    assert "waiting" in colony("server", "stats").stdout
    assert "alive" in colony("server", "alive").stdout
    colony("--server", "127.0.0.1:9", "server", "alive", code=69)
    nodes = value(colony("cluster", "info", "--json"))
    assert nodes["nodes"][0]["apiport"] == lone_daemon.port
    assert str(lone_daemon.port) in colony("cluster", "info").stdout
    before = lone_daemon.key("server").id
    after = out(colony("server", "change-id", "--yes"))
    assert after == lone_daemon.key("server").id != before
    assert value(colony("server", "stats", "--json"))["colonies"] == 1
    assert value(colony("version", "--json"))["daemon"]
    assert value(colony("--server", "127.0.0.1:9", "version", "--json"))["daemon"] is None


DEFINITION = {
    "kind": "BlueprintDefinition",
    "metadata": {"name": "cameras"},
    "spec": {
        "group": "example.org",
        "version": "v1",
        "names": {"kind": "Camera", "listKind": "CameraList", "singular": "camera",
                  "plural": "cameras"},
        "scope": "Namespaced",
        "schema": {"type": "object", "properties": {"exposure": {"type": "number"}}},
        "handler": {"executorType": "rec", "functionName": "reconcile"},
    },
}  # fmt: skip


def test_blueprints(colony: Colony) -> None:
    colony("blueprint", "definition", "add", "-", text=json.dumps(DEFINITION))
    assert "Camera" in colony("blueprint", "definition", "ls").stdout
    kept = value(colony("blueprint", "definition", "get", "cameras"))
    assert kept["spec"]["handler"]["functionName"] == "reconcile"

    wanted = {"kind": "Camera", "metadata": {"name": "c1"}, "spec": {"exposure": 10}}
    colony("blueprint", "add", "-", text=json.dumps(wanted))
    assert "c1" in colony("blueprint", "ls", "--kind", "Camera").stdout
    colony("blueprint", "ls", "--location", "x", code=2)
    told = colony("blueprint", "doctor", code=1).stdout
    assert "no approved executor of type rec" in told
    executor(colony, "rec-1", "rec")
    assert colony("blueprint", "doctor", "c1").stdout.startswith("✓ c1: 1 executors of type rec")
    colony("blueprint", "doctor", "nothing", code=3)

    me = ["--as", "rec-1"]
    run = value(colony("process", "assign", *me, "--timeout", "10", "--json"))
    assert run["spec"]["kwargs"]["kind"] == "Camera"
    colony("log", "add", run["processid"], "turned the lens", *me)
    assert "turned the lens" in colony("blueprint", "log", "c1").stdout
    assert "turned the lens" in colony("blueprint", "log").stdout
    colony("process", "fail", run["processid"], "stuck", *me)
    assert "stuck" in colony("blueprint", "doctor", "c1", code=1).stdout

    changed = colony("blueprint", "set", "c1", "--key", "spec.exposure", "--value", "20")
    assert changed.stdout == "updated c1: generation 2\n"
    colony("blueprint", "set", "c1", "--key", "spec.exposure", "--value", "dark", code=1)
    full = value(colony("blueprint", "get", "c1", "--json"))
    assert full["spec"] == {"exposure": 20}
    again = colony("blueprint", "update", "-", "--force", text=json.dumps(full))
    assert again.stdout == "updated c1: generation 3\n"
    colony("blueprint", "set-status", "c1", "-", text='{"seen": 20}')
    assert '"seen": 20' in colony("blueprint", "get", "c1").stdout
    processid = out(colony("blueprint", "reconcile", "c1", "--force"))
    assert value(colony("process", "show", processid, "--json"))["spec"]["funcname"] == "reconcile"
    assert "generation" in colony("blueprint", "history", "c1", "--json").stdout
    assert value(colony("blueprint", "history", "c1", "-g", "2"))["spec"] == {"exposure": 20}
    colony("blueprint", "history", "c1", "-g", "99", code=3)
    colony("blueprint", "definition", "rm", "cameras", code=1)
    colony("blueprint", "rm", "c1")
    colony("blueprint", "get", "c1", code=3)
    colony("blueprint", "definition", "rm", "cameras")


def test_top_in_json_names_what_it_could_not_see(colony: Colony) -> None:
    seen = value(colony("top", "--once", "--json"))
    assert set(seen) >= {"counts", "running", "waiting", "executors", "node", "paused"}
    assert "peers" in seen["missing"]  # this daemon has no federation
