"""The objects of a colony as msgspec structs: what is stored and what crosses the wire.

Field names are upstream's JSON names. Rules about objects live with the capability that owns them.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

UNSET_TIME = "0001-01-01T00:00:00Z"
SECOND = 1_000_000_000
DAY = 86_400 * SECOND


class State(enum.IntEnum):
    """Where a process stands (upstream's numbers)."""

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


class Gpu(msgspec.Struct, omit_defaults=False):
    """A demand for GPUs; stored, never enforced, as upstream."""

    name: str = ""
    mem: str = ""
    count: int = 0
    nodecount: int = 0


class Conditions(msgspec.Struct):
    """What an executor must be to be handed a process."""

    colonyname: str = ""
    executornames: list[str] | None = None
    executortype: str = ""
    locationname: str = ""
    dependencies: list[str] | None = None
    nodes: int = 0
    cpu: str = ""
    processes: int = 0
    processespernode: int = 0
    mem: str = ""
    storage: str = ""
    gpu: Gpu = msgspec.field(default_factory=Gpu)
    walltime: int = 0


class FunctionSpec(msgspec.Struct):
    """One call that somebody wants run. Times are seconds; 0 and below mean no limit."""

    nodename: str = ""
    funcname: str = ""
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    priority: int = 0
    maxwaittime: int = 0
    maxexectime: int = 0
    maxretries: int = 0
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    label: str = ""
    fs: Any = None
    env: dict[str, str] | None = None
    channels: list[str] | None = None


class Attribute(msgspec.Struct):
    """A typed key and value that belongs to a process (0 in, 1 out, 2 err, 3 env)."""

    targetid: str
    key: str
    value: str
    attributetype: int = 0
    attributeid: str = ""
    targetcolonyname: str = ""
    targetprocessgraphid: str = ""
    state: int = 0


class Process(msgspec.Struct):
    """A submitted function spec on its way. Times are Unix nanoseconds, 0 for unset.

    `attempt` grows with each hand-out. `notify` names a key that the closing transaction
    puts, so that whoever owes the outcome to another colony finds it. `peer` is the id of the
    colony the process was forwarded to, `origin` the id of the one it came from, `hops` how many
    further colonies one that came from another may be passed on to. A node of a process graph
    knows its place there; `parents` and `children` are places, too (`graphs`).
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
        """Whether the process has reached a state that it cannot leave."""
        return self.state >= State.SUCCESSFUL


class Graph(msgspec.Struct):
    """A process graph (workflow). Times are Unix nanoseconds, 0 for unset.

    Its nodes are the processes at the places 0 to `count` - 1, whose ids follow from the graph's.
    `ended` counts the nodes that closed, by state. `sweeping` is the state that all unfinished
    nodes are being brought into, 0 for none. `released` is whether all nodes are in the store.
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
    """A colony: the name that keys hang under, and the id of its owner's key."""

    colonyid: str
    name: str


class User(msgspec.Struct):
    """A person who may submit; has no approval state."""

    colonyname: str
    userid: str
    name: str
    email: str = ""
    phone: str = ""


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
    capabilities: Any = None
    allocations: Any = None
    blueprintid: str = ""
    blueprintgen: int = 0


class Function(msgspec.Struct):
    """A function that an executor offers, with running statistics in seconds."""

    executorname: str
    colonyname: str
    funcname: str
    functionid: str = ""
    executortype: str = ""
    description: str = ""
    args: Any = None
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


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """What the queue key of a waiting process holds: all that matching and listing need."""

    executornames: list[str]
    locationname: str
    cpu: int
    mem: int
    waitdeadline: int
    label: str
    initiatorname: str
    origin: str = ""


class Blocked(msgspec.Struct, frozen=True, array_like=True):
    """What the key of a process that waits for its parents holds: its place in the queue to be."""

    executortype: str
    prioritytime: int
    waiting: Waiting


class Running(msgspec.Struct, frozen=True, array_like=True):
    """What the running key of a process holds: its deadline and all that listing needs."""

    executorid: str
    executortype: str
    starttime: int
    execdeadline: int
    label: str
    initiatorname: str
    origin: str = ""


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """What the closed key of a process holds: all that listing needs."""

    executortype: str
    label: str
    initiatorname: str
