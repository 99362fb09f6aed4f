"""Bars of long work: drawn on a terminal, and nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.core.progress import SHOWN, bars, board, share
from colonyd.worker.watcher import Watcher
from node.host.home import init_home
from tests.cli.terminal import on_screen, on_terminal
from tests.support.daemons import REPOSITORY, Daemon

HIDDEN_CURSOR = b"\x1b[?25l"  # rich hides it while a bar is drawn


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("40%", 0.4),
        ("step 3/10", 0.3),
        ("2.5 / 10 MB", 0.25),
        ("12.5 % of it", 0.125),
        ("900%", 1.0),
        ("1/0", None),
        ("nearly done", None),
        ("", None),
    ],
)
def test_what_a_command_says_of_its_progress(text: str, done: float | None) -> None:
    assert share(text) == done


def test_no_terminal_no_bar() -> None:
    assert not bars()
    with board() as shown:
        assert type(shown) is Watcher


@pytest.mark.slow
def test_files_and_backups_show_a_bar_on_a_terminal(lone_daemon: Daemon, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(SHOWN + 5_000_000)
    save = tmp_path / "save.tar"
    (tmp_path / "there").mkdir()
    for command in (
        ["file", "put", str(large), "--label", "/bars"],
        ["file", "get", "/bars/large.bin", "--to", str(tmp_path / "back.bin")],
        ["file", "sync", str(tmp_path / "there"), "--label", "/bars"],
        ["backup", str(save)],
        ["backup", "--check", str(save)],
    ):
        shown = on_screen(lone_daemon, *command)
        assert HIDDEN_CURSOR in shown, command
        assert re.search(rb"\d+(\.\d+)?(/[\d.]+)? .?B", shown), command
    for option in ("--json", "--quiet"):
        save.unlink()
        assert HIDDEN_CURSOR not in on_screen(lone_daemon, "backup", str(save), option)
    home = tmp_path / "restored"
    command = [sys.executable, "-m", "cli.main", "--home", str(home), "restore", str(save)]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    assert HIDDEN_CURSOR in on_terminal(command, environ)
    done = subprocess.run([*command, "--force"], capture_output=True, env=environ, check=True)
    assert b"\x1b" not in done.stdout + done.stderr


def test_small_work_shows_none(tmp_path: Path) -> None:
    init_home(tmp_path / "home", "dev", {})
    command = [sys.executable, "-m", "cli.main", "--home", str(tmp_path / "home")]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    shown = on_terminal([*command, "history", "verify"], environ)
    assert HIDDEN_CURSOR not in shown
    assert b"records" in shown


@pytest.mark.slow
def test_a_worker_shows_what_it_runs_with_its_progress(lone_daemon: Daemon) -> None:
    """The bar stands below what the worker says, which stays."""
    command = [sys.executable, "-m", "cli.main", "--home", str(lone_daemon.home)]
    command += ["--server", f"127.0.0.1:{lone_daemon.port}"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [*command, "run", "-F", "slow", "-T", "barred"], env=environ, check=True, cwd="/"
    )
    script = "slow=echo 40% > $COLONYD_PROGRESS; sleep 1; echo 80% >&2; sleep 1"
    worker = ["worker", "--func", script, "--type", "barred", "--name", "bar-1"]
    shown = on_screen(lone_daemon, *worker, until=b"successful", LANG="C.UTF-8")
    assert HIDDEN_CURSOR in shown
    assert re.search(rb"slow [0-9a-f]{12}", shown)
    assert b"40%" in shown
    assert b"successful" in shown
