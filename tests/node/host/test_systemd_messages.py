"""Messages to a service manager, read from a real datagram socket, and the watchdog's honesty."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.host.systemd import Notifier, watchdog


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.setblocking(False)

    def messages(self) -> list[str]:
        """All that arrived so far; local datagrams are there as soon as they are sent."""
        received = []
        while True:
            try:
                received.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return received


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def test_messages(manager: Manager) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    assert notifier.enabled
    assert notifier.ready("3 peers")
    assert notifier.status("busy\nMAINPID=1")
    assert notifier.reloading()
    assert notifier.ready()
    assert notifier.extend_timeout(1.5)
    assert notifier.ping()
    assert notifier.stopping()
    messages = manager.messages()
    reload = messages.pop(2).splitlines()
    assert messages == [
        "READY=1\nSTATUS=3 peers",
        "STATUS=busy MAINPID=1",
        "READY=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    assert reload[0] == "RELOADING=1"
    assert reload[1].removeprefix("MONOTONIC_USEC=").isdecimal()


def test_abstract_sockets() -> None:
    manager = Manager(f"@colonyd-test-{os.getpid()}")
    try:
        assert Notifier(manager.address).ready()
        assert manager.messages() == ["READY=1"]
    finally:
        manager.socket.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environ({**environ, "WATCHDOG_USEC": "1000"})
    assert not notifier.enabled
    assert not notifier.ready()
    assert notifier.watchdog_interval is None


def test_a_vanished_manager_is_survived(tmp_path: Path) -> None:
    assert not Notifier(str(tmp_path / "gone")).ready()


def test_children_do_not_inherit_the_variables(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert Notifier.from_environ(environ).watchdog_interval == 15
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {},
    ],
)
def test_no_watchdog_for_us(manager: Manager, variables: dict[str, str]) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address, **variables})
    assert notifier.watchdog_interval is None


async def test_watchdog_returns_when_not_wanted(manager: Manager) -> None:
    async def alive() -> bool:
        raise AssertionError("not to be asked")

    await watchdog(Notifier(manager.address), alive)
    assert manager.messages() == []


class Recorded(Notifier):
    """A notifier whose messages are kept with the seconds at which they were sent."""

    def __init__(self) -> None:
        super().__init__("/run/notify", watchdog_interval=15)
        self.began = trio.current_time()
        self.sent: list[tuple[float, str]] = []

    def _send(self, *lines: str) -> bool:
        self.sent.append((trio.current_time() - self.began, "\n".join(lines)))
        return True

    @property
    def pings(self) -> list[float]:
        return [moment for moment, message in self.sent if message == "WATCHDOG=1"]

    @property
    def told(self) -> list[str]:
        return [message for _, message in self.sent if message.startswith("STATUS")]


async def test_watchdog_keeps_its_rhythm(autojump_clock: MockClock) -> None:
    async def answers() -> bool:
        await trio.sleep(3)  # slow to answer: the rhythm must not drift by it
        return True

    notifier = Recorded()
    with trio.move_on_after(95):
        await watchdog(notifier, answers)
    assert [round(moment) for moment in notifier.pings] == [3, 18, 33, 48, 63, 78, 93]


@pytest.mark.parametrize("stall", [7.0, 14.0, 60.0])
@pytest.mark.parametrize("begin", [0.0, 8.0, 14.5, 15.0, 29.9])
async def test_no_stall_of_the_store_makes_a_gap(
    autojump_clock: MockClock, stall: float, begin: float
) -> None:
    """The manager waits for 30 s; 20 s are never exceeded by much, whenever a stall comes."""
    notifier = Recorded()

    async def answers() -> bool:
        now = trio.current_time() - notifier.began
        if begin <= now < begin + stall:
            await trio.sleep(begin + stall - now)
        return True

    with trio.move_on_after(200):
        await watchdog(notifier, answers)
    gaps = [later - earlier for earlier, later in itertools.pairwise(notifier.pings)]
    assert max(gaps) < 21


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_store_that_stays_away_is_told_and_ends_the_pings(
    autojump_clock: MockClock, hangs: bool
) -> None:
    async def answers() -> bool:
        if hangs:
            await trio.sleep_forever()
        return False

    notifier = Recorded()
    with trio.move_on_after(1000):
        await watchdog(notifier, answers)
    assert notifier.told == ["STATUS=the store does not answer"]
    assert 100 < notifier.pings[-1] <= 120


async def test_the_status_comes_back_with_the_store(autojump_clock: MockClock) -> None:
    replies = [False, False, True]

    async def answers() -> bool:
        return replies.pop(0) if replies else True

    notifier = Recorded()
    notifier.ready("colony dev on port 50080")
    with trio.move_on_after(10):
        await watchdog(notifier, answers)
    assert notifier.told == [
        "STATUS=the store does not answer",
        "STATUS=colony dev on port 50080",
    ]
