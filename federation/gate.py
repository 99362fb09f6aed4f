"""The server's end of the wire: the checks of a message in their order, and its way to the inbox.

Sockets and HTTP are `node.rpc.http`'s; what a message does is in `inbox`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from federation.card import CARD_LIMIT, Card, open_card
from federation.envelope import Kind, Opened, Refused, inspect, open_envelope
from federation.inbox import Inbox, Refusal, refusal_of
from federation.messages import Hello, Sealer, load
from federation.peers import BLOCKED, TRUSTED, Peers
from node.errors import RpcError
from node.etcd.errors import EtcdError
from node.log import get_logger
from node.rpc.http import Request, Response

Action = Callable[[Opened, bytes], Awaitable[bytes]]

__all__ = ["MAX_BODY", "Gate", "is_near"]

MAX_BODY = 1_500_000  # bytes of one message
_HELLO_LIMIT = CARD_LIMIT + 1024

log = get_logger("gate")


def is_near(host: str) -> bool:
    """Whether an address is on this machine or a private network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_private)


@dataclass
class Gate:
    """Answers peers. `card` gives our signed card, `greeted` hears of a trusted peer's hello."""

    sealer: Sealer
    peers: Peers
    inbox: Inbox
    card: Callable[[], bytes]
    greeted: Callable[[str], None]
    high_water: Callable[[], float] = lambda: 0.0
    max_body: int = MAX_BODY
    counters: Counter[str] = field(default_factory=Counter)

    async def handle(self, request: Request) -> Response:
        """Answer one request. Never raises for what a peer did."""
        try:
            return await self._route(request)
        except Refused as refused:
            return self._refuse(refusal_of(refused))
        except Refusal as refusal:
            return self._refuse(refusal)
        except (EtcdError, RpcError) as error:
            log.warning("the store did not answer", error=error)
            return self._refuse(Refusal(503, "busy", "the store did not answer", again=2))

    def refuse(self, status: int, message: str) -> Response:
        """The answer to what is not even HTTP as we want it."""
        return self._refuse(Refusal(status, "too_large" if status == 413 else "http", message))

    def _refuse(self, refusal: Refusal) -> Response:
        self.counters[refusal.code] += 1
        body = {
            "code": refusal.code,
            "message": refusal.message,
            "clock": self.sealer.seconds,
        }
        headers = (("retry-after", str(refusal.again)),) if refusal.again else ()
        return Response(refusal.status, msgspec.json.encode(body), "application/json", headers)

    async def _route(self, request: Request) -> Response:
        if request.path == "/v1/card":
            if request.method != "GET":
                raise Refusal(405, "method", "GET the card")
            return Response(200, self.card(), "application/cbor")
        if request.path not in self._calls:
            raise Refusal(404, "not_found", "there is nothing at this path")
        kind, action = self._calls[request.path]
        if request.method != "POST":
            raise Refusal(405, "method", "POST an envelope")
        limit = _HELLO_LIMIT if kind is Kind.HELLO else self.max_body
        if len(request.body) > limit:
            raise Refusal(413, "too_large", f"{len(request.body)} bytes; at most {limit} here")
        card = self._card_in(request.body) if kind is Kind.HELLO else None
        opened = open_envelope(
            request.body,
            kind=kind,
            audience=self.sealer.key.id,
            now=self.sealer.seconds,
            keys=lambda issuer: self._key(issuer, card),
            limit=limit,
            high_water=self.high_water(),
        )
        if card is not None:
            await self.peers.learn(
                card, load(opened.payload, Hello).card, near=is_near(request.remote)
            )
        self._demand_trust(opened.issuer)
        answer = await action(opened, request.body)
        self.counters[f"ok_{kind.value}"] += 1
        return Response(200, answer, "application/cose")

    @property
    def _calls(self) -> dict[str, tuple[Kind, Action]]:
        return {
            "/v1/hello": (Kind.HELLO, self._hello),
            "/v1/submit": (Kind.SUBMIT, self.inbox.accept),
            "/v1/cancel": (Kind.CANCEL, self.inbox.cancel),
            "/v1/outcomes": (Kind.POLL, self.inbox.outcomes),
        }

    def _key(self, issuer: str, card: Card | None) -> bytes | None:
        known = self.peers.public_key(issuer)
        if known is None and card is not None and card.id == issuer:
            return card.public_key
        return known

    def _card_in(self, body: bytes) -> Card:
        """The card that a hello brings, so that a colony we cannot reach can introduce itself."""
        seen = inspect(body, limit=_HELLO_LIMIT)
        data = load(seen.payload, Hello).card
        card = open_card(data, self.sealer.seconds, high_water=self.high_water())
        if card.id != seen.issuer:
            raise Refused("unknown_issuer", "the card is another colony's")
        return card

    def _demand_trust(self, issuer: str) -> None:
        state = self.peers.state(issuer)
        if state == BLOCKED:
            raise Refusal(403, "blocked", "this colony blocks yours")
        if state != TRUSTED:
            raise Refusal(
                403,
                "untrusted",
                f"this colony does not trust yours yet; there: colony peers trust {issuer[:12]}",
            )

    async def _hello(self, opened: Opened, body: bytes) -> bytes:
        self.greeted(opened.issuer)
        return self.sealer.seal(Kind.HELLO, opened.issuer, Hello(self.card()))
