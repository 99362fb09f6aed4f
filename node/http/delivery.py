"""Deliveries: whether an answer reached the client, by what the kernel knows of the connection.

A handler registers what depends on an answer (`carry`), and deals with a lost one.
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

# Seconds in which the other side's kernel has to acknowledge an answer that carries something. A
# longer break of the network costs a repeated assignment.
UNTAKEN = 20
_STORE_SECONDS = 30  # bound on dealing with a loss; what is left then comes up by itself
_FIRST_LOOK, _MOST_LOOK = 0.005, 0.2  # seconds between looks at an answer that is on its way
# Keep-alive of a waiting poll: seconds of silence until the first probe, seconds between probes,
# and how many. After a cut of the network, the poll gets no process once 45 s are over.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_INFO = 256  # bytes of struct tcp_info that are asked for
_ACKED = struct.Struct("=Q")
_ACKED_AT = 120  # where tcpi_bytes_acked is, since Linux 4.1
_CLOSED = 7  # TCP_CLOSE: the connection is reset or given up
_INT = struct.Struct("i")


class Delivery(Protocol):
    """Something that depends on an answer: it is told whether the answer arrived."""

    def taken(self) -> None:
        """Note that the answer arrived."""

    async def lost(self) -> None:
        """Deal with an answer that did not arrive, as far as is known. The caller bounds the
        time.
        """


_ANSWER: ContextVar[Deliveries | None] = ContextVar("answer", default=None)


def carry(delivery: Delivery) -> None:
    """Let the answer that this task makes carry something; without a connection it arrives at
    once.
    """
    answer = _ANSWER.get()
    if answer is None:
        delivery.taken()
    else:
        answer.making.append(delivery)


class Deliveries:
    """The deliveries of one connection: of answers being made, and of those sent."""

    __slots__ = ("_sent", "_socket", "making")

    def __init__(self, stream: trio.abc.Stream) -> None:
        transport: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket: Any = getattr(transport, "socket", None)
        self.making: list[Delivery] = []
        # The acknowledged bytes at which the other side has the answer.
        self._sent: deque[tuple[int, Delivery]] = deque()

    def attend(self) -> None:
        """Collect what the handlers of this task carry."""
        _ANSWER.set(self)

    def __bool__(self) -> bool:
        """Return whether any delivery is not known to have arrived."""
        return bool(self.making or self._sent)

    def keep_alive(self) -> None:
        """Let the kernel probe a waiting poll, to find out that its client is gone."""
        for option, value in _KEEPALIVE:
            self._option(socket.IPPROTO_TCP, option, value)
        self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def sending(self) -> None:
        """Note that the answer is written next, and let the kernel end a silent connection."""
        self._limit(UNTAKEN * 1000)

    def sent(self) -> None:
        """Note that the kernel has the whole answer."""
        there = self._progress()
        mark = 0 if there is None else there[0] + there[1]
        self._sent.extend((mark, delivery) for delivery in self.making)
        self.making.clear()

    async def fail(self) -> None:
        """Fail the deliveries of the answer being made: another answer is sent."""
        making, self.making = self.making, []
        await self._lose(making)

    def settle(self) -> None:
        """Settle the deliveries that have arrived."""
        there = self._progress()
        while self._sent and (there is None or self._sent[0][0] <= there[0]):
            self._sent.popleft()[1].taken()
        if not self._sent:
            self._limit(0)

    async def end(self, patience: float) -> None:
        """Wait up to `patience` seconds for deliveries under way; the rest is lost."""
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
            # Bytes that the kernel still has must not arrive later: close sends a reset.
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
        """Return the bytes acknowledged, the bytes not yet so, and whether the connection is at its
        end.

        None where the kernel does not tell: written bytes then count as arrived.
        """
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
            if len(info) < _ACKED_AT + _ACKED.size:
                return None
            waiting = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, _INT.pack(0))
        except (AttributeError, OSError, ValueError):
            return None
        return _ACKED.unpack_from(info, _ACKED_AT)[0], _INT.unpack(waiting)[0], info[0] == _CLOSED
