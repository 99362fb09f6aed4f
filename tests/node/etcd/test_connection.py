"""A wire over a pair of sockets: what is sent at once, and what is left to its writer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from node.etcd.transport import frames as f
from node.etcd.transport.connection import Wire

PING = f.frame(f.PING, 0, 0, b"colonyd!")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def received(theirs: socket.socket, size: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < size:
            await trio.lowlevel.wait_readable(theirs)
            data += theirs.recv(65_536)
    return data


async def test_what_the_kernel_does_not_take_at_once_follows(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    ours, theirs = pair
    wire = Wire(ours, "localhost:1")
    nursery.start_soon(wire.write)
    await trio.testing.wait_all_tasks_blocked()
    preface = theirs.recv(65_536)
    for _ in range(60_000):
        wire.session.ping()
    wire.flush_now()
    wire.session.ping()
    wire.flush_now()  # behind the rest, never before it
    data = await received(theirs, 60_001 * len(PING))
    assert preface.startswith(f.PREFACE)
    assert data == PING * 60_001
    # And with the rest gone the next one needs no writer again.
    await trio.testing.wait_all_tasks_blocked()
    wire.session.ping()
    wire.flush_now()
    assert theirs.recv(100) == PING


async def test_a_dead_peer_is_the_writers_matter(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    ours, theirs = pair
    wire = Wire(ours, "localhost:1")
    failed = trio.Event()

    async def write() -> None:
        with pytest.raises(OSError, match="Broken pipe"):
            await wire.write()
        failed.set()

    nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    theirs.close()
    wire.session.ping()
    wire.flush_now()
    with trio.fail_after(5):
        await failed.wait()
