"""What an answer carries: known to have arrived, or dealt with as lost; over real sockets."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from federation.transport.tls import make_certificate, server_context, trusting
from node.http.delivery import carry
from node.http.server import Request, Response
from tests.support.daemons import until
from tests.support.http_edge import GET, Client, Served, serving


class Parcel:
    """What one answer carries, and what became of it."""

    def __init__(self) -> None:
        self.known = trio.Event()
        self.arrived = False

    def taken(self) -> None:
        assert not self.known.is_set()
        self.arrived = True
        self.known.set()

    async def lost(self) -> None:
        await trio.lowlevel.checkpoint()
        assert not self.known.is_set()
        self.known.set()


class Counter:
    """A server whose answers carry parcels; one is made when the client says that it may be."""

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        self.asked, self.go_on = trio.Event(), trio.Event()

    async def handle(self, request: Request) -> Response:
        if request.path == "/plain":
            return Response(200, b"nothing")
        parcel = Parcel()
        self.parcels.append(parcel)
        self.asked.set()
        if request.path == "/held":
            await self.go_on.wait()
        carry(parcel)
        if request.path == "/broken":
            raise RuntimeError("of the handler")
        return Response(200, bytes(3_000_000) if request.path == "/large" else b"here")

    async def known(self, number: int = 0) -> bool:
        """Whether a parcel arrived, once that is known."""
        await self.made(number)
        with trio.fail_after(10):
            await self.parcels[number].known.wait()
        return self.parcels[number].arrived

    async def made(self, number: int) -> None:
        """Return once so many are there, and one more."""

        async def there() -> bool:
            return len(self.parcels) > number

        await until(10, there, step=0.01)


@asynccontextmanager
async def counter(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Counter, Served]]:
    desk = Counter()
    async with serving(desk.handle, context=context) as served:
        yield desk, served


def abort(client: Client) -> None:
    """Reset the connection when it is closed."""
    stream = client.stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def next_request(client: Client) -> None:
    assert (await client.ask(GET % b"plain"))[0] == 200


async def close(client: Client) -> None:
    await client.stream.aclose()


async def reset(client: Client) -> None:
    abort(client)
    await client.stream.aclose()


async def half_close(client: Client) -> None:
    assert isinstance(client.stream, trio.SocketStream)
    await client.stream.send_eof()


@pytest.mark.parametrize("then", [next_request, close, reset, half_close])
async def test_an_answer_that_was_read_has_arrived(
    then: Callable[[Client], Awaitable[None]],
) -> None:
    async with counter() as (desk, served):
        client = await served.connect()
        assert (await client.ask(GET % b"quick"))[2] == b"here"
        await then(client)
        assert await desk.known()


async def test_an_answer_on_a_connection_that_is_closed_after_it_has_arrived() -> None:
    async with counter() as (desk, served):
        client = await served.connect()
        await client.send(b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await client.reply())[2] == b"here"
        assert await desk.known()


async def test_pipelined_answers_arrive_one_by_one() -> None:
    async with counter() as (desk, served):
        client = await served.connect()
        await client.send(GET % b"quick" * 3)
        for _ in range(3):
            assert (await client.reply())[2] == b"here"
        await next_request(client)
        assert [await desk.known(number) for number in range(3)] == [True] * 3


@pytest.mark.parametrize("how", [close, reset])
async def test_an_answer_to_who_left_is_lost(how: Callable[[Client], Awaitable[None]]) -> None:
    """As when a client's patience ends in the moment in which there is an answer."""
    async with counter() as (desk, served):
        client = await served.connect()
        await client.send(GET % b"held")
        await desk.asked.wait()
        await how(client)
        desk.go_on.set()
        assert not await desk.known()


async def test_an_answer_that_is_read_in_part_is_lost() -> None:
    async with counter() as (desk, served):
        client = await served.connect()
        await client.send(GET % b"large")
        await client.stream.receive_some(1000)
        await reset(client)
        assert not await desk.known()


async def test_what_an_answer_carried_that_is_not_sent_is_lost() -> None:
    async with counter() as (desk, served):
        client = await served.connect()
        assert (await client.ask(GET % b"broken"))[0] == 500
        assert not await desk.known()


async def test_a_server_that_stops_knows_what_has_arrived() -> None:
    async with counter() as (desk, served):
        client, other = await served.connect(), await served.connect()
        assert (await client.ask(GET % b"quick"))[2] == b"here"
        await other.send(GET % b"large")
        await other.stream.receive_some(1000)
        served.drain.set()
        assert await desk.known()
        await reset(other)
        assert not await desk.known(1)
        await served.returned.wait()


async def test_over_tls_it_is_known_too(tmp_path: Path) -> None:
    certificate, key, _ = make_certificate(tmp_path)
    context = trusting(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    async with counter(server_context(certificate, key)) as (desk, served):

        async def connect() -> tuple[Client, trio.SocketStream]:
            tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
            return Client(trio.SSLStream(tcp, context, https_compatible=True)), tcp

        client, tcp = await connect()
        assert (await client.ask(GET % b"quick"))[2] == b"here"
        await tcp.aclose()
        assert await desk.known()
        client, tcp = await connect()
        await client.send(GET % b"held")
        await desk.made(1)
        await tcp.aclose()
        desk.go_on.set()
        assert not await desk.known(1)
