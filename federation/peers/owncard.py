"""Our own card: its addresses, its ever-growing sequence number, and its signature of the day.

Cards of others are in `wire.card` and `peers.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from federation.network.interfaces import ANY, survey
from federation.peers.context import Context
from federation.wire.card import VERSION, Card, is_name, sign_card
from federation.wire.envelope import MAX_LIFETIME
from node.etcd.errors import EtcdNoSpace
from node.host.config import FederationConfig
from node.host.log import get_logger

_DAY = 86_400
_LOCAL = ("127.", "[::1]")

log = get_logger("portrait")


def own_addresses(settings: FederationConfig, port: int) -> list[str]:
    """Return our addresses for peers, as "host:port": the configured host, else the interfaces'."""
    if settings.host not in ANY:
        hosts = [settings.host]
    else:
        network = survey(settings.interfaces)
        # A link-local IPv6 address is useless off its link; on the link, discovery tells it.
        families = ANY[settings.host]
        hosts = network.addresses_for(families, link_local=False) if network else []
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in sorted(hosts)]


@dataclass
class OwnCard:
    """The card of the home colony, called `name` in it. Call `start` before `card`."""

    context: Context
    settings: FederationConfig
    name: str = field(init=False)
    port: int = 0
    fingerprint: str = ""
    endpoints: list[str] = field(default_factory=list)
    mailboxes: list[str] = field(default_factory=list)
    outside: str = ""  # where peers reached us from outside, as "host:port"
    _sequence: int = 0
    _due: bool = False
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _signed: tuple[str, int, bytes] = ("", 0, b"")

    def __post_init__(self) -> None:
        self.name = self.context.home

    @property
    def announced(self) -> list[str]:
        """Return the addresses for discovery; none means those of the interfaces."""
        return [] if self.settings.host in ANY else [self.settings.host]

    @property
    def families(self) -> tuple[int, ...]:
        """Return which of IPv4 and IPv6 the listener serves."""
        return ANY.get(self.settings.host, (4, 6))

    @property
    def sequence(self) -> int:
        """Return the number of our card, larger at each start than at all before."""
        return self._sequence

    async def start(self, port: int, fingerprint: str) -> None:
        """Take a number above all earlier ones, whatever the clock says.

        If the store has no room for it, use the last number until it has.
        """
        self.port, self.fingerprint = port, fingerprint
        if not is_name(self.name):
            self.name = f"colony-{self.context.signer.key.id[:8]}"
            log.warning("the colony's name is none for peers; there it is called", name=self.name)
        self.endpoints = self._addresses()
        try:
            await self._next_sequence()
        except EtcdNoSpace as error:
            log.warning("card not renewed", error=error)
            found = await self.context.client.get(self.context.keys.sequence)
            self._sequence, self._due = int(found.value) if found else 0, True

    async def moved(self) -> bool:
        """Return whether there is a new card to tell peers, as after a change of our addresses.

        Without a network no peer can be told, and the old addresses may well come back.
        """
        endpoints = self._addresses()
        lost = all(each.startswith(_LOCAL) for each in endpoints)
        if endpoints != self.endpoints and not (lost and self.endpoints):
            self.endpoints, self._due = endpoints, True
        return await self._renewed()

    def _addresses(self) -> list[str]:
        ours = own_addresses(self.settings, self.port)
        return [*ours, self.outside] if self.outside and self.outside not in ours else ours

    async def reached(self, address: str) -> bool:
        """List the address at which peers reached us, "" for none. Return as `moved` does."""
        self.outside = address
        return await self.moved()

    async def polls(self, mailboxes: list[str]) -> bool:
        """List the peers whose mailboxes we poll. Return whether the card is a new one."""
        if mailboxes != self.mailboxes:
            self.mailboxes, self._due = mailboxes, True
        return await self._renewed()

    async def renew(self) -> None:
        """Make a new card for a new key."""
        self._due = True
        await self._renewed()

    async def _renewed(self) -> bool:
        """Make the new card that is due, also after a try that failed."""
        if not self._due:
            return False
        async with self._lock:
            if self._due:
                await self._next_sequence()
        return True

    async def _next_sequence(self) -> None:
        found = await self.context.client.get(self.context.keys.sequence)
        sequence = max(self.context.clock.seconds, int(found.value) + 1 if found else 0)
        await self.context.client.put(self.context.keys.sequence, str(sequence).encode())
        # Store a number before a peer sees it: another card of the same number would be ignored.
        self._sequence, self._signed, self._due = sequence, ("", 0, b""), False

    def card(self) -> bytes:
        """Return the signed card, signed anew each day and by each new key."""
        now, key = self.context.clock.seconds, self.context.signer.key
        signer, signed, _ = self._signed
        if signer != key.id or abs(now - signed) > _DAY:
            card = Card(
                key.id,
                key.public_key,
                self.name,
                self._sequence,
                self.fingerprint,
                self.endpoints,
                [VERSION],
                # Issued a day ago, so that a reader whose clock is behind accepts it, too.
                now + MAX_LIFETIME - _DAY,
                self.mailboxes,
            )
            self._signed = (key.id, now, sign_card(key, card))
        return self._signed[2]
