"""Subscriptions to processes: a registry in memory, fed with every transition.

A broadcast: each subscriber gets every event, and executors' polls have no part in it. The caller
decides who may subscribe, and how events travel.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from node.model.types import Process, State

# Processes whose last told change is remembered. For a process that was dropped, a change of its
# contents while it runs is told as if it started.
REMEMBERED = 16_384

# Events kept for a subscriber that is busy sending; one more ends its subscription.
BUFFER = 512
# Bytes of events that wait for one socket, of all its subscriptions; more end one, too.
QUEUED = 16 << 20
# Bytes of a process with default values, which `_encode` leaves out.
_BARE = 1000

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class SubscriptionFilter:
    """Processes of `colonies` entering `state`; an empty id or executor type means any.

    With a `processid`, any end of that process is told, too: after it `state` can't come.
    """

    colonies: frozenset[str]
    state: int
    processid: str = ""
    executortype: str = ""

    def matches(self, process: Process) -> bool:
        """Return whether the transition that led to `process` is to be told."""
        if process.colonyname not in self.colonies:
            return False
        if self.processid:
            return process.state == self.state or process.closed
        kind = process.spec.conditions.executortype
        return process.state == self.state and self.executortype in ("", kind)


def _weigh(process: Process) -> int:
    """Return about how many bytes a process has."""
    try:
        return _BARE + len(_encode(process))
    except (TypeError, ValueError, OverflowError):
        return QUEUED  # sending the event will fail


@dataclass
class ByteCounter:
    """The bytes of events that wait for one socket."""

    held: int = 0


@dataclass
class _Event:
    """A process as it was at a transition, shared by all subscribers of it."""

    process: Process
    weight: int
    holders: int = 0


class Events:
    """The events of a subscriber. An event counts as waiting until the next one is asked for."""

    def __init__(self, registry: Subscriptions, meter: ByteCounter, buffer: int) -> None:
        self._send, self._receive = trio.open_memory_channel[_Event](buffer)
        self._registry = registry
        self._taken: _Event | None = None
        self.meter = meter

    def put(self, event: _Event) -> bool:
        """Add an event. Returns False when there are too many, or too many bytes."""
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
        """End the events after those that are there."""
        self._send.close()

    def close(self) -> None:
        """Drop the events that were not taken."""
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
        """Return the next process; raises trio.EndOfChannel after the last."""
        self._done()
        self._taken = await self._receive.receive()
        return self._taken.process

    def receive_nowait(self) -> Process:
        """Return the next process, or raise trio.WouldBlock."""
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

    `most` is how many one signer may have; callers count them in `signers`. `room` is how many
    bytes of events may wait in all.
    """

    most: int = 1024
    room: int = 1 << 28
    signers: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    _of_process: dict[str, dict[_Subscription, None]] = field(default_factory=dict)
    _of_any: dict[_Subscription, None] = field(default_factory=dict)
    # Attempt, state and revision of the last told change.
    _told: OrderedDict[str, tuple[int, int, int]] = field(default_factory=OrderedDict)

    @property
    def any_open(self) -> bool:
        """Return whether there is any subscription."""
        return bool(self._of_any or self._of_process)

    @contextmanager
    def open(
        self, wanted: SubscriptionFilter, buffer: int = BUFFER, meter: ByteCounter | None = None
    ) -> Iterator[Events]:
        """Give the events for `wanted` from now on; they end early when too many wait."""
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
        """Release an event for one subscriber, which got it or is gone."""
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
        """End every subscription: a change can't be told, and a gap would go unnoticed."""
        for subscription in [
            *self._of_any,
            *(s for each in self._of_process.values() for s in each),
        ]:
            self._drop(subscription)
            subscription.events.end()

    def told(self, processid: str) -> int:
        """Return the revision of the last told change of a process, 0 for none."""
        known = self._told.get(processid)
        return known[2] if known is not None else 0

    def follows(self, process: Process) -> bool:
        """Return whether no transition is known to be missing between the last told one and this
        one.
        """
        known = self._told.get(process.processid)
        return known is None or process.attempt <= known[0] + (process.state == State.RUNNING)

    def _is_new(self, process: Process, revision: int) -> bool:
        """Return whether this is a transition: no change of contents only, and not told before."""
        known, attempt, state = self._told.get(process.processid), process.attempt, process.state
        self._told[process.processid] = (attempt, int(state), revision)
        self._told.move_to_end(process.processid)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return known is None or known[0] != attempt or known[1] != state

    def changed(self, process: Process, revision: int = 0) -> None:
        """Tell subscribers of a process that was stored with a new state; never raises or waits.

        A change of contents only is not told.
        """
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
        """End a subscription that is too slow: a gap would go unnoticed, an end does not."""
        self._drop(subscription)
        subscription.events.end()
