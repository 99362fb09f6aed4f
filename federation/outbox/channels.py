"""Channels over a hop: what is said at a process's origin reaches the colony that runs it.

The way back is in the news that answer polls (`inbox.updates`, `outbox.updates`). The receiver
keeps how many entries of the sender's channel it has been told of, in the transaction that stores
them: so a message that comes twice, or that a crash lost, is neither stored twice nor left out, and
the order stays that of the sender.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import trio

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
from node.model.errors import RpcError
from node.model.types import Process, State
from node.tasks.sync import WakeUps

_REMEMBERED = 4096

log = get_logger("talking")


@dataclass
class ChannelSender:
    """Sends what is said here in channels of processes that peers run.

    `counters` tell of `sent` messages, and of the codes with which peers `refused` any.
    """

    context: Context
    outbox: Outbox
    counters: Counter[str] = field(default_factory=Counter)
    _due: dict[str, dict[str, None]] = field(default_factory=dict)
    _wakeups: WakeUps = field(default_factory=WakeUps)
    # How many entries a peer was told of, and how many were looked at, by peer, process, channel.
    _told: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def wake(self, process: Process) -> None:
        """There may be something to be sent."""
        if process.spec.channels and process.state == State.RUNNING:
            self._due.setdefault(process.peer, {})[process.processid] = None
            self._wakeups[process.peer].wake()

    async def send_forever(self, connection: PeerConnection) -> None:
        """Send what is said to one peer, in its order, until cancelled."""
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
                    # It closed, or an older release: who speaks on is told no more than before.
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
        """Send all of one channel that the peer has not been told of."""
        place = (connection.id, pid, name)
        while True:
            start, passed = self._told.get(place, (0, 0))
            said, after, _ = await words.read(
                self.context.client, self.context.home, pid, name, passed, connection.id
            )
            if not said:
                self._keep(place, start, after)  # what came from there is not told there
                return
            body = connection.seal(Kind.SAY, Say(pid, attempt, name, start, after, said))
            opened, _ = await connection.post("/v1/say", body, Kind.HEARD)
            heard = load(opened.payload, Heard)
            if (heard.pid, heard.attempt, heard.name) != (pid, attempt, name):
                raise Rejected("malformed", "the answer is about another channel")
            if heard.after == start:
                raise Rejected("malformed", "the answer tells of nothing")
            # After a restart we don't know what it was told, and after one of its own it may have
            # lost some: what it says counts.
            self.counters["sent"] += len(said) if heard.after == after else 0
            self._keep(place, heard.after, heard.after)

    def _keep(self, place: tuple[str, str, str], told: int, passed: int) -> None:
        self._told[place] = (told, passed)
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
