"""A pool of connections against real sockets: what is kept, what is refused, what is certain."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from node.http.message import Request, Response
from node.http.pool import NoAnswer, NoSlot, NotSent, Pool, PoolReply
from node.http.stream import PromptStream
from tests.support.http_edge import echo, serving


def pool_of(port: int, opened: list[int] | None = None) -> Pool:
    """A pool of plain connections to a port of this machine; each is counted in `opened`."""

    async def connect() -> tuple[trio.abc.Stream, trio.socket.SocketType]:
        stream = PromptStream(await trio.open_tcp_stream("127.0.0.1", port))
        if opened is not None:
            opened.append(port)
        return stream, stream.socket

    return Pool("localhost", connect)


async def post(pool: Pool, body: bytes = b"x", limit: int = 1000) -> PoolReply:
    headers = {"content-type": "text/plain"}
    return await pool.post("/api", body, headers, limit=lambda _: limit, patience=5.0)


async def said(nursery: trio.Nursery, *answers: bytes) -> Pool:
    """A pool to a server that sends these answers on its first connection and then hangs up."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        stream = await listener.accept()
        for answer in answers:
            await stream.receive_some()
            await stream.send_all(answer)
        await stream.aclose()
        await listener.aclose()

    nursery.start_soon(serve)
    return pool_of(listener.socket.getsockname()[1])


async def test_a_connection_serves_one_request_after_another() -> None:
    opened: list[int] = []
    async with serving(echo) as served:
        pool = pool_of(served.port, opened)
        for body in (b"one", b"two"):
            reply = await post(pool, body)
            assert (reply.status, reply.body) == (200, b"POST /api " + body)
        await pool.aclose()
    assert len(opened) == 1


async def test_sixteen_connections_and_no_more_and_eight_are_kept() -> None:
    running = most = 0
    full, go = trio.Event(), trio.Event()

    async def slow(request: Request) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 16:
            full.set()
        await go.wait()
        running -= 1
        return Response(200)

    opened: list[int] = []
    async with serving(slow) as served, trio.open_nursery() as nursery:
        pool = pool_of(served.port, opened)
        for _ in range(20):
            nursery.start_soon(post, pool)
        await full.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        go.set()
    assert most == 16
    assert len(pool._idle) == 8
    await pool.aclose()


async def test_a_kept_connection_that_the_server_closed_is_not_used(nursery: trio.Nursery) -> None:
    async with serving(echo) as served:
        pool = pool_of(served.port)
        await post(pool)
        stream = pool._idle[0].stream
    await trio.lowlevel.wait_readable(pool._idle[0].socket)
    with pytest.raises(NotSent):
        await post(pool)
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


async def test_a_request_that_is_given_up_leaves_no_connection_behind() -> None:
    async def never(request: Request) -> Response:
        await trio.sleep_forever()
        return Response(200)

    async with serving(never) as served:
        pool = pool_of(served.port)
        for _ in range(20):
            with trio.move_on_after(0.01):
                await post(pool)
        assert (pool._idle, pool._busy, pool._slots.value) == ([], set(), 16)


async def test_a_pool_that_is_closed_ends_what_is_under_way() -> None:
    there = trio.Event()

    async def never(request: Request) -> Response:
        there.set()
        await trio.sleep_forever()
        return Response(200)

    async with serving(never) as served, trio.open_nursery() as nursery:
        pool = pool_of(served.port)

        async def lost() -> None:
            with pytest.raises(NoAnswer):
                await post(pool)

        nursery.start_soon(lost)
        await there.wait()
        await pool.aclose()
    with pytest.raises(NotSent):
        await post(pool)


_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_OK + b"content-length: 2000\r\n\r\n", "longer than 1000"),
        (_OK + b"\r\n" + b"x" * 2000, "longer than 1000"),
        (_OK + b"content-encoding: gzip, gzip\r\ncontent-length: 1\r\n\r\nx", "content coding"),
        (_OK + b"content-length: 10\r\n\r\nx", "no HTTP"),
        (b"HELLO\r\n\r\n", "no HTTP"),
        (b"", "closed|reset|no HTTP"),
    ],
)
async def test_an_answer_that_is_none(nursery: trio.Nursery, answer: bytes, why: str) -> None:
    pool = await said(nursery, answer)
    with pytest.raises(NoAnswer, match=why):
        await post(pool)
    assert not pool._idle


async def test_an_answer_that_never_comes(nursery: trio.Nursery) -> None:
    async def never(request: Request) -> Response:
        await trio.sleep_forever()
        return Response(200)

    async with serving(never) as served:
        pool = pool_of(served.port)
        with pytest.raises(NoAnswer, match=r"within 0\.1 s"):
            await pool.post("/api", b"", {}, limit=lambda _: 10, patience=0.1)


async def test_a_port_where_nobody_listens() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(NotSent, match="refused"):
        await post(pool_of(port))


_ONE = _OK + b"content-length: 3\r\n\r\none"


@pytest.mark.parametrize("more", [_OK + b"content-length: 3\r\n\r\nEVL", b"\r\n"])
async def test_what_comes_behind_an_answer_answers_nothing(more: bytes) -> None:
    """The next request has a connection of its own."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(_ONE + more)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        opened: list[int] = []
        pool = pool_of(listener.socket.getsockname()[1], opened)
        for _ in range(3):
            assert (await post(pool)).body == b"one"
        assert len(opened) == 3
        nursery.cancel_scope.cancel()


async def test_connections_that_nobody_needs_are_closed() -> None:
    """Those of a burst do not stay open for ever because one is used again and again."""
    clock = trio.current_time()
    async with serving(echo) as served:
        pool = pool_of(served.port)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(post, pool)
        assert len(pool._idle) > 1
        for connection in pool._idle[:-1]:
            connection.since = clock - 1000
        await post(pool)
        assert len(pool._idle) == 1
        await pool.aclose()


async def test_the_sixteen_that_run_keep_out_the_next_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.http.pool._FREE", 0.1)
    go = trio.Event()

    async def slow(request: Request) -> Response:
        await go.wait()
        return Response(200)

    async with serving(slow) as served, trio.open_nursery() as nursery:
        pool = pool_of(served.port)
        for _ in range(16):
            nursery.start_soon(post, pool)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(NoSlot):
            await post(pool)
        go.set()
    await pool.aclose()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + _ONE, "never begins"),
        (_OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000, "too small pieces"),
    ],
)
async def test_an_answer_in_very_many_parts(nursery: trio.Nursery, answer: bytes, why: str) -> None:
    pool = await said(nursery, answer)
    with pytest.raises(NoAnswer, match=why):
        await post(pool, limit=10_000)


async def test_a_stream_that_another_task_closed_is_told_as_closed() -> None:
    """As trio's own does: not as a fault of a file descriptor that is gone."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        stream = PromptStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
