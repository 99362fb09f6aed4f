"""The key layout: `/colonyd/<class>/<colony>/...`, the class first so that one watch serves all.

Numbers in keys are zero-padded so that the order of keys is the order of things.
"""

from __future__ import annotations

ROOT = "/colonyd/"
SERVER = ROOT + "server"
MEMBERS = ROOT + "member/"
LIVE = ROOT + "live/"
QUEUE = LIVE + "queue/"
RUNNING = LIVE + "running/"
# Priority times are signed 64-bit; the offset makes them sort as text.
_BIAS = 1 << 63
_TOP = (1 << 63) - 1


def colony(name: str) -> str:
    """The colony itself."""
    return f"{MEMBERS}{name}/colony"


def members(colony: str) -> str:
    """Prefix of a colony, its users, executors and functions."""
    return f"{MEMBERS}{colony}/"


def user(colony: str, name: str) -> str:
    """One user."""
    return f"{MEMBERS}{colony}/user/{name}"


def executor(colony: str, name: str) -> str:
    """One executor."""
    return f"{MEMBERS}{colony}/executor/{name}"


def function(colony: str, functionid: str) -> str:
    """One function of one executor."""
    return f"{MEMBERS}{colony}/function/{functionid}"


def processes(colony: str) -> str:
    """Prefix of all processes of a colony."""
    return f"{ROOT}process/{colony}/"


def process(colony: str, processid: str) -> str:
    """One process."""
    return f"{ROOT}process/{colony}/{processid}"


def submission(colony: str, processid: str) -> str:
    """The signed bytes that asked for a process."""
    return f"{ROOT}submission/{colony}/{processid}"


def queue(colony: str, executortype: str, prioritytime: int, processid: str) -> str:
    """The place of a waiting process; `prioritytime` in Unix ns, may be negative."""
    return f"{QUEUE}{colony}/{executortype}/{prioritytime + _BIAS:020d}/{processid}"


def parse_queue(key: str) -> tuple[str, str, int, str]:
    """Return colony, executor type, priority time and process id of a queue key."""
    colony, executortype, place, processid = key[len(QUEUE) :].split("/")
    return colony, executortype, int(place) - _BIAS, processid


def running(colony: str, processid: str) -> str:
    """The mark of a running process."""
    return f"{RUNNING}{colony}/{processid}"


def parse_running(key: str) -> tuple[str, str]:
    """Return colony and process id of a running key."""
    colony, processid = key[len(RUNNING) :].split("/")
    return colony, processid


def closed_prefix(colony: str, state: int) -> str:
    """Prefix of the closed processes in one state, newest first."""
    return f"{ROOT}closed/{colony}/{state}/"


def closed(colony: str, state: int, endtime: int, processid: str) -> str:
    """The mark of a closed process; `endtime` in Unix ns."""
    return f"{closed_prefix(colony, state)}{_TOP - endtime:020d}/{processid}"


def attribute(colony: str, attributeid: str) -> str:
    """Which process an attribute belongs to."""
    return f"{ROOT}attribute/{colony}/{attributeid}"


def process_logs(colony: str, processid: str) -> str:
    """Prefix of the log lines of a process."""
    return f"{ROOT}log/{colony}/{processid}/"


def executor_logs(colony: str, executorname: str) -> str:
    """Prefix of the log lines of an executor."""
    return f"{ROOT}executorlog/{colony}/{executorname}/"


def log_place(timestamp: int) -> str:
    """The last part of a log key; `timestamp` in Unix ns."""
    return f"{timestamp:020d}"


def paused(colony: str) -> str:
    """Present while assignments of a colony are paused."""
    return f"{ROOT}paused/{colony}"
