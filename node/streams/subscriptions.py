"""Who wants to hear of which processes: a registry in memory, fed with every transition.

A broadcast: nobody takes an event from another, and executors' wake-ups are none of it. Who may
subscribe, and how events travel, is decided by the caller.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from node.model.types import Process, State

# Processes of which is remembered what was told last. Of one that has left by then, a change of
# its contents while it runs is told as if it started.
REMEMBERED = 16_384

# Events kept for a subscriber that is busy sending; one more ends its subscription.
BUFFER = 512
# Bytes of events that wait for one socket, all its subscriptions together; likewise.
QUEUED = 16 << 20
# Bytes of a process that says nothing, which `_encode` leaves out.
_BARE = 1000

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class SubscriptionFilter:
    """Processes of `colonies` entering `state`; an empty id or executor type means any.

    With a `processid` every end of that process is told too: after it `state` can't come.
    """

    colonies: frozenset[str]
    state: int
    processid: str = ""
    executortype: str = ""

    def matches(self, process: Process) -> bool:
        """Whether the transition that led to `process` is to be told."""
        if process.colonyname not in self.colonies:
            return False
        if self.processid:
            return process.state == self.state or process.closed
        kind = process.spec.conditions.executortype
        return process.state == self.state and self.executortype in ("", kind)


def _weigh(process: Process) -> int:
    """How many bytes a process has, about."""
    try:
        return _BARE + len(_encode(process))
    except (TypeError, ValueError, OverflowError):
        return QUEUED  # whoever is told of it will find out


@dataclass
class ByteCounter:
    """The bytes of events that wait for one socket."""

    held: int = 0


@dataclass
class _Event:
    """A process as it was at a transition, once for all that are to hear of it."""

    process: Process
    weight: int
    holders: int = 0


class Events:
    """What a subscriber hears. An event counts as waiting until the next one is asked for."""

    def __init__(self, registry: Subscriptions, meter: ByteCounter, buffer: int) -> None:
        self._send, self._receive = trio.open_memory_channel[_Event](buffer)
        self._registry = registry
        self._taken: _Event | None = None
        self.meter = meter

    def put(self, event: _Event) -> bool:
        """Add an event; False when there are too many, or too large ones."""
        if self.meter.held and self.meter.held + event.weight > QUEUED:
            return False
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            return False
        event.holders += 1
        self.meter.held += event.weight
        return True

    def end(self) -> None:
        """Nothing more comes."""
        self._send.close()

    def close(self) -> None:
        """Forget what was not taken."""
        self._send.close()
        self._done()
        with self._receive:
            try:
                while True:
                    self._taken = self._receive.receive_nowait()
                    self._done()
            except (trio.WouldBlock, trio.EndOfChannel):
                pass

    def _done(self) -> None:
        if self._taken is not None:
            self.meter.held -= self._taken.weight
            self._registry.let_go(self._taken)
            self._taken = None

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Process:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> Process:
        """The next process; raises trio.EndOfChannel after the last."""
        self._done()
        self._taken = await self._receive.receive()
        return self._taken.process

    def receive_nowait(self) -> Process:
        """Likewise, or raises trio.WouldBlock."""
        self._done()
        self._taken = self._receive.receive_nowait()
        return self._taken.process


@dataclass(eq=False)
class _Subscription:
    wanted: SubscriptionFilter
    events: Events


@dataclass
class Subscriptions:
    """All open subscriptions of a node.

    `most` is how many one signer may have, `room` how many bytes of events may wait in all; whoever
    counts those of a signer does so in `signers`.
    """

    most: int = 1024
    room: int = 1 << 28
    signers: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    _of_process: dict[str, dict[_Subscription, None]] = field(default_factory=dict)
    _of_any: dict[_Subscription, None] = field(default_factory=dict)
    # Attempt, state and revision of what was told last.
    _told: OrderedDict[str, tuple[int, int, int]] = field(default_factory=OrderedDict)

    @property
    def any_open(self) -> bool:
        """Whether anybody subscribes."""
        return bool(self._of_any or self._of_process)

    @contextmanager
    def open(
        self, wanted: SubscriptionFilter, buffer: int = BUFFER, meter: ByteCounter | None = None
    ) -> Iterator[Events]:
        """Hear of what is `wanted` from now on; the events end early when there are too many."""
        events = Events(self, meter or ByteCounter(), buffer)
        subscription = _Subscription(wanted, events)
        if wanted.processid:
            self._of_process.setdefault(wanted.processid, {})[subscription] = None
        else:
            self._of_any[subscription] = None
        try:
            yield events
        finally:
            self._drop(subscription)
            events.close()

    def let_go(self, event: _Event) -> None:
        """One of those that were to hear of an event has heard of it, or is gone."""
        event.holders -= 1
        if not event.holders:
            self.waiting -= event.weight

    def _drop(self, subscription: _Subscription) -> None:
        self._of_any.pop(subscription, None)
        processid = subscription.wanted.processid
        mine = self._of_process.get(processid)
        if mine is not None:
            mine.pop(subscription, None)
            if not mine:
                del self._of_process[processid]

    def end_all(self) -> None:
        """End every subscription: something can't be told, and a gap would go unnoticed."""
        for subscription in [
            *self._of_any,
            *(s for each in self._of_process.values() for s in each),
        ]:
            self._drop(subscription)
            subscription.events.end()

    def told(self, processid: str) -> int:
        """The revision up to which was told what became of a process, 0 for never."""
        known = self._told.get(processid)
        return known[2] if known is not None else 0

    def follows(self, process: Process) -> bool:
        """Whether no transition is known to be missing between what was told last and this."""
        known = self._told.get(process.processid)
        return known is None or process.attempt <= known[0] + (process.state == State.RUNNING)

    def _is_new(self, process: Process, revision: int) -> bool:
        """Whether it is a transition: neither a change of contents, nor heard from two sides."""
        known, attempt, state = self._told.get(process.processid), process.attempt, process.state
        self._told[process.processid] = (attempt, int(state), revision)
        self._told.move_to_end(process.processid)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return known is None or known[0] != attempt or known[1] != state

    def changed(self, process: Process, revision: int = 0) -> None:
        """A process was stored with a new state, or with new contents; never raises or waits."""
        if not self._is_new(process, revision) or not self.any_open:
            return
        event: _Event | None = None
        for subscription in [*self._of_process.get(process.processid, ()), *self._of_any]:
            if subscription.wanted.matches(process):
                event = event or _Event(process, _weigh(process))
                if not subscription.events.put(event):
                    self._end(subscription)
        if event is not None and event.holders:
            self.waiting += event.weight
            if self.waiting > self.room:
                everybody = [*self._of_any, *(s for of in self._of_process.values() for s in of)]
                self._end(max(everybody, key=lambda each: each.events.meter.held))

    def _end(self, subscription: _Subscription) -> None:
        """End one that is too slow: a gap would go unnoticed, an end does not."""
        self._drop(subscription)
        subscription.events.end()
