"""Channels from a process's origin to the colony that runs the process.

Messages in the other direction come as updates, in the answers to polls (`inbox.updates`,
`outbox.updates`). The receiver stores messages together with the number of entries that it has of
the sender's channel, in one transaction. So a repeated message is stored once, a message lost in a
crash is sent again, and the sender's order is kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import trio

from colonyd.errors import RpcError
from federation.forward import channels as words
from federation.forward import machine
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.transport.connection import PeerConnection
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.envelope import Kind, Rejected
from federation.wire.messages import Heard, Say, load
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.model.types import Process, State
from node.tasks.sync import WakeUps

_REMEMBERED = 4096

log = get_logger("talking")


@dataclass
class ChannelSender:
    """Sends messages of channels to the peers that run the processes.

    `counters` count the messages `sent`, and refusals of peers by code.
    """

    context: Context
    outbox: Outbox
    counters: Counter[str] = field(default_factory=Counter)
    _due: dict[str, dict[str, None]] = field(default_factory=dict)
    _wakeups: WakeUps = field(default_factory=WakeUps)
    # By peer, process and channel: how many entries the peer has, and how many entries were read.
    _told: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def wake(self, process: Process) -> None:
        """Wake the task of the process's peer: the process may have new messages."""
        if process.spec.channels and process.state == State.RUNNING:
            self._due.setdefault(process.peer, {})[process.processid] = None
            self._wakeups[process.peer].wake()

    async def send_forever(self, connection: PeerConnection) -> None:
        """Send messages to one peer, in order, until cancelled."""
        due, failures = self._due.setdefault(connection.id, {}), 0
        for entry in self.outbox.of_peer(connection.id):
            if entry.forward.state == machine.ForwardState.ACCEPTED:
                due[entry.forward.processid] = None
        while True:
            event, back = (
                self._wakeups[connection.id].event,
                self.outbox.returned(connection.id).event,
            )
            if not due:
                await event.wait()
                continue
            pid = next(iter(due))
            del due[pid]
            try:
                await self._talk(connection, pid)
                failures = 0
            except (TransportError, EtcdError, RpcError, Rejected) as error:
                if isinstance(error, RemoteRefusal) and error.final:
                    # The channel is closed, or the peer has an older release. Senders of later
                    # messages get no error.
                    self.counters[error.code] += 1
                    log.info("not taken by the peer", process=pid, peer=connection.id, error=error)
                    continue
                due[pid] = None
                failures += 1
                log.info("not said", process=pid, peer=connection.id, error=error)
                pause = machine.delay(failures, self.context.chance)
                if isinstance(error, TransportError):
                    pause = max(pause, error.seconds)
                with trio.move_on_after(pause):
                    await back.wait()

    async def _talk(self, connection: PeerConnection, pid: str) -> None:
        context = self.context
        known = await context.processes.recall(context.home, pid)
        entry = self.outbox.entries.get(pid)
        if known is None or known[0].peer != connection.id or known[0].closed:
            return
        attempt = entry.forward.attempt if entry is not None else known[0].attempt
        for name in known[0].spec.channels or ():
            await self._speak(connection, pid, attempt, name)

    async def _speak(self, connection: PeerConnection, pid: str, attempt: int, name: str) -> None:
        """Send all messages of one channel that the peer does not have."""
        place = (connection.id, pid, name)
        while True:
            start, passed = self._told.get(place, (0, 0))
            said, after, _ = await words.read(
                self.context.client, self.context.home, pid, name, passed, connection.id
            )
            if not said:
                # messages of the peer itself are not sent back to it
                self._keep(place, start, after)
                return
            body = connection.seal(Kind.SAY, Say(pid, attempt, name, start, after, said))
            opened, _ = await connection.post("/v1/say", body, Kind.HEARD)
            heard = load(opened.payload, Heard)
            if (heard.pid, heard.attempt, heard.name) != (pid, attempt, name):
                raise Rejected("malformed", "the answer is about another channel")
            if heard.after == start:
                raise Rejected("malformed", "the answer tells of nothing")
            # The peer's count is right: we forget ours in a restart, and the peer may have lost
            # messages in a crash.
            self.counters["sent"] += len(said) if heard.after == after else 0
            self._keep(place, heard.after, heard.after)

    def _keep(self, place: tuple[str, str, str], told: int, passed: int) -> None:
        self._told[place] = (told, passed)
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
