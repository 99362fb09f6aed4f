"""What a node offers to those who build on it: where a submission may go, and what is told.

A node without hooks is complete; federation gives its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from node.etcd.transactions import Compare, Op
from node.model import Process


@dataclass(frozen=True)
class Addition:
    """Operations, and the conditions they need, that join a transaction of the node."""

    ops: Sequence[Op] = field(default_factory=tuple)
    compare: Sequence[Compare] = field(default_factory=tuple)


class Hooks:
    """The hooks of a node that stands alone; override what is needed."""

    def peer_of(self, colonyname: str) -> str | None:
        """Id of the trusted peer that `colonyname` names (by name or id), or None."""
        return None

    def forwarding(self, process: Process) -> Addition:
        """What joins the transaction that submits a process with a peer."""
        return Addition()

    def cancelling(self, process: Process) -> Addition:
        """What joins the transaction that cancels a process with a peer."""
        return Addition()

    def removable(self, process: Process) -> str:
        """Why a closed process must not be removed yet, or ""."""
        return ""

    def submitted(self, process: Process) -> None:
        """A process with a peer is in the store."""

    def closed(self, process: Process) -> None:
        """A process was closed; called once the store has it."""
