"""Eligibility: which executors could take the waiting processes, from the indexes of a node.

Values in, values out. Whether a process may go to another colony, the caller asks the hooks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from node.model.types import Executor, ExecutorState, Waiting
from node.processes.queue import Queue
from node.store.directory import Roster

_MOST_LANES = 10_000  # lanes of all colonies that are looked at
_MOST_LOOKED = 1_000  # processes looked at one by one
_MOST_OF_LANE = 200  # ... of those with the same executor type, or the same executor name


@dataclass(frozen=True)
class Unschedulable:
    """Waiting processes that no registered executor can take, for one reason.

    `first` is the id of one of them. With `more` there may be more than `count`.
    """

    executortype: str
    why: str
    next: str
    count: int
    first: str
    more: bool = False


@dataclass
class ExecutorPool:
    """The executors of a colony by type, with what their registration says that they can take."""

    approved: dict[str, dict[str, str]] = field(default_factory=dict)
    pending: dict[str, list[str]] = field(default_factory=dict)
    _places: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, roster: Roster) -> ExecutorPool:
        """Return the executors of a colony: the approved ones with their locations, and the
        others.
        """
        pool = cls()
        for each in roster.executors.values():
            pool._add(each)
        return pool

    def _add(self, each: Executor) -> None:
        kind, name = each.executortype, each.executorname
        if each.state == ExecutorState.PENDING:
            self.pending.setdefault(kind, []).append(name)
        elif each.state == ExecutorState.APPROVED:
            place = each.locationname.lower()
            self.approved.setdefault(kind, {})[name] = place
            self._places.setdefault(kind, set()).add(place)

    def able(self, executortype: str, waiting: Waiting) -> list[str]:
        """Return the names of the approved executors that may have a process."""
        place = waiting.locationname.lower()
        there = self.approved.get(executortype, {})
        names: Iterable[str] = waiting.executornames or there
        return [name for name in names if name in there and place in ("", there[name])]

    def _any(self, executortype: str, waiting: Waiting) -> bool:
        if waiting.executornames:
            return bool(self.able(executortype, waiting))
        place = waiting.locationname.lower()
        return (
            place in self._places.get(executortype, ()) if place else executortype in self.approved
        )

    def trouble(self, executortype: str, waiting: Waiting) -> tuple[str, str]:
        """Return why no approved executor can take a process, and the next step; ("", "") if one
        can.
        """
        if self._any(executortype, waiting):
            return "", ""
        names = [name for name in waiting.executornames if name]
        asked = self.pending.get(executortype, [])
        for name in names or asked:
            if name in asked:
                return (
                    f'executor "{name}" of type "{executortype}" waits for approval',
                    f"`colony executor approve {name}`",
                )
        there = self.approved.get(executortype, {})
        if names and not any(name in there for name in names):
            wanted = " or ".join(f'"{name}"' for name in names[:3])
            return (
                f'no executor {wanted} of type "{executortype}" is registered',
                f"start it, such as `colony worker --name {names[0]} --type {executortype} ...`;"
                " `colony executor ls` shows who is",
            )
        if there:
            return (
                f'no executor of type "{executortype}" is at "{waiting.locationname}"',
                "`colony executor ls` shows who is where",
            )
        return (
            f'no executor of type "{executortype}" is registered',
            f"start one, such as `colony worker --type {executortype} ...`;"
            " `colony executor ls` shows all",
        )


def unschedulable(queue: Queue, roster: Roster, colony: str, most: int) -> list[Unschedulable]:
    """Return the first `most` kinds of waiting processes that no executor of the colony can
    take.
    """
    pool, found = ExecutorPool.of(roster), list[Unschedulable]()
    room = _MOST_LOOKED
    for executortype, entries, size in islice(queue.lanes(colony, _MOST_LANES), most * 50):
        limit = min(room, _MOST_OF_LANE)
        looked = list(islice(entries, limit))
        room -= len(looked)
        reasons = Counter[tuple[str, str]]()
        firsts: dict[tuple[str, str], str] = {}
        for entry in looked:
            reason = pool.trouble(executortype, entry.waiting)
            reasons[reason] += 1
            firsts.setdefault(reason, entry.processid)
        for reason, count in reasons.items():
            if reason[0]:
                cut = len(looked) == limit
                # Without any executor of the type, the processes that were not looked at can't run
                # either.
                whole = cut and executortype not in pool.approved and len(reasons) == 1
                number = size if whole else count
                more = cut and not whole
                found.append(Unschedulable(executortype, *reason, number, firsts[reason], more))
        if len(found) >= most or not room:
            break
    return found[:most]
