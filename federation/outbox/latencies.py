"""How long forwards take: to the peer's receipt, and from there to its outcome.

`outbox` and `outcomes` count here when they store a receipt or an outcome; `cli.daemon.colonyd`
hands the counts to `/metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from node.model.histogram import Histograms
from node.model.types import Process

# Seconds. A receipt takes a round trip; an outcome as long as the process waits and runs there.
_RECEIPT = (0.05, 0.25, 1.0, 5.0, 30.0, 300.0)
_OUTCOME = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
_MOST = 32  # peers with counts of their own, those first needed; more share one


@dataclass
class Latencies:
    """Histograms by the id of the peer. Times are those stored in the process, in Unix ns."""

    receipts: Histograms = field(default_factory=lambda: Histograms(_RECEIPT, _MOST))
    outcomes: Histograms = field(default_factory=lambda: Histograms(_OUTCOME, _MOST))

    def started(self, process: Process) -> None:
        """Count the way from the submission to the receipt that started a process.

        A later attempt began when the one before it ended, and a node of a workflow when its
        parents did: neither moment is stored, so these are not counted.
        """
        if process.attempt == 1 and not process.parents:
            self.receipts.add(process.peer, (process.starttime - process.submissiontime) / 1e9)

    def ended(self, process: Process) -> None:
        """Count the way from the receipt to the outcome that ended a process.

        Without a stored receipt (the outcome overtook it) there is no way to count.
        """
        if process.starttime:
            self.outcomes.add(process.peer, (process.endtime - process.starttime) / 1e9)
