"""Queue entries of older releases: what their keys lack is read from the processes.

Without the priority and the limit of waiting, nothing tells what a clock that was ahead wrote.
"""

from __future__ import annotations

import trio

from node.host.clock import JUMP
from node.model.types import SECOND, State
from node.processes.queue import QueueEntry
from node.processes.service import Processes
from node.store.work.processes import waiting_of

# Processes read at once.
_MANY = 40
_SLACK = int(JUMP * SECOND)
_AT_ONCE = 200  # entries looked at without a pause


async def complete(processes: Processes) -> None:
    """Complete the entries of older releases that have a time in the future. Raises EtcdError.

    Other entries are not read: none of their times can be wrong.
    """
    wanted: dict[str, list[QueueEntry]] = {}
    now = processes.clock.now() + _SLACK
    for number, entry in enumerate(list(processes.queue.entries.values())):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        waiting = entry.waiting
        if waiting.priority is None and max(entry.prioritytime, waiting.waitdeadline) > now:
            wanted.setdefault(entry.colony, []).append(entry)
    for colony, entries in wanted.items():
        for start in range(0, len(entries), _MANY):
            part = entries[start : start + _MANY]
            ids = [entry.processid for entry in part]
            found = {each.processid: each for each in await processes.load_many(colony, ids)}
            for entry in part:
                process, deadline = found.get(entry.processid), entry.waiting.waitdeadline
                if process is None or process.state != State.WAITING:
                    continue
                if (process.prioritytime, process.waitdeadline) == (entry.prioritytime, deadline):
                    processes.queue.complete(entry, waiting_of(process))
