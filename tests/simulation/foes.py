"""Those who mean harm: a stranger, a trusted colony that lies, and somebody who kept every message.

They hold their own keys and no others; what they may achieve is bounded in `witness`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import trio

from federation.forward.path import local_id
from federation.wire.card import VERSION, Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import MAX_LIFETIME, Kind, inspect
from federation.wire.messages import Cancel, Hello, Outcome, Outcomes, Poll, Receipt, Submit, load
from federation.wire.signer import Signer
from node.http.server import Request, Response
from tests.simulation.colony import FINGERPRINT, PORT, TYPE, Site
from tests.simulation.network import Gone, Network
from tests.simulation.witness import Witness
from tests.simulation.world import World, key_of

__all__ = ["EVE", "MALLORY", "Foes", "foe_card"]

T = TypeVar("T")
EVE, MALLORY = "eve", "mallory"  # trusted by all, and by none
_PATHS = ("/v2/submit", "/v2/cancel", "/v2/outcomes", "/v1/hello")


def foe_card(name: str, now: int) -> bytes:
    """The signed card of a foe; `now` in seconds."""
    key = key_of(name)
    card = Card(
        key.id, key.public_key, name, 1, FINGERPRINT, [f"{name}.example:{PORT}"], [VERSION],
        now + MAX_LIFETIME - 1,
    )  # fmt: skip
    return sign_card(key, card, issued=now)


class Foes:
    """Acts at drawn moments until cancelled."""

    def __init__(
        self, world: World, network: Network, witness: Witness, sites: list[Site], pause: float
    ) -> None:
        self.pause = pause
        self.world, self.network, self.witness, self.sites = world, network, witness, sites

    async def run(self) -> None:
        """Do harm, again and again."""
        dice = self.world.dice
        while True:
            await trio.sleep(dice.uniform(0.2, self.pause))
            site = dice.choice(self.sites)
            act = dice.choice((self._replay, self._replay, self._misdirect, self._forge))
            found = act(site)
            if found is None:
                continue
            path, body = found
            self.world.fault(f"foe {act.__name__[1:]}", site.name, path)
            try:
                response = await site.call(
                    site.handle, Request("POST", path, "", {}, body, "10.0.0.66")
                )
            except Gone:
                continue
            self.world.note("foe", "←", site.name, path, response.status, _brief(response))

    def _replay(self, site: Site) -> tuple[str, bytes] | None:
        """What a colony took once, to another, or to the same one again."""
        if not self.network.captures:
            return None
        kept = self.world.dice.choice(self.network.captures)
        return kept.path, kept.body

    def _misdirect(self, site: Site) -> tuple[str, bytes] | None:
        """A message of one kind as one of another, to the colony that it was meant for."""
        mine = [each for each in self.network.captures if each.target == site.key.id]
        if not mine:
            return None
        if self.world.chance(0.5):
            mine = [each for each in mine if each.path == "/v2/submit"] or mine
        return self.world.dice.choice(_PATHS), self.world.dice.choice(mine).body

    def _forge(self, site: Site) -> tuple[str, bytes] | None:
        """A message of our own about the process of somebody else."""
        dice = self.world.dice
        known = sorted(
            (pid, owner) for owner, pid, to in self.witness.forwarded if to == site.key.id
        )
        made_up = hashlib.sha256(str(dice.random()).encode()).hexdigest()
        pid, owner = dice.choice(known or [(made_up, dice.choice(self.sites).key.id)])
        name = dice.choice((EVE, MALLORY))
        key = key_of(name)
        if self.world.chance(0.3):  # in the owner's name, with a key that is another's
            key = replace(key, id=owner)
        signer = Signer(key, SigningClock(site.now))
        conditions = {"colonyname": site.name, "executortype": TYPE}
        spec = msgspec.json.encode({"funcname": "f", "conditions": conditions})
        kind, path, message = dice.choice(
            (
                (Kind.SUBMIT, "/v2/submit", Submit(pid, 1, spec, "nobody", 1, [])),
                (Kind.CANCEL, "/v2/cancel", Cancel(pid, 1)),
                (Kind.POLL, "/v2/outcomes", Poll(0, [pid])),
                (Kind.HELLO, "/v1/hello", Hello(foe_card(name, signer.clock.seconds))),
            )
        )
        return path, signer.seal(kind, site.key.id, message)

    name, up = EVE, True

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Eve's own machine never fails."""
        return await function(*args)

    async def handle(self, request: Request) -> Response:
        """Eve as a server: takes everything, and tells outcomes of what others were asked to do."""
        signer = Signer(key_of(EVE), SigningClock(self.world.now))
        seen = inspect(request.body, limit=len(request.body))
        if request.path == "/v2/submit":
            submit = load(seen.payload, Submit)
            receipt = Receipt(submit.pid, submit.attempt, "accepted", "e" * 64)
            return _answer(signer.seal(Kind.RECEIPT, seen.issuer, receipt))
        if request.path == "/v2/cancel":
            cancel = load(seen.payload, Cancel)
            status = Receipt(cancel.pid, cancel.attempt, "cancelled", "e" * 64)
            return _answer(signer.seal(Kind.RECEIPT, seen.issuer, status))
        if request.path == "/v2/outcomes":
            return _answer(
                signer.seal(Kind.OUTCOMES, seen.issuer, Outcomes(self._lies(seen.issuer)))
            )
        return Response(404, b"{}", "application/json")

    def _lies(self, origin: str) -> list[bytes]:
        """An outcome, made up, of each process that this colony ever sent anywhere."""
        signer = Signer(key_of(EVE), SigningClock(self.world.now))
        found = []
        asked = self._overheard()
        for owner, pid, _ in sorted(self.witness.forwarded):
            if owner == origin:
                there = local_id(origin, pid, 1)
                lie = Outcome(
                    pid, 1, 2, b'["a lie"]', [], there, "e" * 64, 1, 2,
                    asked=asked.get((owner, pid), b""), origin=origin,
                )  # fmt: skip
                found.append(signer.seal(Kind.OUTCOME, origin, lie))
        return found[:50]

    def _overheard(self) -> dict[tuple[str, str], bytes]:
        """The digest of each submission by its sender that somebody kept, by sender and id."""
        found: dict[tuple[str, str], bytes] = {}
        for kept in self.network.captures:
            if kept.path == "/v2/submit":
                seen = inspect(kept.body, limit=len(kept.body))
                pid = load(seen.payload, Submit).pid
                found[seen.issuer, pid] = hashlib.sha256(kept.body).digest()
        return found


def _answer(body: bytes) -> Response:
    return Response(200, body, "application/cose")


def _brief(response: Response) -> str:
    return "" if response.status == 200 else response.body[:50].decode(errors="replace")
