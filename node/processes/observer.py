"""What `processes.service` tells those who follow processes: one method an event."""

from __future__ import annotations

from node.model.types import Process
from node.processes.queue import QueueEntry


class Observer:
    """Follows processes; override the events that matter. None of them may wait or raise."""

    def changed(self, process: Process, revision: int) -> None:
        """This daemon wrote a process, at `revision`."""

    def moved(self, processid: str) -> None:
        """The watch told of a write to a process, by whichever daemon."""

    def stepped(self, colony: str, graphid: str, revision: int) -> None:
        """A step of a workflow was written at `revision`, by whichever daemon."""

    def offered(self, entry: QueueEntry) -> None:
        """A process waits that an executor may have."""

    def freed(self, origin: str) -> None:
        """A process that came from the colony `origin` ("": it is our own) runs no more."""

    def listed(self) -> None:
        """The indexes were filled from a listing of the store: any process may have changed."""
