"""What waits, and who could take it: values in, values out, from the indexes of a node.

Whether another colony may take it is asked of the hooks by those who call; nothing here waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from node.model.types import Executor, ExecutorState, Waiting
from node.processes.queue import Queue
from node.store.directory import Roster

_MOST_LANES = 10_000  # of all colonies, that are looked at
_MOST_LOOKED = 1_000  # processes looked at one by one
_MOST_OF_LANE = 200  # ... of those that ask for the same type, or name the same executor


@dataclass(frozen=True)
class Unschedulable:
    """Waiting processes that none of the registered executors can take, for one reason.

    `first` is the id of one of them; there may be more than `count` where `more` says so.
    """

    executortype: str
    why: str
    next: str
    count: int
    first: str
    more: bool = False


@dataclass
class ExecutorPool:
    """The executors of a colony by type, as far as what is registered tells what they can take."""

    approved: dict[str, dict[str, str]] = field(default_factory=dict)
    pending: dict[str, list[str]] = field(default_factory=dict)
    _places: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, roster: Roster) -> ExecutorPool:
        """That of a colony: approved executors with their places, and those not approved yet."""
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
        """Names of the approved executors that a process may be handed to."""
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
        """Why no approved executor can take a process, and what to do; empty if one can."""
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
    """The first `most` kinds of waiting processes of a colony that no executor of it can take."""
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
                # Without any executor of the type, what was not looked at waits in vain as well.
                whole = cut and executortype not in pool.approved and len(reasons) == 1
                number = size if whole else count
                more = cut and not whole
                found.append(Unschedulable(executortype, *reason, number, firsts[reason], more))
        if len(found) >= most or not room:
            break
    return found[:most]
