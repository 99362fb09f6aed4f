"""A connected socket below an HTTP/2 session: reads, writes, with TLS or without, and notices
silence.

The channel decides which server that is, and what to do when it is lost.
"""

from __future__ import annotations

import socket
import ssl
from typing import NoReturn

import trio

from node.etcd.transport.dial import LATER, authority
from node.etcd.transport.http2 import Http2Session

_SILENCE = 10.0  # seconds without a byte, though calls wait, until the server is asked; twice: lost
# Bytes asked of the kernel at a time. From 128 KiB on each read would map and unmap memory of its
# own, which costs several times what the read does.
_CHUNK = 65_536


class Wire:
    """A connected socket: its session's output is sent at once, or as soon as possible."""

    def __init__(self, connected: socket.socket, target: str) -> None:
        self.session = Http2Session()
        self.authority = authority(target)
        self.token = ""
        self.answers = 0  # calls that the server has answered
        self.doubted, self.doubted_for = trio.Event(), ""
        self._useless = trio.Event()
        self.lost = "the server closed it"
        self._socket = connected
        self._idle: trio.lowlevel.Task | None = None  # the writer, when it has nothing to do
        self._rest = b""  # taken from the session, without room in the kernel
        self._received = 0  # chunks

    def flush(self) -> None:
        """Let the session's output be sent, together with all that this turn of trio's adds."""
        task, self._idle = self._idle, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def flush_now(self) -> None:
        """Send at once, without a turn of the writer: for a task that has the wire to itself."""
        if self._idle is None:
            return  # the writer is on its way
        data = self.session.take_output()
        try:
            sent = self._socket.send(data)
        except OSError:
            sent = 0  # not now, or not any more: the writer deals with either
        self._rest = data[sent:]
        if self._rest:
            self.flush()

    async def write(self) -> NoReturn:
        """Send what there is to send. Raises OSError."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            data, self._rest = self._rest or self.session.take_output(), b""
            if not data:
                self._idle = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
                continue
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except ssl.SSLWantReadError:
                    await trio.sleep(0.001)  # TLS has something to settle; the reader waits for it
                except LATER:
                    await trio.lowlevel.wait_writable(self._socket)

    async def read(self) -> None:
        """Read and process the next bytes. Raises OSError, also at the end, or ProtocolFault."""
        # TLS may have decrypted more than was asked for, of which the kernel knows nothing.
        if not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending():
            await trio.lowlevel.wait_readable(self._socket)
        try:
            data = self._socket.recv(_CHUNK)
        except LATER:
            return
        if not data:
            raise ConnectionResetError(self.lost)
        self._received += 1
        self.session.receive(data)
        if self.session.urgent:
            self.flush()

    async def listen(self) -> NoReturn:
        """Watch for a server that is gone without a word. Raises TimeoutError."""
        seen, asked = -1, False
        while True:
            await trio.sleep(_SILENCE)
            if not self.session.calls or self._received != seen:
                seen, asked = self._received, False
                self.flush()  # answers to pings, if nothing else took them along
            elif asked:
                raise TimeoutError(f"the server was silent for {2 * _SILENCE:.0f} s")
            else:
                asked = True
                self.session.ping()
                self.flush()

    def doubt(self, reason: str) -> None:
        """Demand a proof that the server serves; `reason` is for the message."""
        if not self.doubted.is_set():
            self.doubted_for = reason
            self.doubted.set()

    def trust(self) -> None:
        """Settle all doubts so far: the server serves."""
        self.doubted = trio.Event()

    def give_up(self, reason: str) -> None:
        """End the connection in favour of a better one."""
        self.lost = reason
        self._useless.set()

    async def given_up(self) -> NoReturn:
        """Wait until the connection is to end. Raises ConnectionAbortedError."""
        await self._useless.wait()
        raise ConnectionAbortedError(self.lost)

    def close(self) -> None:
        """Close the socket; no task may wait for it any more."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
