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

# Running processes whose start is remembered as told. Of one that has left by then, a change of
# its contents is told as if it started: what ends elsewhere is not told here.
REMEMBERED = 65_536

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
    _attempts: OrderedDict[str, int] = field(default_factory=OrderedDict)

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

    def _starts(self, process: Process) -> bool:
        """Whether a running process is told for the first time in this attempt."""
        known = self._attempts.get(process.processid)
        self._attempts[process.processid] = process.attempt
        self._attempts.move_to_end(process.processid)
        if len(self._attempts) > REMEMBERED:
            self._attempts.popitem(last=False)
        return known != process.attempt

    def changed(self, process: Process) -> None:
        """A process was stored with a new state, or with new contents; never raises or waits."""
        if process.state == State.RUNNING:
            if not self._starts(process):
                return  # output or an attribute came, no transition
        else:
            self._attempts.pop(process.processid, None)
        if not self._of_any and not self._of_process:
            return
        for subscription in [*self._of_process.get(process.processid, ()), *self._of_any]:
            if subscription.wanted.matches(process):
                try:
                    subscription.send.send_nowait(process)
                except trio.WouldBlock:
                    # Too slow: a gap would go unnoticed, an end does not.
                    self._drop(subscription)
                    subscription.send.close()
