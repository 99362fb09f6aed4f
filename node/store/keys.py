"""The key layout: `/colonyd/<class>/<colony>/...`, the class first so that one watch serves all.

Numbers in keys are zero-padded so that the order of keys is the order of things.
"""

from __future__ import annotations

import hashlib

from colonyd.names import in_key

ROOT = "/colonyd/"
SERVER = ROOT + "server"
# A random word of this store, which the homes of its daemons have as well.
STORE = ROOT + "store"
# Present while a daemon or backup reads the store as it was at one revision.
HOLD = ROOT + "hold"
MEMBERS = ROOT + "member/"
LIVE = ROOT + "live/"
QUEUE = LIVE + "queue/"
RUNNING = LIVE + "running/"
BLOCKED = LIVE + "blocked/"
STEPS = LIVE + "step/"
# All live keys, in the order in which a daemon that starts reads them: it serves once it knows what
# runs, and gives executors what they may have as the queue is read.
LIVE_ORDER = (RUNNING, STEPS, QUEUE, BLOCKED)
# Steps of a graph beside the ends of nodes; "!" sorts before their numbers.
RELEASE, REMOVE, START, SWEEP = "!release", "!remove", "!start", "!sweep"
# Priority times are signed 64-bit; the offset makes them sort as text.
_BIAS = 1 << 63
_TOP = (1 << 63) - 1


def colony(name: str) -> str:
    """Return the key of a colony."""
    return f"{MEMBERS}{name}/colony"


def members(colony: str) -> str:
    """Return the prefix of a colony, its users, executors and functions."""
    return f"{MEMBERS}{colony}/"


def user(colony: str, name: str) -> str:
    """Return the key of a user."""
    return f"{MEMBERS}{colony}/user/{in_key(name)}"


def executor(colony: str, name: str) -> str:
    """Return the key of an executor."""
    return f"{MEMBERS}{colony}/executor/{in_key(name)}"


def function(colony: str, functionid: str) -> str:
    """Return the key of one function of an executor."""
    return f"{MEMBERS}{colony}/function/{functionid}"


def processes(colony: str) -> str:
    """Return the prefix of all processes of a colony."""
    return f"{ROOT}process/{colony}/"


def process(colony: str, processid: str) -> str:
    """Return the key of a process."""
    return f"{ROOT}process/{colony}/{processid}"


def submission(colony: str, processid: str) -> str:
    """Return the key of the signed request for a process."""
    return f"{ROOT}submission/{colony}/{processid}"


def queue(colony: str, executortype: str, prioritytime: int, processid: str) -> str:
    """Return the queue key of a waiting process; `prioritytime` in Unix ns, may be negative."""
    return f"{QUEUE}{colony}/{executortype}/{prioritytime + _BIAS:020d}/{processid}"


def parse_queue(key: str) -> tuple[str, str, int, str]:
    """Return colony, executor type, priority time and process id of a queue key."""
    colony, executortype, place, processid = key[len(QUEUE) :].split("/")
    return colony, executortype, int(place) - _BIAS, processid


def running(colony: str, processid: str) -> str:
    """Return the running key of a process."""
    return f"{RUNNING}{colony}/{processid}"


def parse_running(key: str) -> tuple[str, str]:
    """Return colony and process id of a running key."""
    colony, processid = key[len(RUNNING) :].split("/")
    return colony, processid


def blocked(colony: str, processid: str) -> str:
    """Return the blocked key of a process that waits for its parents."""
    return f"{BLOCKED}{colony}/{processid}"


def parse_blocked(key: str) -> tuple[str, str]:
    """Return colony and process id of a blocked key."""
    colony, processid = key[len(BLOCKED) :].split("/")
    return colony, processid


def pending(colony: str, processid: str) -> str:
    """Return the key of how many parents of a blocked process are not finished."""
    return f"{ROOT}pending/{colony}/{processid}"


def steps(colony: str, graphid: str) -> str:
    """Return the prefix of the steps of a graph that are not yet dealt with."""
    return f"{STEPS}{colony}/{graphid}/"


def step(colony: str, graphid: str, what: int | str) -> str:
    """Return the key of one step: the end of the node at a place, or the kind that `what` names."""
    return steps(colony, graphid) + (f"{what:08d}" if isinstance(what, int) else what)


def parse_step(key: str) -> tuple[str, str, str]:
    """Return colony, graph id and kind of a step key."""
    colony, graphid, what = key[len(STEPS) :].split("/")
    return colony, graphid, what


def graphs(colony: str) -> str:
    """Return the prefix of the graphs of a colony."""
    return f"{ROOT}graph/{colony}/"


def graph(colony: str, graphid: str) -> str:
    """Return the key of a process graph."""
    return graphs(colony) + graphid


GRAPH_PARTS = ROOT + "graphpart/"


def graph_parts(colony: str, graphid: str) -> str:
    """Return the prefix of the nodes of a large graph that is being submitted."""
    return f"{GRAPH_PARTS}{colony}/{graphid}/"


def graph_part(colony: str, graphid: str, attempt: str, number: int) -> str:
    """Return the key of some of these nodes. An attempt begins with its time in Unix ns, 20
    digits.
    """
    return f"{graph_parts(colony, graphid)}{attempt}/{number:06d}"


def parse_graph_part(key: str) -> tuple[str, str, int]:
    """Return colony, graph id and the time of the attempt in Unix ns."""
    colony, graphid, attempt, _ = key[len(GRAPH_PARTS) :].split("/")
    return colony, graphid, int(attempt[:20])


# Marks of the graphs by state, and of the closed processes.
GRAPH_STATES = ROOT + "graphstate/"
CLOSED = ROOT + "closed/"


def graph_states(colony: str, state: int) -> str:
    """Return the prefix of the marks of the graphs in one state, newest first."""
    return f"{GRAPH_STATES}{colony}/{state}/"


def graph_state(colony: str, state: int, submissiontime: int, graphid: str) -> str:
    """Return the key of a graph in its state; `submissiontime` in Unix ns."""
    return f"{graph_states(colony, state)}{_TOP - submissiontime:020d}/{graphid}"


def descending(time: int) -> str:
    """Return a time in Unix ns as text for keys that are sorted newest first."""
    return f"{_TOP - time:020d}"


def ascending(number: int) -> int:
    """Return the time in Unix ns that `descending` made a number of."""
    return _TOP - number


def closed_prefix(colony: str, state: int) -> str:
    """Return the prefix of the closed processes in one state, newest first."""
    return f"{CLOSED}{colony}/{state}/"


def closed(colony: str, state: int, endtime: int, processid: str) -> str:
    """Return the closed key of a process; `endtime` in Unix ns."""
    return f"{closed_prefix(colony, state)}{_TOP - endtime:020d}/{processid}"


def closed_by(colony: str, state: int, field: str, value: str) -> str:
    """Return the prefix of the closed processes in one state that have a value, newest first.

    `field` names the field of the closed key. The value itself is not in the key: it may be long,
    and hold any character.
    """
    digest = hashlib.blake2b(f"{field}/{value}".encode(), digest_size=8).hexdigest()
    return f"{ROOT}closedby/{colony}/{state}/{digest}/"


def closed_by_complete(colony: str) -> str:
    """Return the key that is present once all closed processes of a colony are under `closed_by`,
    too.
    """
    return f"{ROOT}closedby/{colony}/complete"


def attribute(colony: str, attributeid: str) -> str:
    """Return the key that names the process of an attribute."""
    return f"{ROOT}attribute/{colony}/{attributeid}"


def process_logs(colony: str, processid: str) -> str:
    """Return the prefix of the log lines of a process."""
    return f"{ROOT}log/{colony}/{processid}/"


def executor_logs(colony: str, executorname: str) -> str:
    """Return the prefix of the log lines of an executor."""
    return f"{ROOT}executorlog/{colony}/{in_key(executorname)}/"


def log_place(timestamp: int) -> str:
    """Return the last part of a log key; `timestamp` in Unix ns."""
    return f"{timestamp:020d}"


def paused(colony: str) -> str:
    """Return the key that is present while assignments of a colony are paused."""
    return f"{ROOT}paused/{colony}"
