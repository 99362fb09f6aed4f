"""Changes of processes that subscribers are told of, in order, whichever daemon made them.

A change by this daemon is reported by its writer. Changes by other daemons, and changes of ours
that got no answer, are reported by the watch of the live keys, with their revision: the store still
has the process as it was then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from node.etcd.errors import EtcdError
from node.etcd.watch import WatchBatch
from node.host.log import get_logger
from node.model.types import Process
from node.processes.observer import Observer
from node.processes.service import Processes
from node.store import keys
from node.store.work.processes import before_start, never_queued
from node.streams.subscriptions import Subscriptions

# Seconds for which changes are collected: the answer to our own write may come after the watch.
_COLLECT = 0.05
_AGAIN = 1.0  # seconds until the store is asked again after a failure
# Processes with changes to tell; with one more, all subscriptions end.
_MOST = 20_000

Place = tuple[str, str]  # colony and process id

log = get_logger("elsewhere")


def _place(key: str) -> Place | None:
    """Return colony and process id of a live key; None for the key of a workflow."""
    if key.startswith(keys.QUEUE):
        colony, _, _, processid = keys.parse_queue(key)
        return colony, processid
    if key.startswith(keys.RUNNING):
        return keys.parse_running(key)
    if key.startswith(keys.BLOCKED):
        return keys.parse_blocked(key)
    return None


@dataclass
class RemoteChanges(Observer):
    """Changes of processes that are not yet told, by revision; None for a value that must be
    read.
    """

    processes: Processes
    subscriptions: Subscriptions
    _heard: dict[Place, dict[int, Process | None]] = field(default_factory=dict)
    _wakeup: trio.Event = field(default_factory=trio.Event)
    _seen: int = 0  # the revision up to which the watch has reported

    def changed(self, process: Process, revision: int) -> None:
        """Tell a change of this daemon: now, or after earlier changes that are not yet told."""
        subscriptions = self.subscriptions
        if subscriptions.any_open:
            place = (process.colonyname, process.processid)
            heard = self._heard.get(place, {})
            told = subscriptions.told(process.processid)
            if revision < told:
                return  # the watch was faster
            before = any(told < earlier < revision for earlier in heard)
            if before or not subscriptions.follows(process):
                self._note(place, revision, process)
                return
        subscriptions.changed(process, revision)

    def gone(self, colony: str, processid: str, revision: int) -> None:
        """Tell the end of a process that is no longer in a listing as of `revision`."""
        if self.subscriptions.any_open:
            self._note((colony, processid), revision, None)

    def hear(self, batch: WatchBatch) -> None:
        """Take in the changes of live keys from a batch of the watch; free without subscriptions.

        No subscription is older than the first listing, which may begin several times.
        """
        if batch.snapshot and not self._seen:
            self._seen = batch.revision
        seen = self._seen
        if not batch.more:
            self._seen = batch.revision
        if not self.subscriptions.any_open:
            return
        for event in batch.events:
            place = _place(event.key)
            if place is not None and (not batch.snapshot or event.mod_revision > seen):
                self._note(place, event.mod_revision, None)

    def _note(self, place: Place, revision: int, process: Process | None) -> None:
        if revision <= self.subscriptions.told(place[1]):
            return
        if len(self._heard) >= _MOST and place not in self._heard:
            log.error("subscriptions ended", because=f"changes of {_MOST} processes are not told")
            self.subscriptions.end_all()
            self._heard.clear()
            return
        heard = self._heard.setdefault(place, {})
        heard[revision] = process or heard.get(revision)
        self._wakeup.set()

    async def run(self) -> None:
        """Tell subscribers, until cancelled."""
        while True:
            await self._wakeup.wait()
            await trio.sleep(_COLLECT)
            self._wakeup = trio.Event()
            try:
                await self._tell()
            except EtcdError as error:
                log.warning("store", error=error)
                self._wakeup.set()
                await trio.sleep(_AGAIN)

    async def _tell(self) -> None:
        if not self.subscriptions.any_open:
            self._heard.clear()
            return
        told = self.subscriptions.told
        wanted = [
            (*place, revision)
            for place, heard in self._heard.items()
            for revision, process in heard.items()
            if process is None and revision > told(place[1])
        ]
        read = dict(zip(wanted, await self.processes.load_at(wanted), strict=True))
        waiting: set[Place] = set()
        order = [(revision, place) for place, heard in self._heard.items() for revision in heard]
        for revision, place in sorted(order):
            process, latest = self._heard[place][revision], revision
            if process is None and revision > told(place[1]):
                if (*place, revision) not in read:
                    waiting.add(place)  # reported while the store was read: later changes wait
                elif (known := read[(*place, revision)]) is not None:
                    process, latest = known[0], max(revision, known[1])
            if place in waiting:
                continue
            if process is not None and revision > told(place[1]):
                if never_queued(process) and latest == revision and not told(place[1]):
                    self.subscriptions.changed(before_start(process), revision - 1)
                self.subscriptions.changed(process, latest)
            del self._heard[place][revision]
            if not self._heard[place]:
                del self._heard[place]
