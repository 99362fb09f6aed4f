"""The life of a process: every transition as the new value and the transaction that makes it so.

Each transaction compares the revision that its caller read, so a transition that lost a race
changes nothing. The caller checks rights.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from node.etcd.txn import Absent, Compare, Delete, DeletePrefix, Get, ModRevision, Op, Put, Txn
from node.model.codec import pack
from node.model.quantities import parse_cpu, parse_memory
from node.model.types import SECOND, Blocked, Closed, Executor, Process, Running, State, Waiting
from node.store import keys
from node.store.work import channels as channels

# Filters of listings: upstream takes the first one in this order that is given.
FILTERS = ("executortype", "initiatorname", "label")


@dataclass(frozen=True)
class Transition:
    """One transition: the process afterwards, and the transaction, which begins with its put."""

    process: Process
    txn: Txn

    @property
    def value(self) -> bytes:
        """Return the value of the process as it is put."""
        first = self.txn.success[0]
        assert isinstance(first, Put)
        return first.value


def waiting_of(process: Process) -> Waiting:
    """Return the value of a process's queue key. Raises ValueError for bad amounts."""
    conditions = process.spec.conditions
    names = [name for name in conditions.executornames or [] if name]
    return Waiting(
        executornames=[] if "*" in names else names,
        locationname=conditions.locationname,
        cpu=parse_cpu(conditions.cpu),
        mem=parse_memory(conditions.mem),
        waitdeadline=process.waitdeadline,
        label=process.spec.label,
        initiatorname=process.initiatorname,
        origin=process.origin,
        maxwaittime=max(0, process.spec.maxwaittime),
        priority=process.spec.priority,
    )


def running_of(process: Process) -> Running:
    """Return the value of a process's running key."""
    return Running(
        executorid=process.assignedexecutorid,
        executortype=process.spec.conditions.executortype,
        starttime=process.starttime,
        execdeadline=0 if process.peer else process.execdeadline,
        label=process.spec.label,
        initiatorname=process.initiatorname,
        # A process that was passed on takes no executor of ours.
        origin="" if process.peer else process.origin,
        submissiontime=process.submissiontime,
    )


def closed_of(process: Process) -> Closed:
    """Return the value of a process's closed key."""
    return Closed(
        executortype=process.spec.conditions.executortype,
        label=process.spec.label,
        initiatorname=process.initiatorname,
        submissiontime=process.submissiontime,
        ranby=checksum(process.assignedexecutorid),
    )


def checksum(executorid: str) -> int:
    """Return what a closed key holds of the executor's id."""
    return zlib.crc32(executorid.encode())


def closed_places(colony: str, state: int, endtime: int, processid: str, mark: Closed) -> list[str]:
    """Return the keys under which a closed process is found by its fields."""
    place = f"{keys.descending(endtime)}/{processid}"
    return [
        keys.closed_by(colony, state, field, value) + place
        for field in FILTERS
        if (value := getattr(mark, field))
    ]


def _keys(process: Process) -> tuple[str, str, str]:
    conditions = process.spec.conditions
    colony, pid = process.colonyname, process.processid
    return (
        keys.process(colony, pid),
        keys.queue(colony, conditions.executortype, process.prioritytime, pid),
        keys.running(colony, pid),
    )


def place(process: Process) -> list[Op]:
    """Return the operations that place a waiting process: in the queue, blocked, or (none) at a
    peer.
    """
    colony, pid = process.colonyname, process.processid
    waiting = waiting_of(process)
    if process.waitforparents:
        executortype = process.spec.conditions.executortype
        mark = Blocked(executortype, process.prioritytime, waiting)
        return [Put(keys.blocked(colony, pid), pack(mark))]
    return [] if process.peer else [Put(_keys(process)[1], pack(waiting))]


def create(process: Process) -> list[Op]:
    """Return the operations that create a process.

    A process with a peer needs more, which send it there.
    """
    colony, pid = process.colonyname, process.processid
    ops: list[Op] = [Put(keys.process(colony, pid), pack(process)), *place(process)]
    if process.waitforparents:
        ops.append(Put(keys.pending(colony, pid), b"%d" % len(process.parents)))
    return [*ops, *_attributes(process)]


def _attributes(process: Process) -> list[Op]:
    colony, pid = process.colonyname, process.processid.encode()
    return [Put(keys.attribute(colony, each.attributeid), pid) for each in process.attributes]


def _leave(process: Process) -> list[Op]:
    """Return the operations that remove a waiting process from its place."""
    colony, pid = process.colonyname, process.processid
    if process.waitforparents:
        return [Delete(keys.blocked(colony, pid)), Delete(keys.pending(colony, pid))]
    return [] if process.peer else [Delete(_keys(process)[1])]


def _begun(process: Process, now: int) -> list[Op]:
    """Return the step that a starting root leaves for its graph; `now` in Unix ns."""
    if not process.processgraphid or process.parents:
        return []
    return [Put(keys.step(process.colonyname, process.processgraphid, keys.START), pack(now))]


def submit(process: Process, submission: bytes, extra: Sequence[Op] = ()) -> Transition:
    """Create a process. A process with a peer gets no place in the queue: `extra` sends it there.

    When the id exists already, nothing happens and the failure branch returns the stored process.
    """
    return Transition(process, _creation(process, submission, [*create(process), *extra]))


def _creation(process: Process, submission: bytes, ops: list[Op]) -> Txn:
    key = keys.process(process.colonyname, process.processid)
    if submission:
        ops.append(Put(keys.submission(process.colonyname, process.processid), submission))
    return Txn([Absent(key)], ops, [Get(key)])


def submit_assigned(process: Process, submission: bytes, executor: Executor) -> Transition:
    """Create a process that is assigned to an executor: it never stands in the queue.

    It starts when it was submitted, which tells it from others (`never_queued`). When the id exists
    already, nothing happens and the failure branch returns the stored process.
    """
    after = _assigned(process, executor, process.submissiontime)
    key, _, running = _keys(after)
    ops: list[Op] = [
        Put(key, pack(after)),
        Put(running, pack(running_of(after))),
        *_attributes(after),
    ]
    return Transition(after, _creation(after, submission, ops))


def never_queued(process: Process) -> bool:
    """Return whether a process runs that was stored as running, by `submit_assigned`."""
    return (
        process.state == State.RUNNING
        and process.attempt == 1
        and process.starttime == process.submissiontime
    )


def before_start(process: Process) -> Process:
    """Return what a process was before its first assignment."""
    return msgspec.structs.replace(
        process,
        state=State.WAITING,
        assignedexecutorid="",
        isassigned=False,
        starttime=0,
        execdeadline=0,
        attempt=0,
    )


def _assigned(process: Process, executor: Executor, now: int) -> Process:
    limit = process.spec.maxexectime
    return msgspec.structs.replace(
        process,
        state=State.RUNNING,
        assignedexecutorid=executor.executorid,
        isassigned=True,
        starttime=now,
        execdeadline=now + limit * SECOND if limit > 0 else 0,
        attempt=process.attempt + 1,
    )


def assign(process: Process, revision: int, executor: Executor, now: int) -> Transition:
    """Assign a waiting process to an executor; `now` in Unix ns."""
    after = _assigned(process, executor, now)
    key, queue, running = _keys(after)
    ops: list[Op] = [
        Put(key, pack(after)),
        Delete(queue),
        Put(running, pack(running_of(after))),
        *_begun(after, now),
    ]
    return Transition(after, Txn([ModRevision(key, revision)], ops))


def start(process: Process, revision: int, now: int, extra: Sequence[Op]) -> Transition:
    """Start a forwarded process that its peer accepted; `now` in Unix ns."""
    after = msgspec.structs.replace(
        process,
        state=State.RUNNING,
        assignedexecutorid=process.peer,
        isassigned=True,
        starttime=now,
        attempt=process.attempt + 1,
    )
    key, _, running = _keys(after)
    ops: list[Op] = [
        Put(key, pack(after)),
        Put(running, pack(running_of(after))),
        *_begun(after, now),
    ]
    return Transition(after, Txn([ModRevision(key, revision)], [*ops, *extra]))


def move(
    process: Process,
    revision: int,
    peer: str,
    extra: Sequence[Op],
    compare: Sequence[Compare] = (),
) -> Transition:
    """Move a waiting process to a peer, where `extra` sends it, or with "" into the queue."""
    after = msgspec.structs.replace(process, peer=peer)
    key = keys.process(process.colonyname, process.processid)
    ops: list[Op] = [Put(key, pack(after)), *_leave(process), *place(after), *extra]
    return Transition(after, Txn([ModRevision(key, revision), *compare], ops))


def requeue(process: Process, revision: int, now: int, *, counts: bool) -> Transition:
    """Put a process back into the queue at its old place; `counts` is whether a retry was
    used up.
    """
    wait = process.spec.maxwaittime
    after = msgspec.structs.replace(
        process,
        state=State.WAITING,
        assignedexecutorid="",
        isassigned=False,
        endtime=now,
        waitdeadline=now + wait * SECOND if wait > 0 else 0,
        execdeadline=0,
        retries=process.retries + (1 if counts else 0),
    )
    key, queue, running = _keys(after)
    ops: list[Op] = [
        Put(key, pack(after)),
        Delete(running),
        Put(queue, pack(waiting_of(after))),
    ]
    return Transition(after, Txn([ModRevision(key, revision)], ops))


def update(process: Process, revision: int, extra: Sequence[Op] = ()) -> Transition:
    """Write new contents without a change of state (output so far, attributes)."""
    key = keys.process(process.colonyname, process.processid)
    return Transition(process, Txn([ModRevision(key, revision)], [Put(key, pack(process)), *extra]))


def retime(
    process: Process, revision: int, *, prioritytime: int, waitdeadline: int, execdeadline: int
) -> Transition:
    """Give a process that waits here or runs other times (Unix ns), after its clock was set."""
    after = msgspec.structs.replace(
        process, prioritytime=prioritytime, waitdeadline=waitdeadline, execdeadline=execdeadline
    )
    key, queue, running = _keys(after)
    ops: list[Op] = [Put(key, pack(after))]
    if process.state == State.RUNNING:
        ops.append(Put(running, pack(running_of(after))))
    else:
        ops.extend(place(after))
        old = _keys(process)[1]
        if not process.waitforparents and old != queue:
            ops.append(Delete(old))
    return Transition(after, Txn([ModRevision(key, revision)], ops))


def close(
    process: Process,
    revision: int,
    state: State,
    now: int,
    *,
    output: list[object] | None = None,
    errors: list[str] | None = None,
    extra: Sequence[Op] = (),
    compare: Sequence[Compare] = (),
) -> Transition:
    """End a waiting or running process; `now` in Unix ns."""
    after = msgspec.structs.replace(
        process,
        state=state,
        endtime=now,
        output=process.output if output is None else output,
        errors=process.errors if errors is None else errors,
    )
    key, _, running = _keys(after)
    mark, colony, pid = closed_of(after), after.colonyname, after.processid
    ops: list[Op] = [Put(key, pack(after)), Put(keys.closed(colony, state, now, pid), pack(mark))]
    ops += [Put(place, b"") for place in closed_places(colony, state, now, pid, mark)]
    ops.extend([Delete(running)] if process.state == State.RUNNING else _leave(process))
    if after.processgraphid:
        ended = keys.step(after.colonyname, after.processgraphid, after.graphindex)
        ops.append(Put(ended, pack([int(state), 0])))
    if after.notify:
        ops.append(Put(after.notify, after.processid.encode()))
    return Transition(after, Txn([ModRevision(key, revision), *compare], [*ops, *extra]))


def remove(process: Process, revision: int) -> Txn:
    """Remove everything about a process, in any state but running.

    A process that is owed to another colony stays until the colony has acknowledged its end.
    """
    colony, pid = process.colonyname, process.processid
    key = keys.process(colony, pid)
    ops: list[Op] = [
        Delete(key),
        Delete(keys.submission(colony, pid)),
        DeletePrefix(keys.process_logs(colony, pid)),
    ]
    if process.state == State.WAITING:
        ops.extend(_leave(process))
    else:
        state, endtime = process.state, process.endtime
        ops.append(Delete(keys.closed(colony, state, endtime, pid)))
        places = closed_places(colony, state, endtime, pid, closed_of(process))
        ops += [Delete(place) for place in places]
    ops.extend(Delete(keys.attribute(colony, attr.attributeid)) for attr in process.attributes)
    ops.extend(channels.removal(process))
    compare: list[Compare] = [ModRevision(key, revision)]
    if process.notify:
        compare.append(Absent(process.notify))
    return Txn(compare, ops)
