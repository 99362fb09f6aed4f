"""The objects of a colony as msgspec structs: what is stored and what crosses the wire.

Field names are upstream's JSON names, and types are upstream's to the last field: a client that has
them reads a whole listing or nothing. Rules about objects live with the capability that owns them.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec

UNSET_TIME = "0001-01-01T00:00:00Z"
SECOND = 1_000_000_000
DAY = 86_400 * SECOND
# Priorities are between this and its opposite.
LOWEST_PRIORITY = -50_000
# Bounds of numbers that a client sends: upstream's `int` and `int64`.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class State(enum.IntEnum):
    """The state of a process (upstream's numbers)."""

    WAITING = 0
    RUNNING = 1
    SUCCESSFUL = 2
    FAILED = 3
    CANCELLED = 4


class ExecutorState(enum.IntEnum):
    """Whether an executor may work (upstream's numbers)."""

    PENDING = 0
    APPROVED = 1
    REJECTED = 2
    UNREGISTERED = 3


class Gpu(msgspec.Struct, omit_defaults=True):
    """A demand for GPUs; stored, never enforced, as upstream."""

    name: str = ""
    mem: str = ""
    count: Int64 = 0
    nodecount: Int64 = 0


class Conditions(msgspec.Struct, omit_defaults=True):
    """What an executor must be to get a process."""

    colonyname: str = ""
    executornames: list[str] | None = None
    executortype: str = ""
    locationname: str = ""
    dependencies: list[str] | None = None
    nodes: Int64 = 0
    cpu: str = ""
    processes: Int64 = 0
    processespernode: Int64 = 0
    mem: str = ""
    storage: str = ""
    gpu: Gpu = msgspec.field(default_factory=Gpu)
    walltime: Int64 = 0


class SnapshotMount(msgspec.Struct):
    """A snapshot whose files an executor is to find in a directory."""

    snapshotid: str = ""
    label: str = ""
    dir: str = ""
    keepfiles: bool = False
    keepsnapshot: bool = False


class OnStart(msgspec.Struct):
    """Which side wins a conflict when a process begins."""

    keeplocal: bool = False


class OnClose(msgspec.Struct):
    """Which side wins a conflict when a process has ended."""

    keeplocal: bool = False


class ConflictResolution(msgspec.Struct):
    """What happens to a file that both sides changed."""

    onstart: OnStart = msgspec.field(default_factory=OnStart)
    onclose: OnClose = msgspec.field(default_factory=OnClose)


class SyncDirMount(msgspec.Struct):
    """A label whose files are kept equal with a directory."""

    label: str = ""
    dir: str = ""
    keepfiles: bool = False
    onconflicts: ConflictResolution = msgspec.field(default_factory=ConflictResolution)


class Filesystem(msgspec.Struct):
    """The files that an executor brings to a process and back; interpreted by executors."""

    mount: str = ""
    snapshots: list[SnapshotMount] | None = None
    dirs: list[SyncDirMount] | None = None


class FunctionSpec(msgspec.Struct, omit_defaults=True):
    """One call to be run. Times are seconds; 0 and below mean no limit."""

    nodename: str = ""
    funcname: str = ""
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    priority: Int64 = 0
    maxwaittime: Int64 = 0
    maxexectime: Int64 = 0
    maxretries: Int64 = 0
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    label: str = ""
    fs: Filesystem | None = None
    env: dict[str, str] | None = None
    channels: list[str] | None = None


# The type of the attributes that are environment variables.
ENV = 3


class Attribute(msgspec.Struct):
    """A typed key and value that belongs to a process (0 in, 1 out, 2 err, 3 env).

    Its state is the state of the process, filled in where it is shown.
    """

    targetid: str
    key: str
    value: str
    attributetype: Int64 = 0
    attributeid: str = ""
    targetcolonyname: str = ""
    targetprocessgraphid: str = ""
    state: Int64 = 0


class Process(msgspec.Struct, omit_defaults=True):
    """A submitted function spec on its way. Times are Unix nanoseconds, 0 for unset.

    `attempt` grows with each assignment. `notify` names a key that the closing transaction puts: it
    lists the outcome that is owed to another colony. `peer` is the id of the colony the process was
    forwarded to, `origin` the id of the colony it came from, `hops` how many further colonies it
    may be passed on to then. A node of a process graph knows its place there; `parents` and
    `children` are places, too (`model.graph`).
    """

    processid: str
    initiatorid: str
    initiatorname: str
    colonyname: str
    spec: FunctionSpec
    prioritytime: int
    submissiontime: int
    state: State = State.WAITING
    assignedexecutorid: str = ""
    isassigned: bool = False
    starttime: int = 0
    endtime: int = 0
    waitdeadline: int = 0
    execdeadline: int = 0
    retries: int = 0
    attempt: int = 0
    attributes: list[Attribute] = msgspec.field(default_factory=list)
    input: list[Any] = msgspec.field(default_factory=list)
    output: list[Any] = msgspec.field(default_factory=list)
    errors: list[str] = msgspec.field(default_factory=list)
    peer: str = ""
    origin: str = ""
    notify: str = ""
    nonce: str = ""
    processgraphid: str = ""
    graphindex: int = -1
    parents: list[int] = msgspec.field(default_factory=list)
    children: list[int] = msgspec.field(default_factory=list)
    waitforparents: bool = False
    hops: int = 0

    @property
    def closed(self) -> bool:
        """Return whether the process has reached a state that it cannot leave."""
        return self.state >= State.SUCCESSFUL


class Graph(msgspec.Struct):
    """A process graph (workflow). Times are Unix nanoseconds, 0 for unset.

    Its nodes are the processes at the places 0 to `count` - 1, whose ids follow from the graph's.
    `ended` counts the nodes that closed, by state. `sweeping` is the state into which all
    unfinished nodes are being brought, 0 for none. `released` is whether all nodes are in the
    store.
    """

    processgraphid: str
    initiatorid: str
    initiatorname: str
    colonyname: str
    submissiontime: int
    count: int
    roots: list[int]
    state: State = State.WAITING
    starttime: int = 0
    endtime: int = 0
    ended: dict[int, int] = msgspec.field(default_factory=dict)
    sweeping: int = 0
    released: bool = True
    nonce: str = ""


class Colony(msgspec.Struct):
    """A colony: the name that its keys lie under, and the id of its owner's key."""

    colonyid: str
    name: str


class User(msgspec.Struct):
    """A person who may submit; has no approval state."""

    colonyname: str
    userid: str
    name: str
    email: str = ""
    phone: str = ""


class Software(msgspec.Struct):
    """A program that an executor has."""

    name: str = ""
    type: str = ""
    version: str = ""


class Hardware(msgspec.Struct):
    """A kind of machine that an executor runs on; reported, never matched."""

    model: str = ""
    nodes: Int64 = 0
    cpu: str = ""
    cores: Int64 = 0
    mem: str = ""
    storage: str = ""
    gpu: Gpu = msgspec.field(default_factory=Gpu)
    platform: str = ""
    architecture: str = ""
    network: list[str] | None = None


class Capabilities(msgspec.Struct):
    """What an executor reports of itself."""

    hardware: list[Hardware] | None = None
    software: list[Software] | None = None


class Project(msgspec.Struct):
    """What one project may use of an executor, and uses."""

    allocatedcpu: Int64 = 0
    usedcpu: Int64 = 0
    allocatedgpu: Int64 = 0
    usedgpu: Int64 = 0
    allocatedstorage: Int64 = 0
    usedstorage: Int64 = 0


class Allocations(msgspec.Struct):
    """What an executor allots to projects, by their names."""

    projects: dict[str, Project] | None = None


class Executor(msgspec.Struct):
    """A worker. Times are Unix nanoseconds, 0 for unset."""

    executorid: str
    executortype: str
    executorname: str
    colonyname: str
    state: ExecutorState = ExecutorState.PENDING
    requirefuncreg: bool = False
    commissiontime: int = 0
    lastheardfromtime: int = 0
    locationname: str = ""
    capabilities: Capabilities | None = None
    allocations: Allocations | None = None
    blueprintid: str = ""
    blueprintgen: Int64 = 0


class FunctionArg(msgspec.Struct):
    """An argument of a function, as its executor describes it."""

    name: str = ""
    type: str = ""
    description: str = ""
    required: bool = False
    enum: list[str] | None = None


class Function(msgspec.Struct):
    """A function that an executor offers, with running statistics in seconds."""

    executorname: str
    colonyname: str
    funcname: str
    functionid: str = ""
    executortype: str = ""
    description: str = ""
    args: list[FunctionArg] | None = None
    counter: int = 0
    minwaittime: float = 0.0
    maxwaittime: float = 0.0
    minexectime: float = 0.0
    maxexectime: float = 0.0
    avgwaittime: float = 0.0
    avgexectime: float = 0.0
    locationname: str = ""


class Log(msgspec.Struct):
    """One line that an executor logged; the timestamp is Unix nanoseconds."""

    processid: str
    colonyname: str
    executorname: str
    message: str
    timestamp: int


class Waiting(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of a waiting process's queue key: all that matching and listing need.

    `maxwaittime` (seconds) is what the deadline was given for, 0 in values of older releases. They
    left out the priority, too; `processes.older` reads both from the process if they matter.
    """

    executornames: list[str]
    locationname: str
    cpu: int
    mem: int
    waitdeadline: int
    label: str
    initiatorname: str
    origin: str = ""
    maxwaittime: int = 0
    # Unknown for processes that were stored before it was kept here.
    priority: int | None = None

    def submitted(self, prioritytime: int) -> int:
        """Return when the process was submitted (Unix ns), 0 if that is not known here."""
        return prioritytime + self.priority * DAY if self.priority is not None else 0


class Blocked(msgspec.Struct, frozen=True, array_like=True):
    """The value of the key of a process that waits for its parents: its later place in the
    queue.
    """

    executortype: str
    prioritytime: int
    waiting: Waiting


class Running(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of a running key: the deadline and all that listing needs."""

    executorid: str
    executortype: str
    starttime: int
    execdeadline: int
    label: str
    initiatorname: str
    origin: str = ""
    submissiontime: int = 0


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """The value of a closed key: all that listing needs.

    `ranby` is a checksum of the executor's id, which tells most other executors apart from it. For
    processes that were stored before both were kept here, `submissiontime` is 0.
    """

    executortype: str
    label: str
    initiatorname: str
    submissiontime: int = 0
    ranby: int = 0
