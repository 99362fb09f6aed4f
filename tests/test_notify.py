"""Messages to a service manager, read from a real datagram socket, and the watchdog's honesty."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.notify import Notifier, watchdog


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


async def test_watchdog_pings_at_its_interval_only_while_alive(
    manager: Manager, autojump_clock: MockClock
) -> None:
    answers = [True, True, False, False, True]
    asked: list[float] = []

    async def alive() -> bool:
        asked.append(trio.current_time())
        await trio.sleep(3)  # slow to answer: the rhythm must not drift by it
        return answers.pop(0) if answers else False

    began = trio.current_time()
    with trio.move_on_after(95):
        await watchdog(Notifier(manager.address, watchdog_interval=15), alive)
    assert [round(moment - began) for moment in asked] == [0, 15, 30, 45, 60, 75, 90]
    assert manager.messages() == ["WATCHDOG=1"] * 3


async def test_watchdog_stays_silent_while_alive_hangs(
    manager: Manager, autojump_clock: MockClock
) -> None:
    async def alive() -> bool:
        await trio.sleep_forever()

    with trio.move_on_after(1000):
        await watchdog(Notifier(manager.address, watchdog_interval=15), alive)
    assert manager.messages() == []
