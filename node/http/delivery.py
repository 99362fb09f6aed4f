"""Whether an answer reached whoever asked, by what the kernel knows of the connection.

A handler says what depends on it (`carry`); what becomes of a lost answer is the handler's.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol

import trio

# Seconds in which an answer that carries something has to be acknowledged by the other side's
# kernel. A link that is away for longer costs a hand-out that is repeated.
UNTAKEN = 20
_STORE_SECONDS = 30  # bound on dealing with a loss; what is left then comes up by itself
_FIRST_LOOK, _MOST_LOOK = 0.005, 0.2  # seconds between looks at an answer that is on its way
# A poll that waits is asked for its life after so many seconds of silence, then so often, so many
# times: a link that is cut takes no hand-out once 45 s are over.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_INFO = 256  # bytes of struct tcp_info that are asked for
_ACKED = struct.Struct("=Q")
_ACKED_AT = 120  # where tcpi_bytes_acked is, since Linux 4.1
_CLOSED = 7  # TCP_CLOSE: the connection is reset or given up
_INT = struct.Struct("i")


class Delivery(Protocol):
    """What is lost with an answer, unless something is done about it."""

    def taken(self) -> None:
        """The answer arrived."""

    async def lost(self) -> None:
        """It did not, as far as anybody knows. Bounded by whoever calls."""


_ANSWER: ContextVar[Deliveries | None] = ContextVar("answer", default=None)


def carry(delivery: Delivery) -> None:
    """Let the answer that this task makes carry something; without a connection it arrives."""
    answer = _ANSWER.get()
    if answer is None:
        delivery.taken()
    else:
        answer.making.append(delivery)


class Deliveries:
    """What the answers of one connection carry: those being made, and those sent."""

    __slots__ = ("_sent", "_socket", "making")

    def __init__(self, stream: trio.abc.Stream) -> None:
        transport: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket: Any = getattr(transport, "socket", None)
        self.making: list[Delivery] = []
        # With how many bytes the other side will have acknowledged once it has the answer.
        self._sent: deque[tuple[int, Delivery]] = deque()

    def attend(self) -> None:
        """Take what the handlers of this task carry."""
        _ANSWER.set(self)

    def __bool__(self) -> bool:
        """Whether anything is not known to have arrived."""
        return bool(self.making or self._sent)

    def keep_alive(self) -> None:
        """Let the kernel find out while a poll waits that nobody is at the other end."""
        for option, value in _KEEPALIVE:
            self._option(socket.IPPROTO_TCP, option, value)
        self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def sending(self) -> None:
        """The answer being made is written next: the kernel ends a connection that is silent."""
        self._limit(UNTAKEN * 1000)

    def sent(self) -> None:
        """All of the answer is with the kernel."""
        there = self._progress()
        mark = 0 if there is None else there[0] + there[1]
        self._sent.extend((mark, delivery) for delivery in self.making)
        self.making.clear()

    async def fail(self) -> None:
        """The answer being made is not sent: another one is."""
        making, self.making = self.making, []
        await self._lose(making)

    def settle(self) -> None:
        """Look what has arrived."""
        there = self._progress()
        while self._sent and (there is None or self._sent[0][0] <= there[0]):
            self._sent.popleft()[1].taken()
        if not self._sent:
            self._limit(0)

    async def end(self, patience: float) -> None:
        """Nothing more comes: wait up to `patience` seconds for what is on its way."""
        await self.fail()
        deadline, pause = trio.current_time() + patience, _FIRST_LOOK
        while self._sent:
            self.settle()
            there = self._progress()
            gone = there is None or there[2]
            if not self._sent or gone or trio.current_time() >= deadline:
                break
            await trio.sleep(pause)
            pause = min(2 * pause, _MOST_LOOK)
        if self._sent:
            # What the kernel still has must not arrive after all: close sends a reset.
            self._option(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            lost = [delivery for _, delivery in self._sent]
            self._sent.clear()
            await self._lose(lost)

    async def _lose(self, lost: list[Delivery]) -> None:
        with trio.move_on_after(_STORE_SECONDS, shield=True):
            for delivery in lost:
                await delivery.lost()

    def _limit(self, milliseconds: int) -> None:
        self._option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _option(self, level: int, option: int, value: int | bytes) -> None:
        with suppress(AttributeError, OSError):  # no TCP, or closed
            self._socket.setsockopt(level, option, value)

    def _progress(self) -> tuple[int, int, bool] | None:
        """Bytes acknowledged, bytes not yet so, and whether the connection is at its end.

        None where the kernel does not tell: what was written counts as arrived.
        """
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
            if len(info) < _ACKED_AT + _ACKED.size:
                return None
            waiting = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, _INT.pack(0))
        except (AttributeError, OSError, ValueError):
            return None
        return _ACKED.unpack_from(info, _ACKED_AT)[0], _INT.unpack(waiting)[0], info[0] == _CLOSED
