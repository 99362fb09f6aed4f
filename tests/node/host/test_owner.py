"""A home of one user, and commands that another one runs: refused before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.host.home import init_home
from tests.support.daemons import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")

NOBODY = 65534
COMMANDS = [
    ["colony", "init"],
    ["colony", "up"],
    ["colony", "worker", "--func", "f=true"],
    ["colony", "backup", "{backup}"],
    ["colony", "executor", "create", "e"],
    ["colony", "user", "add", "u"],
    ["colonyd"],
]


def run(home: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    module = {"colony": "cli.main", "colonyd": "cli.daemon.colonyd"}[program]
    return subprocess.run(
        [sys.executable, "-m", module, "--home", str(home), *args],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that belongs to nobody, all of it."""
    home = tmp_path / "home"
    init_home(home, "dev", {})
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    return home


def state(home: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.lstat().st_uid, path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in (home, *sorted(home.rglob("*")))
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_another_user_than_the_owner_writes_nothing(
    home: Path, tmp_path: Path, command: list[str]
) -> None:
    before = state(home)
    backup = tmp_path / "backup.tar"
    done = run(home, command[0], *(word.format(backup=backup) for word in command[1:]))
    assert done.returncode not in (0, 1), done.stdout
    assert "belongs to user nobody" in done.stderr
    assert "sudo -u nobody" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(home) == before
    assert not backup.exists()


def test_the_doctor_names_foreign_files(home: Path) -> None:
    (home / "worker-w.lock").write_text("")
    done = run(home, "colony", "doctor")
    assert f"✗ owner: {home}/worker-w.lock belongs to root, its home to nobody" in done.stdout
    assert f"chown -hR nobody {home}" in done.stdout
