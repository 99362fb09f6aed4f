"""Channels: ordered messages between the initiator of a process and its executor.

The rights and limits of messages, appending, reading, and waking listeners; keys and transactions
are in `store.work.channels`. The messages are in the store, so every daemon of it serves the same
ones.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from colonyd.errors import Conflict, Denied, Invalid, NotFound, RpcError
from node.etcd.client import EtcdClient
from node.etcd.pages import Pages, below, whole
from node.etcd.txn import Txn
from node.etcd.watch import WatchBatch, watch
from node.model.codec import unpack, wire_time
from node.model.types import SECOND, Process
from node.processes.observer import Observer
from node.store.directory import Directory
from node.store.limits import CHANNEL, MESSAGE
from node.store.work import channels as store
from node.store.work.channels import ChannelEntry, ChannelHead, Pulse

if TYPE_CHECKING:
    from node.processes.service import Processes

MAX_TYPE = 64  # characters

MAX_PAYLOAD = MESSAGE  # bytes of one message
MAX_ABROAD = 2**20  # ... of a process that another colony has a part in
MAX_ENTRIES = 10_000  # in one channel
MAX_SIZE = CHANNEL  # bytes of payload in one channel: a read of all of it stays possible
RATE, BURST = 100, 500  # messages a second of one process, and how many may come at once
FRAME = 2**20  # bytes of payload in one frame of a subscription, unless one message is larger
_TRIES = 8
_KEPT = 4096  # heads and rates in memory

_Place = tuple[str, str, str]  # colony, process id, name


def wire(entry: ChannelEntry) -> dict[str, Any]:
    """Return an entry as upstream's SDKs expect it, ready for JSON."""
    value: dict[str, Any] = {
        "sequence": entry.sequence,
        "timestamp": wire_time(entry.timestamp),
        "senderid": entry.senderid,
        "payload": base64.b64encode(entry.payload).decode(),
        "type": entry.type,
    }
    if entry.inreplyto:
        value["inreplyto"] = entry.inreplyto
    return value


def frames(entries: Sequence[ChannelEntry]) -> Iterator[list[ChannelEntry]]:
    """Cut entries into parts of at most `FRAME` bytes of payload, or of one message."""
    part: list[ChannelEntry] = []
    size = 0
    for entry in entries:
        if part and size + len(entry.payload) > FRAME:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.payload)
    if part:
        yield part


class RateLimiter:
    """Token buckets by key; `now` is in Unix ns.

    A bucket that was unused for long is dropped, and so is full again.
    """

    def __init__(self, rate: int = RATE, burst: int = BURST, kept: int = _KEPT) -> None:
        self._rate, self._burst, self._kept = rate, burst, kept
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def allow(self, key: str, now: int) -> bool:
        """Take a token; return whether there was one."""
        left, then = self._buckets.pop(key, (float(self._burst), now))
        left = min(self._burst, left + max(0, now - then) / SECOND * self._rate)
        allowed = left >= 1
        self._buckets[key] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)
        return allowed


class ChannelWakeUp:
    """The wake-up of one listener: set whenever the channel, or its process, may have changed."""

    def __init__(self) -> None:
        self._wakeup = trio.Event()

    def wake(self) -> None:
        """Wake the listener."""
        self._wakeup.set()

    def quiet(self) -> None:
        """Start over: `wait` returns at the next `wake` from here on. Call this before reading."""
        self._wakeup = trio.Event()

    async def wait(self, seconds: float) -> None:
        """Return at the first `wake` since `quiet`, or after `seconds`, in case one was lost."""
        with trio.move_on_after(seconds):
            await self._wakeup.wait()


@dataclass
class _AppendQueue:
    """The appends of this daemon to one channel: one after the other, in order of arrival."""

    turn: trio.Lock = field(default_factory=trio.Lock)
    length: int = 0


@dataclass
class Channels(Observer):
    """The channels of all processes. `now` gives Unix nanoseconds."""

    client: EtcdClient
    directory: Directory
    processes: Processes
    now: Callable[[], int]
    rates: RateLimiter = field(default_factory=RateLimiter)
    _heads: OrderedDict[_Place, tuple[ChannelHead, int]] = field(default_factory=OrderedDict)
    _lines: dict[_Place, _AppendQueue] = field(default_factory=dict)
    _listeners: dict[str, dict[ChannelWakeUp, str]] = field(default_factory=dict)

    async def find(self, identity: str, processid: str, name: str) -> tuple[Process, int]:
        """Return a process whose channel the caller may use, and its revision.

        Raises Denied when the caller is not a member, or neither the initiator nor the assigned
        executor; NotFound when there is no such process or it has no such channel.
        """

        async def look(colony: str) -> tuple[Process, int] | None:
            return await self.processes.load(colony, processid) if "/" not in processid else None

        known = await self.directory.seek(identity, look, "processid", processid)
        _check_party(known[0], identity, name)
        return known

    # -- appending -----------------------------------------------------------------------

    async def append(self, processid: str, name: str, said: ChannelEntry, nonce: str = "") -> None:
        """Append a message to a channel; a repeat of a message that is there does nothing.

        The time is set here. Raises Invalid for a message that is too large or too many at once,
        Conflict when the channel is full or the process has ended, and as `find` does.
        """
        if len(said.payload) > MAX_PAYLOAD:
            raise Invalid(
                f"payload: {len(said.payload)} bytes; a message has at most {MAX_PAYLOAD}"
            )
        process, _ = await self.find(said.senderid, processid, name)
        if (process.origin or process.peer) and len(said.payload) > MAX_ABROAD:
            raise Invalid(
                f"payload: {len(said.payload)} bytes; between colonies a message has at most"
                f" {MAX_ABROAD}"
            )
        if not self.rates.allow(processid, self.now()):
            raise Invalid(
                f"processid: the channels of a process take {RATE} messages a second and"
                f" {BURST} at once; wait and send again"
            )
        place = (process.colonyname, processid, name)
        line = self._lines.setdefault(place, _AppendQueue())
        line.length += 1
        try:
            async with line.turn:
                await self._append(place, said, nonce)
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[place]

    async def _append(self, place: _Place, said: ChannelEntry, nonce: str) -> None:
        colony, processid, name = place
        known = await self.processes.recall(colony, processid)
        if known is None:
            raise NotFound(f"processid: process {processid} was removed")
        process, revision = known
        head, at = self._heads.get(place, (ChannelHead(), 0))
        for _ in range(_TRIES):
            _check_party(process, said.senderid, name)
            said.timestamp = self.now()
            own = said.senderid == process.assignedexecutorid
            digest = store.digest(said, attempt=process.attempt if own else 0, nonce=nonce)
            txn = store.append(process, revision, name, said, head, at, digest)
            refusal = _refusal(process, head, len(said.payload))
            if refusal is not None:
                # Refused by values in memory: read the store's values before refusing.
                txn = Txn([], txn.failure)
            result = await self.client.commit(txn)
            if refusal is None and result.succeeded:
                head = ChannelHead(head.count + 1, head.size + len(said.payload))
                self._keep(place, head, result.revision)
                self.wake(processid, name)
                if process.origin or process.peer:
                    self.processes.hooks.progressed(process)
                return
            if digest and result.responses[2]:
                return  # there already: a repeat succeeds, even after the end
            if not result.responses[0]:
                raise NotFound(f"processid: process {processid} was removed")
            then = (revision, at)
            process = unpack(result.responses[0][0].value, Process)
            revision = result.responses[0][0].mod_revision
            head, at = ChannelHead(), 0
            for there in result.responses[1]:
                head, at = unpack(there.value, ChannelHead), there.mod_revision
            self._keep(place, head, at)
            if refusal is not None and then == (revision, at):
                raise refusal
        raise Conflict("name: the channel changes too fast; send again")

    def _keep(self, place: _Place, head: ChannelHead, at: int) -> None:
        self._heads[place] = (head, at)
        self._heads.move_to_end(place)
        if len(self._heads) > _KEPT:
            self._heads.popitem(last=False)

    # -- reading and listening -----------------------------------------------------------

    async def read(
        self, process: Process, name: str, after: int, limit: int = 0
    ) -> list[ChannelEntry]:
        """Return the entries after the first `after`, at most `limit` (0 and below: all)."""
        return await whole(self.pages(process, name, after, limit))

    async def pages(
        self, process: Process, name: str, after: int, limit: int
    ) -> Pages[ChannelEntry]:
        """Return the same entries as `read`, in pages."""
        place = (process.colonyname, process.processid, name)
        if after >= MAX_ENTRIES:
            return
        start, most = store.entry(*place, max(0, after)), max(0, limit)
        found = below(self.client, store.entries(*place), start=start, limit=most)
        async with aclosing(found) as pages:
            async for page in pages:
                yield [unpack(kv.value, ChannelEntry) for kv in page]

    @contextmanager
    def hear(self, processid: str, name: str) -> Iterator[ChannelWakeUp]:
        """Give a wake-up for a channel, set by the appends of any daemon."""
        news = ChannelWakeUp()
        self._listeners.setdefault(processid, {})[news] = name
        try:
            yield news
        finally:
            mine = self._listeners[processid]
            del mine[news]
            if not mine:
                del self._listeners[processid]

    def moved(self, processid: str) -> None:
        """Wake the listeners of a process's channels."""
        self.wake(processid)

    def listed(self) -> None:
        """Wake every listener."""
        self.wake("")

    def wake(self, processid: str, name: str = "") -> None:
        """Wake the listeners of a channel, of all channels of a process, or ("") of all
        channels.
        """
        if not processid:
            everybody = [news for mine in self._listeners.values() for news in mine]
        else:
            mine = self._listeners.get(processid, {})
            everybody = [news for news, wanted in mine.items() if name in ("", wanted)]
        for news in everybody:
            news.wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the appends of other daemons of this store, until cancelled."""
        sender, receiver = trio.open_memory_channel[WatchBatch](64)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(watch, self.client, store.PULSE, sender))
            task_status.started()
            async for batch in receiver:
                if batch.snapshot:
                    self.wake("")  # appends before this moment may have been missed
                for event in batch.events if not batch.snapshot else ():
                    if event.value is not None:
                        pulse = unpack(event.value, Pulse)
                        self.wake(pulse.processid, pulse.name)


def _check_party(process: Process, identity: str, name: str) -> None:
    if identity not in (process.initiatorid, process.assignedexecutorid):
        raise Denied(
            "only the initiator of the process and its assigned executor may use its channels"
        )
    if name not in (process.spec.channels or ()):
        raise NotFound(f"name: the process has no channel {name[:80]!r}; spec.channels names them")


def _refusal(process: Process, head: ChannelHead, size: int) -> RpcError | None:
    """Return why a message of `size` bytes can't be appended, or None."""
    if process.closed:
        ended = process.state.name.lower()
        return Conflict(f"processid: the process is {ended}; its channels take no more messages")
    if head.count >= MAX_ENTRIES:
        return Conflict(f"name: the channel is full: it takes {MAX_ENTRIES} messages")
    if head.size + size > MAX_SIZE:
        return Conflict(f"name: the channel is full: it takes {MAX_SIZE} bytes of payload")
    return None
