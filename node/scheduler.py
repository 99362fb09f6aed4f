"""Which waiting process an executor gets, who waits for one, and whose deadline has passed.

Values in, values out: an index that store events rebuild, without I/O or clocks. The order is
upstream's priority time, smallest first, then the process id.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedSet

from node.model import Running, Waiting


@dataclass(frozen=True)
class Candidate:
    """What an executor brings to a match; `cpu` and `mem` None means unlimited."""

    colony: str
    executortype: str
    name: str
    location: str = ""
    cpu: int | None = None
    mem: int | None = None


@dataclass(frozen=True)
class Entry:
    """One waiting process in the index, with the revision of its queue key."""

    colony: str
    executortype: str
    prioritytime: int
    processid: str
    waiting: Waiting
    revision: int


def matches(candidate: Candidate, waiting: Waiting) -> bool:
    """Whether the executor may be handed the process (type and colony are already equal)."""
    if waiting.executornames and candidate.name not in waiting.executornames:
        return False
    if waiting.locationname and waiting.locationname.lower() != candidate.location.lower():
        return False
    if candidate.cpu is not None and waiting.cpu > candidate.cpu:
        return False
    return candidate.mem is None or waiting.mem <= candidate.mem


@dataclass
class Queue:
    """The waiting processes of all colonies.

    Processes that name executors stand in a lane of each name, so that they never slow the
    scan of an executor that they do not name.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    _lanes: dict[tuple[str, str, str], SortedSet[tuple[int, str]]] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)
    _deadlines: list[tuple[int, str]] = field(default_factory=list)

    def _lanes_of(self, entry: Entry) -> list[tuple[str, str, str]]:
        names = entry.waiting.executornames or [""]
        return [(entry.colony, entry.executortype, name) for name in names]

    def add(self, entry: Entry) -> bool:
        """Add or replace; False if it is old news of an entry already taken or known."""
        if self._taken.get(entry.processid, -1) >= entry.revision:
            return False
        known = self.entries.get(entry.processid)
        if known is not None:
            if known.revision >= entry.revision:
                return False
            self._drop(known)
        self._taken.pop(entry.processid, None)
        self.entries[entry.processid] = entry
        for lane in self._lanes_of(entry):
            self._lanes.setdefault(lane, SortedSet()).add((entry.prioritytime, entry.processid))
        if entry.waiting.waitdeadline:
            heapq.heappush(self._deadlines, (entry.waiting.waitdeadline, entry.processid))
        return True

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry.processid]
        for lane in self._lanes_of(entry):
            places = self._lanes[lane]
            places.discard((entry.prioritytime, entry.processid))
            if not places:
                del self._lanes[lane]

    def remove(self, processid: str) -> None:
        """The queue key is gone from the store."""
        self._taken.pop(processid, None)
        entry = self.entries.get(processid)
        if entry is not None:
            self._drop(entry)

    def find(self, candidate: Candidate) -> Entry | None:
        """The first process in order that the executor may have."""
        best: Entry | None = None
        for name in ("", candidate.name):
            for _, processid in self._lanes.get(
                (candidate.colony, candidate.executortype, name), ()
            ):
                entry = self.entries[processid]
                if best is not None and _place(best) < _place(entry):
                    break
                if matches(candidate, entry.waiting):
                    best = entry
                    break
        return best

    def take(self, entry: Entry) -> None:
        """Hide an entry while its transaction runs, so that nobody else here tries it."""
        self._drop(entry)
        self._taken[entry.processid] = entry.revision

    def give_back(self, entry: Entry) -> None:
        """The transaction did not happen: the entry is as before."""
        if self._taken.get(entry.processid) == entry.revision:
            del self._taken[entry.processid]
            self.add(entry)

    def replace(self, entries: dict[str, Entry]) -> None:
        """The store was listed anew: what is not in `entries` is gone."""
        for processid in [known for known in self.entries if known not in entries]:
            self.remove(processid)
        for processid in [taken for taken in self._taken if taken not in entries]:
            del self._taken[processid]
        for entry in entries.values():
            self.add(entry)

    def overdue(self, now: int) -> list[Entry]:
        """Entries whose wait deadline (Unix ns) has passed; each is returned once."""
        found = []
        while self._deadlines and self._deadlines[0][0] < now:
            deadline, processid = heapq.heappop(self._deadlines)
            entry = self.entries.get(processid)
            if entry is not None and entry.waiting.waitdeadline == deadline:
                found.append(entry)
        return found

    def again(self, entry: Entry) -> None:
        """An overdue entry could not be dealt with: `overdue` returns it once more."""
        heapq.heappush(self._deadlines, (entry.waiting.waitdeadline, entry.processid))

    def in_order(self, colony: str) -> Iterator[Entry]:
        """The waiting processes of a colony, in order."""
        mine = (entry for entry in self.entries.values() if entry.colony == colony)
        return iter(sorted(mine, key=_place))

    def count(self, colony: str) -> int:
        """How many processes of a colony wait."""
        return sum(1 for entry in self.entries.values() if entry.colony == colony)


def _place(entry: Entry) -> tuple[int, str]:
    return (entry.prioritytime, entry.processid)


@dataclass
class RunningSet:
    """The running processes of all colonies and their deadlines."""

    entries: dict[str, tuple[str, Running]] = field(default_factory=dict)
    _deadlines: list[tuple[int, str]] = field(default_factory=list)

    def add(self, colony: str, processid: str, running: Running) -> None:
        """Add or replace."""
        if self.entries.get(processid) == (colony, running):
            return
        self.entries[processid] = (colony, running)
        if running.execdeadline:
            heapq.heappush(self._deadlines, (running.execdeadline, processid))

    def remove(self, processid: str) -> None:
        """The running key is gone from the store."""
        self.entries.pop(processid, None)

    def replace(self, entries: dict[str, tuple[str, Running]]) -> None:
        """The store was listed anew."""
        for processid in [known for known in self.entries if known not in entries]:
            del self.entries[processid]
        for processid, (colony, running) in entries.items():
            self.add(colony, processid, running)

    def overdue(self, now: int) -> list[tuple[str, str, Running]]:
        """(colony, process id, running) whose deadline (Unix ns) has passed; each once."""
        found = []
        while self._deadlines and self._deadlines[0][0] < now:
            deadline, processid = heapq.heappop(self._deadlines)
            known = self.entries.get(processid)
            if known is not None and known[1].execdeadline == deadline:
                found.append((known[0], processid, known[1]))
        return found

    def again(self, processid: str, running: Running) -> None:
        """An overdue process could not be dealt with: `overdue` returns it once more."""
        heapq.heappush(self._deadlines, (running.execdeadline, processid))

    def of_executor(self, colony: str, executorid: str) -> list[str]:
        """Ids of the processes that an executor runs."""
        return [
            processid
            for processid, (home, running) in self.entries.items()
            if home == colony and running.executorid == executorid
        ]

    def in_order(self, colony: str) -> list[tuple[str, Running]]:
        """The running processes of a colony by start time."""
        mine = [(pid, run) for pid, (home, run) in self.entries.items() if home == colony]
        return sorted(mine, key=lambda pair: (pair[1].starttime, pair[0]))
