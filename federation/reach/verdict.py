"""Whether other colonies can connect to this one: what dial-backs and port mappings told."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from node.tasks.sync import WakeUp


class Verdict(enum.StrEnum):
    """What is known of connections from outside our network."""

    UNKNOWN = "unknown"  # no peer was asked, or none answered
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


@dataclass
class Reach:
    """The present verdict, and the `address` ("host:port") at which peers reach us, if known."""

    verdict: Verdict = Verdict.UNKNOWN
    address: str = ""
    changed: WakeUp = field(default_factory=WakeUp)

    def conclude(self, verdict: Verdict, address: str = "") -> None:
        """Take a new verdict; wake who waits for a change."""
        if (verdict, address) != (self.verdict, self.address):
            self.verdict, self.address = verdict, address
            self.changed.wake()
