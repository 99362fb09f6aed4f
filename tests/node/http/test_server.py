"""The HTTP edge over real sockets: framing, bodies, refusals, what handlers may answer.

Disconnects, draining and TLS are in `node.http.test_lifecycle`; what requests mean, with the RPC
table.
"""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import trio

from node.http.server import Limits, Request, Response
from tests.support.http_edge import GET, Client, echo, post, serving


async def test_request_and_response_arrive_whole() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> Response:
        seen.append(request)
        return Response(404, b"{}", "application/json", (("x-extra", "1"),))

    async with serving(handler) as served:
        client = await served.connect()
        head = b"POST /a%20b?q=%31&r HTTP/1.1\r\nHost: x\r\nX-Two: a\r\nx-two: b\r\n"
        status, headers, body = await client.ask(head + b"Content-Length: 3\r\n\r\n\x00\xffz")
    request = seen[0]
    assert (request.method, request.path, request.query) == ("POST", "/a b", "q=%31&r")
    assert request.headers["x-two"] == "a, b"
    assert (request.body, request.remote) == (b"\x00\xffz", "127.0.0.1")
    assert (status, body) == (404, b"{}")
    assert headers["content-type"] == "application/json"
    assert headers["x-extra"] == "1"
    assert headers["date"].endswith(" GMT")


async def test_absolute_target_loses_its_authority() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        reply = await client.ask(b"GET http://host:1/api?x HTTP/1.1\r\nHost: host:1\r\n\r\n")
    assert reply[2] == b"GET /api "


async def test_keep_alive_and_pipelining_keep_order() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        assert (await client.ask(post(b"one")))[2] == b"POST /api one"
        await client.send(post(b"two") + GET % b"three" + post(b"four"))
        assert (await client.reply("POST"))[2] == b"POST /api two"
        assert (await client.reply())[2] == b"GET /three "
        assert (await client.reply("POST"))[2] == b"POST /api four"


async def test_handler_crash_is_a_500_and_the_connection_lives() -> None:
    async def handler(request: Request) -> Response:
        if request.path == "/crash":
            raise RuntimeError("the secret cause")
        return await echo(request)

    async with serving(handler) as served:
        client = await served.connect()
        status, headers, body = await client.ask(GET % b"crash")
        assert (status, headers["content-type"]) == (500, "application/json")
        assert json.loads(body) == {"status": 500, "message": "internal error"}
        assert (await client.ask(GET % b"fine"))[0] == 200


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\rb", "a\nb"])
async def test_line_breaks_in_response_headers_are_never_sent(value: str) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, headers=(("x", value),))

    async with serving(handler) as served:
        client = await served.connect()
        await client.send(GET % b"")
        assert await client.closed()


async def test_head_and_204_have_no_body() -> None:
    async def handler(request: Request) -> Response:
        return Response(204) if request.path == "/none" else Response(200, b"12345")

    async with serving(handler) as served:
        client = await served.connect()
        status, headers, body = await client.ask(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["content-length"], body) == (200, "5", b"")
        status, headers, body = await client.ask(GET % b"none")
        assert (status, "content-length" in headers, body) == (204, False, b"")
        assert (await client.ask(GET % b""))[2] == b"12345"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_connections_that_can_not_go_on_are_closed(raw: bytes) -> None:
    async with serving(echo) as served:
        client = await served.connect()
        status, headers, body = await client.ask(raw)
        assert (status, headers["connection"], body) == (200, "close", b"GET / ")
        assert await client.closed()


async def test_chunked_body() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na")
        await client.send(b"bc\r\n2;ext=1\r\nde\r\n0\r\ntrailer: x\r\n\r\n")
        assert (await client.reply("POST"))[2] == b"POST / abcde"


async def test_expect_100_continue() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        await client.send(post(b"body", "Expect: 100-continue")[:-4])
        assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        assert (await client.reply("POST"))[2] == b"POST /api body"


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "word"),
    [
        (post(b"x" * 1001), 413, "1000"),
        (post(b"x" * 3_000_000), 413, "1000"),
        (post(b"x" * 1001, "Expect: 100-continue")[:-1001], 413, "1000"),
        (CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n0\r\n\r\n", 413, "1000"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 800 + b"\r\n\r\n", 431, "512"),
        (b"GET /" + b"x" * 800, 431, ""),
        (b"nonsense\r\n\r\n", 400, ""),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, ""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, ""),
        (CHUNKED + b"1\r\nx\r\n" * 990 + b"zz\r\n", 400, ""),
    ],
)
async def test_refusals_are_answered_and_close(raw: bytes, status: int, word: str) -> None:
    async with serving(echo, Limits(max_body=1000, max_header=512)) as served:
        client = await served.connect()
        got, headers, body = await client.ask(raw)
        assert (got, headers["connection"]) == (status, "close")
        assert json.loads(body)["status"] == status
        assert word in json.loads(body)["message"]
        assert await client.closed()


async def test_unfinished_bodies_share_a_bound() -> None:
    """Many great ones at once would be all the memory there is; small ones still pass."""
    body = b"x" * 300_000
    async with serving(echo, Limits(max_body=400_000, max_held=350_000)) as served:
        pair = [await served.connect() for _ in range(2)]
        answers: list[int] = []
        refused = trio.Event()

        async def send(client: Client) -> None:
            with suppress(trio.BrokenResourceError):
                await client.send(post(body)[:-1])
            status, _, _ = await client.reply("POST")
            answers.append(status)
            refused.set()

        async with trio.open_nursery() as nursery:
            for client in pair:
                nursery.start_soon(send, client)
            await refused.wait()
            small = await served.connect()
            assert (await small.ask(post(b"y" * 60_000)))[0] == 200
            for client in pair:
                with suppress(trio.BrokenResourceError):
                    await client.send(b"x")
        assert answers == [503, 200]
        again = await served.connect()
        assert (await again.ask(post(body)))[0] == 200


async def test_a_body_in_crumbs_is_refused() -> None:
    async with serving(echo) as served:
        client = await served.connect()
        status, _, body = await client.ask(CHUNKED + b"1\r\nx\r\n" * 2000)
        assert status == 400
        assert b"small pieces" in body


@pytest.mark.parametrize("raw", [b"GET / HT", post(b"x")[:-1]])
async def test_slow_requests_time_out_with_408(raw: bytes) -> None:
    async with serving(echo, Limits(read_timeout=0.1)) as served:
        client = await served.connect()
        status, headers, _ = await client.ask(raw)
        assert (status, headers["connection"]) == (408, "close")
