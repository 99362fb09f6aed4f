"""What a shell completes: ids and names that the daemon has, quickly, and silently without one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from node.host.home import init_home
from tests.support.daemons import REPOSITORY, Daemon
from tests.support.rpc_server import ColonyServer, Queue


def completed(words: str, home: Path, server: str, shell: str = "bash") -> list[str]:
    """What is suggested for the last of some words; "" at the end for a new one."""
    typed = words.split(" ")
    environ = {
        "_COLONY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["colony", "--home", str(home), "--server", server, *typed]),
        "COMP_CWORD": str(4 + len(typed)),
    }
    if shell == "fish":
        environ["COMP_CWORD"] = typed[-1]
    result = CliRunner().invoke(main, [], env=environ, prog_name="colony")
    assert result.stderr == ""
    lines = [line for line in result.stdout.splitlines() if line]
    if shell == "zsh":
        return lines[1::3]
    return [line.partition(",")[2].partition("\t")[0] for line in lines]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init_home(tmp_path / "home", "dev", {})
    return tmp_path / "home"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_come_from_the_daemon(home: Path, shell: str) -> None:
    with ColonyServer() as server:
        peers = [{"name": name, "state": "trusted", "id": "ab" * 32} for name in ("lab-1", "bee")]
        server.answers["getpeersmsg"] = lambda payload, caller: peers
        rows = [{"funcname": name, "executortype": "cli"} for name in ("upper", "under", "lower")]
        server.answers["getfunctionsmsg"] = lambda payload, caller: rows
        executors = [{"executorname": name, "executortype": "cli"} for name in ("cam-1", "x\x1b")]
        server.answers["getexecutorsmsg"] = lambda payload, caller: executors
        for words, found in (
            ("peer show ", ["lab-1", "bee"]),
            ("peers trust la", ["lab-1"]),
            ("run --func u", ["upper", "under"]),
            ("run -F l", ["lower"]),
            ("run -c ", ["lab-1", "bee"]),
            ("executor rm ", ["cam-1"]),  # a name that commands a terminal is none
            ("process assign --as c", ["cam-1"]),
            ("executor add ", []),
            ("log show -e cam", ["cam-1"]),
        ):
            assert completed(words, home, server.address, shell) == found, words


def test_ids_are_those_that_a_command_can_be_about(home: Path) -> None:
    with ColonyServer() as server:
        queue = Queue(server)
        ids = [queue.add("f", state=state) for state in (0, 1, 2, 3)]
        server.answers["getprocessesmsg"] = lambda payload, caller: [
            row for row in queue.processes.values() if row["state"] == payload["state"]
        ]

        def short(*states: int) -> set[str]:
            return {ids[state][:12] for state in states}

        for words, states in (("show", (0, 1, 2, 3)), ("why", (0,)), ("close", (1,))):
            assert set(completed(f"process {words} ", home, server.address)) == short(*states)


def test_without_a_daemon_or_a_home_it_is_silent_and_quick(home: Path, tmp_path: Path) -> None:
    """A daemon that takes the connection and says nothing is none, too: a shell waits."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "_COLONY_COMPLETE": "bash_complete",
            "COMP_WORDS": f"colony --home {home} --server {place} peer show ",
            "COMP_CWORD": "7",
        }
        done = subprocess.run(
            [sys.executable, "-m", "cli.main"],
            env=environ,
            capture_output=True,
            timeout=30,
            cwd="/",
        )
    assert (done.stdout.strip(), done.stderr) == (b"", b"")
    for words in ("peer show ", "process show ", "run -F "):
        assert completed(words, home, "127.0.0.1:1") == []
        assert completed(words, tmp_path / "none", "127.0.0.1:1") == []


Colony = Callable[..., Result]


@pytest.mark.slow
def test_a_real_daemon_completes_the_id_of_what_waits(lone_daemon: Daemon) -> None:
    server = f"127.0.0.1:{lone_daemon.port}"
    command = ["--home", str(lone_daemon.home), "--server", server]
    run = [*command, "run", "-F", "completed", "-T", "completed"]
    processid = CliRunner().invoke(main, run).stdout.strip()
    found = completed(f"process why {processid[:3]}", lone_daemon.home, server)
    assert processid[:12] in found
