"""`colony chaos`: its bound, its judge, the workers that it finds, and whole runs on a daemon."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cli.chaos.command import _Choice, _targets
from cli.chaos.judge import (
    CANCELLED,
    FAILED,
    LATE,
    RUNNING,
    SUCCESSFUL,
    WAITING,
    Evidence,
    Reading,
    Verdict,
    bound_of,
    judge,
    overdue,
    victim,
)
from cli.chaos.workers import find, unit_of
from cli.core.errors import Failure
from cli.core.session import Session
from colonyd.client.blocking import BlockingClient
from colonyd.client.values import Conditions, Spec
from colonyd.pids import start_time
from colonyd.settings import Settings
from colonyd.worker.engine import STOPPED
from colonyd.worker.lockfile import Holder, hold, holder_of
from tests.support.daemons import REPOSITORY, Daemon

COLONY = [sys.executable, "-m", "cli.main"]
ENVIRON = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY)}

# -- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "bound"),
    [
        ("1", 4, 1),
        ("9", 4, 4),
        ("25%", 4, 1),
        ("25%", 7, 1),
        ("50%", 7, 3),
        ("100%", 3, 3),
        ("50%", 200, 100),
    ],
)
def test_a_bound_is_a_number_or_a_share_rounded_down(text: str, count: int, bound: int) -> None:
    assert bound_of(text, count) == bound


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "0%", "101%", "x%", "10%"])
def test_a_bound_that_allows_no_kill_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        bound_of(text, 4)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 99))
def test_no_more_are_down_than_the_bound_allows(up: list[bool], bound: int, seed: int) -> None:
    names = [number for number, each in enumerate(up) if each]
    chosen = victim(names, len(up), bound, random.Random(seed))
    down = len(up) - len(names)
    if chosen is None:
        assert down >= bound or not names
    else:
        assert chosen in names
        assert down + 1 <= bound


# -- the judge ----------------------------------------------------------------------------------

GOOD = Reading(
    "a", SUCCESSFUL, assignedexecutorid="x", endtime="2030-01-01T00:00:01Z", out=["a", 1]
)


def evidence(*readings: Reading, runs: int = 1) -> Evidence:
    made = Evidence(expected={"a": ["a", 1]})
    for reading in readings:
        made.see(reading)
    made.journal(["start a", "end a"] * runs)
    return made


def altered(**fields: Any) -> Reading:
    return msgspec.structs.replace(GOOD, **fields)


def count(verdict: Verdict) -> tuple[int, int]:
    return len(verdict.lost), len(verdict.doubled)


def test_one_end_that_is_read_often_is_one_end() -> None:
    verdict = judge(evidence(altered(state=RUNNING, out=None, endtime=""), GOOD, GOOD), over=True)
    assert count(verdict) == (0, 0)
    assert verdict.good
    assert (verdict.processes, verdict.successful) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        altered(assignedexecutorid="y"),
        altered(endtime="2030-01-01T00:00:02Z"),
        altered(out=["a", 2]),
        altered(state=FAILED, out=None, errors=["no"]),
        altered(state=RUNNING, endtime="", out=None),
        altered(state=WAITING, endtime="", out=None),
    ],
    ids=["executor", "time", "output", "state", "runs again", "waits again"],
)
def test_a_second_end_is_found(other: Reading) -> None:
    verdict = judge(evidence(GOOD, other), over=True)
    assert count(verdict) == (0, 1)
    assert not verdict.good


def test_a_result_that_two_executors_were_thanked_for_is_found() -> None:
    made = evidence(GOOD)
    made.accepted = [("a", "one")]
    assert judge(made, over=True).good
    made.accepted.append(("a", "two"))
    assert count(judge(made, over=True)) == (0, 1)
    made.accepted[1] = ("a", "one")
    assert count(judge(made, over=True)) == (0, 1)


def test_an_output_of_another_process_is_found() -> None:
    assert count(judge(evidence(altered(out=["b", 1])), over=True)) == (0, 1)


def test_an_output_that_no_command_made_is_found() -> None:
    assert count(judge(evidence(GOOD, runs=0), over=True)) == (0, 1)


def test_an_open_process_is_lost_once_it_had_its_time() -> None:
    made = evidence(altered(state=WAITING, endtime="", out=None))
    assert count(judge(made, over=True)) == (1, 0)
    assert judge(made, over=True).open == 0
    assert count(judge(made, over=False)) == (0, 0)
    assert judge(made, over=False).open == 1


def test_a_process_that_the_colony_forgot_is_lost() -> None:
    for made in (evidence(), evidence(GOOD)):
        made.gone.add("a")
        assert count(judge(made, over=False)) == (1, 0)


def test_a_process_that_nobody_has_in_hand_is_lost() -> None:
    made = evidence(altered(state=RUNNING, endtime="", out=None))
    made.orphans.add("a")
    assert count(judge(made, over=False)) == (1, 0)


def test_what_was_killed_is_counted() -> None:
    made = Evidence()
    said = STOPPED
    made.see(Reading("a", FAILED, errors=[said]))
    made.see(Reading("b", FAILED, errors=["exit status 1"]))
    made.see(Reading("c", CANCELLED))
    made.see(Reading("d", SUCCESSFUL, retries=2))
    made.see(Reading("e", SUCCESSFUL, retries=1))
    made.journal(["start d", "start d", "end d", "start e", "end e", "", "start"])
    verdict = judge(made, over=True)
    assert verdict.good
    assert (verdict.failed, verdict.interrupted, verdict.cancelled) == (2, 1, 1)
    assert (verdict.successful, verdict.reassigned, verdict.retries) == (2, 2, 3)
    assert verdict.restarted == 1


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.sets(st.sampled_from("abcd")))
def test_each_process_is_counted_once(read: list[str], ended: set[str]) -> None:
    made = Evidence()
    for name in read:
        made.see(Reading(name, SUCCESSFUL if name in ended else RUNNING))
    verdict = judge(made, over=True)
    assert verdict.processes == verdict.successful + len(verdict.lost) == len(set(read))
    assert {finding.processid for finding in verdict.lost} == set(read) - ended


def test_a_process_is_overdue_long_after_its_deadline_only() -> None:
    running = altered(state=RUNNING)
    assert not overdue(running, 100.0, 100.0 + LATE)
    assert overdue(running, 100.0, 100.1 + LATE)
    assert not overdue(running, None, 1e9)
    assert not overdue(GOOD, 100.0, 1e9)


# -- the workers of this machine ----------------------------------------------------------------


def test_a_lock_names_its_worker_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "worker-w.lock"
    with hold(lock, "dev", "w", "cli"):
        holder = holder_of(lock)
        assert holder == Holder(os.getpid(), start_time(os.getpid()), "dev", "w", "cli")
        with pytest.raises(BlockingIOError), hold(lock, "dev", "w", "cli"):
            pass
        assert [each.name for each in find([tmp_path], "dev")] == ["w"]
        assert find([tmp_path, tmp_path], "other") == []
        assert len(find([tmp_path, tmp_path], "dev")) == 1
    assert holder_of(lock) is None
    assert find([tmp_path], "dev") == []


def test_a_number_that_is_another_process_now_is_no_worker(tmp_path: Path) -> None:
    lock = tmp_path / "worker-w.lock"
    with hold(lock, "dev", "w", "cli"):
        told = holder_of(lock)
        assert told is not None
        for wrong in (
            msgspec.structs.replace(told, started="1"),
            msgspec.structs.replace(told, pid=1, started=start_time(1)),
            msgspec.structs.replace(told, pid=2**22 + 1),
        ):
            lock.write_bytes(msgspec.json.encode(wrong))
            assert holder_of(lock) is None
        for text in (b"", b"4711\n", b"[]", b"{" * 9000):
            lock.write_bytes(text)
            assert holder_of(lock) is None
    other = tmp_path / "worker-o.lock"
    other.symlink_to(lock)
    assert find([tmp_path], "dev") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of other users")
def test_a_lock_names_processes_of_its_owner_alone(tmp_path: Path) -> None:
    lock = tmp_path / "worker-w.lock"
    with hold(lock, "dev", "w", "cli"):
        os.chown(lock, 65534, 65534)  # as one of a worker that has its own user
        assert holder_of(lock) is None
        assert find([tmp_path], "dev") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees workers of other users")
@pytest.mark.parametrize("hides", [False, True], ids=["as it is", "not dumpable"])
def test_root_starts_no_words_of_another_user(tmp_path: Path, hides: bool) -> None:
    """As root they would do what that user may not."""
    hidden = "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)" if hides else ""
    program = f"""
import ctypes, os, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from colonyd.worker.lockfile import hold
os.setgid(65534), os.setuid(65534)
with hold(Path("worker-w.lock"), "dev", "w", "cli"):
    {hidden}
    print("ready", flush=True)
    time.sleep(60)
"""
    tmp_path.chmod(0o777)
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        session = Session(str(tmp_path), environ={"HOME": str(tmp_path)})
        with pytest.raises(Failure, match="nothing would start them again"):
            trio.run(_targets, session, "dev", _Choice((), None, (), True))
        (found,) = find([tmp_path], "dev")
        assert found.uid == 65534
        found.uid = 0  # its lock named a process of root when it was found
        assert not trio.run(found.kill, signal.SIGTERM)
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-x.slice/w@up.service", ("w@up.service", False)),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/w.service", ("w.service", True)),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/x.scope", ("", False)),
        ("0::/user.slice/user-1.slice/session-3.scope", ("", False)),
        ("0::/", ("", False)),
    ],
)  # fmt: skip
def test_the_service_of_a_process(cgroup: str, unit: tuple[str, bool]) -> None:
    assert unit_of(cgroup) == unit


# -- the command, on a daemon -------------------------------------------------------------------


def words(daemon: Daemon, *args: str) -> list[str]:
    return [*COLONY, "--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", *args]


def colony(daemon: Daemon, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words(daemon, *args), capture_output=True, text=True, env=ENVIRON, check=False,
        timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def value(daemon: Daemon, *args: str, code: int = 0) -> Any:
    return json.loads(colony(daemon, *args, "--json", code=code).stdout)


def nothing_left(daemon: Daemon) -> None:
    """Neither executors, processes nor workers of a run."""
    rows = value(daemon, "executor", "ls")
    assert [row for row in rows if row["executortype"].startswith("chaos-")] == []
    for state in ("waiting", "running", "successful", "failed", "cancelled"):
        rows = value(daemon, "process", "ls", "--state", state)
        assert [row for row in rows if row["spec"]["funcname"] == "chaos"] == []
    assert workers_of(daemon) == []


def workers_of(daemon: Daemon, kind: str = "chaos-") -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(daemon.home) in line and "worker" in line and any(w.startswith(kind) for w in line):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_killed_workers_lose_and_double_nothing(lone_daemon: Daemon) -> None:
    args = ["--workers", "3", "--processes", "60", "--for", "20s", "--every", "3s"]
    told = value(lone_daemon, "chaos", *args, "--deadline", "3s", "--seed", "7")
    assert told["good"] is True
    assert told["kills"], told
    assert told["mostdown"] <= told["bound"] == 1
    assert (told["processes"], told["successful"]) == (60, 60)
    assert told["reassigned"] >= 1
    assert told["lost"] == told["doubled"] == []
    nothing_left(lone_daemon)


@pytest.mark.slow
def test_workers_that_come_back_as_themselves_tell_what_they_left(lone_daemon: Daemon) -> None:
    args = ["--workers", "2", "--processes", "20", "--for", "15s", "--every", "2s", "--same-name"]
    told = value(lone_daemon, "chaos", *args, "--max-down", "50%", "--deadline", "30s")
    assert told["good"] is True
    assert told["kills"]
    assert told["successful"] + told["interrupted"] == 20
    assert told["interrupted"] >= 1
    assert told["reassigned"] == 0
    nothing_left(lone_daemon)


def started(daemon: Daemon, *args: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words(daemon, "chaos", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ENVIRON | environ,
    )  # fmt: skip


def line_with(run: subprocess.Popen[str], text: str) -> str:
    assert run.stderr is not None
    seen = []
    for line in run.stderr:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError("".join(seen))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_behind(lone_daemon: Daemon, number: signal.Signals) -> None:
    args = ["--workers", "2", "--processes", "100", "--for", "5min", "--every", "1s"]
    run = started(lone_daemon, *args)
    line_with(run, "SIGKILL for ")
    run.send_signal(number)
    out, err = run.communicate(timeout=90)
    assert run.returncode == 1, out + err
    assert "stopped before all processes had ended" in err
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (told["lost"], told["doubled"]) == ("0", "0")
    nothing_left(lone_daemon)


@pytest.mark.slow
def test_a_killed_run_leaves_no_workers(lone_daemon: Daemon, tmp_path: Path) -> None:
    args = ["--workers", "2", "--processes", "9", "--for", "5min"]
    run = started(lone_daemon, *args, TMPDIR=str(tmp_path))
    deadline = time.monotonic() + 60
    while not any(row["state"] == 1 for row in executors(lone_daemon)):
        assert time.monotonic() < deadline
    run.kill()
    run.communicate(timeout=30)
    while workers_of(lone_daemon):
        assert time.monotonic() < deadline
    for row in executors(lone_daemon):
        colony(lone_daemon, "executor", "rm", row["executorname"])
    for row in value(lone_daemon, "process", "ls", "--state", "waiting"):
        colony(lone_daemon, "process", "rm", row["processid"])
    nothing_left(lone_daemon)


def executors(daemon: Daemon) -> list[dict[str, Any]]:
    rows = value(daemon, "executor", "ls")
    return [row for row in rows if row["executortype"].startswith("chaos-")]


@pytest.mark.slow
def test_a_worker_that_lies_is_found(lone_daemon: Daemon) -> None:
    """It answers for the run's function with the output of another process."""
    args = ["--workers", "1", "--processes", "20", "--for", "8s", "--every", "4s", "--json"]
    run = started(lone_daemon, *args)
    deadline = time.monotonic() + 60
    while not (there := executors(lone_daemon)):
        assert time.monotonic() < deadline
    liar = subprocess.Popen(
        words(
            lone_daemon, "--json", "worker", "--type", there[0]["executortype"],
            "--name", "liar", "--func", """chaos=echo '["another", 1]'""",
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRON,
    )  # fmt: skip
    try:
        out, err = run.communicate(timeout=180)
    finally:
        liar.terminate()
        liar.wait(60)
    assert run.returncode == 1, out + err
    told = json.loads(out)
    assert told["good"] is False
    assert told["doubled"]
    assert {finding["why"] for finding in told["doubled"]} == {
        "its output is not the output of its command for its arguments"
    }
    colony(lone_daemon, "executor", "rm", "liar")
    nothing_left(lone_daemon)


# -- workers that run already -------------------------------------------------------------------


@pytest.fixture
def workers(lone_daemon: Daemon) -> Iterator[list[str]]:
    """Two workers of the home that nothing starts again."""
    names = ["storm-1", "storm-2"]
    children = []
    for name in names:
        line = words(lone_daemon, "--json", "worker", "--type", "storm", "--name", name)
        child = subprocess.Popen(
            [*line, "--func", "nap=sleep 2; echo done"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=ENVIRON,
        )  # fmt: skip
        children.append(child)
        assert child.stdout is not None
        assert any('"ready"' in text for text in iter(child.stdout.readline, ""))
    yield names
    for each in find([lone_daemon.home], "dev"):
        if each.name in names:
            os.kill(each.holder.pid, signal.SIGTERM)
    for child in children:
        assert child.stdout is not None
        child.stdout.close()
        child.wait(60)
    while find([lone_daemon.home], "dev"):
        pass


@pytest.mark.slow
def test_only_what_comes_back_is_killed(lone_daemon: Daemon, workers: list[str]) -> None:
    refused = colony(lone_daemon, "chaos", "--yes", "--type", "storm", code=1)
    assert "nothing would start them again" in refused.stderr
    assert "--restart" in refused.stderr
    shown = value(lone_daemon, "chaos", "--dry-run", "--restart", "--executor", "storm-2")
    assert [row["name"] for row in shown["workers"]] == ["storm-2"]
    assert colony(lone_daemon, "chaos", "--restart", code=2).stderr.count("--yes") == 1
    colony(lone_daemon, "chaos", "--executor", "nobody", code=3)
    before = {each.name: each.holder.pid for each in find([lone_daemon.home], "dev")}
    assert sorted(before) == workers


@pytest.mark.slow
def test_workers_of_the_home_are_killed_and_come_back(
    lone_daemon: Daemon, workers: list[str]
) -> None:
    before = {each.name: each.holder for each in find([lone_daemon.home], "dev")}
    lines = {name: line_of(holder.pid) for name, holder in before.items()}
    # By a client, for commands would take longer to submit these than the workers to end them.
    spec = Spec(conditions=Conditions(executortype="storm"), maxexectime=60)
    with BlockingClient(Settings.find(home=lone_daemon.home, environ={})) as client:
        ids = [client.submit("nap", spec=spec).id for _ in range(30)]
    run = started(
        lone_daemon, "--yes", "--restart", "--type", "storm", "--for", "12s", "--every", "2s",
        "--seed", "3", "--json",
    )  # fmt: skip
    fewest = len(workers)
    while run.poll() is None:
        fewest = min(fewest, len(find([lone_daemon.home], "dev")))
        time.sleep(0.01)  # the locks tell nobody when they change
    assert run.stdout is not None
    told = json.loads(run.stdout.read())
    run.communicate()
    assert fewest == 1, "never more than one of two is down"
    assert told["good"] is True, told
    assert told["kills"]
    assert told["mostdown"] <= 1
    assert told["notback"] == []
    assert told["processes"] >= told["interrupted"] >= 1
    after = {each.name: each.holder for each in find([lone_daemon.home], "dev")}
    assert sorted(after) == workers
    for name in set(told["kills"]):
        assert after[name].pid != before[name].pid
        assert line_of(after[name].pid) == lines[name]
    for processid in ids:
        if value(lone_daemon, "process", "show", processid)["state"] == WAITING:
            colony(lone_daemon, "process", "cancel", processid)


def line_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for args, says in (
        (["--every", "2min"], "nothing would be killed"),
        (["--work", "1s"], "--workers 4"),
        (["--workers", "2", "--type", "cli"], "one or the other"),
        (["--workers", "2", "--work", "9s"], "--deadline 18s"),
        (["--for", "soon"], "no duration"),
        (["--workers", "2", "--max-down", "10%"], "less than one"),
    ):
        done = subprocess.run(
            [*COLONY, "--home", str(tmp_path), "--server", "127.0.0.1:1", "chaos", *args],
            capture_output=True, text=True, env=ENVIRON, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
