"""Who wants to hear of which processes: a registry in memory, fed with every transition.

A broadcast: nobody takes an event from another, and executors' wake-ups are none of it. Who may
subscribe, and how events travel, is decided by the caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from node.model import Process, State

# Processes of which is remembered what was told last. Of one that has left by then, a change of
# its contents while it runs is told as if it started.
REMEMBERED = 16_384

# Events kept for a subscriber that is busy sending; one more ends its subscription.
BUFFER = 512


@dataclass(frozen=True)
class Wanted:
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


@dataclass(eq=False)
class _Subscription:
    wanted: Wanted
    send: trio.MemorySendChannel[Process]


@dataclass
class Subscriptions:
    """All open subscriptions of a node."""

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
        self, wanted: Wanted, buffer: int = BUFFER
    ) -> Iterator[trio.MemoryReceiveChannel[Process]]:
        """Hear of what is `wanted` from now on; the channel ends early when it overflows."""
        send, receive = trio.open_memory_channel[Process](buffer)
        subscription = _Subscription(wanted, send)
        if wanted.processid:
            self._of_process.setdefault(wanted.processid, {})[subscription] = None
        else:
            self._of_any[subscription] = None
        try:
            with send, receive:
                yield receive
        finally:
            self._drop(subscription)

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
            subscription.send.close()

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
        for subscription in [*self._of_process.get(process.processid, ()), *self._of_any]:
            if subscription.wanted.matches(process):
                try:
                    subscription.send.send_nowait(process)
                except trio.WouldBlock:
                    # Too slow: a gap would go unnoticed, an end does not.
                    self._drop(subscription)
                    subscription.send.close()
