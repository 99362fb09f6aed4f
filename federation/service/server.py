"""The server's end of the wire: the checks of a message in their order, and its way to the inbox.

Sockets and HTTP are `node.http.server`'s; what a message does is in `inbox.accept`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import msgspec
import trio

from federation.inbox.accept import Inbox
from federation.inbox.tombstones import keep
from federation.limits.admission import Admission
from federation.membership.invitations import Invitations
from federation.peers.heirs import follow
from federation.peers.log_limit import Sparing
from federation.peers.registry import BLOCKED, TRUSTED, Peers, Usurped
from federation.wire.address import is_near, source_of
from federation.wire.card import VERSION, Card, open_card
from federation.wire.envelope import Kind, Opened, Refused, inspect, open_envelope
from federation.wire.invitation import KNOCK
from federation.wire.messages import SIGNED, Denial, Hello, Successor, load
from federation.wire.refusals import BROUGHT, Refusal, refusal_of, store_full
from federation.wire.signer import Sealer
from federation.wire.sizes import MAX_BODY, SIZES
from node.etcd.errors import EtcdError, StoreFull
from node.host.log import get_logger
from node.http.server import Request, Response
from node.model.errors import RpcError

Action = Callable[[Opened, bytes], Awaitable[bytes]]

# Where version 1 of the protocol had forwards: its answers name ids only, and prove too little.
_FORMER = ("/v1/submit", "/v1/cancel", "/v1/outcomes")
_INTRODUCING = (Kind.HELLO, Kind.JOIN)  # bring the sender's card

log = get_logger("gate")


async def _nobody(opened: Opened, data: bytes) -> bytes:
    raise Refusal(404, "not_found", "this colony introduces nobody")


async def _no_mailbox(opened: Opened, data: bytes) -> bytes:
    raise Refusal(404, "not_found", "this colony holds no mail")


async def _nothing(opened: Opened, data: bytes) -> bytes:
    raise Refusal(404, "not_found", "this colony tells nobody what it offers")


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
    capabilities: Action = _nothing
    introductions: Action = _nobody
    mail: Action = _no_mailbox
    passing: Action = _no_mailbox
    channels: Action = _nothing
    files: Action = _nothing
    invitations: Invitations | None = None
    successors: Callable[[], list[Successor]] = list
    counters: Counter[str] = field(default_factory=Counter)
    admission: Admission = field(default_factory=Admission)
    clock: Callable[[], float] = trio.current_time  # seconds that never jump
    _sparing: Sparing = field(default_factory=Sparing)

    async def handle(self, request: Request) -> Response:
        """Answer one request. Never raises for what a peer did."""
        try:
            return await self._route(request)
        except Refused as refused:
            return self._refuse(refusal_of(refused), request)
        except Refusal as refusal:
            return self._refuse(refusal, request)
        except StoreFull:
            return self._refuse(store_full(), request)
        except (EtcdError, RpcError) as error:
            log.warning("the store did not answer", error=error)
            return self._refuse(Refusal(503, "busy", "the store did not answer", again=2))

    def refuse(self, status: int, message: str) -> Response:
        """The answer to what is not even HTTP as we want it."""
        return self._refuse(Refusal(status, "too_large" if status == 413 else "http", message))

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> Response:
        self.counters[refusal.code] += 1
        body: dict[str, object] = {
            "code": refusal.code,
            "message": refusal.message,
            "clock": self.sealer.seconds,
        }
        certain = refusal.status < 500  # else the store may have taken it
        signed = request is not None and request.path in (*SIGNED, *_FORMER[:1])
        signed = signed and request is not None and request.method == "POST" and certain
        if request is not None and signed and (by := self._denial(refusal, request)):
            body["signed"] = by
        headers = (("retry-after", str(refusal.again)),) if refusal.again else ()
        return Response(refusal.status, msgspec.json.encode(body), "application/json", headers)

    def _denial(self, refusal: Refusal, request: Request) -> bytes:
        """Our name under a refusal: its origin may send the process to another colony."""
        try:
            issuer = inspect(request.body, limit=self.max_body).issuer
        except Refused:
            return b""
        movable = request.path == "/v2/submit" and self.peers.get(issuer) is not None
        if refusal.code == "stranger_rate" and not movable:
            # Refused without a look at its signature, it is not worth one of ours either.
            return b""
        denial = Denial(
            refusal.code,
            refusal.message[:300],
            hashlib.sha256(request.body).digest(),
            self.sealer.seconds,
            self._latest(),
            request.path,
            refusal.kept,
        )
        return self.sealer.seal(Kind.REFUSAL, issuer, denial)

    async def _route(self, request: Request) -> Response:
        if request.path == "/v1/card":
            if request.method != "GET":
                raise Refusal(405, "method", "GET the card")
            return Response(200, self.card(), "application/cbor")
        if request.path in _FORMER:
            raise Refusal(
                400,
                "version",
                f"this colony speaks version {VERSION} of the federation protocol, and this is "
                "version 1: upgrade the daemon of the colony that sent it",
            )
        if request.path not in self._calls:
            raise Refusal(404, "not_found", "there is nothing at this path")
        kind, action = self._calls[request.path]
        if request.method != "POST":
            raise Refusal(405, "method", "POST an envelope")
        limit = min(SIZES[kind].bytes, self.max_body)
        if len(request.body) > limit:
            raise Refusal(413, "too_large", f"{len(request.body)} bytes; at most {limit} here")
        if kind is Kind.JOIN and self.invitations is not None:
            self.invitations.knock(request.remote, request.headers.get(KNOCK, ""), request.body)
        card = self._card_in(request, kind) if kind in _INTRODUCING else None
        opened = self._open(request, kind, limit, card)
        if card is not None and kind is Kind.HELLO:
            hello = load(opened.payload, Hello)
            await self._follow(hello)
            self._count_card(card)
            near, source = is_near(request.remote), source_of(request.remote)
            await self.peers.learn(card, hello.card, near=near, source=source)
        root = self.peers.roster.root(opened.issuer)
        if root != opened.issuer and kind is not Kind.JOIN:
            opened = msgspec.structs.replace(opened, issuer=root, signer=opened.issuer)
        self._demand_trust(opened.issuer, joining=kind is Kind.JOIN)
        if kind is not Kind.JOIN and (refusal := request.signed(opened.issuer)):
            raise Refusal(503, "busy", refusal, again=2)
        if kind is Kind.JOIN:
            counted: AbstractContextManager[None] = nullcontext()
        else:
            counted = self.inbox.accounts.message(opened.issuer, kind)
        try:
            with counted:
                answer = await action(opened, request.body)
        except Refusal as refusal:
            if kind is Kind.SUBMIT and request.remote == BROUGHT:
                refusal.kept = await keep(self.inbox, opened, refusal)
            raise
        self.counters[f"ok_{kind.value}"] += 1
        return Response(200, answer, "application/cose")

    def _open(self, request: Request, kind: Kind, limit: int, card: Card | None) -> Opened:
        """Check a message, after counting it if it comes from a colony that is not trusted."""
        name, mistakes = "", True

        def key_of(issuer: str) -> bytes | None:
            nonlocal name, mistakes
            if card is None:
                mistakes = self._admit(issuer, request)
            name = self._trusted(issuer)
            return self._key(issuer, card)

        try:
            opened = open_envelope(
                request.body,
                kind=kind,
                audience=self.sealer.ids,
                now=self.sealer.seconds,
                keys=key_of,
                limit=limit,
                high_water=self.high_water(),
                explain=lambda: mistakes,
            )
        except Refused as refused:
            if name and refused.code in ("bad_signature", "wrong_kind"):
                self.admission.failed(name, request.remote, self.clock())
            raise
        if name:
            self.admission.held(name, request.remote)
        return opened

    def _trusted(self, issuer: str) -> str:
        """The id under which a trusted colony is kept, "" for others."""
        trusted = self.peers.state(issuer) == TRUSTED
        return self.peers.roster.root(issuer) if trusted else ""

    def _admit(self, issuer: str, request: Request) -> bool:
        """Whether the mistake is looked for in a message that names its sender.

        Raises Refusal (stranger_rate) before anything is checked.
        """
        now = self.clock()
        if name := self._trusted(issuer):
            return self.admission.trusted(name, request.remote, now)
        self.admission.stranger(request.remote, now)
        return True

    @property
    def _calls(self) -> dict[str, tuple[Kind, Action]]:
        return {
            "/v1/hello": (Kind.HELLO, self._hello),
            "/v1/join": (Kind.JOIN, self._join),
            "/v2/submit": (Kind.SUBMIT, self.inbox.accept),
            "/v2/cancel": (Kind.CANCEL, self.inbox.cancel),
            "/v2/outcomes": (Kind.POLL, self.inbox.owing.outcomes),
            "/v1/capabilities": (Kind.CAPABILITIES, self.capabilities),
            "/v1/mail": (Kind.COLLECT, self.mail),
            "/v1/pass": (Kind.PASS, self.passing),
            "/v1/say": (Kind.SAY, self.channels),
            "/v1/files": (Kind.FETCH, self.files),
            "/v1/introductions": (Kind.INTRODUCTIONS, self.introductions),
        }

    def _count_card(self, card: Card) -> None:
        """A newer card of a trusted colony is written. Raises Refusal (card_rate)."""
        entry = self.peers.get(card.id)
        if entry is None or entry.peer.state != TRUSTED or card.id != entry.peer.wire:
            return
        if card.sequence > entry.peer.sequence:
            self.inbox.accounts.card(entry.peer.id)

    async def _follow(self, hello: Hello) -> None:
        """Take note that a peer has another key now, before its card is that of a stranger."""
        try:
            await follow(self.peers, hello.successors, self.sealer.seconds)
        except Usurped as error:
            if (more := self._sparing.line(self.clock())) is not None:
                log.warning("succession refused", why=error, **more)
            raise Refusal(409, "usurped", str(error)) from None

    def _key(self, issuer: str, card: Card | None) -> bytes | None:
        entry = self.peers.get(issuer)
        known = entry.peer.key_of(issuer, self.sealer.seconds) if entry else None
        if known is None and entry is not None and issuer != entry.peer.wire:
            now_is = entry.peer.wire[:12]
            raise Refusal(401, "superseded", f"this key was replaced; the colony is {now_is}")
        if known is None and card is not None and card.id == issuer:
            return card.public_key
        return known

    def _card_in(self, request: Request, kind: Kind) -> Card:
        """The card that a hello brings, so that a colony we cannot reach can introduce itself."""
        seen = inspect(request.body, limit=SIZES[Kind.HELLO].bytes)
        if kind is not Kind.JOIN:
            self._admit(seen.issuer, request)
        data = load(seen.payload, Hello).card
        card = open_card(data, self.sealer.seconds, high_water=self.high_water())
        if card.id != seen.issuer:
            raise Refused("unknown_issuer", "the card is another colony's")
        return card

    def _demand_trust(self, issuer: str, *, joining: bool) -> None:
        state = self.peers.state(issuer)
        if state == BLOCKED:
            raise Refusal(403, "blocked", "this colony blocks yours")
        if state != TRUSTED and not joining:
            raise Refusal(
                403,
                "untrusted",
                f"this colony does not trust yours yet; there: colony peers trust {issuer[:12]}",
            )

    async def _join(self, opened: Opened, body: bytes) -> bytes:
        if self.invitations is None:
            raise Refusal(404, "not_found", "this colony invites nobody")
        return await self.invitations.answer(opened, body)

    async def _hello(self, opened: Opened, body: bytes) -> bytes:
        self.greeted(opened.issuer)
        nonce = load(opened.payload, Hello).nonce
        now, latest = self.sealer.seconds, self._latest()
        hello = Hello(self.card(), nonce, now, latest, self.successors())
        return self.sealer.seal(Kind.HELLO, opened.issuer, hello)

    def _latest(self) -> int:
        """The time that messages are judged by, if it is not the clock's."""
        highest = int(self.high_water())
        return highest if highest > self.sealer.seconds else 0
