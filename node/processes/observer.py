"""The observers of processes: one method for each event that `processes.service` reports."""

from __future__ import annotations

from node.model.types import Process
from node.processes.queue import QueueEntry


class Observer:
    """Is told of events of processes. Subclasses override the events that they need.

    No method may wait or raise.
    """

    def changed(self, process: Process, revision: int) -> None:
        """Note that this daemon wrote a process, at `revision`."""

    def moved(self, processid: str) -> None:
        """Note that the watch reported a write to a process, by any daemon."""

    def stepped(self, colony: str, graphid: str, revision: int) -> None:
        """Note that a step of a workflow was written at `revision`, by any daemon."""

    def advanced(self, colony: str, graphid: str) -> None:
        """Note that a step of a workflow was dealt with, by any daemon: the workflow may be over or
        gone.
        """

    def offered(self, entry: QueueEntry) -> None:
        """Note that a process waits that an executor may have."""

    def reached(self) -> None:
        """Note that more of the queue is read, by a daemon that has started."""

    def freed(self, origin: str) -> None:
        """Note that a process of the colony `origin` ("": of our own) no longer runs."""

    def gone(self, colony: str, processid: str, revision: int) -> None:
        """Note that a process neither waits nor runs in a listing as of `revision`, which comes
        after a break of the watch.
        """

    def listed(self) -> None:
        """Note that the indexes were filled from a listing of the store: any process may have
        changed.
        """
