"""Our own card: its addresses, its ever-growing sequence number, and its signature of the day.

Cards of others are in `card` and `peers`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

import ifaddr

from federation.card import VERSION, Card, sign_card
from federation.envelope import MAX_LIFETIME
from federation.keys import Keys
from federation.messages import Sealer
from node.config import FederationConfig
from node.etcd.client import EtcdClient

__all__ = ["Portrait", "own_addresses"]

_DAY = 86_400
_ANY = ("0.0.0.0", "::", "*")


def own_addresses(settings: FederationConfig, port: int) -> list[str]:
    """Where peers may reach us, as "host:port": the configured host, else the interfaces'."""
    if settings.host not in _ANY:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return [f"{host}:{port}"]
    usual: list[str] = []
    loopback: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text)
            wanted = {text, adapter.name, adapter.nice_name} & set(settings.interfaces)
            if address.is_link_local or (settings.interfaces and not wanted):
                continue
            if address.version == 6 and settings.host == "0.0.0.0":
                continue
            host = f"[{text}]" if address.version == 6 else text
            (loopback if address.is_loopback else usual).append(f"{host}:{port}")
    return sorted(set(usual or loopback))[:16]


@dataclass
class Portrait:
    """The card of the colony `name`; `start` before `card`."""

    name: str
    sealer: Sealer
    client: EtcdClient
    keys: Keys
    settings: FederationConfig
    port: int = 0
    fingerprint: str = ""
    endpoints: list[str] = field(default_factory=list)
    _sequence: int = 0
    _signed: tuple[int, bytes] = (0, b"")

    @property
    def announced(self) -> list[str]:
        """Addresses for discovery; none means those of the interfaces."""
        return [] if self.settings.host in _ANY else [self.settings.host]

    async def start(self, port: int, fingerprint: str) -> None:
        """Take a number above all before, whatever the clock says."""
        self.port, self.fingerprint = port, fingerprint
        self.endpoints = own_addresses(self.settings, port)
        await self._next_sequence()

    async def moved(self) -> bool:
        """Whether our addresses changed; the card tells the new ones from now on."""
        endpoints = own_addresses(self.settings, self.port)
        if endpoints == self.endpoints:
            return False
        self.endpoints = endpoints
        await self._next_sequence()
        return True

    async def _next_sequence(self) -> None:
        found = await self.client.get(self.keys.sequence)
        self._sequence = max(self.sealer.seconds, int(found.value) + 1 if found else 0)
        await self.client.put(self.keys.sequence, str(self._sequence).encode())
        self._signed = (0, b"")

    def card(self) -> bytes:
        """The signed card, signed anew each day."""
        now, key = self.sealer.seconds, self.sealer.key
        if not self._signed[1] or abs(now - self._signed[0]) > _DAY:
            card = Card(
                key.id,
                key.public_key,
                self.name,
                self._sequence,
                self.fingerprint,
                self.endpoints,
                [VERSION],
                # Issued a day ago, so that a reader whose clock is behind takes it too.
                now + MAX_LIFETIME - _DAY,
            )
            self._signed = (now, sign_card(key, card))
        return self._signed[1]
