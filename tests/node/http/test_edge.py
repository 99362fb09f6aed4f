"""Attacks on the doors of a real daemon: sockets that do nothing, subscribe or do not read.

What a large request costs is in `node.rpc.test_incremental`, one connection's life in
`node.http.test_lifecycle`.
"""

from __future__ import annotations

import base64
import json
import re
import resource
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from wsproto.events import CloseConnection

from colonyd.keys import PrivateKey, sign_payload
from colonyd.rpc import RpcClient, RpcError
from node.http.server import Limits, Request, Response
from node.http.slots import source_of
from tests.support.daemons import Daemon
from tests.support.http_edge import GET, Client, post, serving
from tests.support.raw import Raw

UPGRADE = (
    b"GET /pubsub HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
HALF = b"POST /api HTTP/1.1\r\nHost: x\r\nX-Half: "


# -- the rules, in process ------------------------------------------------------------------------


async def as_told(request: Request) -> Response:
    """`/NAME` is called by NAME, who has a right; `/wait/NAME` waits."""
    name = request.path.rpartition("/")[2]
    if name and (refusal := request.signed(name)):
        return Response(429, refusal.encode())
    if request.path.startswith("/wait/"):
        await trio.sleep_forever()
    return Response(200)


@pytest.mark.parametrize("opening", [b"", HALF])
async def test_strangers_make_room_for_each_other_only(opening: bytes) -> None:
    limits = Limits(max_connections=3, max_unsigned=3, max_unsigned_per_address=3)
    async with serving(as_told, limits) as served:
        members = [await served.connect() for _ in range(2)]
        for number, member in enumerate(members):
            assert (await member.ask(GET % b"m%d" % number))[0] == 200
        strangers = []
        for _ in range(9):
            strangers.append(stranger := await served.connect())
            await stranger.send(opening)
            await trio.testing.wait_all_tasks_blocked(0.01)  # it is read
        # Who comes and shows a right is served, though all places of strangers are taken.
        late = await served.connect()
        assert (await late.ask(GET % b"m0"))[0] == 200
        for member in members:
            assert (await member.ask(GET % b""))[0] == 200
        for stranger in strangers[:6]:
            if opening:
                status, _, body = await stranger.reply()
                assert status == 503
                assert b"max_unsigned" in body
            assert await stranger.closed()


async def test_one_signer_has_a_bound_and_idle_ones_make_room() -> None:
    limits = Limits(max_per_signer=2)
    async with serving(as_told, limits) as served:
        idle = await served.connect()
        await idle.ask(GET % b"m")
        for _ in range(2):
            await (await served.connect()).send(GET % b"wait/m")
        assert await idle.closed()
        third = await served.connect()
        status, _, body = await third.ask(GET % b"wait/m")
        assert status == 429
        assert b"max_per_signer" in body
        assert (await third.ask(GET % b"other"))[0] == 200


async def test_who_has_most_makes_room_for_another_member() -> None:
    limits = Limits(max_connections=4, max_per_signer=4)
    async with serving(as_told, limits) as served:
        greedy = []
        for _ in range(4):
            greedy.append(client := await served.connect())
            await client.send(GET % b"wait/greedy")
        poor = await served.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await poor.ask(GET % b"poor"))[0] == 200
        assert await greedy[0].closed()


def test_an_ipv6_host_is_its_network() -> None:
    assert source_of("192.0.2.7") == "192.0.2.7"
    assert source_of("2001:db8:0:1::7") == source_of("2001:db8:0:1:ffff::") == "2001:db8:0:1::/64"
    assert source_of("fe80::1%eth0") == "fe80::/64"
    assert source_of("") == ""


async def test_answers_that_nobody_reads_are_bounded() -> None:
    large = b"x" * (8 << 20)

    async def handler(request: Request) -> Response:
        return Response(200, large if request.path == "/large" else b"small")

    async with serving(handler, Limits(max_unread=20 << 20, names="rpc.")) as served:
        unread = []
        for _ in range(2):
            unread.append(client := await served.connect())
            await client.send(GET % b"large")
            await client.stream.receive_some(1)
        late = await served.connect()
        status, _, body = await late.ask(GET % b"large")
        assert status == 503
        assert b"rpc.max_unread" in body
        assert (await late.ask(GET % b"small"))[2] == b"small"
        for client in unread:
            await trio.aclose_forcefully(client.stream)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await late.ask(GET % b"large"))[2] == large


async def test_a_body_counts_until_it_is_dealt_with() -> None:
    release = trio.Event()
    started = trio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        await release.wait()
        return Response(200)

    body = b"x" * 300_000
    async with serving(handler, Limits(max_body=400_000, max_held=350_000)) as served:
        first, second = await served.connect(), await served.connect()
        await first.send(post(body))
        await started.wait()
        status, _, answer = await second.ask(post(body))
        assert status == 503
        assert b"too many large requests" in answer
        release.set()
        assert (await first.reply("POST"))[0] == 200


# -- a daemon -------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """With the bounds that it comes with; the attackers need open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 12_000:
        pytest.skip("too few open files are allowed here")
    running = Daemon(tmp_path / "dev", "dev")
    try:
        running.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
        yield running
        assert running.stop() == 0
    finally:
        if running.process is not None and running.process.poll() is None:
            running.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def peak(daemon: Daemon) -> int:
    """The most memory that the daemon ever had, in MB."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1000


def envelope(key: PrivateKey, kind: str, **fields: Any) -> bytes:
    payload = base64.b64encode(json.dumps({"msgtype": kind, **fields}).encode()).decode()
    message = {"payloadtype": kind, "payload": payload, "signature": sign_payload(key, payload)}
    return json.dumps(message).encode()


@asynccontextmanager
async def idle_sockets(
    port: int, number: int, opening: bytes, context: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Connections that send `opening` and nothing more."""
    streams: list[trio.abc.Stream] = []
    turns = trio.CapacityLimiter(50)

    async def one() -> None:
        async with turns:
            stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
            if context is not None:
                stream = trio.SSLStream(stream, context)
            streams.append(stream)
            with suppress(trio.BrokenResourceError):  # others took its place already
                await stream.send_all(opening)
                if opening == UPGRADE:
                    await stream.receive_some(1000)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                nursery.start_soon(one)
        yield
    finally:
        with trio.CancelScope(shield=True):
            for stream in streams:
                await trio.aclose_forcefully(stream)


@pytest.mark.slow
@pytest.mark.parametrize(("opening", "seconds"), [(UPGRADE, 15), (HALF, 8)])
async def test_idle_sockets_keep_no_member_out(
    daemon: Daemon, opening: bytes, seconds: float
) -> None:
    """Each holds its place for longer than that: 30 and 10 seconds."""
    async with (
        idle_sockets(daemon.port, 4_200, opening),
        daemon.client() as client,
    ):
        with trio.fail_after(seconds):
            await client.call("getcolonymsg", {"colonyname": "dev"}, daemon.key("user"))


@pytest.mark.slow
async def test_half_sent_heads_keep_no_peer_out(daemon: Daemon) -> None:
    context = ssl._create_unverified_context()  # a stranger asks for no name
    async with idle_sockets(daemon.peer_port, 700, HALF, context):
        with trio.fail_after(8):
            stream = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", daemon.peer_port), context
            )
            async with stream:
                assert (await Client(stream).ask(GET % b"v1/card"))[0] == 200


@pytest.mark.slow
async def test_polls_of_one_executor_keep_no_member_out(daemon: Daemon) -> None:
    async with daemon.client() as client:
        executor = PrivateKey.generate()
        fields = {"executorid": executor.id, "executortype": "t", "executorname": "t"}
        await client.call(
            "addexecutormsg", {"executor": fields | {"colonyname": "dev"}}, daemon.key("colony")
        )
        named = {"colonyname": "dev", "executorname": "t"}
        await client.call("approveexecutormsg", named, daemon.key("colony"))
        poll = post(envelope(executor, "assignprocessmsg", colonyname="dev", timeout=3600))
        async with idle_sockets(daemon.port, 520, poll):
            late = Client(await trio.open_tcp_stream("127.0.0.1", daemon.port))
            async with late.stream:
                with trio.fail_after(8):
                    status, _, body = await late.ask(poll)
                    assert status == 429
                    why = base64.b64decode(json.loads(body)["payload"]).decode()
                    assert "rpc.max_per_signer" in why
            with trio.fail_after(8):
                await client.call("getcolonymsg", {"colonyname": "dev"}, daemon.key("user"))


@pytest.mark.slow
async def test_what_subscribers_do_not_read_is_not_kept_for_each(daemon: Daemon) -> None:
    key = daemon.key("user")
    before = peak(daemon)
    sockets = []
    for _ in range(12):
        sockets.append(raw := await Raw.connect(daemon.port))
        for number in range(64):
            await raw.ask(key.hex, msgtype="subscribeprocessesmsg", timeout=600 + number)
    async with daemon.client() as client:
        spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
        spec["kwargs"] = {"text": "x" * 500_000}
        await client.call("submitfuncspecmsg", {"spec": spec}, key)
        for _ in range(20):  # by then the daemon has told whom it can tell
            await client.call("getcolonymsg", {"colonyname": "dev"}, key)
    assert peak(daemon) - before < 200
    for raw in sockets:
        await trio.aclose_forcefully(raw.stream)


async def test_equal_subscriptions_are_one_and_a_signer_has_a_bound(tmp_path: Path) -> None:
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_RPC__MAX_SUBSCRIPTIONS": "5"}
    daemon = Daemon(tmp_path / "dev", "dev", environ)
    await trio.to_thread.run_sync(daemon.start)
    try:
        key = daemon.key("user")
        raw, other = await Raw.connect(daemon.port), await Raw.connect(daemon.port)
        async with raw.stream, other.stream, daemon.client() as client:
            wanted = {"msgtype": "subscribeprocessesmsg", "timeout": 600}
            for _ in range(9):
                await raw.ask(key.hex, **wanted)
            spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
            made = [await client.call("submitfuncspecmsg", {"spec": spec}, key) for _ in range(2)]
            for each in made:
                assert (await raw.reply())[1]["processid"] == each["processid"]
            for number in range(5):
                await other.ask(key.hex, **(wanted | {"timeout": 700 + number}))
            kind, failure = await other.reply()
            assert (kind, failure["status"]) == ("error", 429)
            assert "rpc.max_subscriptions" in failure["message"]
    finally:
        assert await trio.to_thread.run_sync(daemon.stop) == 0


@pytest.mark.slow
async def test_a_socket_without_a_right_is_closed_after_seconds(lone_daemon: Daemon) -> None:
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        with trio.fail_after(25):
            event = await raw.next()
        assert isinstance(event, CloseConnection)
        assert event.code == 1000


async def full_channel(client: RpcClient, key: PrivateKey) -> dict[str, Any]:
    """Fill a channel with 30 MiB; return the fields that name it in a call."""
    spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
    spec["channels"] = ["c"]
    made = await client.call("submitfuncspecmsg", {"spec": spec}, key)
    named = {"processid": made["processid"], "name": "c"}
    said = named | {"payload": base64.b64encode(bytes(1 << 20)).decode()}
    for sequence in range(30):
        await client.call("channelappendmsg", said | {"sequence": sequence}, key)
    return named


@pytest.mark.slow
async def test_a_full_channel_that_nobody_reads_costs_little(daemon: Daemon) -> None:
    """Twelve ask for all of it, and read nothing."""
    key = daemon.key("user")
    async with daemon.client() as client:
        named = await full_channel(client, key)
        before = peak(daemon)
        async with idle_sockets(daemon.port, 12, post(envelope(key, "channelreadmsg", **named))):
            with trio.fail_after(60):
                for _ in range(10):
                    await client.call("getcolonymsg", {"colonyname": "dev"}, key)
                # Waits for those before it: then all is answered, or refused.
                with suppress(RpcError):  # as too much is not read yet
                    await client.call("channelreadmsg", named, key, timeout=60)
                # Who asks for little does not wait for them.
                await client.call("channelreadmsg", named | {"limit": 1}, key)
        # 256 MB of answers that are not taken (`rpc.max_unread`), and one in the making.
        assert peak(daemon) - before < 500, f"{peak(daemon) - before} MB"


@pytest.mark.slow
async def test_an_answer_that_was_taken_is_not_kept(daemon: Daemon) -> None:
    """A connection that waited for its next request held its last answer meanwhile."""
    key = daemon.key("user")
    async with daemon.client() as client, AsyncExitStack() as stack:
        named = await full_channel(client, key)
        before = peak(daemon)
        for _ in range(12):
            http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=60))
            url = f"http://127.0.0.1:{daemon.port}/api"
            reply = await http.post(url, content=envelope(key, "channelreadmsg", **named))
            assert (reply.status_code, len(reply.content) > 50_000_000) == (200, True)
        assert peak(daemon) - before < 300, f"{peak(daemon) - before} MB"


# -- who may read without a signature -------------------------------------------------------------


def test_no_name_that_leads_here_makes_a_page_local(lone_daemon: Daemon) -> None:
    """DNS rebinding: a page of rebound.example, whose name leads to 127.0.0.1 by now."""
    url = f"http://127.0.0.1:{lone_daemon.port}"
    theirs = {"host": f"rebound.example:{lone_daemon.port}"}
    assert httpx.get(f"{url}/metrics").status_code == 200
    refused = httpx.get(f"{url}/metrics", headers=theirs)
    assert refused.status_code == 403
    assert "rpc.metrics" in refused.text
    # The others tell nothing, or ask for a signature or a ticket, whatever the name.
    health = httpx.get(f"{url}/health", headers=theirs)
    assert (health.status_code, health.content) == (200, b"")
    assert httpx.get(f"{url}/files/{'0' * 64}", headers=theirs).status_code == 403
    for path in ("/", "/docs", "/dashboard", "/api", "/metrics/", "/debug"):
        assert httpx.get(f"{url}{path}", headers=theirs).status_code == 404
