"""Finding other colonies on the local network by DNS-SD, and announcing this one.

A sighting is a hint for an address and proves nothing: the card fetched there must prove itself,
and whether a peer is alive is found out by probing it, not here.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import ifaddr
import msgspec
import trio
import zeroconf
from zeroconf import ServiceInfo, ServiceListener, Zeroconf

from node.log import get_logger

__all__ = ["SERVICE", "Advert", "Sighting", "discover", "instance_name", "sightings"]

SERVICE = "_colonyd._tcp.local."
_VERSION = "1"
_HEX = frozenset("0123456789abcdef")
_MAX_ADDRESSES = 8  # hints taken from one announcement
_BACKLOG = 256  # names heard and not yet resolved; more are dropped, it is a hint after all
_RESOLVERS = 4  # so that a name that never resolves does not hold up the others
_RESOLVE_S = 3.0
_OPEN_S = 15.0  # zeroconf's own bound for starting its thread is 9 s
_REGISTER_S = 15.0  # three probes and three announcements take 1.7 s
_GOODBYE_S = 3.0
_SURVEY_S = 5.0  # between two looks at the interfaces
_BACKOFF_S = (1.0, 60.0)

T = TypeVar("T")
log = get_logger("discovery")


class Advert(msgspec.Struct, frozen=True):
    """What this colony announces. Without addresses, those of the interfaces used."""

    id: str
    fingerprint: str
    port: int
    addresses: list[str] = []


class Sighting(msgspec.Struct, frozen=True):
    """An address at which a colony claims to be; `host` may carry a scope (`fe80::1%2`)."""

    id: str
    fingerprint: str
    host: str
    port: int


class _Network(msgspec.Struct, frozen=True):
    """The part of the machine's network that discovery uses."""

    sockets: tuple[str | int, ...]  # as zeroconf wants them: IPv4 addresses, IPv6 interface indexes
    addresses: tuple[str, ...]
    loopback: bool


def instance_name(colony: str) -> str:
    """Return the service instance of a colony: from its id, since host names clash in a fleet."""
    return f"{colony[:32]}.{SERVICE}"


def sightings(
    properties: Mapping[bytes, bytes | None],
    addresses: Iterable[str],
    port: int | None,
    *,
    loopback: bool,
) -> list[Sighting]:
    """Return the usable hints in one announcement, best first; none if it is not one of ours.

    Addresses that cannot be connected to are left out: link-local ones without a scope, and,
    unless `loopback`, those that would lead back to this machine.
    """
    version, colony, fingerprint = (_text(properties.get(key)) for key in (b"v", b"id", b"fp"))
    if version != _VERSION or not _is_hash(colony) or not _is_hash(fingerprint):
        return []
    if port is None or not 0 < port < 65536:
        return []
    hosts: list[tuple[bool, int, str]] = []
    for host in addresses:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        scoped = "%" in host
        if address.is_unspecified or address.is_multicast or (address.is_loopback and not loopback):
            continue
        if address.version == 6 and address.is_link_local and not scoped:
            continue
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            continue  # an IPv4 address in a disguise that the checks above do not see through
        hosts.append((address.is_link_local, address.version, host))
    return [Sighting(colony, fingerprint, host, port) for *_, host in sorted(hosts)][
        :_MAX_ADDRESSES
    ]


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")


def _is_hash(text: str) -> bool:
    return len(text) == 64 and _HEX.issuperset(text)


def _survey(wanted: Sequence[str]) -> _Network:
    """Look at the interfaces: those `wanted` by address or name, else all but loopback.

    A machine with nothing but loopback still finds the colonies beside its own. Raises OSError
    while nothing wanted is there.
    """
    found: list[tuple[str, int | None, bool]] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            parsed = ipaddress.ip_address(text)
            if parsed.is_loopback and parsed.version == 6:
                continue  # there is no multicast on it
            chosen = {text, adapter.name, adapter.nice_name} & set(wanted)
            if chosen or (not wanted and not parsed.is_loopback):
                found.append((text, adapter.index if parsed.version == 6 else None, True))
    if not found:
        if not wanted:
            return _survey(["127.0.0.1"])
        raise OSError(f"no interface has {', '.join(wanted)}")
    sockets = {text if index is None else index for text, index, _ in found}
    addresses = sorted({text for text, *_ in found})
    routable = [text for text in addresses if not ipaddress.ip_address(text).is_link_local]
    return _Network(
        tuple(sorted(sockets, key=str)),
        tuple(routable or addresses),
        any(ipaddress.ip_address(text).is_loopback for text in addresses),
    )


class _Listener(ServiceListener):
    """Hands every name heard to `heard`; runs on zeroconf's thread, so it does nothing else."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        self._heard = heard

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self._heard(name)

    update_service = add_service

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Pass over goodbyes: whether a peer is there, its probes tell."""


class _Station:
    """The only owner of a Zeroconf object, whose thread and sockets `close` always ends.

    Every method blocks and runs in a worker thread that may have been abandoned meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._zeroconf: Zeroconf | None = None
        self._closed = False

    def open(self, network: _Network) -> None:
        station = Zeroconf(interfaces=list(network.sockets))
        with self._lock:
            self._zeroconf = station
            closed = self._closed
        if closed:  # nobody waited for us
            station.close()

    @property
    def _open(self) -> Zeroconf:
        if self._zeroconf is None:
            raise RuntimeError("the station is not open")
        return self._zeroconf

    def browse(self, heard: Callable[[str], None]) -> None:
        self._open.add_service_listener(SERVICE, _Listener(heard))

    def register(self, info: ServiceInfo) -> None:
        self._open.register_service(info, allow_name_change=True)

    def resolve(self, name: str) -> ServiceInfo | None:
        return self._open.get_service_info(SERVICE, name, timeout=round(_RESOLVE_S * 1000))

    def close(self) -> None:
        """Say goodbye and stop."""
        with self._lock:
            self._closed = True
            station = self._zeroconf
        if station is not None:
            station.close()


async def discover(
    me: Advert,
    found: trio.MemorySendChannel[Sighting],
    *,
    interfaces: Sequence[str],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Announce `me` and send a sighting for every address of every other colony heard.

    It starts at once and never fails: what goes wrong is logged and tried again, from 1 s to 60 s
    apart. Runs until cancelled, or until the other end of `found` is closed. `interfaces` names
    addresses or interfaces; empty means all.
    """
    task_status.started()
    # Its own threads: a stuck multicast socket must not use up those of the rest of the daemon.
    limiter = trio.CapacityLimiter(_RESOLVERS + 4)
    backoff = _BACKOFF_S[0]
    listening = True
    while listening:
        began = trio.current_time()
        failed = False
        try:
            await _session(me, found, interfaces, limiter)
        except* trio.BrokenResourceError:
            listening = False
        except* Exception as group:
            failed = True
            log.warning("discovery failed", error=_reasons(group), retry=round(backoff, 1))
        if failed:
            if trio.current_time() - began > _BACKOFF_S[1]:
                backoff = _BACKOFF_S[0]
            await trio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, _BACKOFF_S[1])


def _reasons(group: BaseExceptionGroup[Exception]) -> str:
    return "; ".join(
        _reasons(error)
        if isinstance(error, BaseExceptionGroup)
        else f"{type(error).__name__}: {error}"
        for error in group.exceptions
    )


async def _blocking(limiter: trio.CapacityLimiter, deadline: float, call: Callable[[], T]) -> T:
    """Run `call` in a thread for at most `deadline` seconds; raises trio.TooSlowError."""
    with trio.fail_after(deadline):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)


async def _session(
    me: Advert,
    found: trio.MemorySendChannel[Sighting],
    interfaces: Sequence[str],
    limiter: trio.CapacityLimiter,
) -> None:
    """Run one station until the interfaces change."""
    network = await _blocking(limiter, _OPEN_S, lambda: _survey(interfaces))
    names_in, names_out = trio.open_memory_channel[str](_BACKLOG)
    token = trio.lowlevel.current_trio_token()

    def offer(name: str) -> None:
        try:
            names_in.send_nowait(name)
        except trio.WouldBlock:
            log.warning("too many names heard at once", dropped=name)
        except trio.BrokenResourceError:
            pass  # the session ended while this was on its way

    def heard(name: str) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(offer, name)

    station = _Station()
    try:
        await _blocking(limiter, _OPEN_S, lambda: station.open(network))
        await _blocking(limiter, _OPEN_S, lambda: station.browse(heard))
        async with trio.open_nursery() as nursery:
            for _ in range(_RESOLVERS):
                nursery.start_soon(_resolve, station, me.id, network, names_out, found, limiter)
            info = _service(me, network)
            await _blocking(limiter, _REGISTER_S, lambda: station.register(info))
            log.info("announced", name=info.name, addresses=",".join(info.parsed_addresses()))
            # A new station on every change: it joins the groups of the new interfaces, withdraws
            # addresses that are gone, and hears everybody afresh, which wakes their probes.
            await _changed(interfaces, network, limiter)
            nursery.cancel_scope.cancel()
    finally:
        names_out.close()
        with trio.move_on_after(_GOODBYE_S, shield=True):
            await trio.to_thread.run_sync(station.close, abandon_on_cancel=True, limiter=limiter)


def _service(me: Advert, network: _Network) -> ServiceInfo:
    return ServiceInfo(
        SERVICE,
        instance_name(me.id),
        port=me.port,
        properties={"v": _VERSION, "id": me.id, "fp": me.fingerprint},
        server=f"{me.id[:32]}.local.",
        parsed_addresses=list(me.addresses or network.addresses),
    )


async def _resolve(
    station: _Station,
    mine: str,
    network: _Network,
    names: trio.MemoryReceiveChannel[str],
    found: trio.MemorySendChannel[Sighting],
    limiter: trio.CapacityLimiter,
) -> None:
    """Turn names into sightings until cancelled."""
    async for name in names:
        try:
            resolve = functools.partial(station.resolve, name)
            info = await _blocking(limiter, _RESOLVE_S * 2, resolve)
        except (zeroconf.Error, ValueError, trio.TooSlowError) as error:
            # Anybody on the network can announce a name that makes no sense.
            log.debug("not resolved", name=name, error=f"{type(error).__name__}: {error}")
            continue
        if info is None:
            log.debug("no answer", name=name)
            continue
        hints = sightings(
            info.properties,
            info.parsed_scoped_addresses(),
            info.port,
            loopback=network.loopback,
        )
        for hint in hints:
            if hint.id != mine:
                await found.send(hint)


async def _changed(
    interfaces: Sequence[str], network: _Network, limiter: trio.CapacityLimiter
) -> None:
    """Return once the interfaces differ from `network` in two looks running.

    zeroconf does not watch them itself; a link that flaps between two looks is not worth a change.
    """
    before = network
    while True:
        await trio.sleep(_SURVEY_S)
        now = await _blocking(limiter, _OPEN_S, lambda: _survey(interfaces))
        if now == before != network:
            return
        before = now
