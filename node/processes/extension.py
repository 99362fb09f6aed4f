"""What a node offers to those who build on it: where a submission may go, and what is told.

A node without hooks is complete; federation gives its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.etcd.txn import Compare, Op
from node.model.types import Process


@dataclass(frozen=True)
class Addition:
    """Operations, and the conditions they need, that join a transaction of the node."""

    ops: Sequence[Op] = field(default_factory=tuple)
    compare: Sequence[Compare] = field(default_factory=tuple)


class Hooks:
    """The hooks of a node that stands alone; override what is needed.

    `home` is the colony whose processes may go to others.
    """

    home: str = ""

    def peer_of(self, colonyname: str) -> str | None:
        """Id of the trusted peer that `colonyname` names (by name or id), or None."""
        return None

    def ambiguity(self, colonyname: str) -> str:
        """Which trusted peers a name may mean, in a sentence, if it is that of several; else ""."""
        return ""

    def unknown(self, colonyname: str) -> bool:
        """Whether a name that is no trusted peer's can't be meant at all: no colony here has it."""
        return False

    def route(self, process: Process) -> str:
        """Id of the peer that a process goes to which names none, or "" when it stays.

        Asked when it is submitted or ready; `forwarding` follows before anything else happens.
        """
        return ""

    def may_leave(self, process: Process) -> str:
        """Where a waiting process may go from here by itself, as things are, in words; else ""."""
        return ""

    def forwarding(self, process: Process) -> Addition:
        """What joins the transaction that submits a process with a peer."""
        return Addition()

    def forwards(self) -> int:
        """Return how many processes are on their way to other colonies, or are there."""
        return 0

    def away(self) -> Collection[str]:
        """Ids of the processes that are on their way to other colonies, or are there."""
        return ()

    def cancelling(self, process: Process) -> Addition:
        """What joins the transaction that cancels a process with a peer."""
        return Addition()

    def removable(self, process: Process) -> str:
        """Why a closed process must not be removed yet, or ""."""
        return ""

    async def record(self, process: Process) -> dict[str, Any]:
        """What history keeps of a closed process beside what the node knows, such as who signed it.

        Values as JSON has them, and bytes. Raises EtcdError: then the process stays for now.
        """
        return {}

    def most_running(self, origin: str) -> int:
        """How many processes of the colony `origin` may be handed out here at once; 0: any."""
        return 0

    async def clock_set(self, by: int, before: int) -> None:
        """The wall clock was set by so many ns, when it would have shown `before`, in Unix ns.

        Raises EtcdError.
        """

    def submitted(self, process: Process) -> None:
        """A process with a peer is in the store."""

    def progressed(self, process: Process) -> None:
        """A process that came from elsewhere, or went there, has something new to be told.

        It started, logged, has other output or attributes, or a message in a channel.
        """

    def closed(self, process: Process) -> None:
        """A process was closed; called once the store has it."""
