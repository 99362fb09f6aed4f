"""A network of its own for tests: namespaces as houses, a bridge between them, cables to pull.

Needs root, iproute2 and libfaketime; what the daemons in the houses do is in the tests. Namespaces
are called `colonytest-<pid>-…`: runs at the same time have their own, and what one that was killed
left behind, the next one finds and ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.faketime_daemons import ClockedDaemon, faketime
from tests.support.sides import Side

_NEWNET = 0x40000000  # CLONE_NEWNET
_NAMESPACES = Path("/run/netns")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PREFIX = "colonytest"
_RPC = 50080
HOUR = 3600


def ip(*words: str) -> str:
    """Run `ip`; its standard output. Raises AssertionError with what it says."""
    environ = {"PATH": PATH, "LC_ALL": "C"}
    command = ["ip", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=20)
    except OSError as error:
        raise AssertionError(f"{' '.join(command)}: {error}") from None
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def unable() -> str:
    """Why namespaces and bridges can't be made on this machine, or ""; it tries, and cleans up."""
    name = f"{space_tag()}probe"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "br0", "type", "bridge")
            ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        finally:
            ip("netns", "del", name)
    except AssertionError as error:
        return str(error)
    return ""


def require() -> None:
    """Skip where namespaces can't be made at all; what is only not installed fails in CI."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    lacking = [] if shutil.which("ip", path=PATH) else ["iproute2"]
    lacking += [] if shutil.which("nft", path=PATH) else ["nftables"]
    lacking += [] if faketime() else ["libfaketime"]
    if lacking:
        reason = f"no {', '.join(lacking)} here: `scripts/setup --test` installs what is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    if reason := unable():
        pytest.skip(reason)


def space_tag() -> str:
    """The beginning of the names of one town's namespaces."""
    return f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(3)}-"


def clear(space: str) -> None:
    """End all that runs in a namespace, and remove it. Raises AssertionError."""
    for pid in ip("netns", "pids", space).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    ip("netns", "del", space)


def clear_abandoned() -> None:
    """Remove what runs that were killed left behind."""
    if not _NAMESPACES.is_dir():
        return
    for path in _NAMESPACES.iterdir():
        made = re.match(rf"{_PREFIX}-(\d+)-", path.name)
        if made and not Path(f"/proc/{made[1]}").exists():
            with suppress(AssertionError):  # another run may be at it, too
                clear(path.name)


def _interrupt(signum: int, frame: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # trio knows best where to raise it


@contextmanager
def terminable() -> Iterator[None]:
    """A SIGTERM is to this block what Ctrl-C is, so that what was made is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class House(ClockedDaemon):
    """A namespace with one interface, `eth0`, and a daemon in it whose clock may be wrong."""

    network = "10.77.0"  # the first three numbers of addresses here
    gateway = ""  # the router, if there is one

    def __init__(self, place: Path, name: str, tag: str, number: int, ahead: int) -> None:
        super().__init__(place, name, ahead)
        self.space, self.hub, self.number = f"{tag}{name}", f"{tag}hub", number
        self.port, self.peer_port = _RPC, 50081
        self.prefix = ["nsenter", f"--net={_NAMESPACES / self.space}"]
        self.environ |= {
            "COLONYD_FEDERATION__HOST": "*",
            "COLONYD_FEDERATION__INTERFACES": "",
        }

    # -- the network ---------------------------------------------------------------------

    def build(self) -> None:
        """Make the namespace and plug it in."""
        ip("netns", "add", self.space)
        self.ip("link", "set", "lo", "up")
        self.connect()

    def connect(self) -> None:
        """Lay a cable to the bridge of the hub."""
        port = f"port{self.number}"
        ip("-n", self.hub, "link", "add", port, "type", "veth", "peer", "eth0", "netns", self.space)
        ip("-n", self.hub, "link", "set", port, "master", "br0", "up")
        self.ip("address", "add", f"{self.address()}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        if self.gateway:
            self.ip("route", "add", "default", "via", self.gateway)

    def ip(self, *words: str) -> str:
        """Run `ip` inside."""
        return ip("-n", self.space, *words)

    def address(self, extra: int = 0) -> str:
        """Its IPv4 address, or another one."""
        return f"{self.network}.{self.number + extra}"

    def move(self, old: str, new: str) -> None:
        """Another IPv4 address, as from another DHCP server."""
        self.ip("address", "del", f"{old}/24", "dev", "eth0")
        self.ip("address", "add", f"{new}/24", "dev", "eth0")

    def link_local(self) -> str:
        """The IPv6 address of eth0."""
        told = json.loads(self.ip("-j", "address", "show", "eth0"))
        found = [
            each["local"]
            for each in told[0]["addr_info"]
            if each["family"] == "inet6" and not each.get("tentative")
        ]
        return str(found[0]) if found else ""

    def pull(self) -> None:
        """Pull the cable out of the bridge."""
        ip("-n", self.hub, "link", "set", f"port{self.number}", "down")

    def plug(self) -> None:
        """Put it in again."""
        ip("-n", self.hub, "link", "set", f"port{self.number}", "up")

    def power_cut(self) -> None:
        """End daemon, store and interface without a word."""
        store = self.etcd_pid
        self.kill()
        with suppress(ProcessLookupError):
            os.kill(store, signal.SIGKILL)
        self.ip("link", "set", "eth0", "down")

    def boot(self) -> None:
        """Start again after that."""
        self.ip("link", "set", "eth0", "up")
        self.start()

    # -- the door ------------------------------------------------------------------------

    async def door(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Let us in from outside: relays a port here to the daemon's RPC port; reports its URL."""
        with ThreadPoolExecutor(1, initializer=partial(enter, self.space)) as inside:

            async def relay(outer: trio.SocketStream) -> None:
                made = inside.submit(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
                plain = made.result(10)
                plain.setblocking(False)
                async with outer, trio.SocketStream(trio.socket.from_stdlib_socket(plain)) as inner:
                    try:
                        await inner.socket.connect(("127.0.0.1", self.port))
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(_pump, outer, inner, nursery.cancel_scope)
                            nursery.start_soon(_pump, inner, outer, nursery.cancel_scope)
                    except OSError:
                        pass

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(trio.serve_listeners, relay, listeners, handler_nursery=nursery)
                )
                task_status.started(f"http://127.0.0.1:{port}")


def enter(space: str) -> None:
    """Move this thread into a namespace, for good."""
    with (_NAMESPACES / space).open() as place:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(place.fileno(), _NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {space}")


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, end: trio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    end.cancel()


def add_bridge(space: str) -> None:
    """Make a namespace with the bridge `br0`."""
    ip("netns", "add", space)
    ip("-n", space, "link", "set", "lo", "up")
    ip("-n", space, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    ip("-n", space, "link", "set", "br0", "up")


@contextmanager
def town(place: Path, clocks: dict[str, int]) -> Iterator[list[House]]:
    """Houses by name, with clocks ahead by so many seconds, on one bridge; gone after the block."""
    tag = space_tag()
    houses = [
        House(place, name, tag, number, ahead)
        for number, (name, ahead) in enumerate(clocks.items(), 1)
    ]
    with built(tag, houses):
        add_bridge(f"{tag}hub")
        for house in houses:
            house.build()
        yield houses


@contextmanager
def built(tag: str, houses: list[House]) -> Iterator[None]:
    """End the daemons, and remove all namespaces of a tag, after the block."""
    clear_abandoned()
    with terminable():
        try:
            yield
        finally:
            problems = [*_ends(houses), *_removes(tag)]
            assert not problems, problems


def _ends(houses: list[House]) -> Iterator[str]:
    """Stop the daemons; yields what went wrong."""
    for house in houses:
        try:
            if house.process is not None:
                house.stop()
        except (OSError, subprocess.SubprocessError) as error:
            yield f"{house.name}: {error}"


def _removes(tag: str) -> Iterator[str]:
    """Remove the namespaces of a town, with all that is left in them; yields what went wrong."""
    for path in sorted(_NAMESPACES.glob(f"{tag}*")):
        try:
            clear(path.name)
        except AssertionError as error:
            yield str(error)


@asynccontextmanager
async def sides(houses: Iterable[House]) -> AsyncIterator[list[Side]]:
    """Open a way into each house."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        found = []
        for house in houses:
            url = await nursery.start(house.door)
            found.append(Side(house, await stack.enter_async_context(house.visitor(url))))
        yield found
        nursery.cancel_scope.cancel()
