"""A server of the HTTP edge and clients for it, over real sockets, for the tests of the edge.

No test is in here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio

from node.http.listeners import Listener, bound_port, open_listeners
from node.http.server import Handler, Limits, Request, Response, serve_http

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class Client:
    """An h11 client on one connection, so that a reply's framing is checked by another's eyes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.parser = h11.Connection(h11.CLIENT)

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def reply(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Read one reply; the request itself was sent as raw bytes, so h11 is only told of it."""
        self.parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self.parser.send(h11.EndOfMessage())
        status, headers, body = 0, {}, b""
        while True:
            event = self.parser.next_event()
            if event is h11.NEED_DATA:
                self.parser.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        if "connection" not in headers:
            self.parser.start_next_cycle()
        return status, headers, body

    async def ask(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.send(raw)
        return await self.reply("HEAD" if raw.startswith(b"HEAD ") else "GET")

    async def closed(self) -> bool:
        """Wait for the server's end of stream; False when bytes come instead."""
        try:
            return not await self.stream.receive_some()
        except trio.BrokenResourceError:
            return True


@dataclass
class Served:
    """A running server."""

    port: int
    drain: trio.Event = field(default_factory=trio.Event)
    returned: trio.Event = field(default_factory=trio.Event)
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        """Open a connection that is closed with the server at the latest."""
        client = Client(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.clients.append(client)
        return client


@asynccontextmanager
async def serving(
    handler: Handler,
    limits: Limits | None = None,
    *,
    grace: float = 5.0,
    context: ssl.SSLContext | None = None,
    listeners: Sequence[Listener] | None = None,
) -> AsyncIterator[Served]:
    """Serve `handler` on a free port of 127.0.0.1 (or on `listeners`) for the block's time."""
    opened = listeners or await open_listeners("127.0.0.1", 0, context)
    served = Served(bound_port(opened))

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await serve_http(
            handler,
            opened,
            limits=limits or Limits(),
            drain=served.drain,
            grace=grace,
            task_status=task_status,
        )
        served.returned.set()

    try:
        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve)
                yield served
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for client in served.clients:
                await trio.aclose_forcefully(client.stream)


def post(body: bytes, *headers: str) -> bytes:
    head = ["POST /api HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


async def echo(request: Request) -> Response:
    return Response(200, f"{request.method} {request.path} ".encode() + request.body)
