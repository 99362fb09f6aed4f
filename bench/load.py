"""The load generator, a process of its own: reads names of steps, and writes a JSON line for each.

    echo "submit c=16" | python -m bench.load http://127.0.0.1:50080 KEYFILE --pid colonyd=PID

It drives any server that speaks the protocol, starts none and judges no figure; `bench.run` does
both. It is one epoll loop over plain sockets, since a client that is heavier than the server would
measure itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.options import CommandLine, named_pid
from colonyd.keys import PrivateKey, read_key, sign_payload

# A script sends requests and is sent (status, body) back; it ends when its step is over.
Script = Generator[bytes, "Reply", None]

EXECUTORS = 32
DIFFERENT = 4096  # requests that differ; more than a server may remember
REPLY_TIMEOUT = 60.0  # seconds without any reply at all before the run is given up
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reply:
    """One HTTP reply."""

    status: int
    body: bytes

    def whole(self) -> None:
        """Raise RuntimeError for a reply that is no success."""
        if self.status != 200:
            raise RuntimeError(f"status {self.status}: {_payload(self.body) or self.body[:300]!r}")

    def value(self) -> dict[str, object]:
        """Return the payload of a successful RPC reply. Raises RuntimeError for any other."""
        self.whole()
        payload = _payload(self.body)
        return payload if isinstance(payload, dict) else {}


def _payload(body: bytes) -> object:
    try:
        return json.loads(base64.b64decode(json.loads(body)["payload"]))
    except (ValueError, KeyError, TypeError):
        return None


class Line:
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._place = (host, port)
        self.socket = socket.socket()
        self.renew()

    def renew(self) -> None:
        """Connect anew: a server may close a connection that was idle for some seconds."""
        self.socket.close()
        self.socket = socket.create_connection(self._place, timeout=REPLY_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, request: bytes) -> None:
        """Send a whole request; they are far smaller than a socket's buffer."""
        self.socket.sendall(request)

    def receive(self) -> Reply | None:
        """Take what has arrived; the reply once it is whole. Raises ConnectionError at an end."""
        arrived = self.socket.recv(1 << 18)
        if not arrived:
            raise ConnectionError("the server closed the connection")
        self._buffer += arrived
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        status, lower = int(head[9:12]), head.lower() + b"\r\n"
        if b"\r\ntransfer-encoding: chunked\r\n" in lower:
            return self._chunked(status, rest)
        length = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or b"0")
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return Reply(status, rest[:length])

    def _chunked(self, status: int, rest: bytes) -> Reply | None:
        """Return a reply in chunks once it is whole: upstream's server sends large ones so."""
        body: list[bytes] = []
        while True:
            size, found, rest = rest.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                return None
            if length == 0:
                self._buffer = rest[2:]
                return Reply(status, b"".join(body))
            body.append(rest[:length])
            rest = rest[length + 2 :]

    def call(self, request: bytes) -> Reply:
        """One request and its reply, waiting."""
        self.send(request)
        while (reply := self.receive()) is None:
            pass
        return reply


def message(kind: str, key: PrivateKey, **fields: object) -> bytes:
    """A signed RPC request, ready for the wire."""
    text = json.dumps({"msgtype": kind, **fields}, separators=(",", ":"))
    payload = base64.b64encode(text.encode()).decode()
    signature = sign_payload(key, payload)
    body = (f'{{"payloadtype":"{kind}","payload":"{payload}","signature":"{signature}"}}').encode()
    return b"POST /api HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def drive(lines: Sequence[Line], scripts: Sequence[Script]) -> None:
    """Run one script on each line until all have ended."""
    with selectors.EpollSelector() as selector:
        waiting = 0
        for line, script in zip(lines, scripts, strict=True):
            request = next(script, None)
            if request is not None:
                line.send(request)
                selector.register(line.socket, selectors.EVENT_READ, (line, script))
                waiting += 1
        while waiting:
            ready = selector.select(REPLY_TIMEOUT)
            if not ready:
                raise TimeoutError(f"no reply at all for {REPLY_TIMEOUT:.0f} s")
            for key, _ in ready:
                line, script = key.data
                reply = line.receive()
                if reply is None:
                    continue
                try:
                    line.send(script.send(reply))
                except StopIteration:
                    selector.unregister(line.socket)
                    waiting -= 1


@dataclass
class Meter:
    """What one step measures: seconds per round, and the CPU that each process used meanwhile."""

    pids: dict[str, int]
    rounds: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._cpu = self._read_cpu()

    def _read_cpu(self) -> dict[str, float]:
        return cpu_of(self.pids) | {"client": time.process_time()}

    def report(self, step: str) -> dict[str, object]:
        """Return this step's line: rate, percentiles in ms, CPU as parts of one core and ms a
        round.

        On a machine that others use, CPU a round still means something when the rate does not.
        """
        elapsed = time.perf_counter() - self.begun
        after = self._read_cpu()
        rounds = sorted(self.rounds) or [0.0]
        used = {name: after[name] - before for name, before in self._cpu.items()}
        return {
            "step": step,
            "count": len(self.rounds),
            "rate": len(self.rounds) / elapsed,
            "p50": percentile(rounds, 0.50) * 1e3,
            "p99": percentile(rounds, 0.99) * 1e3,
            "cpu": {name: seconds / elapsed for name, seconds in used.items()},
            "cpu_ms": {name: seconds / len(rounds) * 1e3 for name, seconds in used.items()},
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in seconds; 0 for none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def cpu_of(pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU seconds so far of each process and its children, without the children that
    have a name of their own.
    """
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))

    def whole(pid: int) -> float:
        below = (child for child in children.get(pid, ()) if child not in pids.values())
        return cpu_seconds(pid) + sum(map(whole, below))

    return {name: whole(pid) for name, pid in pids.items()}


class Load:
    """A colony of its own with 32 executors, and the steps that use it."""

    def __init__(self, host: str, port: int, server: PrivateKey, pids: dict[str, int]) -> None:
        self.colony = "bench-" + secrets.token_hex(4)
        self.pids = pids
        self.lines = [Line(port, host) for _ in range(EXECUTORS)]
        self.keys = [PrivateKey.generate() for _ in range(EXECUTORS)]
        self.submitted = 0
        self.closed = 0
        self.owner = owner = PrivateKey.generate()
        self._call(
            message("addcolonymsg", server, colony={"colonyid": owner.id, "name": self.colony})
        )
        for number, key in enumerate(self.keys):
            name = f"executor-{number}"
            who = {
                "executorid": key.id,
                "executorname": name,
                "executortype": "bench",
                "colonyname": self.colony,
            }
            self._call(message("addexecutormsg", owner, executor=who))
            self._call(
                message("approveexecutormsg", owner, colonyname=self.colony, executorname=name)
            )
        # Signatures are deterministic and carry no time, so these bytes serve for ever. A client
        # that polls sends the same again and again; one that submits hardly ever does.
        self._submits = [
            message("submitfuncspecmsg", self.keys[number % EXECUTORS], spec=self._spec(number))
            for number in range(DIFFERENT)
        ]
        self._turn = 0
        self.ids: deque[str] = deque(maxlen=DIFFERENT)  # of processes that were submitted last
        self.assign = [
            message(
                "assignprocessmsg",
                key,
                colonyname=self.colony,
                timeout=10,
                availablecpu="",
                availablemem="",
            )
            for key in self.keys
        ]

    def submit(self) -> bytes:
        """Return the next submission."""
        self._turn += 1
        return self._submits[self._turn % DIFFERENT]

    def _spec(self, number: int) -> dict[str, object]:
        return {
            "nodename": "",
            "funcname": "echo",
            "args": [f"hello {number}", "x" * 200],
            "kwargs": {},
            "priority": 0,
            "maxwaittime": -1,
            "maxexectime": 600,
            "maxretries": 3,
            "conditions": {
                "colonyname": self.colony,
                "executornames": [],
                "executortype": "bench",
                "dependencies": [],
            },
            "label": "",
            "env": {},
        }

    def _call(self, request: bytes) -> dict[str, object]:
        return self.lines[0].call(request).value()

    def _close(self, executor: int, process: dict[str, object]) -> bytes:
        return message(
            "closesuccessfulmsg",
            self.keys[executor],
            processid=process["processid"],
            out=["ok"],
        )

    def _run(self, count: int, script: Callable[[int], Script]) -> None:
        drive(self.lines[:count], [script(number) for number in range(count)])

    # Steps

    def step(self, name: str, seconds: float) -> dict[str, object]:
        """Run a step by its name; return what was measured.

        The steps: `submit c=N` from N clients, `getprocess c=N`, `cycle E=N depth=D` of N
        executors, `wait D` until D processes wait, and `hand-over`.
        """
        for line in self.lines:
            line.renew()
        kind, *given = name.split()
        width = int(given[0].partition("=")[2] or given[0]) if given else 1
        tickets = for_seconds(seconds)
        if kind == "submit":
            found = self.submits(name, width, tickets)
        elif kind == "getprocess":
            found = self.reads(name, width, tickets)
        elif kind == "cycle":
            found = self.cycles(name, width, tickets)
        elif kind == "wait":
            found = self.wait(name, width)
        elif kind == "hand-over":
            found = self.hand_overs(name, rounds=max(50, int(seconds * 40)), pause=0.02)
        else:
            raise RuntimeError(f"{name}: no such step")
        self.check()
        return found

    def submits(self, step: str, clients: int, tickets: Iterator[object]) -> dict[str, object]:
        """Submit from so many clients, one ticket each."""
        meter = Meter(self.pids)

        def script(number: int) -> Script:
            for _ in tickets:
                request = self.submit()
                begun = time.perf_counter()
                process = (yield request).value()
                meter.rounds.append(time.perf_counter() - begun)
                self.ids.append(str(process["processid"]))

        self._run(clients, script)
        self.submitted += len(meter.rounds)
        return meter.report(step)

    def reads(self, step: str, clients: int, tickets: Iterator[object]) -> dict[str, object]:
        """Read different processes by their ids, with requests that are signed beforehand."""
        if not self.ids:
            raise RuntimeError(f"{step}: submit some before")
        requests = [
            message("getprocessmsg", self.keys[number % EXECUTORS], processid=processid)
            for number, processid in enumerate(self.ids)
        ]
        meter = Meter(self.pids)

        def script(number: int) -> Script:
            for turn, _ in enumerate(tickets):
                request = requests[(number + turn * clients) % len(requests)]
                begun = time.perf_counter()
                (yield request).value()
                meter.rounds.append(time.perf_counter() - begun)

        self._run(clients, script)
        return meter.report(step)

    def cycles(self, step: str, executors: int, tickets: Iterator[object]) -> dict[str, object]:
        """Run whole cycles: each executor submits, is assigned and closes, so the depth stays."""
        meter = Meter(self.pids)

        def script(number: int) -> Script:
            for _ in tickets:
                begun = time.perf_counter()
                (yield self.submit()).value()
                process = (yield self.assign[number]).value()
                (yield self._close(number, process)).value()
                meter.rounds.append(time.perf_counter() - begun)

        self._run(executors, script)
        self.submitted += len(meter.rounds)
        self.closed += len(meter.rounds)
        return meter.report(step)

    def hand_overs(self, step: str, rounds: int, pause: float) -> dict[str, object]:
        """Time from before a submit is sent until a waiting executor holds the process.

        `pause` (seconds) lets the executor's long poll arrive first: it has no sign of its own.
        """
        worker, sender = self.lines[0], self.lines[1]
        meter = Meter(self.pids)
        for _ in range(rounds):
            worker.send(self.assign[0])
            time.sleep(pause)
            begun = time.perf_counter()
            sender.send(self.submit())
            while (assigned := worker.receive()) is None:
                pass
            meter.rounds.append(time.perf_counter() - begun)
            while (submitted := sender.receive()) is None:
                pass
            submitted.value()
            worker.call(self._close(0, assigned.value())).value()
        self.submitted += rounds
        self.closed += rounds
        return meter.report(step)

    def wait(self, step: str, depth: int) -> dict[str, object]:
        """Submit until `depth` processes wait; remove all that wait when there are more."""
        if self.depth() > depth:
            self._call(
                message("removeallprocessesmsg", self.owner, colonyname=self.colony, state=0)
            )
            self.submitted = self.closed
            self.ids.clear()
        return self.submits(step, 16, iter(range(depth - self.depth())))

    def depth(self) -> int:
        """Return how many must be waiting now by our own count."""
        return self.submitted - self.closed

    def check(self) -> None:
        """Compare the daemon's statistics with our own count. Raises RuntimeError when they differ.

        A figure from a server that lost or doubled work is worth nothing.
        """
        said = self._call(message("getcolonystatsmsg", self.keys[0], colonyname=self.colony))
        want = {
            "waitingprocesses": self.depth(),
            "runningprocesses": 0,
            "successfulprocesses": self.closed,
            "failedprocesses": 0,
        }
        got = {name: said.get(name) for name in want}
        if got != want:
            raise RuntimeError(f"the server counts {got}, the load {want}")


def for_seconds(seconds: float) -> Iterator[object]:
    """Tickets until the time is up, one at least; shared by all clients of a step."""
    end = time.perf_counter() + seconds
    yield None
    while time.perf_counter() < end:
        yield None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that are named on standard input."""
    parser = CommandLine("python -m bench.load", __doc__)
    parser.add_argument("url", help="such as http://127.0.0.1:50080")
    parser.add_argument("key", help="the key of the server's owner, or the file with it")
    parser.add_argument(
        "--pid",
        action="append",
        default=[],
        type=named_pid,
        metavar="NAME=PID",
        help="a process whose CPU to report",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each timed step")
    options = parser.parse_args(arguments)
    place = urlsplit(options.url)
    file = Path(options.key)
    key = read_key(file) if file.exists() else PrivateKey.from_hex(options.key)
    load = Load(place.hostname or "127.0.0.1", place.port or 80, key, dict(options.pid))
    for name in sys.stdin:
        print(json.dumps(load.step(name.strip(), options.seconds)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        print(f"load: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
