"""Subscriptions over WebSocket on a real node: pycolonies waits, and a raw client asks for more."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import crypto  # type: ignore[import-untyped]
import httpx
import pytest
import trio
import websocket
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    TextMessage,
)

from node.model.types import Conditions, FunctionSpec, Process, State
from node.streams.subscriptions import SubscriptionFilter, Subscriptions
from tests.sdk.support import COLONY, Party
from tests.support.daemons import Daemon
from tests.support.raw import Raw


@pytest.fixture
def party(lone_daemon: Daemon) -> Party:
    return Party(lone_daemon).join()


class Waiting:
    """`Colonies.wait()` in a thread."""

    def __init__(self, party: Party, process: Any, timeout: int = 20, key: str = "") -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=[party, process, timeout, key])
        self._thread.start()

    def _run(self, party: Party, process: Any, timeout: int, key: str) -> None:
        try:
            self.result = party.colonies.wait(process, timeout, key or party.user)
        except Exception as error:
            self.error = error

    def end(self, seconds: float = 10) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "wait() hangs"
        if self.error is not None:
            raise self.error
        return self.result


def test_wait_returns_the_closed_process(party: Party) -> None:
    process = party.submit()
    waiting = Waiting(party, process)
    got = party.assign()
    time.sleep(0.3)
    party.colonies.close(got.processid, ["done"], party.key)
    result = waiting.end()
    assert (result.processid, result.state, result.output) == (process.processid, 2, ["done"])


def test_wait_for_what_is_over_returns_at_once(party: Party) -> None:
    process = party.submit()
    party.assign()
    party.colonies.close(process.processid, ["x"], party.key)
    assert Waiting(party, process).end(5).state == 2


def test_wait_ends_when_the_process_fails(party: Party) -> None:
    process, failed_before = party.submit(), party.submit()
    waiting = Waiting(party, process)
    for _ in range(2):
        got = party.assign()
        time.sleep(0.2)
        party.colonies.fail(got.processid, ["broke"], party.key)
    assert waiting.end().errors == ["broke"]
    assert Waiting(party, failed_before).end(5).state == 3


def test_many_wait_and_all_hear(party: Party) -> None:
    process = party.submit()
    waiting = [Waiting(party, process) for _ in range(8)]
    party.assign()
    time.sleep(0.5)
    party.colonies.close(process.processid, [], party.key)
    assert {each.end().state for each in waiting} == {2}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wait_ends_at_its_timeout(party: Party) -> None:
    process = party.submit()
    began = time.monotonic()
    # An exception is what pycolonies makes of the close, with upstream too.
    with contextlib.suppress(websocket.WebSocketException):
        assert Waiting(party, process, 1).end().state == 0
    assert 0.9 < time.monotonic() - began < 5
    gc.collect()  # pycolonies leaves its socket open then


def test_a_stranger_learns_nothing(party: Party) -> None:
    process = party.submit()
    with pytest.raises(Exception, match="member"):
        Waiting(party, process, 20, crypto.Crypto().prvkey()).end(5)


async def test_a_stranger_is_refused_in_the_socket(party: Party, lone_daemon: Daemon) -> None:
    process = await trio.to_thread.run_sync(party.submit)
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        stranger = crypto.Crypto().prvkey()
        one = {"msgtype": "subscribeprocessmsg", "state": 0, "timeout": 9}
        for colonyname in ("", COLONY):
            await raw.ask(
                stranger, msgtype="subscribeprocessesmsg", timeout=9, colonyname=colonyname
            )
            assert (await raw.reply())[1]["status"] == 403
        await raw.ask(stranger, processid=process.processid, colonyname=COLONY, **one)
        assert (await raw.reply())[1]["status"] == 403
        await raw.ask(party.user, processid="f" * 64, **one)
        assert (await raw.reply())[1]["status"] == 404
        # The socket still serves: a member gets the present state, and nothing twice.
        await raw.ask(party.user, processid=process.processid, **one)
        kind, told = await raw.reply()
        assert (kind, told["processid"], told["state"]) == (
            "subscribeprocessmsg",
            process.processid,
            0,
        )


async def test_subscribeprocesses_tells_of_each_transition(
    party: Party, lone_daemon: Daemon
) -> None:
    raw = await Raw.connect(lone_daemon.port)
    in_thread = trio.to_thread.run_sync
    async with raw.stream:
        for state in (1, 2):
            await raw.ask(
                party.key,
                msgtype="subscribeprocessesmsg",
                executortype=party.type,
                state=state,
                timeout=20,
                colonyname=COLONY if state == 1 else "",
            )
        await raw.send(Ping(payload=b"registered?"))
        assert await raw.next() == Pong(payload=b"registered?")
        wanted = []
        for _ in range(3):
            process = await in_thread(party.submit)
            await in_thread(party.assign)
            # Output is no transition.
            await in_thread(party.colonies.set_output, process.processid, ["a"], party.key)
            await in_thread(party.colonies.close, process.processid, ["b"], party.key)
            wanted += [(process.processid, 1), (process.processid, 2)]
        told = [await raw.reply() for _ in wanted]
        assert [(value["processid"], value["state"]) for _, value in told] == wanted
        assert {kind for kind, _ in told} == {"subscribeprocessmsg"}
        assert await raw.close_code() == 1000


async def test_no_event_is_lost_beside_another(party: Party, lone_daemon: Daemon) -> None:
    """Subscriptions of one socket write at the same time: each event waits for its turn."""
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        for number in range(4):
            await raw.ask(
                party.user,
                msgtype="subscribeprocessesmsg",
                executortype=party.type,
                state=0,
                timeout=20 + number,
            )
        await raw.send(Ping())
        assert isinstance(await raw.next(), Pong)
        # More than fits the buffers of a peer that isn't reading yet.
        submit = partial(party.submit, args=["x" * 150_000])
        submitted = [(await trio.to_thread.run_sync(submit)).processid for _ in range(12)]
        told = [(await raw.reply())[1]["processid"] for _ in range(48)]
        assert sorted(told) == sorted(submitted * 4)


async def test_timeout_zero_sends_the_state_and_closes(party: Party, lone_daemon: Daemon) -> None:
    process = await trio.to_thread.run_sync(party.submit)
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        await raw.ask(party.user, msgtype="subscribeprocessmsg", processid=process.processid)
        assert (await raw.reply())[1]["state"] == 0
        assert await raw.close_code() == 1000


async def test_senseless_frames_end_at_most_their_socket(party: Party, lone_daemon: Daemon) -> None:
    refused = (
        TextMessage(data="no json"),
        TextMessage(data="[]"),
        TextMessage(data='{"payloadtype": "subscribeprocessmsg", "signature": 1}'),
        TextMessage(data='{"payloadtype": "subscribeprocessmsg", "payload": "ü"}'),
        BytesMessage(data=b"\xff\xfe\0"),
        TextMessage(data=""),
    )
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        for frame in refused:
            await raw.send(frame)
            assert (await raw.reply())[0] == "error"
        for message in (
            {"msgtype": "getcolonymsg", "colonyname": COLONY},
            {"msgtype": "subscribeprocessmsg"},
            {"msgtype": "subscribeprocessesmsg", "state": 5},
            {"msgtype": "subscribeprocessesmsg", "state": 10**400},
            {"msgtype": "subscribeprocessesmsg", "nonce": "0" * 20, "issuedat": 1},
        ):
            await raw.ask(party.user, **message)
            assert (await raw.reply())[0] == "error", message
        for number in range(64):
            await raw.ask(
                party.user, msgtype="subscribeprocessesmsg", state=4, timeout=10**17 + number
            )
        await raw.ask(party.user, msgtype="subscribeprocessesmsg", state=4, timeout=9)
        assert "at most 64" in (await raw.reply())[1]["message"]
    for bytes_sent, code in (
        (b"\xff" * 64, 1002),
        (b"\x81\x05hello", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),
        (b"\x81\xff" + (70_000).to_bytes(8, "big") + bytes(70_004), 1009),
        (b"\x88\x82\0\0\0\0\x03\xe8", 1000),
    ):
        raw = await Raw.connect(lone_daemon.port)
        async with raw.stream:
            await raw.stream.send_all(bytes_sent)
            event = await raw.next()
            assert isinstance(event, CloseConnection)
            assert event.code == code
    raw = await Raw.connect(lone_daemon.port)
    await trio.aclose_forcefully(raw.stream)
    assert await trio.to_thread.run_sync(lone_daemon.health) == 200
    assert not [line for line in lone_daemon.events if "failed" in line or "Traceback" in line]


def test_what_is_no_handshake_is_refused(lone_daemon: Daemon) -> None:
    url = f"http://127.0.0.1:{lone_daemon.port}/pubsub"
    good = {
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "x" * 24,
        "sec-websocket-version": "13",
    }
    for wrong in ({}, good | {"sec-websocket-version": "8"}, good | {"upgrade": "h2c"}):
        assert httpx.get(url, headers=wrong).status_code == 400
    assert httpx.post(url).status_code == 404


async def test_a_drain_tells_the_sockets(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "dev", "dev", {"COLONYD_FEDERATION__ENABLED": "false"})
    await trio.to_thread.run_sync(daemon.start)
    try:
        raw = await Raw.connect(daemon.port)
        async with raw.stream:
            user = daemon.key("user").hex
            await raw.ask(user, msgtype="subscribeprocessesmsg", timeout=100)
            await raw.send(Ping())
            assert isinstance(await raw.next(), Pong)
            assert daemon.process is not None
            daemon.process.terminate()
            assert await raw.close_code() == 1001
        assert await trio.to_thread.run_sync(daemon.process.wait, 60) == 0
    finally:
        await trio.to_thread.run_sync(daemon.stop)


def test_the_registry_keeps_colonies_apart_and_drops_the_slow() -> None:
    def process(colony: str, state: State, pid: str = "p") -> Process:
        spec = FunctionSpec(conditions=Conditions(executortype="t"))
        return Process(pid, "", "", colony, spec, 0, 0, state)

    registry = Subscriptions()
    mine = frozenset({"a"})
    with (
        registry.open(SubscriptionFilter(mine, State.SUCCESSFUL, executortype="t"), 2) as slow,
        registry.open(SubscriptionFilter(mine, State.SUCCESSFUL, "p"), 9) as one,
        registry.open(SubscriptionFilter(mine, State.SUCCESSFUL, executortype="u"), 2) as other,
    ):
        registry.changed(process("b", State.SUCCESSFUL))
        registry.changed(process("a", State.FAILED))
        for number in range(4):
            registry.changed(process("a", State.SUCCESSFUL, f"p{number}"))
        assert one.receive_nowait().state == State.FAILED
        assert [slow.receive_nowait().processid for _ in range(2)] == ["p0", "p1"]
        with pytest.raises(trio.EndOfChannel):
            slow.receive_nowait()
        for channel in (one, other):
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
    assert not registry.any_open
