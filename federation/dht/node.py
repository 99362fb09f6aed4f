"""The adapter to libtorrent, its only user: the BitTorrent Mainline DHT (BEP 5), port mappings.

Nothing else of BitTorrent is on: no torrents and no LSD. libtorrent has threads of its own, and
tells of answers by a byte in a socket, so no thread of ours waits. The calls that wait for its
threads (to open, to close, to read the table, to map) run in a thread of the pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import ipaddress
import socket
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from federation.dht.portmap import Mapped, NotMapped
from federation.wire.address import split_address
from node.host.log import get_logger

# The public DHT, for colonies without bootstrap nodes of their own.
PUBLIC = ("dht.libtorrent.org:25401", "router.bittorrent.com:6881", "dht.transmissionbt.com:6881")
_MOST_SAVED = 200  # nodes that are kept for the next start
_MOST_ALERTS = 500
_READ = 4096
_UPNP = "UPnP"
_LEASE = 1200  # seconds of a port mapping; libtorrent renews it in time
GIVE_UP = 3.0  # seconds for routers to take mappings back
# libtorrent waits 30 s for a router that hangs, when its session is deleted, and holds Python's
# lock meanwhile. So a session with mappings is left, and deleted after this time (seconds).
_LEFT = 40.0
_left: list[tuple[float, Any]] = []

log = get_logger("dht")


class DhtUnavailable(Exception):
    """libtorrent is not installed; the message says how to install it."""


class Answer(msgspec.Struct, frozen=True):
    """One node's answer to a look-up: addresses as "host:port", all of them unproven."""

    target: bytes
    addresses: list[str]


class TableSize(msgspec.Struct, frozen=True):
    """How many other nodes are known."""

    nodes: int


class PortProblem(msgspec.Struct, frozen=True):
    """A port could not be opened."""

    text: str


class Listening(msgspec.Struct, frozen=True):
    """A port was opened: from now on, routers in its network can be asked."""


Event = Answer | TableSize | PortProblem | Listening | Mapped | NotMapped


def _library() -> Any:
    try:
        import libtorrent
    except ImportError as error:
        raise DhtUnavailable(
            f"libtorrent can't be used ({error}): {_installation()}, or set"
            " federation.global = false"
        ) from None
    return libtorrent


def _installation() -> str:
    """Return the command that installs libtorrent; the Debian package has no pip of its own."""
    if importlib.util.find_spec("pip") is not None:
        return "pip install 'colonyd[global]'"
    place = sysconfig.get_path("purelib")
    return f"python3 -m pip install --target {place} 'libtorrent>=2.1,<3'"


def _settings(lt: Any, listen: str, bootstrap: Sequence[str]) -> dict[str, Any]:
    category = lt.alert.category_t
    return {
        "listen_interfaces": listen,
        "max_retry_port_bind": 0,
        "listen_system_port_fallback": False,
        # libtorrent opens TCP beside each UDP port; so it closes each connection there at once.
        "enable_incoming_tcp": False,
        "enable_outgoing_tcp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "upnp_lease_duration": _LEASE,
        "natpmp_lease_duration": _LEASE,
        "enable_lsd": False,
        "enable_dht": True,
        # Nodes of this setting never get into the table. Those of our own are ordinary ones, which
        # `contact` adds: in a small DHT there may be no others.
        "dht_bootstrap_nodes": "" if bootstrap else ",".join(PUBLIC),
        # What keeps one host of the internet from being many nodes makes no sense in a DHT of
        # one's own, whose nodes may all be in one network.
        "dht_restrict_routing_ips": not bootstrap,
        "dht_restrict_search_ips": not bootstrap,
        "dht_ignore_dark_internet": not bootstrap,
        "dht_prefer_verified_node_ids": not bootstrap,
        "dht_enforce_node_id": False,
        "alert_queue_size": _MOST_ALERTS,
        # Without `dht`, whose alerts any host can cause by asking us.
        "alert_mask": int(category.dht_operation_notification)
        | int(category.error_notification)
        | int(category.stats_notification)
        | int(category.status_notification)
        | int(category.port_mapping_notification),
    }


def listen_text(hosts: Sequence[str], port: int) -> str:
    """Return our addresses as libtorrent reads them."""
    return ",".join(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts)


class DhtNode:
    """Our node of the DHT. Only `open`, `close` and `saved` wait."""

    def __init__(self, told: trio.socket.SocketType) -> None:
        self._told = told
        self._lt: Any = None
        self._session: Any = None
        self._mapping = False
        self._upnp = set[int]()  # handles of mappings that a router has, by UPnP

    def open(self, listen: str, bootstrap: Sequence[str], tell: int, mapping: bool) -> None:
        """Start libtorrent, which writes to the descriptor `tell`. Raises DhtUnavailable."""
        _delete_left(time.monotonic())
        lt = self._lt = _library()
        self._mapping = mapping
        parameters = lt.session_params()
        parameters.settings = _settings(lt, listen, bootstrap)
        self._session = lt.session(parameters)
        self._session.set_alert_fd(tell)

    def close(self) -> None:
        """End libtorrent: its threads, or with mappings all that they do."""
        session, self._session = self._session, None
        if session is None or not self._mapping:
            return
        session.set_alert_fd(-1)
        session.apply_settings({"enable_dht": False, "listen_interfaces": ""})
        session.get_settings()  # waits until this is done
        # Nothing deletes it at the end of the process, either.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        _left.append((time.monotonic(), session))

    async def give_up(self) -> None:
        """Have routers take all mappings back, and wait until they have."""
        if self._mapping and self._session is not None:
            self.unmap()
            while self.mapped:
                for _ in await self.events():
                    pass  # what is read changes `mapped`

    def announce(self, target: bytes, port: int) -> None:
        """Announce a port of ours under a key; nodes add the address that they see."""
        self._session.dht_announce(self._lt.sha1_hash(target), port, 0)

    def ask(self, target: bytes) -> None:
        """Ask the nodes that are nearest to a key; answers come as events."""
        self._session.dht_get_peers(self._lt.sha1_hash(target))

    def contact(self, nodes: Sequence[str]) -> None:
        """Ping nodes; libtorrent resolves their names."""
        for each in nodes:
            with contextlib.suppress(ValueError):
                self._session.add_dht_node(split_address(each))

    def listen(self, hosts: Sequence[str], port: int) -> None:
        """Move to other addresses of ours."""
        self._session.apply_settings({"listen_interfaces": listen_text(hosts, port)})

    async def map(self, port: int) -> list[int]:
        """Have routers forward a TCP port to us, after `unmap`.

        Return the handles; what routers say comes as events.
        """
        session, tcp = self._session, self._lt.portmap_protocol.tcp
        session.apply_settings({"enable_upnp": True, "enable_natpmp": True})
        return list(await trio.to_thread.run_sync(session.add_port_mapping, tcp, port, port))

    def unmap(self) -> None:
        """Have routers take all mappings back. `mapped` tells when they have."""
        self._session.apply_settings({"enable_upnp": False, "enable_natpmp": False})

    @property
    def mapped(self) -> bool:
        """Return whether a router did not yet say that it took a mapping back."""
        return bool(self._upnp)

    def drop_first(self) -> None:
        """Give up the first mapping, which is that of our TCP port.

        libtorrent must not be asked to give up any other one: a router that was found later may
        not have it, and libtorrent then writes over memory that is not its own.
        """
        self._session.delete_port_mapping(0)

    def count(self) -> None:
        """Ask for the size of the table, which comes as an event."""
        self._session.post_dht_stats()

    async def saved(self) -> list[str]:
        """Return the addresses of nodes for the next start, to be passed to `contact`."""
        flag = self._lt.save_state_flags_t.save_dht_state
        session = self._session
        parameters = await trio.to_thread.run_sync(session.session_state, flag)
        # libtorrent writes a state, but does not use one that it reads (2.1.1).
        state = self._lt.write_session_params(parameters, flag).get(b"dht state", {})
        compact = [*state.get(b"nodes", []), *state.get(b"nodes6", [])]
        return [_text(each[:-2], int.from_bytes(each[-2:], "big")) for each in compact][
            :_MOST_SAVED
        ]

    async def events(self) -> Iterator[Event]:
        """Wait until there are events, and return them; they end with the next call."""
        await self._told.recv(_READ)
        return self._read()

    def _read(self) -> Iterator[Event]:
        lt = self._lt
        for alert in self._session.pop_alerts():
            if isinstance(alert, lt.dht_get_peers_reply_alert):
                target = bytes(alert.info_hash.to_bytes())
                yield Answer(target, [_text(host, port) for host, port in alert.peers() if port])
            elif isinstance(alert, lt.dht_stats_alert):
                yield TableSize(sum(int(each["num_nodes"]) for each in alert.routing_table))
            elif isinstance(alert, lt.listen_failed_alert):
                yield PortProblem(str(alert.message()))
            elif isinstance(alert, lt.listen_succeeded_alert):
                yield Listening()
            elif isinstance(alert, lt.portmap_alert):
                tcp, by = str(alert.map_protocol) == "tcp", _protocol(alert)
                if by == _UPNP:
                    self._upnp.add(alert.mapping)
                yield Mapped(alert.mapping, tcp, alert.external_port, by)
            elif isinstance(alert, lt.portmap_error_alert):
                # It also tells that a router took a mapping back.
                by = _protocol(alert)
                if by == _UPNP:
                    self._upnp.discard(alert.mapping)
                yield NotMapped(alert.mapping, by, str(alert.message())[:200])


def _delete_left(now: float) -> None:
    """Delete the sessions whose requests to routers have ended."""
    for left in [each for each in _left if now - each[0] > _LEFT]:
        _left.remove(left)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(left[1]))


def _protocol(alert: Any) -> str:
    return _UPNP if str(alert.map_transport) == "upnp" else "NAT-PMP"


def _text(host: str | bytes, port: int) -> str:
    address = ipaddress.ip_address(host)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@asynccontextmanager
async def open_node(
    hosts: Sequence[str], port: int, bootstrap: Sequence[str], *, mapping: bool = False
) -> AsyncIterator[DhtNode]:
    """Open a node at our addresses.

    With `mapping`, a TCP port can be mapped, and its own UDP port is then mapped, too. All mappings
    are given up at the end, or run out within 20 minutes if that takes too long.

    With `bootstrap` ("host:port") it joins the DHT of these nodes, else the public one. Raises
    DhtUnavailable without libtorrent.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs, trio.socket.from_stdlib_socket(ours) as told:
        node = DhtNode(told)
        try:
            text = listen_text(hosts, port)
            tell = theirs.fileno()
            await trio.to_thread.run_sync(node.open, text, bootstrap, tell, mapping)
            yield node
        finally:
            with trio.move_on_after(GIVE_UP, shield=True) as giving:
                await node.give_up()
            if giving.cancelled_caught:
                log.warning("port mapping not given up", expires=_LEASE)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(node.close)
