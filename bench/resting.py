"""Measures a daemon that is left alone: its memory, its start, what it wakes up for and writes.

    python -m bench.resting [--quick] [--count 100000] [--seconds 60] [--json FILE]

It makes homes of its own below `--dir`: empty, with waiting processes, and with closed ones. Its
daemon is that of `bench.daemon`.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import trio

from bench.daemon import BenchError, Daemon, child_called, resident
from bench.load import Load, cpu_seconds, message
from bench.options import CommandLine
from bench.report import report
from colonyd.keys import read_key
from node.etcd.client import open_client
from node.etcd.txn import Delete, Op, Put, Txn
from node.etcdserver.supervisor import supervise
from node.host.home import Home, HomeInfo, init_home
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, State
from node.processes.spec import build_process
from node.store.work import processes as store

_TOGETHER = 20  # processes of one transaction, each with up to six puts
_AT_ONCE = 8
# Small writes after the others, as many as etcd reads again when it starts: a store that was not
# filled by large transactions has small ones there.
_SMALL = 2_500
_MARK = "/colonyd/bench"
_SETTLE = 6.0  # seconds after which what is written or freed later has been
_LONGEST = 300.0  # seconds that a daemon may read its queue
# As large as the request of a spec like this, without what the process repeats.
_SUBMISSION = secrets.token_bytes(300)


def writes(info: HomeInfo, count: int, *, closed: bool) -> Iterator[list[Op]]:
    """Yield the puts of `count` new processes, waiting or closed, a process at a time."""
    spec = FunctionSpec(
        funcname="echo",
        args=["hello", "x" * 200],
        maxwaittime=-1,
        maxexectime=600,
        maxretries=3,
        conditions=Conditions(colonyname=info.name, executortype="bench"),
    )
    begun = time.time_ns()
    for number in range(count):
        process = build_process(
            spec,
            processid=new_id(),
            initiatorid=info.user.id,
            initiatorname=info.username,
            colonyname=info.name,
            now=begun + number,
        )
        ops = list(store.submit(process, _SUBMISSION).txn.success)
        if closed:
            ended = store.close(process, 0, State.SUCCESSFUL, begun + number, output=["ok"])
            there = {op.key: op for op in (*ops, *ended.txn.success) if isinstance(op, Put)}
            for op in ended.txn.success:
                if isinstance(op, Delete):
                    there.pop(op.key, None)
            ops = list(there.values())
        yield ops


async def fill(home: Path, count: int, *, closed: bool) -> None:
    """Write processes into the store of a daemon that does not run."""
    info = init_home(home, None, {})
    processes = writes(info, count, closed=closed)
    small = iter(range(_SMALL))

    async with trio.open_nursery() as nursery:
        start = partial(supervise, Home(home).etcd, quota_bytes=8 << 30)
        target: str = await nursery.start(start)
        async with open_client(target, timeout=60) as client:

            async def write() -> None:
                while some := list(islice(processes, _TOGETHER)):
                    await client.commit(Txn([], [op for ops in some for op in ops]))
                for number in small:
                    await client.put(_MARK, b"%d" % number)

            async with trio.open_nursery() as writers:
                for _ in range(_AT_ONCE):
                    writers.start_soon(write)
            await client.delete(_MARK)
        nursery.cancel_scope.cancel()


def disk_bytes(place: Path) -> int:
    """Return the bytes that files below `place` take on the disk."""
    return sum(each.stat().st_blocks * 512 for each in place.rglob("*") if each.is_file())


def written(pid: int) -> int:
    """Return the bytes that a process has had written to the disk."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise BenchError(f"/proc/{pid}/io has no write_bytes")


def switches(pid: int) -> int:
    """Return how often the threads of a process have waited for something, in all."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found += int(line.split()[1])
    return found


@dataclass(frozen=True)
class Pair:
    """The two processes of a running daemon."""

    colonyd: int
    etcd: int

    @classmethod
    def of(cls, daemon: Daemon) -> Pair:
        """Return those of a daemon. Raises BenchError when it has no etcd."""
        etcd = child_called(daemon.pid, "etcd")
        if etcd is None:
            raise BenchError("the daemon has no etcd of its own")
        return cls(daemon.pid, etcd)

    def each(self, measure: Callable[[int], float]) -> dict[str, float]:
        """Return what `measure` says of each."""
        return {"colonyd": measure(self.colonyd), "etcd": measure(self.etcd)}


def difference(later: dict[str, float], before: dict[str, float], by: float) -> dict[str, float]:
    """Return how much each has grown, divided by `by`."""
    return {name: (later[name] - before[name]) / by for name in later}


def start(daemon: Daemon) -> dict[str, object]:
    """Start a daemon; return seconds and CPU seconds until it serves, and memory in MiB later."""
    seconds = daemon.start()
    pair = Pair.of(daemon)
    cpu = pair.each(cpu_seconds)
    until = time.monotonic() + _LONGEST
    while (told := health(daemon.port)) and time.monotonic() < until:
        time.sleep(0.1)
    if told:
        raise BenchError(f"after {_LONGEST:.0f} s the daemon is still {told}")
    time.sleep(_SETTLE)
    whole = pair.each(cpu_seconds)
    return {
        "serves": seconds,
        "cpu until it serves": cpu,
        "cpu until all is read": whole,
        "resident": pair.each(resident),
    }


def health(port: int) -> str:
    """Return what `/health` says beside its status."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return str(answer.read().decode())


def flash(daemon: Daemon, rate: int, seconds: float) -> dict[str, float]:
    """Return the bytes written for each process, `rate` whole cycles a second."""
    load = Load("127.0.0.1", daemon.port, read_key(daemon.home / "keys" / "server.key"), {})
    pair, line, count = Pair.of(daemon), load.lines[0], int(rate * seconds)
    time.sleep(_SETTLE)
    line.renew()  # the daemon may have closed a connection that was idle for so long
    before, begun = pair.each(written), time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        line.call(load.submit()).value()
        process = line.call(load.assign[0]).value()
        done = {"processid": process["processid"], "out": ["ok"]}
        line.call(message("closesuccessfulmsg", load.keys[0], **done)).value()
    time.sleep(_SETTLE)  # etcd's file follows its log some seconds later
    return difference(pair.each(written), before, count)


def idle(daemon: Daemon, seconds: float) -> dict[str, float]:
    """Return the wake-ups a second of a daemon that nobody calls."""
    pair = Pair.of(daemon)
    before = pair.each(switches)
    time.sleep(seconds)
    return difference(pair.each(switches), before, seconds)


def measure(place: Path, count: int, seconds: float) -> dict[str, object]:
    """Return everything that is measured, as plain values."""
    found: dict[str, object] = {"count": count}
    for kind in ("empty", "waiting", "closed"):
        daemon = Daemon(place / kind)
        daemon.home.mkdir(mode=0o700)
        daemon.init()
        try:
            daemon.start()
            daemon.stop()
            if kind == "empty":
                found["home"] = disk_bytes(daemon.home)
            else:
                trio.run(partial(fill, daemon.home, count, closed=kind == "closed"))
            found[kind] = start(daemon)
            if kind == "empty":
                found["idle"] = idle(daemon, seconds)
                found["flash"] = {str(rate): flash(daemon, rate, seconds) for rate in (1, 100)}
        finally:
            daemon.stop()
        shutil.rmtree(daemon.home)
    return found


def show(found: dict[str, Any]) -> Iterator[str]:
    """Return the report as text."""
    yield f"{'':24}{'serves':>9}{'CPU until then':>20}{'CPU, all read':>18}{'resident':>18}"
    yield f"{'':24}{'s':>9}{'colonyd + etcd, s':>20}{'s':>18}{'MiB':>18}"
    for kind in ("empty", "waiting", "closed"):
        name = kind if kind == "empty" else f"{found['count']:,} {kind}"
        row = found[kind]
        pairs = [row[each] for each in ("cpu until it serves", "cpu until all is read")]
        texts = [f"{pair['colonyd']:.1f} + {pair['etcd']:.1f}" for pair in pairs]
        texts.append(f"{row['resident']['colonyd']:.0f} + {row['resident']['etcd']:.0f}")
        yield f"{name:24}{row['serves']:9.2f}{texts[0]:>20}{texts[1]:>18}{texts[2]:>18}"
    yield ""
    yield (
        f"an empty home has {found['home'] / 1e6:.0f} MB on the disk: etcd preallocates its log in"
        " files of 64 MB"
    )
    idle = found["idle"]
    yield f"idle: {idle['colonyd']:.0f} + {idle['etcd']:.0f} wake-ups a second"
    for rate, bytes_ in found["flash"].items():
        kib = {name: value / 1024 for name, value in bytes_.items()}
        yield f"written a process at {rate} a second: {kib['colonyd']:.1f} + {kib['etcd']:.1f} KiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = CommandLine("python -m bench.resting", __doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 processes, 10 s a step")
    parser.add_argument("--count", type=int, default=100_000, help="waiting, and closed, processes")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each timed step")
    parser.add_places(figures="everything")
    options = parser.parse_args(arguments)
    count, seconds = (5_000, 10.0) if options.quick else (options.count, options.seconds)
    return report("resting", options, lambda place: measure(place, count, seconds), show)


if __name__ == "__main__":
    sys.exit(main())
