"""The bench of workers in Python: what a call of a function costs beside pycolonies and bare HTTP.

    python -m bench.workers [--quick] [--calls N] [--rounds N] [--items N] [--json FILE]

One daemon, and workers of each kind, which are programs of their own. A call goes from its
submission to its output at the caller, one at a time; the ways take turns, so that their ratios
mean something on a machine that others use. After that, many calls at once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import trio

from bench.daemon import BenchError, child_called, free_port, machine
from bench.forwards import Side
from bench.load import Line, cpu_seconds, message, percentile
from bench.options import CommandLine
from bench.report import report
from colonyd import Client, Conditions, Settings, Spec

SLOTS = 8  # of the workers that run several at a time
_START = 60.0  # seconds until a worker is ready
_LONGEST = 60  # seconds that a caller waits for one process
_THEIRS = "pycolonies to pycolonies"  # what the others are compared with
_FLOOR = "signed calls alone"

# As the README of each package shows it; stderr has a line that begins with "ready".
OURS = """
import sys
from colonyd import Worker

worker = Worker(sys.argv[1], type=sys.argv[1], slots=int(sys.argv[2]))

@worker.function
def echo(text: str) -> str:
    return text

@worker.function
async def aecho(text: str) -> str:
    return text

worker.run()
"""
THEIRS = """
import os, sys
from crypto import Crypto
from pycolonies import Colonies, ColoniesConnectionError

name, kind, port, colony = sys.argv[1:]
owner = os.environ["BENCH_OWNER"]
client = Colonies("127.0.0.1", int(port), tls=False)
key = Crypto().prvkey()
executor = {"executorname": name, "executorid": Crypto().id(key), "colonyname": colony}
client.add_executor(executor | {"executortype": kind}, owner)
client.approve_executor(colony, name, owner)
client.add_function(colony, name, "echo", key)
print("ready", file=sys.stderr, flush=True)
while True:
    try:
        process = client.assign(colony, 10, key)
    except ColoniesConnectionError:
        continue  # there was none
    client.close(process.processid, [process.spec.args[0]], key)
"""
PLAIN = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body go together

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *of):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo)
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
"""


class Program:
    """A program in a process of its own, which has said that it is ready."""

    def __init__(self, place: Path, name: str, text: str, *words: str, **environ: str) -> None:
        """Start it and wait. Raises BenchError."""
        log = place / f"{name}.log"
        (place / f"{name}.py").write_text(text)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COLON")}
        root = str(Path(__file__).resolve().parent.parent)
        begun = time.perf_counter()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, place / f"{name}.py", *words],
                env={**kept, "PYTHONPATH": root, **environ},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        try:
            while not any(line.startswith("ready") for line in log.read_text().splitlines()):
                if self._process.poll() is not None or time.perf_counter() - begun > _START:
                    raise BenchError(f"{name} did not get ready: {log.read_text()[-500:]}")
                time.sleep(0.002)
        except BenchError:
            self.stop()
            raise
        self.pid = self._process.pid
        self.ready = time.perf_counter() - begun  # seconds
        self.ready_cpu = cpu_seconds(self.pid)

    def stop(self) -> None:
        """End it at once: nothing of it is needed afterwards."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Way:
    """One way to make a call: `turn` makes so many and returns the seconds of each."""

    name: str
    turn: Callable[[int], Awaitable[list[float]]]
    worker: Program | None = None


def checked(found: object, expected: object) -> None:
    """Raise BenchError for a wrong output: figures of a failing call are worth nothing."""
    if found != expected:
        raise BenchError(f"the output is {found!r}, not {expected!r}")


class Site:
    """A daemon, its workers, and the callers of each kind."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        """Start them all. Raises BenchError."""
        pycolonies = _pycolonies()
        self.place, self._stack = place, stack
        self.side = Side.start(place / "home", "dev")
        stack.callback(self.side.daemon.stop)
        self.settings = Settings.find(home=self.side.daemon.home, environ={})
        self.user = self.side.key("user").hex
        self.func_spec = pycolonies.func_spec
        self.pycolonies = pycolonies.Colonies("127.0.0.1", self.side.daemon.port, tls=False)
        etcd = child_called(self.side.daemon.pid, "etcd")
        self.pids = {"daemon": self.side.daemon.pid} | ({"etcd": etcd} if etcd else {})
        self.ours = self.our_worker("ours", 1)
        self.theirs = self.their_worker("theirs", "theirs")
        port = free_port()
        self.plain = self._started("plain", PLAIN, str(port))
        self._http = Line(port)
        self._line = Line(self.side.daemon.port)
        stack.callback(self._http.socket.close)
        stack.callback(self._line.socket.close)

    def _started(self, name: str, text: str, *words: str, **environ: str) -> Program:
        program = Program(self.place, name, text, *words, **environ)
        self._stack.callback(program.stop)
        return program

    def our_worker(self, name: str, slots: int) -> Program:
        """Start a worker of colonyd's, whose type is its name."""
        home = str(self.side.daemon.home)
        return self._started(name, OURS, name, str(slots), COLONYD_HOME=home)

    def their_worker(self, name: str, kind: str) -> Program:
        """Start an executor of pycolonies'."""
        words = (name, kind, str(self.side.daemon.port), self.side.name)
        return self._started(name, THEIRS, *words, BENCH_OWNER=self.side.key("colony").hex)

    def ways(self, colony: Client) -> list[Way]:
        """Return all ways, in the order of their turns."""
        ours, theirs = partial(self._by_colonyd, colony), self._by_pycolonies
        return [
            Way("colonyd to colonyd, sync", partial(ours, "echo", "ours"), self.ours),
            Way("colonyd to colonyd, async", partial(ours, "aecho", "ours"), self.ours),
            Way(_THEIRS, partial(theirs, "theirs"), self.theirs),
            Way("colonyd to pycolonies", partial(ours, "echo", "theirs"), self.theirs),
            Way("pycolonies to colonyd", partial(theirs, "ours"), self.ours),
            Way(_FLOOR, self._signed),
            Way("plain HTTP POST", self._posted, self.plain),
        ]

    async def _by_colonyd(self, colony: Client, function: str, kind: str, n: int) -> list[float]:
        spec, seconds = _spec(kind), []
        for number in range(n):
            begun = time.perf_counter()
            found = await colony.run(function, f"hello {number}", spec=spec, timeout=_LONGEST)
            seconds.append(time.perf_counter() - begun)
            checked(found, f"hello {number}")
        return seconds

    async def _by_pycolonies(self, kind: str, n: int) -> list[float]:
        def calls() -> list[float]:
            seconds = []
            for number in range(n):
                begun = time.perf_counter()
                process = self.submitted(kind, f"hello {number}")
                ended = self.pycolonies.wait(process, _LONGEST, self.user)
                seconds.append(time.perf_counter() - begun)
                checked(ended.output, [f"hello {number}"])
            return seconds

        return await trio.to_thread.run_sync(calls)

    def submitted(self, kind: str, text: str) -> Any:
        """Submit a call as a user of pycolonies, and return the process."""
        spec = self.func_spec("echo", [text], self.side.name, kind, maxexectime=60, maxretries=3)
        return self.pycolonies.submit_func_spec(spec, self.user)

    async def _signed(self, n: int) -> list[float]:
        """Make the four calls of a process in a row: submit, assign, close, and get its output.

        The first two are signed beforehand; the others name the process.
        """
        self._line.renew()
        key, call = self.side.keys[0], self._line.call
        submit = self.side.submission(self.side.name)
        wanted = {"colonyname": self.side.name, "timeout": 10}
        assign = message("assignprocessmsg", key, **wanted)
        seconds = []
        for _ in range(n):
            begun = time.perf_counter()
            call(submit).value()
            named = {"processid": call(assign).value()["processid"]}
            call(message("closesuccessfulmsg", key, **named, out=["hello"])).value()
            ended = call(message("getprocessmsg", key, **named)).value()
            seconds.append(time.perf_counter() - begun)
            checked(ended["out"], ["hello"])
        return seconds

    async def _posted(self, n: int) -> list[float]:
        """Post the bytes of a submission to a server that sends them back."""
        self._http.renew()
        request, seconds = self.side.submission(self.side.name), []
        for _ in range(n):
            begun = time.perf_counter()
            self._http.call(request).whole()
            seconds.append(time.perf_counter() - begun)
        return seconds

    # -- many at once ------------------------------------------------------------------------------

    def maps(self, colony: Client) -> dict[str, Callable[[int], Awaitable[None]]]:
        """Start the workers with several places; return what runs a function on so many items."""
        self.our_worker("ours-8", SLOTS)
        for number in range(SLOTS):
            self.their_worker(f"theirs-8-{number}", "theirs-8")
        return {
            "colonyd, 1 slot": partial(self._map, colony, "ours"),
            "pycolonies, 1 executor": partial(self._map_theirs, "theirs"),
            f"colonyd, {SLOTS} slots": partial(self._map, colony, "ours-8"),
            f"pycolonies, {SLOTS} executors": partial(self._map_theirs, "theirs-8"),
        }

    async def _map(self, colony: Client, kind: str, n: int) -> None:
        items = [f"hello {number}" for number in range(n)]
        checked(await colony.map("echo", items, spec=_spec(kind)), items)

    async def _map_theirs(self, kind: str, n: int) -> None:
        """Submit all, then wait for each: pycolonies has no call for this."""

        def calls() -> None:
            items = [f"hello {number}" for number in range(n)]
            processes = [self.submitted(kind, text) for text in items]
            ended = [self.pycolonies.wait(each, 10 * _LONGEST, self.user) for each in processes]
            checked([each.output for each in ended], [[text] for text in items])

        await trio.to_thread.run_sync(calls)


def _pycolonies() -> Any:
    """Return the package. Raises BenchError where it is not: `scripts/bench` does without."""
    try:
        return import_module("pycolonies")
    except ImportError:
        raise BenchError("pycolonies is not installed: run scripts/setup") from None


def _spec(kind: str) -> Spec:
    return Spec(conditions=Conditions(executortype=kind), maxexectime=60, maxretries=3)


def imports(rounds: int) -> dict[str, float]:
    """Return the median seconds that an interpreter takes to import each package, all in."""
    lines = {
        "nothing": "pass",
        "colonyd's Worker": "from colonyd import Worker",
        "colonyd's Client": "from colonyd import Client",
        "pycolonies": "from pycolonies import Colonies",
    }
    took: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds):
        for name, text in lines.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True)
            took[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


async def turns(site: Site, colony: Client, calls: int, rounds: int) -> list[dict[str, Any]]:
    """Return the figures of each way, from turns of `calls` calls."""
    ways = site.ways(colony)
    for way in ways:
        await way.turn(3)
    seconds: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    used: dict[str, dict[str, float]] = {way.name: {} for way in ways}
    for _ in range(rounds):
        for way in ways:
            pids = site.pids | ({"worker": way.worker.pid} if way.worker else {})
            before = {"caller": time.process_time()} | {n: cpu_seconds(p) for n, p in pids.items()}
            seconds[way.name].append(sorted(await way.turn(calls)))
            after = {"caller": time.process_time()} | {n: cpu_seconds(p) for n, p in pids.items()}
            total = used[way.name]
            for name, cpu in after.items():
                total[name] = total.get(name, 0.0) + cpu - before[name]
        print(".", end="", file=sys.stderr, flush=True)
    medians = {name: [percentile(turn, 0.5) for turn in each] for name, each in seconds.items()}
    every = {
        name: sorted(second for turn in each for second in turn) for name, each in seconds.items()
    }
    return [
        {
            "way": name,
            "calls": len(every[name]),
            "p50": statistics.median(medians[name]) * 1e3,
            "p99": percentile(every[name], 0.99) * 1e3,
            "of pycolonies": ratio(medians[name], medians[_THEIRS]),
            "of the floor": ratio(medians[name], medians[_FLOOR]),
            "cpu_ms": {who: cpu / len(every[name]) * 1e3 for who, cpu in used[name].items()},
        }
        for name in medians
    ]


def ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of each turn."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


async def throughput(site: Site, colony: Client, items: int, rounds: int) -> dict[str, list[float]]:
    """Return the outputs a second of each map, by turns."""
    maps = site.maps(colony)
    rates: dict[str, list[float]] = {name: [] for name in maps}
    for _ in range(rounds):
        for name, run in maps.items():
            begun = time.perf_counter()
            await run(items)
            rates[name].append(items / (time.perf_counter() - begun))
            print(".", end="", file=sys.stderr, flush=True)
    return rates


async def _measure(site: Site, calls: int, rounds: int, items: int) -> dict[str, Any]:
    async with Client(site.settings) as colony:
        found = await turns(site, colony, calls, rounds)
        rates = await throughput(site, colony, items, max(1, rounds // 3))
    return {"ways": found, "items": items, "map": rates}


def measure(place: Path, calls: int, rounds: int, items: int) -> dict[str, Any]:
    """Return everything that is measured, as plain values."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        site = Site(place, stack)
        ready = {
            name: {"seconds": program.ready, "cpu": program.ready_cpu}
            for name, program in (("colonyd", site.ours), ("pycolonies", site.theirs))
        }
        figures = trio.run(_measure, site, calls, rounds, items)
    return {
        "machine": machine(place),
        "load": [load, os.getloadavg()[0]],
        "turns": {"calls": calls, "rounds": rounds},
        "import": imports(rounds),
        "ready": ready,
        **figures,
    }


def show(found: dict[str, Any]) -> Iterator[str]:
    """Return the report as text; times and CPU in ms for each call."""
    print(file=sys.stderr)
    before, after = found["load"]
    how = found["turns"]
    yield f"{found['machine']}; load {before:.1f} before, {after:.1f} after"
    yield f"{how['rounds']} turns of {how['calls']} calls, one at a time; CPU in ms for each call"
    yield ""
    yield (
        f"{'caller to worker':27}{'p50 ms':>8}{'p99 ms':>8}{'of pycolonies':>15}"
        f"{'of the floor':>14}{'caller':>9}{'worker':>8}{'daemon':>8}{'etcd':>7}"
    )
    for line in found["ways"]:
        cpu = line["cpu_ms"]
        parts = (f"{cpu[who]:.2f}" if who in cpu else "" for who in ("worker", "daemon", "etcd"))
        worker, daemon, etcd = parts
        yield (
            f"{line['way']:27}{line['p50']:8.2f}{line['p99']:8.2f}{line['of pycolonies']:14.2f}x"
            f"{line['of the floor']:13.2f}x{cpu['caller']:9.2f}{worker:>8}{daemon:>8}{etcd:>7}"
        )
    yield ""
    rates = {name: statistics.median(each) for name, each in found["map"].items()}
    for name, rate in rates.items():
        yield f"map over {found['items']:,} items, {name}: {rate:.1f} a second"
    ours, theirs, ours8, theirs8 = found["map"].values()
    yield f"map, colonyd of pycolonies: {ratio(ours, theirs):.1f}x, {ratio(ours8, theirs8):.1f}x"
    yield ""
    for name, seconds in found["import"].items():
        yield f"interpreter with {name}: {seconds:.2f} s"
    for name, each in found["ready"].items():
        yield f"worker of {name}, start to ready: {each['seconds']:.2f} s, {each['cpu']:.2f} s CPU"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = CommandLine("python -m bench.workers", __doc__)
    parser.add_argument("--quick", action="store_true", help="3 turns of 10 calls, 50 items")
    parser.add_argument("--calls", type=int, default=30, help="calls of one turn")
    parser.add_argument(
        "--rounds", type=int, default=9, help="turns of each way; a map has a third"
    )
    parser.add_argument("--items", type=int, default=1000, help="items of a map")
    parser.add_places(figures="everything")
    options = parser.parse_args(arguments)
    calls, rounds, items = options.calls, options.rounds, options.items
    if options.quick:
        calls, rounds, items = 10, 3, 50
    return report("workers", options, lambda place: measure(place, calls, rounds, items), show)


if __name__ == "__main__":
    sys.exit(main())
