"""The network between colonies: it loses, delays, repeats, reorders, splits and heals.

A link is `transport.connection`'s with another way of carrying bytes; what is in them is nobody's
matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import trio

from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost, Unsent
from node.http.server import Request, Response
from tests.simulation.world import World

__all__ = ["Capture", "Gone", "Network", "Place", "SimulatedLink"]

T = TypeVar("T")

_CONNECT = 5.0  # seconds, as `transport.connection` has it
_ANSWER = 15.0
_CAPTURES = 200


class Gone(Exception):
    """The daemon that was asked is dead, or died meanwhile."""


class Place(Protocol):
    """What the network leads to."""

    name: str
    up: bool

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run something there. Raises Gone."""

    async def handle(self, request: Request) -> Response:
        """Answer a message."""


@dataclass(frozen=True)
class Capture:
    """A message that somebody on the way could have kept."""

    source: str
    target: str
    path: str
    body: bytes


@dataclass
class Network:
    """`sites` by colony id. `split` holds the pairs (from, to) that can't speak now."""

    world: World
    nursery: trio.Nursery
    sites: dict[str, Place] = field(default_factory=dict)
    split: set[tuple[str, str]] = field(default_factory=set)
    captures: list[Capture] = field(default_factory=list)
    traffic: Counter[str] = field(default_factory=Counter)
    volume: Counter[str] = field(default_factory=Counter)

    def reaches(self, source: str, target: str) -> bool:
        """Whether a packet from one colony gets to the other now."""
        return (source, target) not in self.split

    def remote(self, source: str) -> str:
        """The IP address that others see of a colony."""
        return "10.0.0.1"

    async def connect(self, source: str, target: str) -> None:
        """Open a connection. Raises Unsent."""
        self.world.step()
        site = self.sites.get(target)
        if site is None or not self.reaches(source, target) or not self.reaches(target, source):
            if self.world.chance(0.3):
                await trio.sleep(_CONNECT)
            raise Unsent("connection timed out")
        if not site.up:
            raise Unsent("connection refused")

    async def carry(
        self, source: str, target: str, path: str, body: bytes, wait: float
    ) -> PeerResponse:
        """A request and its answer. Raises Unsent or Lost."""
        await self.connect(source, target)
        self.traffic[path] += 1
        self.volume[path] += len(body)
        world, site, faults = self.world, self.sites[target], self.world.faults
        who = self.sites[source].name if source in self.sites else source[:6]
        world.note(who, "→", site.name, path, len(body))
        request = Request("POST", path, "", {}, body, self.remote(source))
        with trio.move_on_after(_ANSWER + wait):
            await self._travel()
            if world.chance(faults.late):
                world.fault("late", who, site.name, path)
                self.nursery.start_soon(self._deliver_late, site, request, 90.0)
                raise await self._no_answer()
            if world.chance(faults.drop) or not self.reaches(source, target):
                world.fault("drop", who, site.name, path)
                raise await self._no_answer()
            try:
                response = await site.call(site.handle, request)
            except Gone as error:
                raise Lost(f"no answer: {error}") from None
            if response.status == 200:
                self._keep(Capture(source, target, path, body))
                if world.chance(faults.duplicate):
                    world.fault("duplicate", who, site.name, path)
                    self.nursery.start_soon(self._deliver_late, site, request, 40.0)
            await self._travel()
            if world.chance(faults.drop) or not self.reaches(target, source):
                world.fault("drop answer", who, site.name, path)
                raise await self._no_answer()
            self.traffic[f"answer {response.status}"] += 1
            self.volume[path] += len(response.body)
            world.note(who, "←", site.name, path, response.status, _code(response))
            return PeerResponse(
                response.status, dict(response.headers).get("retry-after", ""), response.body
            )
        raise Lost("no answer: timed out")

    async def _travel(self) -> None:
        world = self.world
        if world.chance(world.faults.slow):
            await trio.sleep(world.dice.uniform(0.0, world.faults.slowest))
        else:
            await world.pause()

    async def _no_answer(self) -> Lost:
        if self.world.chance(0.3):
            await trio.sleep_forever()  # until the caller's patience ends
        return Lost("no answer: connection reset")

    async def _deliver_late(self, site: Place, request: Request, latest: float) -> None:
        await trio.sleep(self.world.dice.uniform(0.0, latest))
        try:
            response = await site.call(site.handle, request)
        except Gone:
            return
        self.world.note("net", "late", site.name, request.path, response.status, _code(response))

    def _keep(self, capture: Capture) -> None:
        if len(self.captures) < _CAPTURES:
            self.captures.append(capture)
        else:
            self.captures[self.world.dice.randrange(_CAPTURES)] = capture


def _code(response: Response) -> str:
    return "" if response.status == 200 else response.body[:60].decode(errors="replace")


class SimulatedLink(PeerConnection):
    """The way to one peer through a `Network`."""

    network: Network
    source: str

    async def connect(self) -> Any:
        """Raises Unsent."""
        await self.network.connect(self.source, self.id)
        return cast(Any, None)

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        return await self.network.carry(self.source, self.id, path, body, wait)
