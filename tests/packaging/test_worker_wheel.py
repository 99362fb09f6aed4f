"""The wheel `colonyd-worker`: the package `colonyd` alone, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import REPOSITORY, Daemon


def project(path: str) -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / path / "pyproject.toml").read_text())["project"]


def test_both_wheels_say_the_same() -> None:
    whole, worker = project("."), project("colonyd")
    assert worker["version"] == whole["version"]
    assert worker["requires-python"] == whole["requires-python"]
    assert set(worker["dependencies"]) <= set(whole["dependencies"])


@pytest.mark.slow
def test_a_worker_runs_where_only_its_wheel_is(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    subprocess.run(["scripts/wheels", "--worker", str(tmp_path)], cwd=REPOSITORY, check=True)
    (wheel,) = tmp_path.glob("colonyd_worker-*.whl")
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"colonyd", f"{wheel.name.partition('-py3')[0]}.dist-info"}
    environment = tmp_path / "environment"
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # no PYTHONPATH
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, env=bare)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(pip, check=True, cwd=tmp_path, env=bare)
    for other in ("node", "federation", "cli", "cryptography", "zeroconf"):
        command = [python, "-c", f"import {other}"]
        found = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True)
        assert found.returncode == 1, other
    every = (
        "import colonyd, pkgutil; [__import__(each.name) for each in"
        " pkgutil.walk_packages(colonyd.__path__, 'colonyd.')]; [getattr(colonyd, name) for name"
        " in colonyd.__all__]"
    )
    subprocess.run([python, "-c", every], cwd=tmp_path, env=bare, check=True)
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    environ = bare | {"COLONYD_HOME": str(daemon.home)}
    program = re.search(
        r"```python\n(.*?)```", (REPOSITORY / "colonyd/README.md").read_text(), re.S
    )
    assert program
    worker = subprocess.Popen([python, "-c", program[1]], env=environ, cwd=tmp_path)
    run = [sys.executable, "-m", "cli.main", "run", "--func", "upper", "hello", "--wait"]
    done = subprocess.run(
        run,
        env=environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "HELLO\n"), done.stderr
    worker.terminate()
    assert worker.wait(30) == 0
