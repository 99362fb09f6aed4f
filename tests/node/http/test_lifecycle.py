"""The HTTP edge over real sockets: disconnects, connection limits, draining, upgrades, TLS.

Framing and refusals are in `node.http.test_server`.
"""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path

import pytest
import trio

from federation.transport.tls import make_certificate, server_context, trusting
from node.http.listeners import bound_port, open_listeners
from node.http.server import Limits, Request, Response
from tests.support.http_edge import GET, Client, echo, post, serving


async def test_bytes_read_ahead_of_a_slow_handler_are_kept() -> None:
    arrived: trio.MemorySendChannel[bytes]
    arrived, arrivals = trio.open_memory_channel[bytes](100)
    release = trio.Event()

    class Tap(trio.abc.HalfCloseableStream):
        """The socket itself, with a note of what the server has read from it."""

        def __init__(self, inner: trio.SocketStream) -> None:
            self.inner = inner

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            data = bytes(await self.inner.receive_some(max_bytes))
            arrived.send_nowait(data)
            return data

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self.inner.wait_send_all_might_not_block()

        async def send_eof(self) -> None:
            await self.inner.send_eof()

        async def aclose(self) -> None:
            await self.inner.aclose()

    class TapListener(trio.abc.Listener[trio.abc.Stream]):
        def __init__(self, inner: trio.SocketListener) -> None:
            self.inner = inner
            self.socket = inner.socket

        async def accept(self) -> trio.abc.Stream:
            return Tap(await self.inner.accept())

        async def aclose(self) -> None:
            await self.inner.aclose()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            await release.wait()
        return await echo(request)

    inner = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with serving(handler, listeners=[TapListener(inner)]) as served:
        client = await served.connect()
        await client.send(GET % b"slow")
        await arrivals.receive()
        second = post(b"behind")
        await client.send(second[:20])
        assert await arrivals.receive() == second[:20]  # read while the handler runs
        release.set()
        assert (await client.reply())[2] == b"GET /slow "
        await client.send(second[20:])
        assert (await client.reply("POST"))[2] == b"POST /api behind"


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_disconnect_cancels_the_running_handler(how: str) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/quick":
            return Response(200)
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(handler) as served:
        client = await served.connect()
        stream = client.stream
        assert isinstance(stream, trio.SocketStream)
        await client.send(GET % b"poll")
        await started.wait()
        if how == "half-close":
            await stream.send_eof()
        else:
            if how == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        await cancelled.wait()
        assert (await (await served.connect()).ask(GET % b"quick"))[0] == 200


async def test_crash_mixed_with_cancellation_does_not_kill_the_server() -> None:
    started, crashed = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/quick":
            return Response(200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                crashed.set()
                raise KeyError("crash on the way out")

    async with serving(handler) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(GET % b"poll")
        await started.wait()
        await stream.aclose()
        await crashed.wait()
        assert (await (await served.connect()).ask(GET % b"quick"))[0] == 200
        started = trio.Event()
        await (await served.connect()).send(GET % b"poll")
        await started.wait()  # and this one is cancelled from outside, with the server


async def test_idle_connections_close_without_a_word() -> None:
    async with serving(echo, Limits(idle_timeout=0.1, read_timeout=0.1)) as served:
        fresh, used = await served.connect(), await served.connect()
        await used.ask(GET % b"")
        assert await fresh.closed()
        assert await used.closed()


async def test_a_handler_outlives_the_timeouts_of_the_wire() -> None:
    async def handler(request: Request) -> Response:
        await trio.sleep(0.4)  # the very thing under test: time passing while a handler runs
        return Response(200)

    async with serving(handler, Limits(idle_timeout=0.1, read_timeout=0.1)) as served:
        assert (await (await served.connect()).ask(GET % b""))[0] == 200


async def test_no_deadline_of_the_wire_is_left_for_handlers_and_upgrades() -> None:
    left: list[float] = []

    def remaining() -> float:
        return trio.current_effective_deadline() - trio.current_time()

    async def taken_over(stream: trio.abc.Stream, ahead: bytes) -> None:
        left.append(remaining())

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            await trio.sleep(0.3)  # the very thing under test, as above
            left.append(remaining())
        return Response(200, upgrade=taken_over if request.path == "/up" else None)

    # `serving` ends after 20 s: more than the idle time can only be left when that is lifted.
    async with serving(handler, Limits(idle_timeout=12)) as served:
        client = await served.connect()
        for path in (b"quick", b"slow", b"quick"):
            assert (await client.ask(GET % path))[0] == 200
        await client.send(GET % b"up")
        assert await client.closed()
    assert len(left) == 2
    assert min(left) > 12


async def test_a_new_connection_takes_the_place_of_the_longest_idle_one() -> None:
    async with serving(echo, Limits(max_connections=1, max_unsigned=1)) as served:
        clients = [await served.connect() for _ in range(2)]
        for client in clients:
            await client.ask(GET % b"")
        third = await served.connect()
        assert (await third.ask(GET % b""))[0] == 200
        assert await clients[0].closed()
        assert (await clients[1].ask(GET % b""))[0] == 200


async def test_a_new_connection_waits_for_busy_ones() -> None:
    started, release = trio.Semaphore(0), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            started.release()
            await release.wait()
        return Response(200)

    async with serving(handler, Limits(max_connections=1, max_unsigned=1)) as served:
        busy = []
        for _ in range(2):
            busy.append(client := await served.connect())
            await client.send(GET % b"slow")
            await started.acquire()
        third = await served.connect()
        await third.send(GET % b"")
        release.set()
        for client in busy:
            _, headers, _ = await client.reply()
        assert headers["connection"] == "close"
        assert (await third.reply())[0] == 200


async def test_drain_closes_idle_and_finishes_running_requests() -> None:
    started, release = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            started.set()
            await release.wait()
        return await echo(request)

    async with serving(handler) as served:
        idle, busy = await served.connect(), await served.connect()
        await idle.ask(GET % b"")
        await busy.send(GET % b"slow")
        await started.wait()
        served.drain.set()
        assert await idle.closed()
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream("127.0.0.1", served.port)
        assert not served.returned.is_set()
        release.set()
        status, headers, body = await busy.reply()
        assert (status, headers["connection"], body) == (200, "close", b"GET /slow ")
        await served.returned.wait()


async def test_drain_cancels_handlers_after_the_grace() -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(handler, grace=0.05) as served:
        client = await served.connect()
        await client.send(GET % b"")
        await started.wait()
        served.drain.set()
        await served.returned.wait()
        assert cancelled.is_set()
        assert await client.closed()


async def test_upgrade_hands_over_the_stream_and_what_was_read() -> None:
    async def talk(stream: trio.abc.Stream, ahead: bytes) -> None:
        await stream.send_all(b"raw:" + ahead)
        while data := await stream.receive_some():
            await stream.send_all(data.upper())

    async def handler(request: Request) -> Response:
        return Response(101, upgrade=talk)

    async with serving(handler) as served:
        client = await served.connect()
        head = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
        await client.send(head + b"first")
        assert await client.stream.receive_some() == b"raw:first"
        await client.send(b"second")
        assert await client.stream.receive_some() == b"SECOND"
        served.drain.set()
        assert await client.closed()
        await served.returned.wait()


async def test_several_listeners_and_cancellation_from_outside() -> None:
    listeners = [*await open_listeners("127.0.0.1", 0), *await open_listeners("127.0.0.1", 0)]
    async with serving(echo, listeners=listeners) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", bound_port(listeners[1:]))
        client = Client(stream)
        served.clients.append(client)
        assert (await client.ask(GET % b""))[0] == 200
    assert not served.returned.is_set()
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream("127.0.0.1", served.port)


async def test_tls_serves_watches_and_survives_junk(tmp_path: Path) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path != "/poll":
            return Response(200, request.remote.encode())
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    certificate, key, _ = make_certificate(tmp_path)
    context = trusting(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    async with serving(handler, context=server_context(certificate, key)) as served:
        junk = await served.connect()
        await junk.send(b"GET / HTTP/1.1\r\n\r\n")
        while await junk.stream.receive_some():
            pass  # an alert may come first, then the end
        tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
        client = Client(trio.SSLStream(tcp, context, https_compatible=True))
        assert (await client.ask(GET % b""))[2] == b"127.0.0.1"
        await client.send(GET % b"poll")
        await started.wait()
        await client.stream.aclose()
        await cancelled.wait()
