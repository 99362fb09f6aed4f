"""A TCP stream with as few system calls as possible.

trio's own takes a turn of the whole scheduler after each send and tries each receive before it
waits; on a request's few bytes both cost more than the bytes do.
"""

from __future__ import annotations

import socket

import trio


class PromptStream(trio.abc.HalfCloseableStream):
    """Takes over the socket of a `trio.SocketStream`; as that, but sending is no checkpoint."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._raw = socket.socket(fileno=stream.socket.detach())
        self.socket = trio.socket.from_stdlib_socket(self._raw)
        self._stream = trio.SocketStream(self.socket)
        self._sending = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes; wait only if the kernel has no room for them."""
        if not self._sending:
            try:
                sent = self._raw.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self._broken() from error
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        # In two tasks at once: trio's stream raises the error.
        self._sending = True
        try:
            await self._stream.send_all(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as trio's stream does."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send the end of the stream as trio's stream does."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes once there are some; none at the end of the stream."""
        while True:
            if self._raw.fileno() < 0:
                # Another task closed it. What waits already is told by trio itself.
                raise self._broken()
            await trio.lowlevel.wait_readable(self._raw)
            try:
                return self._raw.recv(max_bytes or 65_536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._broken() from error

    def _broken(self) -> trio.BrokenResourceError | trio.ClosedResourceError:
        if self._raw.fileno() < 0:
            return trio.ClosedResourceError("this stream was closed already")
        return trio.BrokenResourceError("the connection is broken")

    async def aclose(self) -> None:
        """Close the stream as trio's stream does."""
        await self._stream.aclose()
