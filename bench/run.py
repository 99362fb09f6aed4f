"""Starts a daemon of its own, has `bench.load` load it, and prints a table with ratios.

The load and its clock are in `load`; here are the daemon, the raw etcd figure and the judgement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import trio

from bench.load import cpu_seconds
from node.etcd.client import open_client
from node.etcd.txn import Absent, Put, Txn
from node.etcdserver.supervisor import supervise

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 40.0  # seconds
RAW_TASKS = 32
VALUE = b"v" * 1024

# The upstream Go server (February 2026, PostgreSQL 15, fsync on) on a two-core machine, the faster
# of its two settings each time; ratios mean something on a machine like that one only.
UPSTREAM = {
    "hand-over": 6.7,  # ms p50
    "submit c=1": 378.0,
    "submit c=16": 986.0,
    "getprocess c=1": 587.0,
    "getprocess c=16": 1649.0,
    "cycle E=1": 86.0,
    "cycle E=8": 214.0,
    "cycle E=32": 224.0,
}
# What we ask of ourselves beside those: at least so many times (hand-over: at most so many ms).
BAR = {"submit": 3.0, "getprocess": 3.0, "cycle": 5.0}
HAND_OVER_BAR = 2.5  # ms p50
RSS_BAR = 80.0  # MiB


class BenchError(Exception):
    """The daemon or the load did not do its part."""


def free_port() -> int:
    """A TCP port that nobody holds at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB; NaN when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return math.nan


def child_called(pid: int, name: str) -> int | None:
    """The child of `pid` whose command is `name`."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == name:
                    return int(child)
    return None


class Daemon:
    """A real `colonyd` in a home of its own on a free port."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        # A developer's own colony must not leak in.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("COLON")}
        self._environ = environ | {
            "COLONYD_HOME": str(home),
            "COLONYD_RPC__HOST": "127.0.0.1",
            "COLONYD_RPC__PORT": str(self.port),
            "COLONYD_FEDERATION__HOST": "127.0.0.1",
            "COLONYD_FEDERATION__PORT": str(free_port()),
            "COLONYD_FEDERATION__INTERFACES": "127.0.0.1",
        }
        self._programs = Path(sys.executable).parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def init(self) -> None:
        """`colony init`."""
        done = subprocess.run(
            [self._programs / "colony", "init"],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise BenchError(f"colony init: {done.stderr.strip() or done.stdout.strip()}")

    def start(self) -> float:
        """Start it; seconds from there until it answers /health with 200."""
        log = self.home / "colonyd.log"
        begun = time.perf_counter()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [self._programs / "colonyd", "--home", self.home],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        while not self._healthy():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            if self._process.poll() is not None:
                raise BenchError(f"colonyd left with {self._process.returncode}:\n{tail}")
            if time.perf_counter() - begun > START_TIMEOUT:
                raise BenchError(f"colonyd not ready after {START_TIMEOUT:.0f} s:\n{tail}")
            time.sleep(0.005)
        return time.perf_counter() - begun

    def _healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as s,
        ):
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return s.recv(64).startswith(b"HTTP/1.1 200")
        return False

    def stop(self) -> float:
        """SIGTERM and wait; the seconds that took. Kills it when it won't go."""
        process, self._process = self._process, None
        if process is None:
            return 0.0
        begun = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BenchError(f"colonyd did not stop within {STOP_TIMEOUT:.0f} s") from None
        return time.perf_counter() - begun


@dataclass(frozen=True)
class Raw:
    """What etcd alone does through our client: a second, and CPU in ms a transaction."""

    rate: float
    client: float
    etcd: float


async def raw_transactions(directory: Path, seconds: float) -> dict[int, Raw]:
    """Transactions through our client on an idle etcd, by number in flight.

    Each creates one key of 1 KiB if it is absent: the least that a guarded write can be.
    """
    found: dict[int, Raw] = {}
    async with trio.open_nursery() as nursery:
        target: str = await nursery.start(partial(supervise, directory, quota_bytes=2 << 30))
        etcd = int((directory / "etcd.pid").read_text().split()[0])
        async with open_client(target) as client:
            for tasks in (1, RAW_TASKS):
                numbers = iter(range(1 << 40))
                end = time.perf_counter() + seconds

                async def writer(
                    width: int = tasks, numbers: Iterator[int] = numbers, end: float = end
                ) -> None:
                    while time.perf_counter() < end:
                        key = f"/raw/{width}/{next(numbers):012d}"
                        done = await client.commit(Txn([Absent(key)], [Put(key, VALUE)]))
                        if not done.succeeded:
                            raise BenchError(f"{key}: not written")

                begun, own, other = time.perf_counter(), time.process_time(), cpu_seconds(etcd)
                async with trio.open_nursery() as writers:
                    for _ in range(tasks):
                        writers.start_soon(writer)
                count = next(numbers)
                found[tasks] = Raw(
                    count / (time.perf_counter() - begun),
                    (time.process_time() - own) / count * 1e3,
                    (cpu_seconds(etcd) - other) / count * 1e3,
                )
        nursery.cancel_scope.cancel()
    return found


def load(daemon: Daemon, seconds: float, depths: Sequence[int]) -> list[dict[str, object]]:
    """Run the load in a process of its own; its lines, shown as they come."""
    etcd = child_called(daemon.pid, "etcd")
    command = [
        sys.executable,
        "-m",
        "bench.load",
        str(daemon.port),
        str(daemon.home / "keys" / "server.key"),
        f"--seconds={seconds}",
        f"--pid=colonyd={daemon.pid}",
        *([f"--pid=etcd={etcd}"] if etcd else []),
        "--depths",
        *map(str, depths),
    ]
    lines: list[dict[str, object]] = []
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for text in process.stdout:
            line: dict[str, object] = json.loads(text)
            if line["step"] != "check":
                lines.append(line)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if process.returncode != 0:
        raise BenchError(f"the load failed with {process.returncode}, see above")
    return lines


def judge(line: dict[str, object]) -> tuple[float | None, str]:
    """Ratio to upstream (more is better) and the verdict against our bar, for one step."""
    step = str(line["step"])
    upstream = UPSTREAM.get(step.partition(" depth=")[0])
    if upstream is None:
        return None, ""
    if step == "hand-over":
        p50 = float(str(line["p50"]))
        return upstream / p50, "ok" if p50 <= HAND_OVER_BAR else f"over {HAND_OVER_BAR} ms"
    ratio = float(str(line["rate"])) / upstream
    want = BAR[step.partition(" ")[0]]
    return ratio, "ok" if ratio >= want else f"under {want:.0f}x"


def table(lines: Sequence[dict[str, object]]) -> Iterator[str]:
    """The steps as text: the client's CPU in percent of one core, the others' in ms a round."""
    yield (
        f"{'step':26}{'rate/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'client':>8}{'colonyd':>9}"
        f"{'etcd':>7}{'upstream':>10}{'ratio':>7}  bar"
    )
    for line in lines:
        cpu, cpu_ms = line["cpu"], line["cpu_ms"]
        assert isinstance(cpu, dict)
        assert isinstance(cpu_ms, dict)
        upstream = UPSTREAM.get(str(line["step"]).partition(" depth=")[0])
        ratio, verdict = judge(line)
        own, etcd = cpu_ms.get("colonyd", math.nan), cpu_ms.get("etcd", math.nan)
        # Hand-overs are paced by the bench, so their rate says nothing.
        rate = "" if line["step"] == "hand-over" else f"{line['rate']:.0f}"
        yield (
            f"{line['step']:26}{rate:>9}{line['p50']:9.2f}{line['p99']:9.2f}"
            f"{100 * cpu.get('client', 0):7.0f}%{own:9.2f}{etcd:7.2f}"
            f"{'' if upstream is None else format(upstream, '.4g'):>10}"
            f"{'' if ratio is None else format(ratio, '.1f') + 'x':>7}  {verdict}"
        ).rstrip()


def filesystem(path: Path) -> str:
    """Type of the file system below `path`: figures on a tmpfs have no fsync in them."""
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def measure(place: Path, seconds: float, depths: Sequence[int]) -> dict[str, object]:
    """The whole run; everything measured, as plain values."""
    (place / "raw").mkdir(mode=0o700)
    raw = trio.run(raw_transactions, place / "raw", seconds)
    daemon = Daemon(place / "home")
    daemon.home.mkdir(mode=0o700)
    daemon.init()
    try:
        first_start = daemon.start()
        time.sleep(2)  # at rest: past the imports' and the first listing's garbage
        rest = resident(daemon.pid)
        etcd = child_called(daemon.pid, "etcd")
        etcd_rest = resident(etcd) if etcd else math.nan
        lines = load(daemon, seconds, depths)
        loaded = resident(daemon.pid)
        stop = daemon.stop()
        restart = daemon.start()
    finally:
        daemon.stop()
    return {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{filesystem(place)}",
        "seconds": seconds,
        "raw": raw,
        "steps": lines,
        "rss": {"rest": rest, "etcd at rest": etcd_rest, "after load": loaded},
        "start": {"first": first_start, "stop": stop, "again, full": restart},
    }


def show(result: dict[str, object]) -> Iterator[str]:
    """The report as text."""
    raw, steps, rss, start = (result[name] for name in ("raw", "steps", "rss", "start"))
    assert isinstance(raw, dict)
    assert isinstance(steps, list)
    assert isinstance(rss, dict)
    assert isinstance(start, dict)
    yield f"{result['machine']}; {result['seconds']} s a step; CPU in ms a round (client: %)"
    yield ""
    yield from table(steps)
    yield ""
    limit = raw[RAW_TASKS].rate / 3
    best = max((line["rate"] for line in steps if line["step"].startswith("cycle")), default=0.0)
    for tasks, alone in raw.items():
        yield (
            f"etcd alone, our client, {tasks:2} in flight: {alone.rate:.0f} txn/s, "
            f"CPU {alone.client:.2f} ms here and {alone.etcd:.2f} ms in etcd"
        )
    yield (
        f"cycles against that limit: {best:.0f} of {limit:.0f} a second = {best / limit:.2f} "
        f"({'ok' if best >= limit / 3 else 'under a third'})"
    )
    yield (
        f"resident at rest: {rss['rest']:.0f} MiB ({'ok' if rss['rest'] <= RSS_BAR else 'over'}; "
        f"etcd {rss['etcd at rest']:.0f}), after the load {rss['after load']:.0f}"
    )
    yield (
        f"start to ready: {start['first']:.2f} s new, {start['again, full']:.2f} s with all that "
        f"was loaded; stop: {start['stop']:.2f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each timed step")
    parser.add_argument("--quick", action="store_true", help="1 s a step, depth 100 only")
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the stores lie")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--keep", action="store_true", help="leave the home and its log in place")
    options = parser.parse_args(arguments)
    seconds, depths = (1.0, [100]) if options.quick else (options.seconds, options.depths)
    place = Path(tempfile.mkdtemp(prefix="cbench-", dir=options.dir))
    try:
        result = measure(place, seconds, depths)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {place}", file=sys.stderr)
        else:
            shutil.rmtree(place, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, default=asdict) + "\n")
    print("\n".join(show(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
