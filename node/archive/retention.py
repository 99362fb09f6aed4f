"""Retention: closed processes, finished workflows and log lines move from the store to history.

Everything is written and synced before it is deleted: a crash leaves it in both places at worst,
and the next sweep writes it again. The form of history files is in `archive.chain`; `eviction`
decides up to which time things leave a full store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from colonyd.errors import RpcError
from node.archive import position as places
from node.archive import space
from node.archive.chain import Chain, ChainHead, HistoryError
from node.archive.eviction import Eviction
from node.archive.lookup import HistoryReader
from node.etcd.batch import read_many
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.pages import Pages, below, each
from node.etcd.txn import Delete, GetFirst, Op, Txn
from node.host.config import Config, HistoryConfig
from node.host.log import get_logger
from node.model.codec import pack, unpack, whole_spec, wire_attribute
from node.model.types import SECOND, Graph, Log, Process, State
from node.processes.service import Processes
from node.store import keys
from node.store.directory import Directory
from node.store.work import graphs as graph_store
from node.store.work import logs as log_store
from node.store.work import processes as store
from node.store.work.submissions import grow
from node.timers.election import Leader
from node.workflows.service import Workflows

log = get_logger("history")

# Processes read at once: with their submissions they fit one answer of the store.
_BATCH = 10
# Processes, and bytes of them as stored, that are written at once.
_TOGETHER = 100
_MOST_BYTES = 4 * 2**20
_OPERATIONS = 120  # of one transaction; etcd takes 128
_OVERHEAD = 400  # bytes that the keys of a process take in the store beside its values, about
_PAGE = 200  # lines that are read and moved at once
# Log lines of a process in one record; longer logs take several.
_LINES = 1000
# Log lines deleted in one transaction of at most 128 operations.
_DELETED = 40
_LONGEST_PAUSE = 1.0  # seconds between two batches
_SWEEPS = 60.0  # seconds between two sweeps, at most
_LOOKS = 5.0  # seconds between two looks at how full the store is


@dataclass(frozen=True)
class _Found:
    """A process as it was read, with its signed request, and the bytes removed with it."""

    process: Process
    revision: int
    submission: bytes
    size: int


@dataclass
class Retention:
    """Moves things to history. `home` is the daemon's directory; `config` may be replaced at any
    time.

    `freed` is about how many bytes of the store were moved since an eviction began.
    """

    client: EtcdClient
    processes: Processes
    workflows: Workflows
    directory: Directory
    leader: Leader
    history_reader: HistoryReader
    home: Path
    config: HistoryConfig
    relief: Eviction
    _reconfigured: trio.Event = field(default_factory=trio.Event)
    _chains: dict[str, Chain] = field(default_factory=dict)
    freed: int = 0

    def configure(self, config: Config) -> None:
        """Go on with the settings of a new configuration."""
        self.config = config.history
        self._reconfigured.set()

    async def run(self) -> None:
        """Sweep now and then while this daemon leads, until cancelled."""
        leader = self.leader
        while True:
            await leader.elected()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweeps)
                await leader.deposed()
                nursery.cancel_scope.cancel()

    async def _sweeps(self) -> None:
        while True:
            keep, pause = self.config.keep, _SWEEPS
            try:
                if keep.auto:
                    pause = _LOOKS
                    await self.evict()
                elif keep:
                    pause = min(_SWEEPS, max(1.0, keep / 20))
                    await self.sweep(self.processes.clock.now() - keep * SECOND)
            except (EtcdError, RpcError, OSError) as error:
                log.warning("history waits", error=error)
            self._reconfigured = trio.Event()
            with trio.move_on_after(pause):
                await self._reconfigured.wait()

    async def evict(self) -> int:
        """Move what ended first while the store is too full; return how many records that were.

        Raises as `sweep` does.
        """
        if not await self.relief.due():
            return 0
        moved = 0
        self.freed = 0
        while self.relief.goal > self.freed:
            limit = await self.relief.limit(self.places)
            some = await self._sweep(limit)
            moved += some
            if not self.relief.moved(limit, some):
                break
        if moved:
            await self.relief.rest(self.freed)
            log.info("moved to history", records=moved, because="the store is half full")
        return moved

    async def sweep(self, limit: int) -> int:
        """Move all that ended by `limit` (Unix ns); return how many records that were.

        Raises EtcdError, OSError, and Conflict for a workflow that changes too fast.
        """
        moved = await self._sweep(limit)
        if moved:
            log.info("moved to history", records=moved)
        return moved

    async def _sweep(self, limit: int) -> int:
        moved = 0
        for colony in self._colonies():
            # Lines first: while their process is in the store, they are known to leave with it.
            moved += await self._logs(colony, limit)
            for state in self._states():
                moved += await self._graphs(colony, state, limit)
            for state in self._states():
                moved += await self._processes(colony, state, limit)
        return moved

    def _colonies(self) -> list[str]:
        return [name for name, it in self.directory.rosters.items() if it.colony]

    def _states(self) -> list[State]:
        return [State[name.upper()] for name in self.config.states]

    def places(self, limit: int) -> Iterator[tuple[str, str]]:
        """Return each prefix that lists what may leave, and the key where things that ended by
        `limit` begin.
        """
        for colony in self._colonies():
            yield log_store.until(colony, limit)
            for state in self._states():
                for prefix in (keys.graph_states(colony, state), keys.closed_prefix(colony, state)):
                    yield prefix, prefix + keys.descending(limit)

    # -- writing -------------------------------------------------------------------------

    async def _write(self, colony: str, entries: Sequence[dict[str, Any]]) -> None:
        """Write records to the disk, and tell the store how far its history goes."""
        key = places.head(colony, self.leader.identity)
        chain = self._chains.pop(colony, None)
        if chain is None:
            found = await self.client.get(key)
            known = unpack(found.value, ChainHead) if found is not None else ChainHead()
            chain = await trio.to_thread.run_sync(Chain.open, self.home / "history" / colony, known)
            if chain.trouble:
                log.error(
                    "history is not what was written: `colony history verify`",
                    colony=colony,
                    because=chain.trouble,
                )
        chain.largest = space.largest(self.config.quota)
        # Kept only once written: after a failure, the chain is read again from the disk.
        head = await trio.to_thread.run_sync(chain.append, entries, self.processes.clock.now())
        self._chains[colony] = chain
        await self._make_room()
        await self.client.commit(Txn([], [places.put_head(key, head)]))
        # Before it leaves the store: a reader meanwhile finds it in one of both.
        await self.history_reader.catch_up(colony)

    async def _make_room(self) -> None:
        """Drop what came first once the history is larger than its quota."""
        drop = partial(space.make_room, self.home / "history", int(self.config.quota))
        try:
            done = await trio.to_thread.run_sync(drop)
        except HistoryError as error:
            log.error("history outgrows history.quota: `colony history verify`", because=error)
            return
        for colony, last in done.items():
            log.warning(
                "the oldest history was dropped: history.quota",
                colony=colony,
                up_to=last.number,
                quota=int(self.config.quota),
            )

    async def _record(
        self, process: Process, submission: bytes, *, logged: bool = True
    ) -> list[dict[str, Any]]:
        """Return the records of a closed process; long logs come before it, in parts."""
        lines = await self._lines(process) if logged else []
        parts = [lines[start : start + _LINES] for start in range(0, len(lines), _LINES)]
        entries: list[dict[str, Any]] = [
            {"kind": "logs", "id": process.processid, "part": number, "logs": part}
            for number, part in enumerate(parts[:-1])
        ]
        entry = {
            "kind": "process",
            "id": process.processid,
            "process": _plain(process),
            "logs": parts[-1] if parts else [],
            # The request of another colony is no text, and kept by the hook.
            "submission": "" if process.origin else _signed(process, submission),
        }
        if beyond := await self.processes.hooks.record(process):
            entry["forward"] = beyond
        return [*entries, entry]

    async def _lines(self, process: Process) -> list[dict[str, Any]]:
        prefix = keys.process_logs(process.colonyname, process.processid)
        items, _ = await self.client.range_all(prefix, page=_PAGE)
        return [msgspec.to_builtins(unpack(item.value, Log)) for item in items]

    # -- processes -----------------------------------------------------------------------

    async def _processes(self, colony: str, state: State, limit: int) -> int:
        """Move the processes that ended by `limit` (Unix ns) and belong to no workflow."""
        moved = 0
        prefix = keys.closed_prefix(colony, state)
        batch: list[_Found] = []
        async with aclosing(self._ended(prefix, limit)) as pages:
            async for page in pages:
                for at in range(0, len(page), _BATCH):
                    began = trio.current_time()
                    found = await self._load(colony, page[at : at + _BATCH])
                    due = [it for it in found if self._due(it.process, limit)]
                    # Otherwise each sweep would write again what it can't remove.
                    batch += await self._unowed(due)
                    if len(batch) >= _TOGETHER or sum(it.size for it in batch) >= _MOST_BYTES:
                        moved += await self._move(colony, batch)
                        batch = []
                    await self._rest(began)
        return moved + (await self._move(colony, batch) if batch else 0)

    def _ended(self, prefix: str, limit: int) -> Pages[str]:
        """Return the ids in an index by time that are not after `limit` (Unix ns), newest first."""
        start = prefix + keys.descending(limit)
        found = below(self.client, prefix, start=start, keys_only=True)
        return each(found, lambda kv: kv.key.rpartition("/")[2])

    async def _move(self, colony: str, found: Sequence[_Found]) -> int:
        """Write processes to history, then remove them from the store; return the number of
        records.
        """
        entries: list[dict[str, Any]] = []
        # Most processes have no lines: one read tells which have some.
        lines = [GetFirst(keys.process_logs(colony, it.process.processid)) for it in found]
        logged = (await self.client.commit(Txn([], lines))).responses
        for it, some in zip(found, logged, strict=True):
            entries.extend(await self._record(it.process, it.submission, logged=bool(some)))
        await self._write(colony, entries)
        txns = [(it, store.remove(it.process, it.revision)) for it in found]
        for group in _grouped(txns):
            together = Txn(
                [compare for _, txn in group for compare in txn.compare],
                [op for _, txn in group for op in txn.success],
            )
            if (await self.client.commit(together)).succeeded:
                self._gone([it for it, _ in group])
                continue
            # A process that changed meanwhile stays, and is written again later.
            for it, txn in group:
                if (await self.client.commit(txn)).succeeded:
                    self._gone([it])
        return len(entries)

    def _gone(self, found: Sequence[_Found]) -> None:
        for it in found:
            self.processes.forget(it.process.processid)
            self.freed += it.size + _OVERHEAD

    async def _unowed(self, found: list[_Found]) -> list[_Found]:
        """Return those whose outcome no other colony has yet to fetch, by the store."""
        marks = [it.process.notify for it in found if it.process.notify]
        owed = {kv.key for kv in await read_many(self.client, marks, _BATCH) if kv}
        return [it for it in found if it.process.notify not in owed]

    def _due(self, process: Process, limit: int) -> bool:
        return (
            process.closed
            and 0 < process.endtime <= limit
            and not process.processgraphid
            and not self.processes.hooks.removable(process)
        )

    async def _load(self, colony: str, ids: Sequence[str]) -> list[_Found]:
        """Return processes that exist, with their revision and signed request."""
        processes = [keys.process(colony, pid) for pid in ids]
        submissions = [keys.submission(colony, pid) for pid in ids]
        # Fewer at once where they are large.
        found = await read_many(self.client, [*processes, *submissions], 2 * _BATCH)
        return [
            _Found(
                unpack(one.value, Process),
                one.mod_revision,
                sub.value if sub else b"",
                len(one.value) + (len(sub.value) if sub else 0),
            )
            for one, sub in zip(found[: len(ids)], found[len(ids) :], strict=True)
            if one
        ]

    async def _rest(self, began: float) -> None:
        """Leave the store to others for as long as the batch took, unless it is urgent."""
        if not self.relief.urgent:
            await trio.sleep(min(_LONGEST_PAUSE, trio.current_time() - began))

    # -- workflows -----------------------------------------------------------------------

    async def _graphs(self, colony: str, state: State, limit: int) -> int:
        """Move the workflows that ended by `limit` (Unix ns), each as a whole."""
        moved = 0
        # The index is by submission, which is never after the end.
        async with aclosing(self._ended(keys.graph_states(colony, state), limit)) as pages:
            async for page in pages:
                for graphid in page:
                    began = trio.current_time()
                    moved += await self._graph(colony, graphid, limit)
                    await self._rest(began)
        return moved

    async def _graph(self, colony: str, graphid: str, limit: int) -> int:
        graph = await self.workflows.load(colony, graphid)
        if graph is None or sum(graph.ended.values()) < graph.count or not graph.released:
            return 0
        if not 0 < graph.endtime <= limit:
            return 0
        # In full, as history keeps them.
        nodes = await self.processes.load_many(graph.colonyname, graph_store.ids(graph))
        if any(self.processes.hooks.removable(node) for node in nodes):
            return 0
        written, size = 1, 0
        for at in range(0, len(nodes), _BATCH):
            began = trio.current_time()
            entries: list[dict[str, Any]] = []
            for node in nodes[at : at + _BATCH]:
                entries.extend(await self._record(node, b""))
            await self._write(colony, entries)
            written += len(entries)
            size += sum(len(pack(node)) + _OVERHEAD for node in nodes[at : at + _BATCH])
            await self._rest(began)
        await self._write(colony, [await self._whole(graph)])
        try:
            await self.workflows.remove(colony, graphid)
        except RpcError as error:
            # Another call came between: what is left waits for the next sweep.
            log.info("a workflow stays", graph=graphid, because=error)
        self.freed += size
        return written

    async def _whole(self, graph: Graph) -> dict[str, Any]:
        key = keys.submission(graph.colonyname, graph.processgraphid)
        found = await self.client.get(key)
        return {
            "kind": "workflow",
            "id": graph.processgraphid,
            "workflow": msgspec.to_builtins(graph),
            "submission": found.value.decode(errors="replace") if found is not None else "",
        }

    # -- log lines -----------------------------------------------------------------------

    async def _logs(self, colony: str, limit: int) -> int:
        """Move the lines logged by `limit` (Unix ns).

        Lines of a process that is still in the store are in its own log, too, and move with it.
        """
        moved = 0
        prefix, start = log_store.until(colony, limit)
        async with aclosing(below(self.client, prefix, start=start, keys_only=True)) as pages:
            async for page in pages:
                for at in range(0, len(page), _PAGE):
                    began = trio.current_time()
                    marks = [kv.key for kv in page[at : at + _PAGE]]
                    moved += await self._move_lines(colony, marks)
                    await self._rest(began)
        return moved

    async def _move_lines(self, colony: str, marks: Sequence[str]) -> int:
        entries: list[dict[str, Any]] = []
        gone: list[Op] = []
        lines: dict[str, Log] = {}
        line_keys = [self._line_key(colony, mark) for mark in marks]
        for kv in await read_many(self.client, line_keys, _DELETED):
            if kv is not None:
                lines[kv.key] = unpack(kv.value, Log)
        alive = await self._alive(colony, {it.processid for it in lines.values() if it.processid})
        ops: list[list[Op]] = []
        for mark in marks:
            key = self._line_key(colony, mark)
            gone = [Delete(mark), Delete(key)]
            line = lines.get(key)
            if line is not None and line.processid not in alive:
                name = f"{line.executorname}/{line.timestamp}"
                entries.append({"kind": "log", "id": name, "log": msgspec.to_builtins(line)})
                if line.processid:
                    own = keys.process_logs(colony, line.processid)
                    gone.append(Delete(own + keys.log_place(line.timestamp)))
            ops.append(gone)
        if entries:
            await self._write(colony, entries)
        for at in range(0, len(ops), _DELETED):
            some_ops = [op for each in ops[at : at + _DELETED] for op in each]
            await self.client.commit(Txn([], some_ops))
        # A line is in the store twice, and its key in the index by time.
        self.freed += sum(2 * len(line.message) + _OVERHEAD for line in lines.values())
        return len(entries)

    @staticmethod
    def _line_key(colony: str, mark: str) -> str:
        timestamp, executorname = log_store.parse(mark)
        return keys.executor_logs(colony, executorname) + keys.log_place(timestamp)

    async def _alive(self, colony: str, ids: set[str]) -> set[str]:
        """Return which of these processes are in the store."""
        wanted = [keys.process(colony, pid) for pid in sorted(ids)]
        found = await read_many(self.client, wanted, _BATCH)
        return {kv.key.rpartition("/")[2] for kv in found if kv is not None}


def _grouped(
    txns: Sequence[tuple[_Found, Txn]],
) -> Iterator[Sequence[tuple[_Found, Txn]]]:
    """Return as many in a row as fit one transaction, group by group."""
    some: list[tuple[_Found, Txn]] = []
    room = _OPERATIONS
    for pair in txns:
        size = max(len(pair[1].compare), len(pair[1].success))
        if some and size > room:
            yield some
            some, room = [], _OPERATIONS
        some.append(pair)
        room -= size
    if some:
        yield some


def _signed(process: Process, submission: bytes) -> str:
    """Return the request as it was signed."""
    try:
        return grow(submission, process.spec).decode(errors="replace")
    except ValueError as error:
        log.error("a signed request is lost", process=process.processid, because=error)
        return ""


def _plain(process: Process) -> dict[str, Any]:
    """Return a process as history keeps it: its attributes have its state."""
    attributes = [wire_attribute(attribute, process.state) for attribute in process.attributes]
    plain = msgspec.structs.asdict(process)
    return plain | {"attributes": attributes, "spec": whole_spec(process.spec)}
