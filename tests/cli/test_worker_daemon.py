"""`colony worker` beside a real daemon: odd output, killed workers, broken results, a live log."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colonyd.worker.livelog import MOST_LINE, LiveLog
from tests.cli.support import COLONY, ENVIRON, Worker, colony, shown
from tests.support.daemons import Daemon

Start = Callable[..., Worker]


@pytest.fixture
def start(lone_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a worker of the test's own type with one function."""
    name = f"w{abs(hash(request.node.name)) % 10**8}"
    workers: list[Worker] = []

    def make(command: str, *more: str) -> Worker:
        words = [*COLONY, "--home", str(lone_daemon.home), "--json"]
        words += ["--server", f"127.0.0.1:{lone_daemon.port}", "worker", "--func", f"f={command}"]
        workers.append(Worker([*words, "--name", name, "--type", name, *more]))
        workers[-1].event("ready")
        return workers[-1]

    make.name = name  # type: ignore[attr-defined]
    yield make
    for worker in workers:
        worker.process.terminate()
        worker.process.communicate(timeout=60)


def submit(daemon: Daemon, start: Start, *args: str) -> str:
    kind = str(vars(start)["name"])
    done = colony(daemon, "run", "--func", "f", "--executor-type", kind, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ODD = ["[NaN]", "[1e999]", '["\\ud800"]', "[9223372036854775808]", "[" * 100 + "]" * 100]


@pytest.mark.slow
def test_an_array_that_the_daemon_would_refuse_is_a_text(
    lone_daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    worker = start(f"cat {tmp_path}/out")
    for text in ODD:
        (tmp_path / "out").write_text(text)
        processid = submit(lone_daemon, start)
        assert worker.event("successful", "failed", "refused")["event"] == "successful"
        found = shown(lone_daemon, processid)
        assert (found["state"], found["out"]) == (2, [text])


@pytest.mark.slow
def test_what_a_command_started_dies_with_a_killed_worker(
    lone_daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    worker = start(f"(sleep 1000 & echo $! >{pids}; wait) & wait")
    submit(lone_daemon, start)
    child = os.pidfd_open(int(pids.read_text()))
    try:
        worker.process.kill()
        readable, _, _ = select.select([child], [], [], 60)
        assert readable, "the command goes on without its worker"
    finally:
        os.close(child)


@pytest.mark.slow
def test_a_broken_result_is_set_aside_and_told(
    lone_daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    results = lone_daemon.home / "results" / str(vars(start)["name"])
    results.mkdir(parents=True)
    contents = {"a": b"", "b": b"\xff", "c": b"[]", "d": b'{"out": 3, "errors": []}'}
    for name, data in contents.items():
        (results / f"{name}.json").write_bytes(data)
    worker = start("echo done")
    told = [seen["file"] for seen in worker.seen if seen["event"] == "set aside"]
    assert sorted(told) == [str(results / f"{name}.unusable") for name in contents]
    assert {path.name: path.read_bytes() for path in results.iterdir()} == {
        f"{name}.unusable": data for name, data in contents.items()
    }


@pytest.mark.slow
def test_a_full_disk_ends_no_worker(lone_daemon: Daemon, start: Start) -> None:
    """Its other slots go on, and the result is offered from memory."""
    worker = start("echo done", "--slots", "2")
    # As a full disk does: no write to a file succeeds.
    resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (0, 0))
    for _ in range(3):
        processid = submit(lone_daemon, start)
        assert worker.event("not kept")["next"] == "free the disk"
        worker.event("successful")
        assert shown(lone_daemon, processid)["out"] == ["done"]


@pytest.mark.slow
def test_slots_start_their_commands_at_the_same_time(lone_daemon: Daemon, start: Start) -> None:
    """A full queue is there before the worker is."""
    processids = [submit(lone_daemon, start) for _ in range(8)]
    worker = start("echo done", "--slots", "4")
    for _ in processids:
        worker.event("successful")
    assert [shown(lone_daemon, processid)["state"] for processid in processids] == [2] * 8


@contextmanager
def following(daemon: Daemon, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [*COLONY, "--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON, cwd="/"
    ) as process:
        yield process


@pytest.mark.slow
def test_stderr_and_progress_are_seen_while_the_command_runs(
    lone_daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    start(f"echo begun >&2; echo 40% >$COLONYD_PROGRESS; cat {gate}; echo over >&2; printf end >&2")
    kind = str(vars(start)["name"])
    run = ["run", "--func", "f", "--executor-type", kind, "--follow"]
    with following(lone_daemon, *run) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        live = [process.stderr.readline(), process.stderr.readline()]
        assert live == ["begun\n", "progress: 40%\n"]
        newest = json.loads(
            colony(lone_daemon, "process", "ls", "--executor-type", kind, "--json").stdout
        )[0]
        assert newest["state"] == 1
        with following(lone_daemon, "process", "logs", "-f", newest["processid"]) as logs:
            assert logs.stdout is not None
            assert [logs.stdout.readline() for _ in range(2)] == live
            gate.write_text("done\n")
            assert process.stderr.readlines() == ["over\n", "end\n"]
            assert process.stdout.read() == "done\n"
            assert logs.stdout.readlines() == ["over\n", "end\n"]
            assert logs.wait(60) == 0
        assert process.wait(60) == 0


def test_a_feed_is_bounded() -> None:
    feed = LiveLog(most_message=100, most_process=300)
    feed.stderr(b"x" * 50 + b"\n")
    feed.stderr(b"y" * 60 + b"\nz\n")
    assert feed.take() == "x" * 50 + "\nz\n(1 lines left out: more than is logged of a second)"
    assert feed.take() == ""
    for percent in range(100):
        feed.progress(b"%d%%\n" % percent)
    assert feed.take() == "progress: 99%"
    feed.stderr(b"w" * 10 * MOST_LINE)
    assert feed.take() == ""
    feed.stderr(b"a\n" * 40)
    feed.take()
    feed.stderr(b"b\n" * 40)
    assert feed.take().endswith("it has logged enough)")
    feed.stderr(b"c\n")
    assert feed.take() == ""


def test_a_feed_takes_what_has_no_newline() -> None:
    feed = LiveLog()
    feed.stderr("ä".encode()[:1])
    feed.stderr("ä".encode()[1:] + b"\r\nend")
    assert feed.take() == "ä"
    feed.finish()
    assert feed.take() == "end"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "size"),
    [
        ("print('ü' * 3_900_000)", 3_900_000),
        ("print([1] * 100_001)", 300_003),  # an array of more than a daemon takes is one text
    ],
)
def test_what_the_worker_lets_pass_the_daemon_takes(
    lone_daemon: Daemon, start: Start, program: str, size: int
) -> None:
    worker = start(f'{sys.executable} -X utf8 -c "{program}"')
    processid = submit(lone_daemon, start)
    worker.event("successful", "failed")
    out = shown(lone_daemon, processid)["out"]
    assert [len(text) for text in out] == [size]
