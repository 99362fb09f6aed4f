"""Results that other people wrote, read on a real terminal, through a pipe, and as JSON."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.core.terminal import json_text, printable
from cli.main import main
from node.host.home import init_home
from tests.cli.support import TREE
from tests.cli.terminal import HOSTILE, obeyed, on_screen, on_terminal
from tests.support.daemons import REPOSITORY, Daemon
from tests.support.rpc_server import ColonyServer


def run(daemon: Daemon, *args: str, terminal: bool = False) -> tuple[bytes, bytes]:
    """Standard output and error of `colony`, on a terminal or in pipes."""
    command = [sys.executable, "-m", "cli.main", "--home", str(daemon.home)]
    command += ["--server", f"127.0.0.1:{daemon.port}", *args]
    environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm"}
    environ |= {"PYTHONPATH": str(REPOSITORY)}
    if not terminal:
        done = subprocess.run(command, capture_output=True, env=environ, cwd="/", check=False)
        return done.stdout, done.stderr
    return on_terminal(command, environ), b""


@pytest.mark.parametrize("name", ["", *TREE])
def test_help_fits_80_columns(name: str) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80)
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_the_status_fits_80_columns(lone_daemon: Daemon) -> None:
    shown = on_screen(lone_daemon, "status").decode().splitlines()
    assert any(line.startswith("colony id") for line in shown)
    assert [line for line in shown if len(line) > 80] == []


def test_a_long_name_is_cut_on_a_terminal(tmp_path: Path) -> None:
    init_home(tmp_path / "home", "dev", {})
    with ColonyServer() as server:
        rows = [{"name": name, "userid": "ab" * 32} for name in ("anna", "n" * 200)]
        server.answers["getusersmsg"] = lambda payload, caller: rows
        command = [sys.executable, "-m", "cli.main", "--home", str(tmp_path / "home")]
        command += ["--server", server.address, "user", "ls"]
        environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm"}
        environ |= {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "250"}
        shown = on_terminal(command, environ).decode().splitlines()
        piped = subprocess.run(command, capture_output=True, env=environ, cwd="/", check=True)
    assert len(shown) == 3
    assert max(map(len, shown[1:])) < 80  # the heading is bold, which takes characters
    assert "n" * 31 + "… " in shown[2]
    assert b"n" * 200 in piped.stdout


@pytest.fixture(scope="module")
def ended(lone_daemon: Daemon) -> str:
    """A process with a hostile output and a hostile log, closed by its executor."""

    def colony(*args: str) -> str:
        out, err = run(lone_daemon, *args)
        assert out or not err, err
        return out.decode().strip()

    colony("executor", "create", "terminal-1", "--type", "terminal")
    processid = colony("run", "--func", "f", "--executor-type", "terminal")
    colony("process", "assign", "--as", "terminal-1")
    colony("log", "add", processid, "--as", "terminal-1", HOSTILE)
    colony("process", "close", processid, "--as", "terminal-1", HOSTILE)
    return processid


READERS = [["process", "wait"], ["process", "show"], ["process", "logs"], ["log", "get", "-p"]]


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_a_terminal_is_shown_controls_and_obeys_none(
    lone_daemon: Daemon, ended: str, command: list[str]
) -> None:
    shown, _ = run(lone_daemon, *command, ended, terminal=True)
    assert not obeyed(shown)
    assert rb"\x1b]52;c;ZXZpbA==\x07" in shown.replace(b"\n", b"").replace(b" ", b"")
    assert rb"\u202e" in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", [*READERS, ["process", "ls", "--json"]], ids=" ".join)
def test_json_has_no_character_that_commands(
    lone_daemon: Daemon, ended: str, command: list[str]
) -> None:
    names = [] if "ls" in command else [ended]
    for terminal in (True, False):
        shown, _ = run(lone_daemon, *command, *names, "--json", terminal=terminal)
        assert not obeyed(shown)
        if terminal is False and command[:2] != ["process", "ls"]:
            assert HOSTILE in strings(json.loads(shown))


@pytest.mark.slow
def test_a_pipe_gets_the_result_byte_for_byte(lone_daemon: Daemon, ended: str) -> None:
    for command in (["process", "wait"], ["process", "logs"]):
        out, _ = run(lone_daemon, *command, ended)
        assert out == HOSTILE.encode() + b"\n"


@pytest.mark.slow
def test_a_log_line_stays_one_entry(lone_daemon: Daemon, ended: str) -> None:
    forged = "all well\n2026-01-01 00:00:00.000000 boss: approved"
    out, err = run(lone_daemon, "executor", "log", "--as", "terminal-1", forged)
    assert not err, out
    for args in (
        ["log", "get", "-e", "terminal-1", "-t"],
        ["log", "search", "approved", "--print"],
    ):
        shown, _ = run(lone_daemon, *args)
        assert b"boss: approved" in shown
        assert not any(line.startswith(b"2026-01-01") for line in shown.splitlines())


def strings(value: Any) -> set[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        return {value}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for each in inner for text in strings(each)}


def test_every_character_that_commands_is_escaped() -> None:
    for number in range(0x110000):
        character = chr(number)
        if character.isprintable() or character in "\n\t":
            continue
        assert printable(character).isascii()
        text = json_text([character])
        assert text.isprintable()
        assert json.loads(text) == [character]


def test_visible_characters_stay() -> None:
    assert json_text({"ü": "日本 ✓ 😀"}) == '{"ü": "日本 ✓ 😀"}'
    assert printable("ü 日本 ✓ 😀\n\tx\r\ny") == "ü 日本 ✓ 😀\n\tx\ny"


def test_one_module_prints() -> None:
    """A new command that prints past it could let a result command the reader's terminal."""
    printers = {
        f"{path.name}:{node.lineno}"
        for path in Path(REPOSITORY, "cli").rglob("*.py")
        if path.name not in ("terminal.py", "colonyd.py")  # the daemon's own words at its start
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("click.echo", "click.secho", "print", "sys.stdout.write")
    }
    assert printers == set()
