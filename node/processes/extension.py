"""The extension of a node by another package: where a submission may go, and which events are told.

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
        """Return the id of the trusted peer that `colonyname` names (by name or id), or None."""
        return None

    def ambiguity(self, colonyname: str) -> str:
        """Return which trusted peers a name may mean, in a sentence, if it is ambiguous; else
        "".
        """
        return ""

    def unknown(self, colonyname: str) -> bool:
        """Return whether a name that is no trusted peer's can't be meant at all: no colony here has
        it.
        """
        return False

    async def stranger(self, colonyname: str) -> str:
        """Return what is known of a colony that is not trusted, as a message; else ""."""
        return ""

    def route(self, process: Process) -> str:
        """Return the id of the peer for a process that names none, or "" when it stays.

        Called when the process is submitted or ready; `forwarding` follows before anything else
        happens.
        """
        return ""

    def may_leave(self, process: Process) -> str:
        """Return where a waiting process may go from here without a person's decision, in words, or
        "".
        """
        return ""

    def forwarding(self, process: Process) -> Addition:
        """Return the operations that join the transaction of submitting a process with a peer."""
        return Addition()

    def forwards(self) -> int:
        """Return how many processes are on their way to other colonies, or are there."""
        return 0

    def away(self) -> Collection[str]:
        """Return the ids of the processes that are on their way to other colonies, or are there."""
        return ()

    def cancelling(self, process: Process) -> Addition:
        """Return the operations that join the transaction of cancelling a process with a peer."""
        return Addition()

    def removable(self, process: Process) -> str:
        """Return why a closed process must not be removed yet, or ""."""
        return ""

    async def record(self, process: Process) -> dict[str, Any]:
        """Return what history keeps of a closed process in addition, such as the evidence of a
        peer.

        The values are those of JSON, and bytes. Raises EtcdError: then the process stays in the
        store for now.
        """
        return {}

    def most_running(self, origin: str) -> int:
        """Return how many processes of the colony `origin` may run here at once; 0: any number."""
        return 0

    async def clock_set(self, by: int, before: int) -> None:
        """Adjust to a wall clock that was set by `by` ns, when it would have shown `before` (Unix
        ns).

        Raises EtcdError.
        """

    def submitted(self, process: Process, revision: int = 0) -> None:
        """Note that a process with a peer is in the store.

        It was written at `revision`, together with what `forwarding` returned for it; 0 if that is
        not known.
        """

    def progressed(self, process: Process) -> None:
        """Note that a process which came from a peer, or went to one, has an update.

        It started, logged, got other output or attributes, or a message in a channel.
        """

    def closed(self, process: Process) -> None:
        """Note that a process was closed; called once the store has it."""
