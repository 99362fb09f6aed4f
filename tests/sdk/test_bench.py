"""The bench: each call that reads has a row, each step runs, and figures are judged right."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from bench import forwards, load, raw, resting, run, sizes, trips, workers
from bench.load import Line
from bench.report import report
from bench.sizes import Cost, is_marked
from cli.ops.rpc import all_calls
from tests.support.daemons import REPOSITORY

STEPS = [
    "hand-over",
    "submit c=1",
    "submit c=16",
    "getprocess c=1",
    "getprocess c=16",
    "wait 100",
    "cycle E=1 depth=100",
    "cycle E=8 depth=100",
    "cycle E=32 depth=100",
]


def test_every_call_that_reads_or_assigns_has_a_row() -> None:
    reading = {
        call.payloadtype
        for call in all_calls()
        # A listing is known by its answer, or by being heavy, should its name not say so.
        if call.payloadtype.startswith(("get", "assign", "resolvegenerator"))
        or call.reply.endswith("[]")
        or call.heavy
    }
    rows = {row.call for row in sizes.ROWS}
    assert reading == rows | sizes.SINGLE | sizes.ELSEWHERE
    assert not rows & (sizes.SINGLE | sizes.ELSEWHERE)


def test_no_listing_passes_for_a_single_thing() -> None:
    single = [call for call in all_calls() if call.payloadtype in sizes.SINGLE]
    assert {call.payloadtype for call in single} == sizes.SINGLE
    assert [call.payloadtype for call in single if call.reply.endswith("[]") or call.heavy] == []


@pytest.mark.parametrize(
    ("costs", "marked"),
    [
        ([Cost(1, 100), Cost(1.2, 100)], False),
        ([Cost(1, 100), Cost(1.8, 100)], False),  # as the logarithm does
        ([Cost(1, 100), Cost(4, 100)], True),
        ([Cost(1, 100), Cost(90, 10_000)], False),  # as what it returns
        ([Cost(1, 100), Cost(400, 10_000)], True),
        ([Cost(0.01, 100), Cost(0.2, 100)], False),  # less than the clock tells
    ],
)
def test_growth_is_marked(costs: list[Cost], marked: bool) -> None:
    assert is_marked(costs, (300, 30_000)) is marked


def line(rate: float, **more: Any) -> dict[str, Any]:
    return {"rate": rate, **more}


@pytest.mark.parametrize(
    ("step", "ours", "theirs", "expected"),
    [
        ("submit c=16", line(600), line(100), True),
        ("submit c=16", line(599), line(100), False),
        ("submit c=16", line(599), None, None),
        ("cycle E=8 depth=10000", line(90), None, True),
        ("cycle E=8 depth=10000", line(89), line(1), False),
        ("cycle E=8 depth=100000", line(80), None, True),
        ("hand-over", line(1, p50=2.4, p99=5.0), None, True),
        ("hand-over", line(1, p50=2.4, p99=5.1), None, False),
        ("wait 100", line(1), line(1), None),
    ],
)
def test_what_is_wanted(
    step: str, ours: dict[str, Any], theirs: dict[str, Any] | None, expected: bool | None
) -> None:
    lines = {"cycle E=8 depth=100": line(100), step: ours}
    assert run.judge(step, lines, {step: theirs} if theirs else {})[1] is expected


def test_the_raw_limit_is_of_as_many_transactions() -> None:
    limits = {
        name: raw.Raw(rate=3000, p50=0.5, client=0, etcd=0)
        for name in ("txn@1", "txn@16", "txn@32", "get@16")
    }
    assert run.limit("submit c=16", limits) == 3000
    assert run.limit("cycle E=32 depth=100", limits) == 1000
    assert run.limit("getprocess c=16", limits) == 3000
    assert run.limit("hand-over", limits) == 0.5


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_reply_in_chunks_is_read_whole(piece: int) -> None:
    """Go's server sends so what is longer than its buffer."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole = head + b"5\r\nhello\r\na\r\n, the wire\r\n0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                for start in range(0, len(whole), piece):
                    connection.sendall(whole[start : start + piece])
                connection.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        one = Line(server.getsockname()[1])
        while (reply := one.receive()) is None:
            pass
        one.socket.close()
        thread.join()
    assert (reply.status, reply.body) == (200, b"hello, the wire")


@pytest.mark.parametrize("module", [forwards, load, resting, run, sizes, trips, workers])
def test_help_has_an_example_as_it_is_written(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main(["--help"])
    shown = capsys.readouterr().out
    command = "scripts/bench" if module is run else f"python -m {module.__name__}"
    assert shown.startswith(f"usage: {command} ")
    assert re.search(rf"^    (echo .* )?{command} ", shown, re.M)


@pytest.mark.parametrize("module", [forwards, resting, run, sizes, workers])
def test_a_place_that_is_none_is_told_in_a_line(
    module: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        module.main([f"--dir={tmp_path}/none"])
    shown = capsys.readouterr().err
    assert shown.endswith(f"argument --dir: {tmp_path}/none is not a directory; see --help\n")
    assert shown.count("\n") == 1


def _dropped(place: Path) -> None:
    (place / "home").mkdir()
    (place / "home" / "colonyd.log").write_text("first\nlast line\n")
    raise ConnectionError("the server closed the connection")


def _gone(place: Path) -> None:
    async def fail() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, _dropped, place)

    trio.run(fail)


@pytest.mark.parametrize("measure", [_dropped, _gone])
def test_a_failure_in_the_middle_is_told_in_a_line(
    measure: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = Namespace(dir=tmp_path, keep=False)
    assert report("sizes", options, measure, lambda found: [str(found)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sizes: stopped in the middle: the server closed the connection\n")
    assert "last line\n" in err
    assert list(tmp_path.iterdir()) == []
    options.keep = True
    assert report("sizes", options, measure, lambda found: [str(found)]) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mistake_of_the_bench_itself_is_not_hidden(tmp_path: Path) -> None:
    def mistaken(place: Path) -> None:
        raise KeyError("processid")

    with pytest.raises(KeyError):
        report("sizes", Namespace(dir=tmp_path, keep=False), mistaken, lambda found: [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("module", ["sizes", "forwards", "resting"])
def test_a_daemon_that_ends_in_the_middle_is_told_in_a_line(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"bench.{module}", "--quick", f"--dir={tmp_path}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as run:
        try:
            while (pid := _served(tmp_path)) is None:
                assert run.poll() is None
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            _, err = run.communicate(timeout=100)
        finally:
            run.kill()
    assert run.returncode == 1, err
    assert f"{module}: stopped in the middle: " in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def _served(place: Path) -> int | None:
    """Return the id of a daemon below a place that was asked for something already."""
    for log in place.rglob("colonyd.log"):
        text = log.read_text()
        if "colony=" in text or "event=ready" in text:
            home = str(log.parent)
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    words = (process / "cmdline").read_bytes().decode().split("\0")
                    if home in words and any(word.endswith("colonyd") for word in words):
                        return int(process.name)
    return None


def bench(place: Path, *arguments: str) -> str:
    """Run the bench; return its report."""
    command = [sys.executable, "-m", *arguments, f"--dir={place}"]
    return subprocess.check_output(command, cwd=REPOSITORY, text=True, timeout=400)


@pytest.mark.slow
def test_all_steps_are_in_the_table(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    shown = bench(
        tmp_path, "bench.run", "--only=load", "--quick", "--seconds=0.2", f"--json={figures}"
    )
    found = json.loads(figures.read_text())
    assert list(found["steps"]) == STEPS
    for step, each in found["steps"].items():
        # Nothing is left to submit where the steps before left just as many waiting.
        assert each["rate"] > 0 or step.startswith("wait ")
        assert set(each["cpu_ms"]) == {"client", "colonyd", "etcd"}
        assert re.search(rf"^{step} ", shown, re.M)
    assert "resident, MiB, at rest: colonyd " in shown


@pytest.mark.slow
def test_all_sizes_are_in_the_table(tmp_path: Path) -> None:
    shown = bench(tmp_path, "bench.sizes", "--sizes", "10", "20")
    for row in sizes.ROWS:
        assert re.search(rf"^{row.call}: {re.escape(row.about)} +[\d.]+ +[\d.]+ ", shown, re.M)
    assert "colony backup: everything" in shown


@pytest.mark.slow
def test_all_ways_to_call_a_function_are_in_the_table(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    few = ("--calls=2", "--rounds=2", "--items=10")
    shown = bench(tmp_path, "bench.workers", *few, f"--json={figures}")
    found = json.loads(figures.read_text())
    ways = {each["way"]: each for each in found["ways"]}
    assert list(ways) == [
        "colonyd to colonyd, sync",
        "colonyd to colonyd, async",
        "pycolonies to pycolonies",
        "colonyd to pycolonies",
        "pycolonies to colonyd",
        "signed calls alone",
        "plain HTTP POST",
    ]
    for way, each in ways.items():
        assert each["calls"] == 4
        assert {"caller", "daemon", "etcd"} <= set(each["cpu_ms"])
        assert re.search(rf"^{way} +[\d.]+ +[\d.]+ +[\d.]+x +[\d.]+x ", shown, re.M)
    assert ways["pycolonies to pycolonies"]["of pycolonies"] == 1
    assert [len(rates) for rates in found["map"].values()] == [1, 1, 1, 1]
    assert set(found["ready"]) == {"colonyd", "pycolonies"}
    assert list(tmp_path.iterdir()) == [figures]
