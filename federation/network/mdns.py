"""The mDNS responder: owns a Zeroconf object, its sockets and threads, and a queue of sightings.

`network.discovery` opens and closes responders, and decides what a sighting is worth.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping

import msgspec
from zeroconf import (
    NonUniqueNameException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    ServiceListener,
    Zeroconf,
)

from federation.network.addresses import problem_of
from federation.network.interfaces import Network
from node.host.log import get_logger

SERVICE = "_colonyd._tcp.local."
_VERSION = "1"
_HEX = frozenset("0123456789abcdef")
# The form that `instance_name` makes; any other name is ignored.
_INSTANCE = re.compile(r"[0-9a-f]{32}(-[0-9a-z]{1,16})?\." + re.escape(SERVICE))
_MAX_ADDRESSES = 8  # addresses taken from one announcement
_MAX_SCOPES = 4  # interfaces tried for a link-local address without a scope
_RESOLVE_S = 3.0
_BOX = 256  # announcements in the queue; the oldest makes room
_UNRESOLVED = 64  # names without addresses, likewise
_SWEEP = 256  # names in one sweep
# What a responder may collect before it is closed: 8,000 records are some 10 MiB, and no honest
# network announces so many within a minute.
_MOST_RECORDS = 8_000
_MOST_TEXT = 4_000_000  # bytes of TXT
# What it may hear: reading records takes time from the rest of the daemon.
_RATE = 200.0  # records a second
_BURST = 2_000  # records at once, as from a few hundred colonies that answer us

log = get_logger("discovery")


class Advertisement(msgspec.Struct, frozen=True):
    """Our announcement. Without `addresses`, it has those of the network, of these families."""

    id: str
    fingerprint: str
    port: int
    addresses: list[str] = []
    families: tuple[int, ...] = (4, 6)


class Sighting(msgspec.Struct, frozen=True):
    """An announced address of a colony; `host` may have a scope (`fe80::1%2`)."""

    id: str
    fingerprint: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Return "host:port"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def instance_name(colony: str, suffix: str = "") -> str:
    """Return the service instance of a colony: from its id, since host names clash in a fleet.

    A `suffix` tells it from another host that has taken the name already.
    """
    return f"{colony[:32]}{'-' if suffix else ''}{suffix}.{SERVICE}"


def sightings(
    properties: Mapping[bytes, bytes | None],
    addresses: Iterable[str],
    port: int | None,
    network: Network,
) -> list[Sighting]:
    """Return the usable addresses in one announcement, best first; none if it is no colony's.

    A link-local address without a scope came over another interface than its own, so each of ours
    is tried. Addresses that lead back to this machine are left out, unless we look there.
    """
    version, colony, fingerprint = (_text(properties.get(key)) for key in (b"v", b"id", b"fp"))
    if version != _VERSION or not _is_hash(colony) or not _is_hash(fingerprint):
        return []
    if port is None or not 0 < port < 65536:
        return []
    hosts: dict[str, tuple[bool, bool, int]] = {}
    for host in addresses:
        for each, rank in _usable(host, network):
            hosts.setdefault(each, rank)
    best = sorted(hosts, key=lambda each: (hosts[each], each))[:_MAX_ADDRESSES]
    return [Sighting(colony, fingerprint, each, port) for each in best]


def _usable(host: str, network: Network) -> list[tuple[str, tuple[bool, bool, int]]]:
    """Return the host names by which to reach an announced address, with their rank."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        scopes = [] if "%" in host else network.scopes[:_MAX_SCOPES]
        found = [host] if "%" in host else [f"{host}%{scope}" for scope in scopes]
        return [(each, (False, True, 6)) for each in found]
    if problem_of(host, network):
        return []
    far = not network.is_on_link(host)
    return [(host, (far, address.is_link_local, address.version))]


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")


def _is_hash(text: str) -> bool:
    return len(text) == 64 and _HEX.issuperset(text)


class SightingQueue:
    """What the responder's threads heard, for the task that empties it. Limited; never blocks.

    The threads call `wake` once for all that is in the queue.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._heard: deque[tuple[Sighting, ...]] = deque(maxlen=_BOX)
        self._names: OrderedDict[str, None] = OrderedDict()
        self.dropped = 0
        self.flooded = False
        self.usurped = False

    def put(self, heard: Iterable[Sighting]) -> None:
        """Add the addresses of a complete announcement, best first."""
        group = tuple(heard)
        if not group:
            return
        with self._lock:
            self.dropped += len(self._heard) == _BOX
            self._heard.append(group)
        self._wake()

    def put_name(self, name: str) -> None:
        """Add a name whose addresses have to be asked for."""
        with self._lock:
            self._names[name] = None
            if len(self._names) > _UNRESOLVED:
                self._names.popitem(last=False)
                self.dropped += 1
        self._wake()

    def flood(self) -> None:
        """Note a flood: more records than an honest network has."""
        self.flooded = True
        self._wake()

    def usurp(self) -> None:
        """Note that another host announces something under our name."""
        self.usurped = True
        self._wake()

    def take(self) -> list[Sighting]:
        """Return all sightings, and empty the queue: the latest last, and of each the best last.

        The last one is tried first.
        """
        with self._lock:
            heard = [each for group in self._heard for each in reversed(group)]
            self._heard.clear()
        return heard

    def take_name(self) -> str | None:
        """Return the name that was heard last."""
        with self._lock:
            return self._names.popitem()[0] if self._names else None


class FloodGuard(RecordUpdateListener):
    """Counts what the responder hears and keeps; runs on its threads."""

    def __init__(self, queue: SightingQueue) -> None:
        self._queue = queue
        self._records = 0
        self._text = 0
        self._allowance, self._counted = float(_BURST), float("-inf")

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Count the records of a packet; `now` is in ms of a steady clock."""
        passed, self._counted = (now - self._counted) / 1000, now
        self._allowance = min(_BURST, self._allowance + passed * _RATE) - len(records)
        for record in records:
            if record.old is None:
                self._records += 1
                self._text += len(getattr(record.new, "text", b""))
        kept_too_much = self._records > _MOST_RECORDS or self._text > _MOST_TEXT
        if (kept_too_much or self._allowance < 0) and not self._queue.flooded:
            _deafen(zc)
            self._queue.flood()


def _deafen(zc: Zeroconf) -> None:
    """Stop hearing at once: in a flood, closing the responder may take long."""
    for reader in zc.engine.readers:
        reader.transport.set_protocol(asyncio.DatagramProtocol())


class _Listener(ServiceListener):
    """Puts every announcement into the queue; runs on the responder's threads."""

    def __init__(self, responder: MdnsResponder) -> None:
        self._responder = responder

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self._responder.look(zc, name)

    update_service = add_service

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Ignore goodbyes: probes tell whether a peer is there."""


class MdnsResponder:
    """Announces one colony and hears the others, on one network as it is now.

    Every method but `look` blocks, and runs in a worker thread that may have been abandoned
    meanwhile. `close` ends threads and sockets in any case.
    """

    def __init__(self, me: Advertisement, network: Network, queue: SightingQueue) -> None:
        self._me, self._network, self._queue = me, network, queue
        self._lock = threading.Lock()
        self._zeroconf: Zeroconf | None = None
        self._closed = False
        self._info: ServiceInfo | None = None

    def open(self) -> None:
        """Open sockets on the interfaces, and listen."""
        responder = Zeroconf(interfaces=list(self._network.sockets))
        with self._lock:
            self._zeroconf = responder
            closed = self._closed
        if closed:  # the caller gave up meanwhile
            responder.close()
            _empty(responder)
            return
        responder.add_listener(FloodGuard(self._queue), None)
        responder.add_service_listener(SERVICE, _Listener(self))

    @property
    def _open(self) -> Zeroconf:
        if self._zeroconf is None or self._closed:
            raise RuntimeError("the station is not open")
        return self._zeroconf

    # -- announcing --------------------------------------------------------------------------

    def announce(self, *, apart: bool = False) -> tuple[str, list[str]]:
        """Announce the colony. Return name and addresses.

        The name comes from the id, so another host with it is an impostor, or another daemon of the
        same colony. Then a name `apart` is announced without asking, which no host can prevent.
        """
        responder = self._open
        if not apart:
            info = self._service("")
            try:
                # Zeroconf would rename for as long as a host objects.
                responder.register_service(info, allow_name_change=False)
            except NonUniqueNameException:
                log.warning("name is taken, announcing another one", name=info.name)
                apart = True
        if apart:
            info = self._service(secrets.token_hex(4))
            responder.register_service(info, cooperating_responders=True)
        before, self._info = self._info, info
        if before is not None:
            responder.unregister_service(before)
        return info.name, info.parsed_addresses()

    def _service(self, suffix: str) -> ServiceInfo:
        me = self._me
        addresses = me.addresses or self._network.addresses_for(me.families, link_local=True)
        return ServiceInfo(
            SERVICE,
            instance_name(me.id, suffix),
            port=me.port,
            properties={"v": _VERSION, "id": me.id, "fp": me.fingerprint},
            # A new one each time, so that earlier addresses are not taken for ours.
            server=f"{me.id[:32]}-{secrets.token_hex(3)}.local.",
            parsed_addresses=addresses,
        )

    # -- hearing -------------------------------------------------------------------------

    def look(self, zc: Zeroconf, name: str, *, ask: bool = True) -> None:
        """Put the known addresses of a name into the queue; it never waits."""
        if self._closed or self._queue.flooded or _INSTANCE.fullmatch(name) is None:
            return
        try:
            info = ServiceInfo(SERVICE, name)
            if info.load_from_cache(zc):
                self._hear(info)
            elif ask:
                self._queue.put_name(name)
        except Exception as error:
            # Any host on the network can announce nonsense.
            log.debug("not understood", name=name, error=f"{type(error).__name__}: {error}")

    def _hear(self, info: ServiceInfo) -> None:
        mine = self._info
        if mine is not None and info.name == mine.name:
            if (info.server, info.port) != (mine.server, mine.port):
                self._queue.usurp()
            return
        heard = sightings(info.properties, info.parsed_scoped_addresses(), info.port, self._network)
        self._queue.put(each for each in heard if each.id != self._me.id)

    def resolve(self, name: str) -> None:
        """Ask for the missing parts of an announcement, for at most 3 s."""
        responder = self._open
        if responder.get_service_info(SERVICE, name, timeout=round(_RESOLVE_S * 1000)):
            self.look(responder, name, ask=False)

    def sweep(self) -> None:
        """Put what is still announced into the queue again, or a part of it."""
        responder = self._open
        names = [
            alias
            for record in responder.cache.entries_with_name(SERVICE)
            if (alias := getattr(record, "alias", ""))
        ]
        for name in random.sample(names, min(len(names), _SWEEP)):
            self.look(responder, name)

    def close(self) -> None:
        """Say goodbye and stop."""
        with self._lock:
            self._closed = True
            responder = self._zeroconf
        if responder is not None:
            responder.close()
            _empty(responder)


def _empty(responder: Zeroconf) -> None:
    """Drop all that was heard.

    A closed responder is a cycle of references, which only the garbage collector frees; the daemon
    runs that rarely, for good reasons.
    """
    responder.browsers.clear()
    for name in ("cache", "service_cache", "_expire_heap", "_expirations"):
        kept = getattr(responder.cache, name, None)
        if kept is not None:
            kept.clear()
