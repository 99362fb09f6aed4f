"""What each call that lists or assigns costs, in a store of three sizes.

    python -m bench.sizes [--quick] [--sizes 300 3000 30000] [--only getlogs ...]

A daemon of its own is filled to each size in turn. Each row is a call: the CPU of colonyd and etcd
together, in ms a call. `answer` is how much more bytes the largest store has it answer than the
smallest. A row that grows faster than the logarithm of the size and than its answer is marked.

The table of calls decides what needs a row: a call that reads must be in `ROWS`, `SINGLE` or
`ELSEWHERE`, and `tests/sdk/test_bench.py` looks.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.daemon import BenchError, Daemon, child_called
from bench.load import Line, Reply, Script, cpu_seconds, drive, message
from bench.options import CommandLine
from bench.report import report
from colonyd.keys import PrivateKey, read_key
from node.host.config import QuotasConfig

SIZES = (300, 3_000, 30_000)
QUICK = (30, 100, 300)
FEW = 10  # of things that a colony has few of, there is one for so many of the others
COLONY = "sizes"
LARGE = "large"  # the colony with a large process, which no listing of the other one answers
LARGEST = 8 << 20  # bytes of its argument
FILLERS = 16  # requests in flight while the store is filled
# A row is measured until so many seconds of CPU are used, or so many calls made.
ENOUGH, MOST, LEAST = 0.2, 200, 5
FIRST = 2  # calls before, which are not measured: they fill what is remembered
NOISE = 1.5  # growth beyond what is allowed that is no growth yet
NOT_THERE = 404
SHA = "0" * 64
HOUR = 3600
Fields = dict[str, Any]


class World:
    """A colony that is filled, and who calls: each asks with `say`, as one of `keys`.

    `made` are the things that rows ask about, by the names that their makers gave them.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.lines = [Line(daemon.port) for _ in range(FILLERS)]
        names = ("owner", "user", "rare", "here", "able", "closer", "seldom", "idle")
        self.keys = {name: PrivateKey.generate() for name in names}
        self.keys["server"] = read_key(daemon.home / "keys" / "server.key")
        self.made: dict[str, str] = {}
        colony = {"colonyid": self.keys["owner"].id, "name": COLONY}
        self.ask("server", "addcolonymsg", colony=colony)
        for name in ("user", "rare"):
            user = {"colonyname": COLONY, "userid": self.keys[name].id, "name": name}
            self.ask("owner", "addusermsg", user=user)
        self.ask("owner", "addlocationmsg", location={"colonyname": COLONY, "name": "here"})
        for name in ("here", "able", "closer", "seldom", "idle"):
            executor = self.executor(name, self.keys[name].id)
            if name == "here":
                executor["locationname"] = "here"
            elif name == "seldom":
                executor["executortype"] = "closer"
            self.ask("owner", "addexecutormsg", executor=executor)
            self.ask("owner", "approveexecutormsg", colonyname=COLONY, executorname=name)
        self.large()

    def large(self) -> None:
        """Make a process with a large argument and one line of log."""
        self.keys |= {name: PrivateKey.generate() for name in ("large owner", "large")}
        colony = {"colonyid": self.keys["large owner"].id, "name": LARGE}
        self.ask("server", "addcolonymsg", colony=colony)
        executor = self.executor("large", self.keys["large"].id) | {"colonyname": LARGE}
        self.ask("large owner", "addexecutormsg", executor=executor)
        self.ask("large owner", "approveexecutormsg", colonyname=LARGE, executorname="large")
        spec = self.spec("large", conditions={"colonyname": LARGE}, args=["x" * LARGEST])
        self.ask("large", "submitfuncspecmsg", spec=spec)
        processid = self.ask("large", "assignprocessmsg", colonyname=LARGE, timeout=-1)["processid"]
        self.ask("large", "addlogmsg", processid=processid, message="one line")
        self.made["large"] = str(processid)

    def say(self, who: str, call: str, /, **fields: Any) -> bytes:
        """Return a signed request."""
        return message(call, self.keys[who], **fields)

    def ask(self, who: str, call: str, /, **fields: Any) -> Any:
        """Make a call; return its answer."""
        return self.lines[0].call(self.say(who, call, **fields)).value()

    def executor(self, name: str, identity: str) -> Fields:
        """Return a new executor; its type is its name."""
        named = {"executorname": name, "executorid": identity, "executortype": name}
        return {"colonyname": COLONY, **named}

    def spec(self, kind: str, **more: Any) -> Fields:
        """Return a function spec for executors of a type; `conditions` are added to."""
        conditions = {"colonyname": COLONY, "executortype": kind, **more.pop("conditions", {})}
        base = {"nodename": "n", "funcname": "f", "maxexectime": -1, "maxwaittime": -1}
        return {**base, "conditions": conditions, **more}

    def workflow(self) -> str:
        """Return a workflow of one node, as crons and generators have it."""
        return json.dumps({"colonyname": COLONY, "functionspecs": [self.spec("never")]})


# -- what the store is filled with -----------------------------------------------------------------

Maker = Callable[[World, int], Script]
MAKERS: list[tuple[str, int, Maker]] = []


def fills(what: str, share: int = 1) -> Callable[[Maker], Maker]:
    """Make a generator function the maker of things: `size / share` of them are made."""

    def decorate(maker: Maker) -> Maker:
        MAKERS.append((what, share, maker))
        return maker

    return decorate


def _asked(who: str, call: str, fields: Callable[[World, int], Fields]) -> Maker:
    """Return a maker whose things are made by one call each."""

    def maker(world: World, number: int) -> Script:
        (yield world.say(who, call, **fields(world, number))).value()

    return maker


@fills("waiting for a place where nobody is")
def _elsewhere(world: World, number: int) -> Script:
    who = "rare" if number == 0 else "user"
    label = "rare" if number == 0 else "common"
    spec = world.spec("here", label=label, conditions={"locationname": "nowhere"})
    process = (yield world.say(who, "submitfuncspecmsg", spec=spec)).value()
    world.made.setdefault("waiting", str(process["processid"]))


@fills("waiting for more CPU than anybody has")
def _unable(world: World, number: int) -> Script:
    spec = world.spec("able", conditions={"cpu": "900000m"})
    process = (yield world.say("user", "submitfuncspecmsg", spec=spec)).value()
    world.made["last"] = str(process["processid"])


@fills("closed")
def _closed(world: World, number: int) -> Script:
    # The first, which is the oldest, is the only one with a rare label, and of this executor.
    rare = number == 0
    executor = "seldom" if rare else "closer"
    spec = world.spec("closer", label="rare" if rare else "common")
    asked = world.say("rare" if rare else "user", "submitfuncspecmsg", spec=spec)
    (yield asked).value()
    process = (yield _assign(world, executor)).value()
    closed = {"processid": process["processid"], "out": ["x"]}
    (yield world.say(executor, "closesuccessfulmsg", **closed)).value()
    world.made.setdefault("seldom", world.keys["seldom"].id)


@fills("running", FEW)
def _running(world: World, number: int) -> Script:
    rare = number == 0
    spec = world.spec("closer", label="rare" if rare else "common", channels=["chat"])
    asked = world.say("rare" if rare else "user", "submitfuncspecmsg", spec=spec)
    (yield asked).value()
    process = (yield _assign(world, "closer")).value()
    if "running" not in world.made:
        world.made["running"] = str(process["processid"])
        world.made["its user"] = "rare" if rare else "user"


@fills("lines of one process")
def _line(world: World, number: int) -> Script:
    said = "needle" if number == 0 else f"the line number {number} of a log"
    line = {"processid": world.made["running"], "message": said}
    (yield world.say("closer", "addlogmsg", **line)).value()


@fills("lines of one executor")
def _executor_line(world: World, number: int) -> Script:
    line = {"colonyname": COLONY, "executorname": "closer", "message": f"line {number}"}
    (yield world.say("closer", "addexecutorlogmsg", **line)).value()


@fills("messages of one channel", FEW)
def _message(world: World, number: int) -> Script:
    said = {"processid": world.made["running"], "name": "chat", "sequence": number + 1}
    (yield world.say("closer", "channelappendmsg", **said, payload="YQ==")).value()


@fills("workflows", FEW)
def _graph(world: World, number: int) -> Script:
    spec = {"colonyname": COLONY, "functionspecs": [world.spec("never")]}
    graph = (yield world.say("user", "submitworkflowspecmsg", spec=spec)).value()
    world.made.setdefault("graph", str(graph["processgraphid"]))


@fills("crons", FEW)
def _cron(world: World, number: int) -> Script:
    cron = {"colonyname": COLONY, "name": f"c{number}", "interval": 10**6}
    cron["workflowspec"] = world.workflow()
    (yield world.say("user", "addcronmsg", cron=cron)).value()


@fills("generators", FEW)
def _generator(world: World, number: int) -> Script:
    generator = {"colonyname": COLONY, "name": f"g{number}", "trigger": 10_000}
    generator["workflowspec"] = world.workflow()
    made = (yield world.say("user", "addgeneratormsg", generator=generator)).value()
    world.made.setdefault("generator", str(made["generatorid"]))


@fills("arguments of one generator", FEW)
def _pack(world: World, number: int) -> Script:
    generatorid = world.made["generator"]
    (yield world.say("user", "packgeneratormsg", generatorid=generatorid, arg="x")).value()


def _file(label: str, name: str) -> Fields:
    return {
        "file": {
            "colonyname": COLONY,
            "label": label,
            "name": name,
            "checksum": SHA,
            "checksumalg": "SHA256",
            "size": 1,
        }
    }


def _history(world: World, number: int) -> Script:
    """Change the first blueprint."""
    changed = {"kind": "Kind0", "metadata": {"colonyname": COLONY, "name": "b0"}}
    changed["spec"] = {"number": number}
    (yield world.say("owner", "updateblueprintmsg", blueprint=changed)).value()


def _definition(world: World, number: int) -> Fields:
    kind = f"Kind{number}"
    names = {"kind": kind, "listKind": kind, "singular": kind, "plural": kind}
    handler = {"executorType": "never", "functionName": "f"}
    return {
        "blueprintdefinition": {
            "kind": kind,
            "metadata": {"colonyname": COLONY, "name": kind},
            "spec": {"names": names, "handler": handler},
        }
    }


def _blueprint(world: World, number: int) -> Script:
    asked = {"kind": "Kind0", "metadata": {"colonyname": COLONY, "name": f"b{number}"}}
    asked["spec"] = {}
    made = (yield world.say("owner", "addblueprintmsg", blueprint=asked)).value()
    if number == 0:
        world.made["blueprint"] = str(made["blueprintid"])


MAKERS += [
    ("files of one label", 1, _asked("user", "addfilemsg", lambda w, n: _file("/many", f"f{n}"))),
    ("revisions of one file", FEW, _asked("user", "addfilemsg", lambda w, n: _file("/one", "f"))),
    ("labels", FEW, _asked("user", "addfilemsg", lambda w, n: _file(f"/l/{n}", "f"))),
    (
        "snapshots",
        FEW,
        _asked(
            "user",
            "createsnapshotmsg",
            lambda w, n: {"colonyname": COLONY, "label": "/one", "name": f"s{n}"},
        ),
    ),
    ("definitions", FEW, _asked("owner", "addblueprintdefinitionmsg", _definition)),
    ("blueprints", FEW, _blueprint),
    ("changes of one blueprint", FEW, _history),
    (
        "users",
        FEW,
        _asked(
            "owner",
            "addusermsg",
            lambda w, n: {
                "user": {
                    "colonyname": COLONY,
                    "name": f"u{n}",
                    "userid": PrivateKey.generate().id,
                }
            },
        ),
    ),
    (
        "executors",
        FEW,
        _asked(
            "owner",
            "addexecutormsg",
            lambda w, n: {"executor": w.executor(f"e{n}", PrivateKey.generate().id)},
        ),
    ),
    (
        "functions of one executor",
        FEW,
        _asked(
            "closer",
            "addfunctionmsg",
            lambda w, n: {
                "fun": {"colonyname": COLONY, "executorname": "closer", "funcname": f"f{n}"}
            },
        ),
    ),
    (
        "locations",
        FEW,
        _asked(
            "owner",
            "addlocationmsg",
            lambda w, n: {"location": {"colonyname": COLONY, "name": f"l{n}"}},
        ),
    ),
    (
        "colonies",
        FEW,
        _asked(
            "server",
            "addcolonymsg",
            lambda w, n: {"colony": {"colonyid": PrivateKey.generate().id, "name": f"col{n}"}},
        ),
    ),
]


def fill(world: World, have: int, want: int) -> None:
    """Make more of everything, in order, until there is what belongs to a size."""
    for what, share, maker in MAKERS:
        for line in world.lines:
            line.renew()  # they were idle while rows were measured, or others were used alone
        first, end = max(1, have // share) if have else 0, max(1, want // share)
        if first == 0:
            # The first of a kind comes alone: others may need it.
            drive(world.lines[:1], [_make(maker, world, iter([0]), what)])
            first = 1
        numbers = iter(range(first, end))
        width = 1 if maker is _message else FILLERS  # messages of a channel are in order
        drive(world.lines[:width], [_make(maker, world, numbers, what) for _ in range(width)])


def _make(maker: Maker, world: World, numbers: Iterator[int], what: str) -> Script:
    for number in numbers:
        try:
            yield from maker(world, number)
        except RuntimeError as error:
            raise BenchError(f"{what}, number {number}: {error}") from None


def _assign(world: World, who: str, **more: Any) -> bytes:
    asked = {"colonyname": COLONY, "timeout": -1, "availablecpu": "1000m", **more}
    return world.say(who, "assignprocessmsg", **asked)


# -- what is asked ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A call of the table and what it asks for; `script` makes it once."""

    call: str
    about: str
    script: Callable[[World], Script]


def _row(call: str, about: str, who: str = "user", /, *, home: bool = True, **fields: Any) -> Row:
    """Return a row of one request; a value that begins with "@" is the name of what was made."""

    def script(world: World) -> Script:
        given = {
            name: world.made[value[1:]]
            if isinstance(value, str) and value.startswith("@")
            else value
            for name, value in fields.items()
        }
        asking = world.made[who[1:]] if who.startswith("@") else who
        base = {"colonyname": COLONY} if home else {}
        (yield world.say(asking, call, **base, **given)).whole()

    return Row(call, about, script)


def _cycle(who: str, about: str, **conditions: str) -> Row:
    """Return a row of a whole cycle of an executor."""

    def script(world: World) -> Script:
        spec = world.spec(who, conditions=conditions)
        (yield world.say("user", "submitfuncspecmsg", spec=spec)).value()
        process = (yield _assign(world, who)).value()
        (yield world.say(who, "closesuccessfulmsg", processid=process["processid"])).value()

    return Row("assignprocessmsg", about, script)


def _nothing_to_do(world: World) -> Script:
    reply = yield _assign(world, "idle")
    if reply.status != NOT_THERE:
        reply.value()


def _processes(about: str, state: int, **more: Any) -> Row:
    return _row("getprocessesmsg", about, state=state, count=10, **more)


ROWS = (
    _cycle("here", "whole cycle, past those for another place", locationname="here"),
    _cycle("able", "whole cycle, past those for more CPU", cpu="1000m"),
    Row("assignprocessmsg", "nothing of the type", _nothing_to_do),
    _processes("10 waiting", 0),
    _processes("waiting, a rare label", 0, label="rare"),
    _processes("waiting, a rare initiator", 0, initiator="rare"),
    _processes("waiting, no such type", 0, executortype="none"),
    _processes("10 running", 1),
    _processes("running, a rare label", 1, label="rare"),
    _processes("10 closed", 2),
    _processes("closed, a rare label", 2, label="rare"),
    _processes("closed, a rare initiator", 2, initiator="rare"),
    _processes("closed, no such type", 2, executortype="none"),
    _processes("failed: none", 3),
    _row("getprocesshistmsg", "1 s, closed", seconds=1, state=2),
    _row("getprocesshistmsg", "an hour, failed: none", seconds=HOUR, state=3),
    _row("getprocesshistmsg", "an hour, no such executor", seconds=HOUR, state=2, executorid=SHA),
    _row(
        "getprocesshistmsg",
        "an hour, one of a rare executor",
        seconds=HOUR,
        state=2,
        executorid="@seldom",
    ),
    _row("getprocesshistmsg", "running, no such executor", seconds=HOUR, state=1, executorid=SHA),
    _row("getprocessmsg", "one", processid="@running"),
    _row("getwaitingmsg", "the first of all", processid="@waiting"),
    _row("getwaitingmsg", "one of the last", processid="@last"),
    _row("getcolonystatsmsg", "one colony"),
    _row("getstatisticsmsg", "all colonies", "server", home=False),
    _row("getlogsmsg", "first 10", processid="@running", count=10),
    _row("getlogsmsg", "latest 10", processid="@running", count=10, latest=True),
    _row(
        "getlogsmsg",
        "latest of a process with an argument of 8 MB",
        "large",
        home=False,
        colonyname=LARGE,
        processid="@large",
        count=10,
        latest=True,
    ),
    _row("getlogsmsg", "latest 10 of an executor", executorname="closer", count=10, latest=True),
    _row("searchlogsmsg", "a rare word", text="needle", days=1, count=10),
    _row("searchlogsmsg", "a common word", text="line", days=1, count=10),
    _row("searchlogsmsg", "a word that is nowhere", text="nowhere", days=1, count=10),
    _row("getprocessgraphmsg", "one", processgraphid="@graph"),
    _row("getprocessgraphsmsg", "10 waiting", state=0, count=10),
    _row("getprocessgraphsmsg", "failed: none", state=3, count=10),
    _row("getcronsmsg", "10", count=10),
    _row("getgeneratorsmsg", "10", count=10),
    _row("getgeneratormsg", "one, with its arguments", generatorid="@generator"),
    _row("resolvegeneratormsg", "one", generatorname="g0"),
    _row("getfilemsg", "newest revision", label="/one", name="f", latest=True),
    _row("getfilemsg", "all revisions", label="/one", name="f"),
    _row("getfilesmsg", "a small label", label="/l/0"),
    _row("getfilesmsg", "the large label", label="/many"),
    _row("getfilelabelsmsg", "all"),
    _row("getfilelabelsmsg", "one", name="/one", exact=True),
    _row("getsnapshotmsg", "one", name="s0"),
    _row("getsnapshotsmsg", "all"),
    _row("channelreadmsg", "all", "@its user", processid="@running", name="chat"),
    _row("channelreadmsg", "10", "@its user", processid="@running", name="chat", limit=10),
    _row("getblueprintdefinitionsmsg", "all"),
    _row("getblueprintsmsg", "all", namespace=COLONY),
    _row("getblueprintsmsg", "no such place", namespace=COLONY, locationname="none"),
    _row("getblueprinthistorymsg", "10", blueprintid="@blueprint", limit=10),
    _row("getusersmsg", "all"),
    _row("getexecutorsmsg", "all"),
    _row("getfunctionsmsg", "all"),
    _row("getfunctionsmsg", "of one without", executorname="idle"),
    _row("getlocationsmsg", "all"),
    _row("getcoloniesmsg", "all", "server", home=False),
)
# Calls that read one thing by its key, or a few counters.
SINGLE = {
    "getserverinfomsg",
    "getclustermsg",
    "getcolonymsg",
    "getusermsg",
    "getuserbyidmsg",
    "getlocationmsg",
    "getexecutormsg",
    "getexecutorbyidmsg",
    "getpausestatusmsg",
    "getattributemsg",
    "getcronmsg",
    "getblueprintmsg",
    "getblueprintdefinitionmsg",
    "getnodestatusmsg",
    "getclockmsg",
}
# Calls about other colonies: there are few, and `bench.forwards` measures what passes between them.
ELSEWHERE = {
    "getpeersmsg",
    "getpeermsg",
    "getpetnamesmsg",
    "getcardmsg",
    "getinvitationsmsg",
    "getforwardmsg",
    "getoriginmsg",
    "getroutesmsg",
}


# -- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """CPU ms of a call, and the bytes that it answered."""

    ms: float
    bytes: float


def measure(world: World, row: Row, pids: Sequence[int]) -> Cost:
    """Make the calls of a row until enough CPU is used. Raises BenchError when one is refused."""
    line, size, begun = world.lines[0], 0, 0.0
    for turn in count(1 - FIRST):
        if turn == 1:
            size, begun = 0, sum(map(cpu_seconds, pids))
        script = row.script(world)
        request = next(script)
        while True:
            reply: Reply = line.call(request)
            size += len(reply.body)
            try:
                request = script.send(reply)
            except StopIteration:
                break
            except RuntimeError as error:
                raise BenchError(f"{row.call}, {row.about}: {error}") from None
        if turn < 1:
            continue
        used = sum(map(cpu_seconds, pids)) - begun
        if turn >= MOST or (used >= ENOUGH and turn >= LEAST):
            return Cost(used / turn * 1e3, size / turn)
    raise AssertionError("never reached")


def backup(daemon: Daemon, place: Path, pids: Sequence[int]) -> Cost:
    """Make a backup; its CPU counts, too."""
    path = place / "backup.tar"
    path.unlink(missing_ok=True)

    def used() -> float:
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(map(cpu_seconds, pids)) + ours.ru_utime + ours.ru_stime

    begun = used()
    program = Path(sys.executable).parent / "colony"
    done = subprocess.run(
        [program, "backup", "--home", daemon.home, path],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"colony backup: {done.stderr.strip() or done.stdout.strip()}")
    return Cost((used() - begun) * 1e3, path.stat().st_size)


def is_marked(costs: Sequence[Cost], sizes: Sequence[int]) -> bool:
    """Return whether a row grew faster than the logarithm of the size and than its answer."""
    first, last = costs[0], costs[-1]
    allowed = math.log(sizes[-1]) / math.log(sizes[0])
    allowed *= max(1.0, last.bytes / first.bytes)
    # What costs less than a few ticks of the kernel's clock is not measured well.
    return last.ms > max(first.ms, 0.2) * allowed * NOISE


def table(costs: dict[tuple[str, str], list[Cost]], sizes: Sequence[int]) -> Iterator[str]:
    """Return the rows as lines."""
    heads = "".join(f"{f'{size:,}':>10}" for size in sizes)
    yield f"{'CPU ms a call (colonyd and etcd), by size':68}{heads}{'growth':>9}{'answer':>9}"
    for (call, about), each in costs.items():
        cells = "".join(f"{cost.ms:10.2f}" for cost in each)
        growth = each[-1].ms / each[0].ms if each[0].ms else math.nan
        answer = each[-1].bytes / each[0].bytes if each[0].bytes else math.nan
        mark = "  GROWS" if is_marked(each, sizes) else ""
        yield f"{f'{call}: {about}':68}{cells}{growth:8.1f}x{answer:8.1f}x{mark}"


def run(
    place: Path, sizes: Sequence[int], only: Sequence[str]
) -> dict[tuple[str, str], list[Cost]]:
    """Fill a daemon and measure; return the costs of each row. Raises BenchError."""
    quotas = (f"COLONYD_QUOTAS__{name.upper()}" for name in QuotasConfig.__struct_fields__)
    daemon = Daemon(place / "home", **dict.fromkeys(quotas, "0"))
    daemon.home.mkdir(mode=0o700)
    daemon.init()
    costs: dict[tuple[str, str], list[Cost]] = {}
    try:
        daemon.start()
        etcd = child_called(daemon.pid, "etcd")
        pids = [daemon.pid, *([etcd] if etcd else [])]
        world, have = World(daemon), 0
        for size in sizes:
            begun = time.perf_counter()
            fill(world, have, size)
            have = size
            took = time.perf_counter() - begun
            print(f"sizes: filled to {size} in {took:.0f} s", file=sys.stderr, flush=True)
            for row in ROWS:
                if not only or any(name in row.call for name in only):
                    cost = measure(world, row, pids)
                    costs.setdefault((row.call, row.about), []).append(cost)
            if not only or "backup" in only:
                cost = backup(daemon, place, pids)
                costs.setdefault(("colony backup", "everything"), []).append(cost)
    finally:
        daemon.stop()
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = CommandLine("python -m bench.sizes", __doc__)
    parser.add_argument("--quick", action="store_true", help=f"the sizes {QUICK}")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of calls, `backup`")
    parser.add_places()
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else options.sizes
    return report(
        "sizes",
        options,
        lambda place: run(place, sizes, options.only),
        lambda costs: table(costs, sizes),
    )


if __name__ == "__main__":
    sys.exit(main())
