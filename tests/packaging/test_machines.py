"""What a killed run of these tests leaves behind is removed by the next one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.packaging import machines
from tests.support import netns


def test_what_a_killed_run_left_behind_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns.require()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, mine = (f"colonypkg-{pid}-test-berg" for pid in (dead.pid, os.getpid()))
    runs = None
    try:
        for name in (left, mine):
            netns.ip("netns", "add", name)
            (tmp_path / name / "berg").mkdir(parents=True)
        (tmp_path / "colonypkg-notes").mkdir()
        # As the machine that nobody ended.
        inside = ["nsenter", f"--net=/run/netns/{left}", "sleep", "infinity"]
        runs = subprocess.Popen(inside, start_new_session=True)
        machines.eventually("it runs inside", lambda: netns.ip("netns", "pids", left))

        machines.clear_abandoned()

        assert runs.wait(10) == -9
        assert not Path(f"/run/netns/{left}").exists()
        assert Path(f"/run/netns/{mine}").exists()
        assert {path.name for path in tmp_path.iterdir()} == {mine, "colonypkg-notes"}
    finally:
        if runs is not None and runs.poll() is None:
            runs.kill()
            runs.wait(10)
        for name in (left, mine):
            if Path(f"/run/netns/{name}").exists():
                netns.ip("netns", "del", name)
