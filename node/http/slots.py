"""Slots: the connections of one server, of strangers by address, and of members by signer.

Two pools, so that neither can take the places of the other. When a pool is full, the address or
signer with most connections makes room. Reading, answering and closing are in `connection`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from node.host.log import get_logger

if TYPE_CHECKING:
    from node.http.connection import Connection, Limits

_FRESH = 3.0  # seconds in which a new connection makes room only when there is no place at all
_MOST_ENDED = 4  # connections that end to make room for one, at most

log = get_logger("http")


def source_of(remote: str) -> str:
    """Return what an address counts as: itself, or the /64 of an IPv6 address, which one host may
    own.
    """
    if ":" not in remote:
        return remote
    try:
        address = int(ipaddress.IPv6Address(remote.partition("%")[0]))
    except ValueError:
        return remote
    return str(ipaddress.IPv6Network((address >> 64 << 64, 64)))


class ConnectionSlots:
    """The connections of a server. `busy` tells whether one runs a handler.

    `idle` are those that wait for a request, the longest idle first.
    """

    def __init__(
        self,
        limits: Limits,
        busy: Callable[[Connection], bool],
        idle: Mapping[Connection, None],
    ) -> None:
        self._limits = limits
        self._busy = busy
        self._idle = idle
        # Dicts are ordered sets here: the oldest comes first.
        self.unsigned: dict[Connection, None] = {}
        self._sources: dict[str, dict[Connection, None]] = {}
        self._signers: dict[str, dict[Connection, None]] = {}
        self.signed = 0

    def arrive(self, connection: Connection) -> None:
        """Add a connection on which no right was shown yet."""
        self._put_unsigned(connection)
        mine = self._sources[connection.source]
        for _ in range(_MOST_ENDED):
            if len(mine) > self._limits.max_unsigned_per_address:
                among = mine
            elif len(self.unsigned) > self._limits.max_unsigned:
                among = max(self._sources.values(), key=len)
            else:
                return
            # A new connection is about to show its right: a thousand workers may start at once.
            # Until then it may use places that members leave free.
            oldest = next(iter(among))
            if connection.arrived - oldest.arrived < _FRESH or not self._evict(among, connection):
                return

    def sign(self, connection: Connection, identity: str) -> str:
        """Note that `identity`, which has a right, uses a connection; return a refusal or ""."""
        if connection.signer == identity:
            return ""
        self.leave(connection)
        mine = self._signers.setdefault(identity, {})
        if len(mine) >= self._limits.max_per_signer and not self._evict_idle(mine):
            self._put_unsigned(connection)
            return (
                f"{len(mine)} connections of this signer wait already, which is the most"
                f" ({self._limits.names}max_per_signer); close some, or use one for more"
            )
        # It may be gone if the last connection made room.
        mine = self._signers.setdefault(identity, mine)
        mine[connection] = None
        connection.signer = identity
        self.signed += 1
        if self.signed > self._limits.max_connections:
            most = max(self._signers.values(), key=len)
            known = (each for each in self._idle if each.signer)
            if not (self._evict_idle(most, connection) or self._evict_idle(known)):
                self._evict(most, connection, even_busy=True)
        return ""

    def leave(self, connection: Connection) -> None:
        """Remove a connection, if it is here."""
        if connection in self.unsigned:
            del self.unsigned[connection]
            slots, key = self._sources, connection.source
        elif connection.signer:
            slots, key = self._signers, connection.signer
            connection.signer = ""
            self.signed -= 1
        else:
            return
        slots[key].pop(connection, None)
        if not slots[key]:
            del slots[key]

    def make_room(self) -> None:
        """End some connection, since there is no place at all for another one."""
        if self._sources and self._evict(max(self._sources.values(), key=len)):
            return
        if self._signers:
            most = max(self._signers.values(), key=len)
            self._evict_idle(most)

    def _put_unsigned(self, connection: Connection) -> None:
        self.unsigned[connection] = None
        self._sources.setdefault(connection.source, {})[connection] = None

    def _evict_idle(self, among: Iterable[Connection], spare: Connection | None = None) -> bool:
        for each in among:
            if each is not spare and each in self._idle:
                self._end(each)
                return True
        return False

    def _evict(
        self,
        among: dict[Connection, None],
        spare: Connection | None = None,
        *,
        even_busy: bool = False,
    ) -> bool:
        """End the oldest of some connections, if one of them may be ended; return whether one
        was.
        """
        for each in among:
            if each is not spare and (even_busy or not self._busy(each)):
                self._end(each)
                return True
        return False

    def _end(self, connection: Connection) -> None:
        self.leave(connection)
        log.debug("connection makes room", remote=connection.remote)
        connection.evict()
