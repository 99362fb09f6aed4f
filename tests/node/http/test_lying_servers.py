"""Answers of servers that lie about what they send: a content coding, or more than was asked for.

What a signed message may cost is in `federation.wire.test_sizes`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio

from cli.core.errors import Failure
from cli.files.s3 import S3Settings, S3Store
from colonyd import http as http_client
from colonyd.client.files import DaemonStore, FileDigest, Ticket, fetch
from colonyd.errors import ColonyError
from colonyd.http import ask, read_body
from colonyd.keys import PrivateKey
from colonyd.rpc import LONGEST_REPLY, RpcClient, RpcError, Unreachable
from federation.peers.registry import Peer, PeerState
from federation.transport.connection import PeerConnection, fetch_card
from federation.transport.errors import Lost
from federation.transport.tls import fetch_certificate
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.signer import Signer
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.lying_servers import (
    BOMB_SIZE,
    ENCODED,
    LyingColony,
    Said,
    bomb,
    knows,
    peak,
    serve_lies,
)
from tests.support.mdns_flood import announcement
from tests.support.parts import Led
from tests.support.rpc_server import ColonyServer, seal

Make = Callable[..., Daemon]
_ROOM = 40 * 2**20  # bytes that a daemon may grow by in a test anyway
FILE = {"name": "f", "size": 100, "checksum": "a" * 64}


@pytest.mark.slow
async def test_a_bomb_found_by_mdns_costs_nothing(
    make_daemon: Make, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A neighbour announces itself, and its card comes in 1 kB that decode to 256 MB."""
    daemon = make_daemon("ant").start()
    liar = await LyingColony(tmp_path / "liar").start(nursery)
    encoded = bomb()
    liar.answers["/v1/card"] = lambda body: Said(encoded, headers=ENCODED)
    before = peak(daemon)
    told = announcement(liar.key.id, "127.0.0.1", liar.port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        own = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)

        async def asked() -> bool:
            sender.sendto(told, ("224.0.0.251", 5353))
            return "/v1/card" in liar.heard

        await until(60, asked, step=0.5)
    async with daemon.client() as client:

        async def refused() -> bool:
            found = await client.call("getpeersmsg", {}, daemon.key("colony"), 30)
            return any("content coding" in peer.get("error", "") for peer in found)

        await until(60, refused, step=0.2)
    assert daemon.health() == 200
    assert peak(daemon) - before < _ROOM


@pytest.mark.slow
async def test_a_bomb_of_a_trusted_peer_costs_nothing(
    make_daemon: Make, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Answers over a link are no other."""
    liar = await LyingColony(tmp_path / "liar").start(nursery)
    daemon = knows(make_daemon("ant"), liar.port).start()
    encoded = bomb()
    async with daemon.client() as client:
        owner = daemon.key("colony")

        async def met() -> bool:
            found = await client.call("getpeersmsg", {}, owner, 30)
            return any(peer["id"] == liar.key.id and peer["name"] for peer in found)

        await until(60, met, step=0.2)
        before = peak(daemon)
        for path in ("/v1/hello", "/v1/capabilities", "/v2/outcomes", "/v1/introductions"):
            liar.answers[path] = lambda body: Said(encoded, headers=ENCODED)
        await client.call("trustpeermsg", {"peer": liar.key.id}, owner, 30)

        async def refused() -> bool:
            # A connection that one task gives up ends under the others.
            answer = await client.call("pingpeermsg", {"peer": liar.key.id}, owner, 60)
            return "content coding" in answer["error"]

        await until(60, refused, step=0.2)
    assert daemon.health() == 200
    assert peak(daemon) - before < _ROOM


# -- each client --------------------------------------------------------------------------------


async def _rpc(port: int, directory: Path) -> None:
    async with RpcClient(f"http://127.0.0.1:{port}") as client:
        await client.call("getcolonymsg", {}, PrivateKey.generate())


async def _health(port: int, directory: Path) -> None:
    async with RpcClient(f"http://127.0.0.1:{port}") as client:
        await client.health()


async def _download(port: int, directory: Path) -> None:
    async with RpcClient(f"http://127.0.0.1:{port}") as client:
        async with DaemonStore(client, "dev", PrivateKey.generate()) as store:
            store._ticket = _ticket  # type: ignore[method-assign]
            async for _ in store.get(FILE, 0):
                pass


async def _upload(port: int, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x" * 100)
    async with RpcClient(f"http://127.0.0.1:{port}") as client:
        async with DaemonStore(client, "dev", PrivateKey.generate()) as store:
            with path.open("rb") as file:
                ticket = await _ticket("PUT", FileDigest("a" * 64, 100))
                await store._put_part(ticket, trio.wrap_file(file), 0, FileDigest("a" * 64, 100))


async def _ticket(method: str, content: FileDigest) -> Ticket:
    return Ticket(url="/files/x", partsize=100)


def _s3(port: int) -> S3Store:
    return S3Store(S3Settings(f"127.0.0.1:{port}", "key", "secret", "bucket"))


async def _s3_download(port: int, directory: Path) -> None:
    place = {"server": "127.0.0.1", "port": port, "bucket": "bucket", "object": "o"}
    async with _s3(port) as store:
        async for _ in store.get({**FILE, "ref": {"s3object": place}}, 0):
            pass


async def _s3_upload(port: int, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x" * 100)
    async with _s3(port) as store:
        await store.put(path, FileDigest("a" * 64, 100), lambda size: None)


@pytest.mark.parametrize(
    "talk", [_rpc, _health, _download, _upload, _s3_download, _s3_upload], ids=lambda f: f.__name__
)
async def test_no_client_decodes_what_it_did_not_ask_for(
    nursery: trio.Nursery, tmp_path: Path, talk: Callable[[int, Path], Awaitable[None]]
) -> None:
    """Of a megabyte that decodes to 256, nothing is decoded, whoever asked."""
    encoded = bomb()
    port = await serve_lies(nursery, lambda path, body: Said(encoded, headers=ENCODED))
    tracemalloc.start()
    try:
        with pytest.raises(
            (Unreachable, ColonyError, Failure, httpx.TransportError), match="content coding"
        ):
            await talk(port, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < BOMB_SIZE // 8
    finally:
        tracemalloc.stop()


async def test_what_is_asked_for_has_no_coding(nursery: trio.Nursery) -> None:
    """An honest server does not need to be refused."""
    heads: list[bytes] = []
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some(65_536)))
        await stream.send_all(b"HTTP/1.1 200 Fine\r\ncontent-length: 2\r\n\r\nok")

    await nursery.start(trio.serve_listeners, answer, listeners)
    async with http_client.http_client() as http:
        port = listeners[0].socket.getsockname()[1]
        reply = await ask(http, "GET", f"http://127.0.0.1:{port}/", limit=2)
    assert reply.content == b"ok"
    assert b"accept-encoding: identity" in heads[0].lower()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [10, 11])
@pytest.mark.parametrize("declared", [True, False])
async def test_more_than_is_allowed_is_not_read(size: int, declared: bool) -> None:
    """The bound holds for what comes, whatever was declared."""
    headers = {"content-length": str(size)} if declared else {}

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x"

    answer = httpx.Response(200, headers=headers, content=body(), request=httpx.Request("GET", "x"))
    if size <= 10:
        assert await read_body(answer, 10) == b"x" * size
    else:
        with pytest.raises(http_client.TooLong):
            await read_body(answer, 10)


async def test_a_reply_without_end_is_not_kept(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is not ours can't fill the memory of who calls it."""
    assert LONGEST_REPLY <= 2**28
    monkeypatch.setattr("colonyd.rpc.LONGEST_REPLY", 1000)
    port = await serve_lies(nursery, lambda path, body: Said(b"x" * 1001))
    with pytest.raises(RpcError, match="longer than 1000 bytes; ask for fewer"):
        await _rpc(port, Path())


async def test_a_file_that_is_longer_than_it_says_fills_no_disk(tmp_path: Path) -> None:
    """What comes beyond the size that the colony knows is not written."""

    class Endless:
        async def put(self, path: Path, content: FileDigest, meter: object) -> dict[str, object]:
            raise AssertionError

        async def get(self, file: dict[str, object], offset: int):  # type: ignore[no-untyped-def]
            while True:
                yield b"x" * 60

    with trio.fail_after(10):
        with pytest.raises(ColonyError, match="more than its 100 bytes"):
            await fetch(Endless(), FILE, tmp_path / "f", lambda size: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("told", "ticket", "why"),
    [
        ({"offset": 0, "complete": False}, {}, "breaks off: the server takes no more of it"),
        ({"offset": 101, "complete": False}, {}, "has 101 bytes of a file of 100"),
        ({"offset": "all"}, {}, "odd answer to an upload: .* `int`, got `str`"),
        ([], {}, "odd answer to an upload"),
        ({}, {"offset": -1}, "odd ticket: .*offset"),
        ({}, {"partsize": 0}, "odd ticket: .*partsize"),
        ({}, {"complete": None}, "odd ticket: .*complete"),
    ],
)
async def test_an_upload_ends_whatever_the_server_says(
    nursery: trio.Nursery, tmp_path: Path, told: object, ticket: dict[str, object], why: str
) -> None:
    """It went on for ever at a server that never gets on."""

    def answer(path: str, body: bytes) -> Said:
        if path.startswith("/files"):
            return Said(json.dumps(told).encode())
        fields = {"url": "/files/x", "offset": 0, "partsize": 50, "complete": False}
        return Said(seal("fileticketmsg", fields | ticket, error=False))

    port = await serve_lies(nursery, answer)
    (tmp_path / "up").write_bytes(b"x" * 100)
    async with RpcClient(f"http://127.0.0.1:{port}") as client:
        async with DaemonStore(client, "dev", PrivateKey.generate()) as store:
            with trio.fail_after(10), pytest.raises((ColonyError, RpcError), match=why):
                await store.put(tmp_path / "up", FileDigest("a" * 64, 100), lambda size: None)


@pytest.mark.parametrize("url", ["@127.0.0.1:1/files/x", ".example/files/x", ""])
async def test_a_ticket_leads_nowhere_else(url: str, tmp_path: Path) -> None:
    """Where bytes go to and come from is the server itself, not a host that it names."""
    with ColonyServer() as server:
        server.answers["fileticketmsg"] = lambda *_: {"url": url, "offset": 0, "complete": False}
        key = PrivateKey.generate()
        async with RpcClient(f"http://{server.address}") as client:
            async with DaemonStore(client, "dev", key) as store:
                (tmp_path / "up").write_bytes(b"x" * 100)
                content = FileDigest("a" * 64, 100)
                with pytest.raises(ColonyError, match="no path of its own"):
                    await store.put(tmp_path / "up", content, lambda size: None)
                with pytest.raises(ColonyError, match="no path of its own"):
                    await fetch(store, FILE, tmp_path / "down", lambda size: None)


async def test_a_link_reads_no_more_than_a_kind_has(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A receipt of megabytes is none."""
    liar = await LyingColony(tmp_path / "liar").start(nursery)
    signer = Signer(PrivateKey.generate(), SigningClock())
    card, data = await fetch_card(f"127.0.0.1:{liar.port}", signer.clock)
    entry = PeerState(Peer(card.id).described(card, data))

    link = PeerConnection(entry, signer, Led())
    small = liar.seal(Kind.RECEIPT, signer.key.id, b"\x80" * 5000)
    liar.answers["/v2/submit"] = lambda body: Said(small)
    try:
        with pytest.raises(Lost, match="longer than 4096 bytes"):
            await link.post("/v2/submit", b"x", Kind.RECEIPT)
    finally:
        await link.close()


async def test_nothing_is_sent_to_who_answers_the_handshake_only(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The certificate itself is fetched without a byte of HTTP."""
    liar = await LyingColony(tmp_path / "liar").start(nursery)
    await fetch_certificate("127.0.0.1", liar.port)
    assert liar.heard == []


def test_clients_are_made_in_one_place() -> None:
    """A new one can't forget to refuse codings."""
    made = re.compile(r"httpx\.(AsyncClient|Client|get|post|put|request|stream)\(|urllib\.request")
    found = {
        str(path.relative_to(REPOSITORY))
        for package in ("cli", "federation", "node", "colonyd")
        for path in (REPOSITORY / package).rglob("*.py")
        if made.search(path.read_text())
    }
    assert found == {"colonyd/http.py"}
