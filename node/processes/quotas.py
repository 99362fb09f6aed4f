"""Quotas: the most that one member, executor, generator or colony may have here.

Each is a setting of `[quotas]`, which a refusal names. The right to the call is checked before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from colonyd.errors import TooMany
from node.host.config import QuotasConfig
from node.processes.queue import Queue, RunningSet, count_owner

_LOGGING = 4096  # processes whose lines are counted

# The part of a member's open processes that its crons and generators may fill: they must not keep
# the member itself from submitting.
TIMED = 0.5


@dataclass
class Quotas:
    """The limits in force, and the indexes that tell how much of them is used.

    `queue` and `running` know the open processes: waiting, blocked by others, or running.
    """

    queue: Queue = field(default_factory=Queue)
    running: RunningSet = field(default_factory=RunningSet)
    limits: QuotasConfig = field(default_factory=QuotasConfig)
    # Processes that are being submitted, by colony and name, and by colony and "".
    _coming: dict[tuple[str, str], int] = field(default_factory=dict)
    # Colony and name of each of these, by id.
    _coming_ids: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Lines that running processes logged, for the processes that logged last.
    _lines: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def require(self, setting: str, whose: str, there: int, what: str, more: int = 1) -> None:
        """Raise TooMany unless `more` may join those that are there; a limit of 0 is none."""
        most = getattr(self.limits, setting)
        if most and there + more > most:
            raise TooMany(
                f"{whose} has {there} {what}, and {more} more would exceed {most}"
                f" (quotas.{setting}): end or remove some, or have the server's owner raise it"
            )

    def open(self, colony: str, name: str = "") -> int:
        """Return how many processes a member has open or is submitting; without a name, all
        members.
        """
        place = (colony, name)
        return (
            self.queue.owners.get(place, 0)
            + self.running.owners.get(place, 0)
            + self._coming.get(place, 0)
        )

    def require_processes(
        self, colony: str, name: str, count: int = 1, *, timed: bool = False
    ) -> None:
        """Raise TooMany unless a member may have `count` processes more.

        With `timed`, a cron or generator of the member starts them.
        """
        limits = self.limits
        most, all_most = limits.member_processes, limits.colony_processes
        may = most * (TIMED if timed else 1)
        if most and self.open(colony, name) + count > may:
            own = self.open(colony, name) - self._twice(colony, name)
            member = f"{name!r} in colony {colony!r}"
            if timed and own + count > may:
                raise TooMany(
                    f"{member} has {own} open processes, and {count} more by the clock would"
                    f" exceed {int(most * TIMED)}, half of {most} (quotas.member_processes)"
                )
            self.require("member_processes", member, own, "open processes", count)
        if all_most and self.open(colony) + count > all_most:
            there = self.open(colony) - self._twice(colony)
            self.require("colony_processes", f"colony {colony!r}", there, "open processes", count)

    def _twice(self, colony: str, name: str = "") -> int:
        """Return how many processes are counted twice: as coming, and in the indexes.

        The watch may tell of a process before its submission is answered. To know that costs a look
        at all that are coming: it is asked for only where they would be too many.
        """
        return sum(
            processid in self.queue.entries or processid in self.running.entries
            for processid, (where, whose) in self._coming_ids.items()
            if where == colony and name in ("", whose)
        )

    @contextmanager
    def processes(
        self, colony: str, name: str, ids: Sequence[str] = ("",), *, timed: bool = False
    ) -> Iterator[None]:
        """Count processes of a member while the block submits them; an id may be "" where it is not
        known yet. Raises TooMany.
        """
        self.require_processes(colony, name, len(ids), timed=timed)
        count_owner(self._coming, colony, name, len(ids))
        # A repeat of a request that is under way has the same ids.
        known = [each for each in ids if each and each not in self._coming_ids]
        self._coming_ids |= dict.fromkeys(known, (colony, name))
        try:
            yield
        finally:
            count_owner(self._coming, colony, name, -len(ids))
            for each in known:
                del self._coming_ids[each]

    def count_line(self, processid: str) -> None:
        """Count a log line of a process, since this daemon started. Raises TooMany."""
        lines = self._lines.pop(processid, 0)
        self._lines[processid] = lines
        self.require("process_logs", f"process {processid}", lines, "lines in its log")
        self._lines[processid] = lines + 1
        if len(self._lines) > _LOGGING:
            self._lines.popitem(last=False)
