"""The bench of forwards: two real daemons on loopback, and what a forward costs each of them.

    python -m bench.forwards [--quick] [--count N] [--json FILE]

One colony forwards processes to the other, whose executors close them. The same load inside one
colony, in the same run, gives the ratio.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from bench.daemon import BenchError, Daemon, child_called
from bench.load import Line, Script, cpu_seconds, message, percentile
from bench.options import CommandLine
from bench.report import report
from colonyd.keys import PrivateKey, read_key

EXECUTORS = 8
SENDERS = 16  # connections that submit
LONGEST = 120.0  # seconds until a step is given up
_LOOK = 0.5  # seconds between looks at the connections between the daemons
_UNLIMITED = {"messages": 0}  # of the policy: the bench may send more in a minute than is usual


@dataclass
class Side:
    """One colony of the pair: its daemon, and `EXECUTORS` executors of the type "bench"."""

    daemon: Daemon
    name: str
    keys: list[PrivateKey] = field(
        default_factory=lambda: [PrivateKey.generate() for _ in range(EXECUTORS)]
    )

    @classmethod
    def start(cls, place: Path, name: str) -> Side:
        """Return a colony in a new home, whose daemon serves. Raises BenchError."""
        place.mkdir(mode=0o700)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("COLON")}
        colony = Path(sys.executable).parent / "colony"
        done = subprocess.run(
            [colony, "init", "--home", place, "--name", name],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise BenchError(f"colony init: {done.stderr.strip() or done.stdout.strip()}")
        side = cls(Daemon(place), name)
        side.daemon.start()
        for number, key in enumerate(side.keys):
            executor = f"executor-{number}"
            there = {
                "executorid": key.id,
                "executorname": executor,
                "executortype": "bench",
                "colonyname": name,
            }
            side.call("colony", "addexecutormsg", executor=there)
            side.call("colony", "approveexecutormsg", colonyname=name, executorname=executor)
        return side

    def key(self, name: str) -> PrivateKey:
        """Return a key of the home directory."""
        return read_key(self.daemon.home / "keys" / f"{name}.key")

    def call(self, signer: str, kind: str, **fields: object) -> dict[str, object]:
        """Make one RPC call, signed with a key of the home directory; return its payload."""
        line = Line(self.daemon.port)
        try:
            return line.call(message(kind, self.key(signer), **fields)).value()
        finally:
            line.socket.close()

    def submission(self, colony: str) -> bytes:
        """Return a request that submits one process to a colony."""
        conditions = {"colonyname": colony, "executornames": [], "executortype": "bench"}
        spec = {
            "funcname": "echo",
            "args": ["hello", "x" * 200],
            "maxwaittime": 600,
            "maxexectime": 600,
            "maxretries": 3,
            "conditions": conditions,
        }
        return message("submitfuncspecmsg", self.key("user"), spec=spec)

    def worker(self, number: int, tickets: Iterator[object]) -> Script:
        """Take and close one process for each ticket."""
        key = self.keys[number]
        fields = {"colonyname": self.name, "timeout": 60, "availablecpu": "", "availablemem": ""}
        assign = message("assignprocessmsg", key, **fields)
        for _ in tickets:
            taken = (yield assign).value()
            done = {"processid": taken["processid"], "out": ["ok"]}
            (yield message("closesuccessfulmsg", key, **done)).value()

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far of the daemon and of the etcd below it."""
        pid = self.daemon.pid
        return {"colonyd": cpu_seconds(pid), "etcd": cpu_seconds(child_called(pid, "etcd") or 0)}


class Ends:
    """A WebSocket that tells of each process of type "bench" that ends well at one colony."""

    def __init__(self, side: Side) -> None:
        self.socket = socket.create_connection(("127.0.0.1", side.daemon.port), LONGEST)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self.socket.sendall(self._ws.send(Request("127.0.0.1", "/pubsub")))
        while not any(isinstance(event, AcceptConnection) for event in self._ws.events()):
            self._ws.receive_data(self.socket.recv(65_536))
        wish = {"executortype": "bench", "state": 2, "timeout": 3600, "colonyname": side.name}
        request = message("subscribeprocessesmsg", side.key("user"), **wish)
        body = request.partition(b"\r\n\r\n")[2].decode()
        self.socket.sendall(self._ws.send(TextMessage(body)))
        self._text = ""

    def receive(self) -> list[str]:
        """Take what has arrived; return the ids of the processes that it tells of."""
        found: list[str] = []
        self._ws.receive_data(self.socket.recv(1 << 18))
        for event in self._ws.events():
            match event:
                case TextMessage():
                    self._text += event.data
                    if event.message_finished:
                        payload = base64.b64decode(json.loads(self._text)["payload"])
                        found.append(str(json.loads(payload)["processid"]))
                        self._text = ""
                case Ping():
                    self.socket.sendall(self._ws.send(event.response()))
                case CloseConnection():
                    raise BenchError(f"the subscription ended: {event.reason}")
        return found


def pair(place: Path) -> tuple[Side, Side]:
    """Return two colonies that trust each other; the first one forwards."""
    origin, peer = Side.start(place / "a", "origin"), Side.start(place / "b", "peer")
    told = peer.call("colony", "invitepeermsg", policy=_UNLIMITED)
    origin.call("colony", "joinpeermsg", token=told["token"], policy=_UNLIMITED)
    return origin, peer


def wire_bytes(side: Side) -> dict[str, int]:
    """Return the bytes so far, both ways, of each open connection to a daemon's port for peers.

    They are those of TLS, without the headers of TCP and IP. Empty without the program `ss`.
    """
    found = re.search(r'event="federation ready".*?port=(\d+)', _log(side))
    if found is None:
        raise BenchError(f"the log of {side.name} does not tell its port for peers")
    command = ["ss", "-tinOH", "state", "established", f"( sport = :{found[1]} )"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    sizes = re.compile(r"bytes_(?:sent|received):(\d+)")
    lines = (line.split(maxsplit=4) for line in text.splitlines())
    return {line[3]: sum(map(int, sizes.findall(line[4]))) for line in lines if len(line) == 5}


def _log(side: Side) -> str:
    return (side.daemon.home / "colonyd.log").read_text(errors="replace")


def step(name: str, origin: Side, peer: Side, count: int, at_once: int) -> dict[str, object]:
    """Let `origin` submit `count` processes to `peer`, at most `at_once` unfinished.

    Return the figures of the step. A process has finished when a subscriber at the origin hears
    that it ended well. With one side for both it is local work.
    """
    sides = {side.name: side for side in (origin, peer)}
    ends, request = Ends(origin), origin.submission(peer.name)
    free = [Line(origin.daemon.port) for _ in range(min(at_once, SENDERS))]
    workers = [Line(peer.daemon.port) for _ in range(EXECUTORS)]
    sent: dict[Line, float] = {}
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    tickets = iter(range(count))
    scripts = {line: peer.worker(number, tickets) for number, line in enumerate(workers[:count])}
    with selectors.EpollSelector() as selector:
        for each in (*free, *workers):
            selector.register(each.socket, selectors.EVENT_READ, each)
        selector.register(ends.socket, selectors.EVENT_READ, ends)
        for line, script in scripts.items():
            line.send(next(script))
        before, old = {name: side.cpu() for name, side in sides.items()}, wire_bytes(peer)
        # Connections come and go: look often, to have the last figure of each.
        wire, looked = dict(old), time.perf_counter()
        start, taken_in, left = time.perf_counter(), 0.0, count
        while len(ended) < count:
            while free and left and count - left - len(ended) < at_once:
                line, left = free.pop(), left - 1
                sent[line] = time.perf_counter()
                line.send(request)
            if time.perf_counter() - looked > _LOOK:
                wire, looked = wire | wire_bytes(peer), time.perf_counter()
            ready = selector.select(LONGEST)
            if not ready:
                raise BenchError(f"{name}: nothing for {LONGEST:.0f} s, {len(ended)} of {count}")
            for key, _ in ready:
                if key.data is ends:
                    ended |= dict.fromkeys(ends.receive(), time.perf_counter())
                    continue
                line = key.data
                reply = line.receive()
                if reply is None:
                    continue
                if line in scripts:
                    with contextlib.suppress(StopIteration):
                        line.send(scripts[line].send(reply))
                else:
                    begun[str(reply.value()["processid"])] = sent.pop(line)
                    free.append(line)
                    taken_in = time.perf_counter() - start
        took = time.perf_counter() - start
    used = {
        f"{side} {part}": (seconds - before[side][part]) / count * 1e3
        for side in sides
        for part, seconds in sides[side].cpu().items()
    }
    wire |= wire_bytes(peer)
    sizes = sum(size - old.get(connection, 0) for connection, size in wire.items())
    for each in (*free, *workers):
        each.socket.close()
    ends.socket.close()
    hops = sorted(ended[pid] - begun[pid] for pid in begun)
    return {
        "step": name,
        "count": count,
        "rate": count / took,
        "submitted": count / taken_in,
        "p50": percentile(hops, 0.50) * 1e3,
        "p99": percentile(hops, 0.99) * 1e3,
        "cpu_ms": used,
        "bytes": sizes / count,
    }


def measure(place: Path, count: int) -> list[dict[str, object]]:
    """Return the figures of all steps: forwards and local work, one at a time and all at once."""
    origin, peer = pair(place)
    try:
        for side in (origin, peer):
            step("warm up", side, side, 40, 8)
        step("warm up", origin, peer, 40, 8)
        found = []
        for name, to in (("forward", peer), ("local", origin)):
            found.append(step(f"{name}, 1 at a time", origin, to, max(50, count // 4), 1))
            found.append(step(f"{name}, {count} at once", origin, to, count, count))
        return found
    finally:
        origin.daemon.stop()
        peer.daemon.stop()


def table(steps: Sequence[dict[str, object]]) -> Iterator[str]:
    """The figures as text; CPU in ms for each process, bytes on the wire between the colonies."""
    yield (
        f"{'step':24}{'rate/s':>8}{'taken in/s':>11}{'p50 ms':>8}{'p99 ms':>9}{'bytes':>8}"
        f"{'origin':>8}{'etcd':>6}{'peer':>7}{'etcd':>6}"
    )
    for line in steps:
        cpu = line["cpu_ms"]
        assert isinstance(cpu, dict)
        parts = [cpu.get(f"{side} {part}", math.nan) for side in ("origin", "peer")
                 for part in ("colonyd", "etcd")]  # fmt: skip
        yield (
            f"{line['step']:24}{line['rate']:8.1f}{line['submitted']:11.1f}{line['p50']:8.2f}"
            f"{line['p99']:9.2f}{line['bytes']:8.0f}"
            f"{parts[0]:8.2f}{parts[1]:6.2f}{parts[2]:7.2f}{parts[3]:6.2f}"
        )
    forward, local = (float(str(steps[place]["rate"])) for place in (1, 3))
    yield f"forwards at once against local cycles: {forward / local:.0%} (wanted: 40 %)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = CommandLine("python -m bench.forwards", __doc__)
    parser.add_argument(
        "--count", type=int, default=400, help="processes that are submitted at once"
    )
    parser.add_argument("--quick", action="store_true", help="100 processes at once")
    parser.add_places(figures="the figures")
    options = parser.parse_args(arguments)
    count = 100 if options.quick else options.count
    return report("forwards", options, lambda place: measure(place, count), table)


if __name__ == "__main__":
    sys.exit(main())
