"""Hosts without Internet: the wheelhouse with the network off, and what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.packaging.machines import call, require
from tests.support.daemons import REPOSITORY

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
HOSTILE = 'raise SystemExit("another package\'s module was imported")\n'


def without_network(*command: str, **environ: str) -> str:
    """Run a command where there is no network but the loopback interface."""
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    return call(*inside, *command, seconds=600, **environ)


@pytest.mark.slow
def test_a_wheelhouse_installs_with_the_network_off(tmp_path: Path) -> None:
    require("unshare")
    house = call("scripts/wheelhouse", "--python", MINOR, "--out", str(tmp_path)).strip()
    with tarfile.open(house) as archive:
        archive.extractall(tmp_path, filter="data")
    installer = Path(house).with_suffix("") / "install"
    place = tmp_path / "opt"
    without_network(str(installer), "--prefix", str(place), PYTHON=sys.executable)

    hostile = tmp_path / "hostile"
    for package in ("cli", "node", "federation", "colonyd"):
        (hostile / package).mkdir(parents=True)
        (hostile / package / "__init__.py").write_text(HOSTILE)
    told = without_network(
        "env", f"--chdir={hostile}", str(place / "bin/colony"), "--json", "demo",
        PYTHONPATH=str(hostile),
    )  # fmt: skip
    assert json.loads(told)["process"]["out"] == ["HELLO FROM THE WORKSHOP"]
    assert (place / "share/colonyd/colonyd.service").is_file()


def test_an_interpreter_without_wheels_is_refused_by_name(tmp_path: Path) -> None:
    """`install` takes no Python that it has no wheels for, nor does `scripts/setup`."""
    shutil.copy(REPOSITORY / "scripts/offline/install", tmp_path / "install")
    (tmp_path / "versions").write_text("3.10\n3.9\n")
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [str(tmp_path / "install")], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 1
    assert "wheels here are for Python 3.10 3.9 and none of these is installed" in done.stderr
    assert f"is {MINOR};" in done.stderr

    later = tmp_path / "bin"
    later.mkdir()
    # As 3.14 would answer what setup asks.
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        (later / name).write_text('#!/bin/sh\ncase $2 in *"3, 14"*) exit 1 ;; esac\nexit 0\n')
        (later / name).chmod(0o755)
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "tree/scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "tree")
    setting_up = subprocess.run(
        [str(tmp_path / "tree/scripts/setup"), "--no-dev"],
        capture_output=True, text=True, check=False,
        env={"PATH": f"{later}:/usr/bin:/bin"},
    )  # fmt: skip
    assert setting_up.returncode == 1
    assert "for later ones coincurve has no wheel" in setting_up.stderr


@pytest.mark.slow
def test_what_has_no_wheel_is_named(tmp_path: Path) -> None:
    command = ["scripts/wheels", str(tmp_path / "wheels"), os.uname().machine, "3.14"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=600
    )
    assert done.returncode == 3, done.stderr
    assert "Python 3.14 of: coincurve" in done.stderr
