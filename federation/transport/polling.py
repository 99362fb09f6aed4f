"""The polls of our mailboxes: what we tell them, and how the messages that they hold are answered.

`ways` knows which peers we poll; `mailbox` is the other side.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from federation.forward import machine
from federation.peers.log_limit import LogLimiter
from federation.peers.policy import TokenBucket
from federation.peers.registry import Peers
from federation.transport.connection import PeerConnection
from federation.transport.errors import TransportError
from federation.wire.envelope import Kind, Rejected
from federation.wire.invitation import KNOCK
from federation.wire.messages import (
    MOST_INVITED,
    MOST_SENDERS,
    SENDER_BYTES,
    Collect,
    Parcel,
    Parcels,
    Reply,
    load,
)
from federation.wire.refusals import BROUGHT
from node.host.log import get_logger
from node.http.server import Request, Response
from node.tasks.containment import contained, keep_going
from node.tasks.sync import WakeUp

_WAIT = 25  # seconds of a poll
_PART = 1_000_000  # bytes of an answer in one message
_SLOTS = 64  # messages that a poller works on at a time
_PAUSE = 1.0  # seconds between polls that bring nothing, whatever the mailbox does
_MOST_BROUGHT = 6_000  # messages a minute that a poller takes of one mailbox
_PATIENCE = 60.0  # seconds until a mailbox that refused is polled again
_SETTLE = 0.2  # seconds until a change is told, as others may follow

log = get_logger("mailbox")


@dataclass
class MailboxTerms:
    """What we tell our mailboxes: which colonies, and joins by which invitations, we expect.

    Without `wide` (`federation.global` is off) they are told nothing. `invitations` returns names.
    """

    peers: Peers
    invitations: Callable[[], Iterable[str]]
    wide: bool = False
    changed: WakeUp = field(default_factory=WakeUp)

    def collect(self, wait: int, answers: list[Reply]) -> Collect:
        """Return a poll, or answers, with what we tell."""
        if not self.wide:
            return Collect(wait, answers)
        now = self.peers.signer.clock.seconds
        latest = heapq.nlargest(MOST_SENDERS, self.peers.trusted(), key=lambda each: each.lastseen)
        ids = [
            each
            for entry in latest
            for each in entry.peer.ids
            if entry.peer.key_of(each, now) is not None
        ]
        # In an order that does not change with each sign of life.
        chosen = sorted(ids[:MOST_SENDERS])
        named = b"".join(bytes.fromhex(each)[:SENDER_BYTES] for each in chosen)
        invited = [bytes.fromhex(each) for each in self.invitations()]
        return Collect(wait, answers, named, b"".join(invited[-MOST_INVITED:]))


@dataclass(eq=False)
class _Intake:
    """The limits of what one mailbox brings, and of the lines of the log about it."""

    rate: TokenBucket = field(default_factory=TokenBucket)
    lines: LogLimiter = field(default_factory=LogLimiter)

    async def pace(self, count: int) -> None:
        """Wait until so many messages more may come."""
        if wait := self.rate.take(_MOST_BROUGHT, trio.current_time(), count):
            await trio.sleep(wait)
            self.rate.take(_MOST_BROUGHT, trio.current_time(), count)

    def line(self) -> dict[str, int] | None:
        """Return what to add to a line of the log about the mailbox; None to leave it out."""
        return self.lines.line(trio.current_time())


@dataclass
class MailboxPoller:
    """Polls peers for messages to us, and lets `handle` answer these.

    `answered` is called with the id of a peer that answered a poll.
    """

    handle: Callable[[Request], Awaitable[Response]]
    chance: random.Random
    terms: MailboxTerms | None = None
    answered: Callable[[str], None] = lambda peerid: None

    async def collect_forever(self, connection: PeerConnection) -> None:
        """Poll one peer until cancelled, and answer messages meanwhile."""
        slots, intake, failures = trio.CapacityLimiter(_SLOTS), _Intake(), 0
        async with trio.open_nursery() as nursery:
            if self.terms is not None and self.terms.wide:
                tell = functools.partial(self._tell_forever, connection, self.terms)
                nursery.start_soon(keep_going, "terms of a mailbox", tell)
            while True:
                began = trio.current_time()
                try:
                    parcels = await self._exchange(connection, self._poll(_WAIT))
                    failures = 0
                    self.answered(connection.id)
                except (TransportError, Rejected) as error:
                    failures += 1
                    if (more := intake.line()) is not None:
                        log.info("mailbox not reached", peer=connection.id, error=error, **more)
                    refused = isinstance(error, TransportError) and error.final
                    await trio.sleep(_PATIENCE if refused else machine.delay(failures, self.chance))
                    continue
                for parcel in parcels:
                    nursery.start_soon(self._work_safely, connection, parcel, slots, intake)
                if slots.available_tokens == 0:
                    async with slots:
                        pass
                if parcels:
                    await intake.pace(len(parcels))
                else:
                    await trio.sleep_until(began + _PAUSE)

    def _poll(self, wait: int) -> Collect:
        return self.terms.collect(wait, []) if self.terms is not None else Collect(wait, [])

    async def _tell_forever(self, connection: PeerConnection, terms: MailboxTerms) -> None:
        """Tell a mailbox at once whom we expect, while a poll waits there."""
        told = terms.collect(0, [])
        while True:
            event = terms.changed.event
            if (now := terms.collect(0, [])) != told:
                try:
                    await self._exchange(connection, now)
                    told = now
                except (TransportError, Rejected) as error:
                    log.debug("mailbox not told", peer=connection.id, error=error)
            await event.wait()
            await trio.sleep(_SETTLE)

    async def _exchange(self, connection: PeerConnection, wish: Collect) -> list[Parcel]:
        sealed = connection.seal(Kind.COLLECT, wish)
        opened, _ = await connection.post("/v1/mail", sealed, Kind.PARCELS, wish.wait)
        return load(opened.payload, Parcels).parcels

    async def _work_safely(
        self,
        connection: PeerConnection,
        parcel: Parcel,
        slots: trio.CapacityLimiter,
        intake: _Intake,
    ) -> None:
        with contained("message of a mailbox", peer=connection.id, path=parcel.path):
            await self._work(connection, parcel, slots, intake)

    async def _work(
        self,
        connection: PeerConnection,
        parcel: Parcel,
        slots: trio.CapacityLimiter,
        intake: _Intake,
    ) -> None:
        """Answer one message. If the answer is lost, the sender repeats the message."""
        async with slots:
            if parcel.path in ("/v1/mail", "/v1/pass"):
                return
            # The mailbox takes the place of an address, so its false messages count for it alone.
            remote = f"{BROUGHT}{connection.id}"
            headers = {KNOCK: parcel.knock} if parcel.knock else {}
            request = Request("POST", parcel.path, "", headers, parcel.body, remote)
            response = await self.handle(request)
            after = dict(response.headers).get("retry-after", "")
            data = bytes(response.body)
            try:
                for start in range(0, max(1, len(data)), _PART):
                    part, more = data[start : start + _PART], start + _PART < len(data)
                    reply = Reply(parcel.id, response.status, after, part, more)
                    await self._exchange(connection, Collect(0, [reply]))
            except (TransportError, Rejected) as error:
                if (left := intake.line()) is not None:
                    peerid = connection.id
                    log.info("answer not brought to the mailbox", peer=peerid, error=error, **left)
