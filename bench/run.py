"""Measures a daemon of its own, beside the raw limit of etcd and, if asked, an upstream server.

    scripts/bench                                      everything; --quick: less of everything
    scripts/bench --only load                          one section; of `load`, `sizes` and others
    scripts/bench --upstream http://127.0.0.1:51080 --key KEY \\
        --upstream-pid server=PID --upstream-pid postgres=PID

Section `load` is the table of rates: each step is run against colonyd and then against upstream's
server, by the same code (`bench.load`). The other sections are modules with a command line of their
own. Here are the order of things and the judgement.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio

from bench import raw
from bench.daemon import BenchError, Daemon, child_called, machine, resident
from bench.options import CommandLine, named_pid
from bench.report import report

ROOT = Path(__file__).resolve().parent.parent
# Modules that measure other things than rates: `python -m bench.NAME [--quick] --dir DIR`.
SECTIONS = {
    "sizes": "cost of each call that lists or assigns, at three sizes",
    "forwards": "processes between two nodes",
    "resting": "memory, start, wake-ups and bytes written",
    "workers": "calls of functions in Python, beside pycolonies",
}
# What we ask of ourselves: so many times upstream's rate in the same run, ...
TIMES = {
    "submit c=1": 3.5,
    "submit c=16": 6.0,
    "cycle E=1 depth=100": 4.5,
    "cycle E=8 depth=100": 5.5,
    "cycle E=32 depth=100": 8.0,
    "getprocess c=1": 3.6,
    "getprocess c=16": 4.5,
}
# ... so much of the rate with 100 waiting processes, ...
OF_SHALLOW = {10_000: 0.9, 100_000: 0.8}
# ... and at most so many ms, p50 and p99, and MiB.
HAND_OVER = (2.4, 5.0)
RESIDENT = {"at rest": 65.0, "wait 100000": 150.0}
UPSTREAMS_DEPTH = 10_000  # more takes upstream's server minutes to fill
Line = dict[str, Any]


@dataclass
class Loaded:
    """A server under load: the process that makes it, and what each step gave."""

    name: str
    pids: dict[str, int]
    maker: subprocess.Popen[str]
    lines: dict[str, Line]

    @classmethod
    def begin(cls, name: str, url: str, key: str, seconds: float, pids: dict[str, int]) -> Loaded:
        """Start the load of a server; it waits for the first step."""
        command = [sys.executable, "-m", "bench.load", url, key, f"--seconds={seconds}"]
        command += [f"--pid={each}={pid}" for each, pid in pids.items()]
        pipe = subprocess.PIPE
        maker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        return cls(name, pids, maker, {})

    def step(self, step: str) -> None:
        """Run a step. Raises BenchError when it fails."""
        assert self.maker.stdin is not None
        assert self.maker.stdout is not None
        try:
            self.maker.stdin.write(step + "\n")
            self.maker.stdin.flush()
        except OSError:
            text = ""
        else:
            text = self.maker.stdout.readline()
        if not text:
            raise BenchError(f"{self.name}, {step}: the load failed, see above")
        line = json.loads(text)
        line["resident"] = self.resident()
        self.lines[step] = line
        print(".", end="", file=sys.stderr, flush=True)

    def resident(self) -> dict[str, float]:
        """Return the resident memory of each process, in MiB."""
        return {name: resident(pid) for name, pid in self.pids.items()}

    def end(self) -> None:
        """Let the load end."""
        assert self.maker.stdin is not None
        self.maker.stdin.close()
        self.maker.wait()


def steps(depths: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Return the steps in order, and how many processes wait during each at least."""
    for step in ("hand-over", "submit c=1", "submit c=16", "getprocess c=1", "getprocess c=16"):
        yield step, 0
    for depth in depths:
        yield f"wait {depth}", depth
        for executors in (1, 8, 32) if depth == min(depths) else (8, 32):
            yield f"cycle E={executors} depth={depth}", depth


def limit(step: str, limits: dict[str, raw.Raw]) -> float:
    """Return the raw limit of a step: rounds a second, or for hand-overs ms; NaN for none."""
    kind, *given = step.split()
    width = given[0].partition("=")[2] if given else ""
    if kind == "submit":
        return limits[f"txn@{width}"].rate
    if kind == "cycle":  # submit, assign, close
        return limits[f"txn@{width}"].rate / 3
    if kind == "getprocess":
        return limits[f"get@{width}"].rate
    if kind == "hand-over":  # one transaction stores and assigns
        return limits["txn@1"].p50
    return math.nan


def judge(step: str, ours: dict[str, Line], theirs: dict[str, Line]) -> tuple[str, bool | None]:
    """Return what is wanted of a step, and whether it is reached; None: not to be known."""
    line = ours[step]
    if step == "hand-over":
        p50, p99 = HAND_OVER
        return f"{p50}/{p99:.0f} ms", line["p50"] <= p50 and line["p99"] <= p99
    if step in TIMES:
        times = TIMES[step]
        reached = line["rate"] >= times * theirs[step]["rate"] if step in theirs else None
        return f"{times}x", reached
    kind, _, depth = step.partition(" depth=")
    shallow = ours.get(f"{kind} depth=100")
    if depth and int(depth) in OF_SHALLOW and shallow is not None:
        share = OF_SHALLOW[int(depth)]
        return f"{100 * share:.0f} % of 100", line["rate"] >= share * shallow["rate"]
    return "", None


def verdict(reached: bool | None) -> str:
    """Return a word for whether a figure is reached."""
    return "" if reached is None else "yes" if reached else "NO"


def table(
    ours: dict[str, Line], theirs: dict[str, Line], limits: dict[str, raw.Raw]
) -> Iterator[str]:
    """Return the steps as lines: of hand-overs, rates are p50/p99 in ms."""
    yield (
        f"{'step':24}{'colonyd':>14}{'upstream':>14}{'ratio':>7}{'wanted':>13} {'':4}"
        f"{'raw':>8}{'of raw':>8}{'p50':>8}{'p99':>8}  CPU ms: client, colonyd, etcd"
    )
    for step, line in ours.items():
        other = theirs.get(step)
        most = limit(step, limits)
        if step == "hand-over":
            rate, beside = (f"{x['p50']:.1f}/{x['p99']:.1f}" if x else "" for x in (line, other))
            ratio = other["p50"] / line["p50"] if other else math.nan
            share = most / line["p50"]
        else:
            rate, beside = (f"{x['rate']:.0f}" if x else "" for x in (line, other))
            ratio = line["rate"] / other["rate"] if other else math.nan
            share = line["rate"] / most
        wanted, reached = judge(step, ours, theirs)
        cpu = line["cpu_ms"]
        told = "".join(f"{cpu.get(name, math.nan):7.3f}" for name in ("client", "colonyd", "etcd"))
        if other:
            rest = (f"{name} {used:.2f}" for name, used in other["cpu_ms"].items())
            told += "  upstream: " + ", ".join(rest)
        yield (
            f"{step:24}{rate:>14}{beside:>14}{_number(ratio, 'x'):>7}{wanted:>13}"
            f" {verdict(reached):4}{_number(most):>8}{_number(100 * share, ' %'):>8}"
            f"{line['p50']:8.2f}{line['p99']:8.2f}{told}"
        )


def _number(value: float, unit: str = "") -> str:
    digits = 1 if abs(value) < 20 else 0
    return "" if math.isnan(value) else f"{value:.{digits}f}{unit}"


def memory(
    rest: dict[str, float], ours: dict[str, Line], their_rest: dict[str, float]
) -> Iterator[str]:
    """Return the lines of resident memory."""
    seen = {"at rest": rest} | {
        step: line["resident"] for step, line in ours.items() if step.startswith("wait ")
    }
    for step, sizes in seen.items():
        most = RESIDENT.get(step)
        told = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
        wanted = f" (wanted: {most:.0f}, {verdict(sizes['colonyd'] <= most)})" if most else ""
        beside = ", ".join(f"{name} {size:.1f}" for name, size in their_rest.items())
        end = f"; upstream: {beside}" if beside and step == "at rest" else ""
        yield f"resident, MiB, {step}: {told}{wanted}{end}"


def measure(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the load; return everything measured, as plain values."""
    (place / "raw").mkdir(mode=0o700)
    limits = trio.run(raw.measure, place / "raw", min(options.seconds, 3.0))
    daemon = Daemon(place / "home")
    daemon.home.mkdir(mode=0o700)
    daemon.init()
    loads: list[Loaded] = []
    begin = partial(Loaded.begin, seconds=options.seconds)
    try:
        first_start = daemon.start()
        time.sleep(2)  # at rest: past the imports' and the first listing's garbage
        etcd = child_called(daemon.pid, "etcd")
        pids = {"colonyd": daemon.pid} | ({"etcd": etcd} if etcd else {})
        key = str(daemon.home / "keys" / "server.key")
        ours = begin("colonyd", f"http://127.0.0.1:{daemon.port}", key, pids=pids)
        loads.append(ours)
        rest, their_rest = ours.resident(), dict[str, float]()
        theirs: Loaded | None = None
        if options.upstream:
            pids = dict(options.upstream_pid)
            theirs = begin("upstream", options.upstream, options.key, pids=pids)
            loads.append(theirs)
            their_rest = theirs.resident()
        for step, depth in steps(options.depths):
            ours.step(step)
            if theirs is not None and depth <= UPSTREAMS_DEPTH:
                theirs.step(step)
        stop = daemon.stop()
        restart = daemon.start()
    finally:
        for each in loads:
            each.end()
        daemon.stop()
    return {
        "machine": machine(place),
        "seconds": options.seconds,
        "raw": {name: asdict(limit) for name, limit in limits.items()},
        "steps": ours.lines,
        "upstream": theirs.lines if theirs is not None else {},
        "resident": rest,
        "resident, upstream": their_rest,
        "start": {"first": first_start, "stop": stop, "again, full": restart},
    }


def show(result: dict[str, Any]) -> Iterator[str]:
    """Return the report as lines."""
    print(file=sys.stderr)
    limits = {name: raw.Raw(**each) for name, each in result["raw"].items()}
    start = result["start"]
    yield (
        f"{result['machine']}; {result['seconds']} s a step; rounds a second, of hand-overs p50/p99"
        " in ms"
    )
    yield ""
    yield from table(result["steps"], result["upstream"], limits)
    yield ""
    if not result["upstream"]:
        yield "The ratios need an upstream server in the same run: --upstream URL --key KEY."
    for name, alone in limits.items():
        yield (
            f"raw {name:7}{alone.rate:8.0f} a second, p50 {alone.p50:.2f} ms,"
            f" CPU {alone.client:.3f} ms here and {alone.etcd:.3f} ms in etcd"
        )
    yield from memory(result["resident"], result["steps"], result["resident, upstream"])
    yield (
        f"start to ready: {start['first']:.2f} s new, {start['again, full']:.2f} s with all that "
        f"was loaded; stop: {start['stop']:.2f} s"
    )


def load(options: argparse.Namespace) -> int:
    """Run the section of rates; return the exit code."""
    return report("load", options, lambda place: measure(place, options), show)


def section(name: str, options: argparse.Namespace) -> int:
    """Run another section; return its exit code."""
    command = [sys.executable, "-m", f"bench.{name}", f"--dir={options.dir}"]
    command += ["--quick"] if options.quick else []
    command += ["--keep"] if options.keep else []
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = CommandLine("scripts/bench", __doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each timed step")
    parser.add_argument("--quick", action="store_true", help="1 s a step, 100 waiting only")
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 10_000, 100_000])
    told = "; ".join(f"{name}: {about}" for name, about in SECTIONS.items())
    parser.add_argument(
        "--only", nargs="+", choices=["load", *SECTIONS], metavar="SECTION", help=f"load; {told}"
    )
    parser.add_argument("--upstream", metavar="URL", help="a server of upstream's that runs here")
    parser.add_argument("--key", default="", help="the key of its owner, or the file with it")
    parser.add_argument(
        "--upstream-pid",
        action="append",
        default=[],
        type=named_pid,
        metavar="NAME=PID",
        help="a process of it, whose CPU and memory to show",
    )
    parser.add_places(figures="the load's figures")
    options = parser.parse_args(arguments)
    if options.upstream and not options.key:
        parser.error("--upstream needs --key: the load makes a colony of its own there")
    if options.quick:
        options.seconds, options.depths = min(options.seconds, 1.0), [100]
    failed = 0
    # `setup --no-dev` brings no pycolonies: who asks for what needs it is told so.
    usual = [each for each in SECTIONS if each != "workers" or find_spec("pycolonies")]
    for name in options.only or ["load", *usual]:
        print(f"== {name}", flush=True)
        failed = (load(options) if name == "load" else section(name, options)) or failed
    return failed


if __name__ == "__main__":
    sys.exit(main())
