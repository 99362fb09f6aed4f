"""`scripts/test` and its rooms: what goes to pytest, and what is said to a wrong name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY

ECHO = '#!/bin/sh\necho "$(basename "$0") $*"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """This repository with tools that only say how they were called."""
    for name in ("node", "federation", "cli", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts" / "test", tmp_path / "scripts")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    tools = [
        tmp_path / ".venv" / "bin" / name for name in ("ruff", "mypy", "lint-imports", "python")
    ]
    for tool in [tmp_path / "scripts" / "setup", *tools]:
        tool.write_text(ECHO)
        tool.chmod(0o755)
    return tmp_path


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(tree / "scripts" / "test"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def handed_on(tree: Path, *arguments: str) -> list[str]:
    """Return the arguments that pytest gets beyond those of every run."""
    done = run(tree, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for step in ("setup", "ruff format", "ruff check", "mypy", "lint-imports"):
        assert any(line.startswith(step) for line in lines), step
    always = "python -m pytest -n 4 --dist loadfile --no-loadscope-reorder"
    assert lines[-1].startswith(always)
    return lines[-1].removeprefix(always).split()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["node/processes"], ["tests/node/processes"]),
        (["node/processes/"], ["tests/node/processes"]),
        (["node/processes/queue.py"], ["tests/node/processes"]),
        (["node/timers", "federation/wire"], ["tests/node/timers", "tests/federation/wire"]),
        (["federation"], ["tests/federation"]),
        (["cli/worker/command.py"], ["tests/cli"]),
        (["cli/main.py"], ["tests/cli"]),
        (["node/host", "-k", "node/timers"], ["tests/node/host", "-k", "node/timers"]),
        (["-k", "outbox"], ["-k", "outbox"]),
        (["--color=no"], ["--color=no"]),
        (["tests/cli/test_files.py::test_a"], ["tests/cli/test_files.py::test_a"]),
    ],
)
def test_a_room_runs_its_tests(tree: Path, arguments: list[str], expected: list[str]) -> None:
    assert handed_on(tree, *arguments) == expected


def test_a_room_without_a_folder_has_the_tests_that_import_from_it(tree: Path) -> None:
    assert not (REPOSITORY / "tests" / "node" / "etcdserver").exists()
    found = handed_on(tree, "node/etcdserver/supervisor.py", "-x")
    assert found.pop() == "-x"
    assert "tests/node/etcd/test_supervisor.py" in found
    assert len(found) == len(set(found)) < 30


@pytest.mark.parametrize("wrong", ["node/proceses", "outbox", "docs", "tests/node/nowhere"])
def test_a_wrong_name_is_told_the_rooms(tree: Path, wrong: str) -> None:
    done = run(tree, "node/host", wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{wrong} is no room" in done.stderr
    assert {"node/processes", "federation/wire", "cli/work"} <= set(done.stderr.split())


def test_help_has_an_example(tree: Path) -> None:
    done = run(tree, "--help")
    assert done.returncode == 0
    assert "scripts/test node/processes -m 'not slow'" in done.stdout
    assert done.stdout.strip().endswith("import from it.")


@pytest.mark.slow
def test_trips_are_counted() -> None:
    command = [sys.executable, "-m", "bench.trips", "--ways"]
    shown = subprocess.check_output(command, cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL)
    found = re.findall(r"^(.+): (\d+) packages, \d+ ways back; (\d+) modules", shown, re.M)
    assert len(found) == 3
    assert all(1 < int(packages) < int(modules) for _, packages, modules in found)
    # Each reaches the store.
    assert shown.count("-> node.etcd.client\n") >= 3
