"""What a colony's server is sent and answers, as values: specs, processes, logs, crons and others.

Servers differ in details: upstream's sends null for an empty list and the year 1 for an unset time.
`read` and `read_list` take both. Fields that are not named here are passed over.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import field

from colonyd.errors import RpcError
from colonyd.replies import parse_time

T = TypeVar("T")


class OddReply(RpcError):
    """A reply without the form that the protocol gives it."""

    status = 502


class State(enum.IntEnum):
    """The state of a process or of a workflow."""

    WAITING = 0
    RUNNING = 1
    SUCCESSFUL = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def ended(self) -> bool:
        """Return whether no other state follows."""
        return self >= State.SUCCESSFUL


class ExecutorState(enum.IntEnum):
    """Whether an executor may work."""

    PENDING = 0
    APPROVED = 1
    REJECTED = 2
    UNREGISTERED = 3


class _Value(msgspec.Struct, kw_only=True):
    """A value of the wire."""


class Conditions(_Value):
    """Which executors may take a process, and what it needs."""

    colonyname: str = ""
    executortype: str = ""
    executornames: list[str] = []
    locationname: str = ""
    dependencies: list[str] = []
    nodes: int = 0
    cpu: str = ""
    processes: int = 0
    processespernode: int = 0
    mem: str = ""
    storage: str = ""
    gpu: dict[str, Any] = {}
    walltime: int = 0


class Spec(_Value):
    """What a process is to do: a function with arguments, and the conditions under which.

    Times are in seconds; -1 is no limit.
    """

    funcname: str = ""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    conditions: Conditions = field(default_factory=Conditions)
    nodename: str = ""
    priority: int = 0
    maxwaittime: int = -1
    maxexectime: int = -1
    maxretries: int = -1
    label: str = ""
    fs: dict[str, Any] = {}
    env: dict[str, str] = {}
    channels: list[str] = []


class Attribute(_Value):
    """A named text that an executor added to a process."""

    key: str
    value: str
    attributetype: int = 0
    id: str = field(default="", name="attributeid")
    processid: str = field(default="", name="targetid")


class Process(_Value):
    """A process: a spec on its way from the queue to its end."""

    id: str = field(name="processid")
    state: State
    spec: Spec
    initiator: str = field(default="", name="initiatorname")
    executorid: str = field(default="", name="assignedexecutorid")
    submitted: datetime | None = field(default=None, name="submissiontime")
    started: datetime | None = field(default=None, name="starttime")
    ended: datetime | None = field(default=None, name="endtime")
    waitdeadline: datetime | None = None
    deadline: datetime | None = field(default=None, name="execdeadline")
    retries: int = 0
    attributes: list[Attribute] = []
    parents: list[str] = []
    children: list[str] = []
    workflowid: str = field(default="", name="processgraphid")
    input: list[Any] = field(default_factory=list, name="in")
    output: list[Any] = field(default_factory=list, name="out")
    errors: list[str] = []


class Graph(_Value):
    """A workflow as the server has it."""

    id: str = field(name="processgraphid")
    state: State
    colony: str = field(default="", name="colonyname")
    initiator: str = field(default="", name="initiatorname")
    submitted: datetime | None = field(default=None, name="submissiontime")
    started: datetime | None = field(default=None, name="starttime")
    ended: datetime | None = field(default=None, name="endtime")
    roots: list[str] = field(default_factory=list, name="rootprocessids")
    processids: list[str] = []


class Log(_Value):
    """A message of the log of a process or an executor."""

    message: str
    timestamp: int  # Unix ns
    processid: str = ""
    executor: str = field(default="", name="executorname")

    @property
    def time(self) -> datetime:
        """Return when the server took it, in UTC."""
        return datetime.fromtimestamp(self.timestamp / 1e9, UTC)


class Executor(_Value):
    """An executor of a colony."""

    name: str = field(name="executorname")
    id: str = field(name="executorid")
    type: str = field(default="", name="executortype")
    state: ExecutorState = ExecutorState.PENDING
    location: str = field(default="", name="locationname")
    commissioned: datetime | None = field(default=None, name="commissiontime")
    heard: datetime | None = field(default=None, name="lastheardfromtime")


class Argument(_Value):
    """A parameter of a function, as its executor describes it."""

    name: str = ""
    type: str = ""
    description: str = ""
    required: bool = False


class Function(_Value):
    """A function that an executor offers. Times are averages in seconds."""

    name: str = field(name="funcname")
    executor: str = field(default="", name="executorname")
    executortype: str = ""
    id: str = field(default="", name="functionid")
    description: str = ""
    args: list[Argument] = []
    calls: int = field(default=0, name="counter")
    waited: float = field(default=0.0, name="avgwaittime")
    ran: float = field(default=0.0, name="avgexectime")


class Cron(_Value):
    """A workflow that the server starts by the clock."""

    id: str = field(name="cronid")
    name: str
    expression: str = field(default="", name="cronexpression")
    interval: int = 0
    next: datetime | None = field(default=None, name="nextrun")
    last: datetime | None = field(default=None, name="lastrun")
    workflow: str = field(default="", name="workflowspec")
    previous: str = field(default="", name="prevprocessgraphid")


class Message(_Value):
    """A message of a channel."""

    payload: bytes
    sequence: int = 0
    sender: str = field(default="", name="senderid")
    inreplyto: int = 0
    kind: str = field(default="data", name="type")
    time: datetime | None = field(default=None, name="timestamp")


class File(_Value):
    """A version of a file; its bytes lie in the daemon (`protocol` colonyd) or elsewhere."""

    id: str = field(name="fileid")
    name: str
    label: str = ""
    size: int = 0
    checksum: str = ""
    added: datetime | None = None
    ref: dict[str, Any] = {}

    @property
    def protocol(self) -> str:
        """Return how the bytes are kept."""
        return str(self.ref.get("protocol", ""))


def read(kind: type[T], raw: Any) -> T:
    """Return a reply as a value. Raises OddReply, which names the wrong field."""
    try:
        return msgspec.convert(_known(kind, raw), kind)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise OddReply(f"the server sent an odd {kind.__name__.lower()}: {error}") from None


def read_list(kind: type[T], raw: Any) -> list[T]:
    """Return a reply with rows as values; null is none. Raises OddReply."""
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise OddReply(f"the server sent no list of {kind.__name__.lower()}s")
    return [read(kind, each) for each in raw]


def converted(value: Any, kind: type[T] | Any, what: str) -> T:
    """Return an output as a value of a type. Raises OddReply naming `what`."""
    try:
        found: T = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise OddReply(f"{what}: {error}") from None
    return found


def written(value: Any) -> Any:
    """Return a value as JSON takes it: structs, dataclasses, dates and bytes, too.

    Raises TypeError for what has no form in JSON.
    """
    return msgspec.to_builtins(value, str_keys=True)


@functools.cache
def _fields(kind: Any) -> list[tuple[str, Any, bool]]:
    """Return a struct's fields: the name on the wire, a struct that is within, whether a time."""
    found = []
    for each in msgspec.structs.fields(kind):
        kinds = [each.type, *get_args(each.type)]
        within = next((k for k in kinds if _is_value(k)), None)
        found.append((each.encode_name, within, datetime in kinds))
    return found


def _is_value(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Value)


def _known(kind: Any, raw: Any) -> Any:
    """Return the fields of a reply that are set, with times parsed; the inside of arguments and
    outputs stays as it is.
    """
    if not _is_value(kind) or not isinstance(raw, dict):
        return raw
    return dict(_set_fields(kind, raw))


def _set_fields(kind: Any, raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, within, is_time in _fields(kind):
        value = raw.get(name)
        if value is None:
            continue
        if within is not None:
            listed = isinstance(value, list)
            value = [_known(within, each) for each in value] if listed else _known(within, value)
        elif is_time and isinstance(value, str):
            when = parse_time(value)
            if when is None and not value.startswith("0001-"):
                raise ValueError(f"{name}: {value[:40]!r} is no time")
            value = when and when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)
        yield name, value
