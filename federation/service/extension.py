"""The hooks by which federation takes part in the node's processes.

Each hook passes the question on to the part of federation that knows the answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from colonyd.errors import TooLarge
from federation.forward import path as relays
from federation.inbox.accept import Inbox
from federation.membership.finder import Finder
from federation.outbox import evidence as testimony
from federation.outbox.channels import ChannelSender
from federation.outbox.outbox import Outbox
from federation.outbox.revoke import Revocation
from federation.outbox.sender import Sender
from federation.peers.registry import BLOCKED, Peers
from federation.routing.exchange import Exchange
from federation.routing.requeue import Requeuer
from federation.routing.router import Router
from federation.wire.messages import MAX_HOPS
from federation.wire.sizes import FORWARD, forward_size
from node.model.types import Process
from node.processes.extension import Addition, Hooks


@dataclass(kw_only=True)
class NodeExtension(Hooks):
    """The hooks of the colony `home`. A process of its own may pass `hops` colonies."""

    home: str
    hops: int
    peers: Peers
    outbox: Outbox
    inbox: Inbox
    router: Router
    waiting: Requeuer
    exchange: Exchange
    channel_sender: ChannelSender
    revocation: Revocation
    sender: Sender
    finder: Finder

    # -- questions of the node ----------------------------------------------------------------

    def peer_of(self, colonyname: str) -> str | None:
        """Return the id of the trusted peer that `colonyname` is, or begins with ("bee/cat").

        None for the home colony's name, and for a target of more colonies than a process may pass.
        """
        if colonyname == self.home or len(relays.segments(colonyname)) > MAX_HOPS:
            return None
        return self.peers.toward(colonyname, further=self.hops > 1) or None

    def ambiguity(self, colonyname: str) -> str:
        """Return which colonies an ambiguous name may mean, as a message; else ""."""
        return self.peers.ambiguity(colonyname, further=self.hops > 1)

    def hosts(self, colonyname: str) -> bool:
        """Return whether this daemon hosts a colony."""
        members = self.exchange.members
        return members is not None and members.directory.colony(colonyname) is not None

    def unknown(self, colonyname: str) -> bool:
        """Return whether a name that is no trusted peer's can mean no colony at all."""
        return self.exchange.members is not None and not self.hosts(colonyname)

    async def stranger(self, colonyname: str) -> str:
        """Return what a look-up finds of a colony that is not trusted, as a message; else ""."""
        return await self.finder.stranger(colonyname)

    def may_leave(self, process: Process) -> str:
        """Return the route that may send the process away after a long enough wait, or ""."""
        if process.colonyname != self.home:
            return ""
        report = self.router.decision(self.router.subject_of(process, float("inf"))).report
        return report.route.text if report is not None else ""

    def route(self, process: Process) -> str:
        """Return the id of the peer that the routes send a process to, or ""."""
        if process.parents:
            self.waiting.ready(process.processid)
        return self.router.route(process)

    def forwarding(self, process: Process) -> Addition:
        """Return the outbox entry that joins a submission. Raises TooLarge."""
        # A process of another colony goes on as it came, whatever its size.
        if not process.origin and (size := forward_size(process)) > FORWARD:
            raise TooLarge(
                f"spec: {size} bytes with arguments and input; what goes to another colony has at"
                f" most {FORWARD}",
            )
        return self.outbox.forwarding(process, self.router.route_trace(process))

    def forwards(self) -> int:
        """Return how many processes are on their way to peers, or are there."""
        return len(self.outbox.entries)

    def away(self) -> Collection[str]:
        """Return the ids of the processes that are on their way to peers, or are there."""
        return self.outbox.entries

    def cancelling(self, process: Process) -> Addition:
        """Return the outbox entry that joins a cancel."""
        return self.outbox.cancelling(process)

    def removable(self, process: Process) -> str:
        """Return why a process of another colony must not be removed, or ""."""
        return self.inbox.removable(process)

    async def record(self, process: Process) -> dict[str, Any]:
        """Return the evidence of a process's run at its peer, all signed. Raises EtcdError."""
        told = await testimony.gather(self.outbox.context, process)
        kept: dict[str, Any] = msgspec.to_builtins(told, builtin_types=(bytes,)) if told else {}
        return kept

    def most_running(self, origin: str) -> int:
        """Return how many processes of a colony may run here at once."""
        return self.peers.policy(origin).max_running

    # -- notices from the node ----------------------------------------------------------------

    async def clock_set(self, by: int, before: int) -> None:
        """Move the deadlines of the processes that are on their way, by `by` ns."""
        await self.sender.clock_set(by, before)

    def submitted(self, process: Process, revision: int = 0) -> None:
        """Wake the sender. If the peer was blocked meanwhile, wake the revocation."""
        self.outbox.submitted(process, revision)
        if self.peers.state(process.peer) == BLOCKED:
            self.revocation.begin()

    def progressed(self, process: Process) -> None:
        """Wake the origin's poll and the peer's channel sender after an update of a process."""
        if process.origin and process.notify:
            self.inbox.outcome_queue.progressed(process)
        if process.peer:
            self.channel_sender.wake(process)

    def closed(self, process: Process) -> None:
        """Wake the poll of the colony that sent us the process."""
        if process.peer:
            self.router.capability_cache.ended(process.peer, process.spec.conditions.executortype)
        if process.origin and process.notify:
            self.inbox.outcome_queue.closed(process)
