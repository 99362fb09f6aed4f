"""One node: the indexes and shells that the calls of the table work on.

It holds no tasks of its own; `daemon` runs what keeps it fed and serves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from node.directory import Directory
from node.etcd.client import EtcdClient
from node.members import Members
from node.model import Function, Process
from node.processes import Processes
from node.subscriptions import Subscriptions


@dataclass
class Node:
    """`home` is the name of the home colony; `now` gives Unix nanoseconds."""

    client: EtcdClient
    home: str
    now: Callable[[], int]
    directory: Directory
    members: Members
    processes: Processes
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
    rpc_port: int = 0
    extra_status: Callable[[], dict[str, Any]] = dict
    started: int = 0
    draining: trio.Event = field(default_factory=trio.Event)
    _polls: set[trio.CancelScope] = field(default_factory=set)
    _last_tick: int = 0

    @classmethod
    def build(cls, client: EtcdClient, home: str, now: Callable[[], int]) -> Node:
        """Put the parts together."""
        directory = Directory()
        members = Members(client, directory, now)
        node = cls(client, home, now, directory, members, Processes(client, now), started=now())
        node.processes.changed = node.subscriptions.changed
        return node

    def tick(self) -> int:
        """A time in Unix ns that is larger than every one before: no two log lines share a key."""
        self._last_tick = max(self._last_tick + 1, self.now())
        return self._last_tick

    @contextmanager
    def until_drain(self) -> Iterator[None]:
        """Cancel the block when the daemon drains; what follows the block answers the caller."""
        with trio.CancelScope() as scope:
            if self.draining.is_set():
                scope.cancel()
            self._polls.add(scope)
            try:
                yield
            finally:
                self._polls.discard(scope)

    def drain(self) -> None:
        """Stop handing out work: every waiting poll is answered now."""
        self.draining.set()
        for scope in list(self._polls):
            scope.cancel()

    def count_function(self, process: Process, executorid: str) -> None:
        """Note in memory what a successful call says about the function that ran it."""
        executor = self.directory.executor_of(process.colonyname, executorid)
        if executor is None:
            return
        wait = max(0, process.starttime - process.submissiontime) / 1e9
        run = max(0, process.endtime - process.starttime) / 1e9
        functions = self.directory.roster(process.colonyname).functions
        for functionid, known in functions.items():
            if (known.executorname, known.funcname) == (
                executor.executorname,
                process.spec.funcname,
            ):
                functions[functionid] = _counted(known, wait, run)


def _counted(known: Function, wait: float, run: float) -> Function:
    """Statistics after one more call, in seconds."""
    n = known.counter
    return msgspec.structs.replace(
        known,
        counter=n + 1,
        minwaittime=min(known.minwaittime, wait) if n else wait,
        maxwaittime=max(known.maxwaittime, wait),
        avgwaittime=(known.avgwaittime * n + wait) / (n + 1),
        minexectime=min(known.minexectime, run) if n else run,
        maxexectime=max(known.maxexectime, run),
        avgexectime=(known.avgexectime * n + run) / (n + 1),
    )
