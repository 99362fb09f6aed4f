"""The server of the federation port: checks each message in order, then calls its endpoint.

`node.http.server` has sockets and HTTP. The part behind an endpoint decides what a message does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field

import msgspec

from colonyd.errors import RpcError
from federation.limits.accounts import PeerQuotas
from federation.limits.admission import Admission
from federation.peers.log_limit import LogLimiter
from federation.peers.registry import BLOCKED, TRUSTED, Peers
from federation.peers.successions import follow
from federation.transport.dial import DIAL
from federation.transport.endpoint import Endpoint
from federation.wire.address import is_near, source_of
from federation.wire.card import VERSION, Card, open_card
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect, open_envelope
from federation.wire.invitation import KNOCK
from federation.wire.messages import (
    SIGNED,
    Answer,
    Hello,
    Receipts,
    SignedRefusal,
    Submits,
    load,
)
from federation.wire.refusals import BROUGHT, Refusal, RefusalBody, refusal_of, store_full
from federation.wire.signer import Signer
from federation.wire.sizes import ANSWER, MAX_BODY, SIZES
from node.etcd.errors import EtcdError, StoreFull
from node.host.log import get_logger
from node.http.server import Request, Response
from node.tasks.sync import gather

# Paths of forwards in version 1 of the protocol. Its answers name ids only, which proves too
# little.
_FORMER = ("/v1/submit", "/v1/cancel", "/v1/outcomes")
_CARDS = "/v1/card/"  # cards of others, by their keys in the DHT
_INTRODUCING = (Kind.HELLO, Kind.JOIN)  # these messages carry the sender's card

log = get_logger("gate")


@dataclass
class Server:
    """Answers requests of peers at `endpoints`.

    `card` returns our signed card, `card_of` that of a colony which is found through us, by its
    key in the DHT. `shown` gets the header DIAL of whoever fetches our card.
    """

    signer: Signer
    peers: Peers
    peer_quotas: PeerQuotas
    card: Callable[[], bytes]
    endpoints: InitVar[Iterable[Endpoint]]
    card_of: Callable[[str], bytes | None] = lambda key: None
    shown: Callable[[str], None] = lambda nonce: None
    counters: Counter[str] = field(default_factory=Counter)
    _admission: Admission = field(default_factory=Admission)
    _log_limiter: LogLimiter = field(default_factory=LogLimiter)
    _table: dict[str, Endpoint] = field(init=False)

    def __post_init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._table = {each.path: each for each in endpoints}

    async def handle(self, request: Request) -> Response:
        """Return the response to one request. Nothing that a peer sends makes it raise."""
        try:
            return await self._route(request)
        except Rejected as rejected:
            return self._refuse(refusal_of(rejected), request)
        except Refusal as refusal:
            return self._refuse(refusal, request)
        except StoreFull:
            return self._refuse(store_full(), request)
        except (EtcdError, RpcError) as error:
            log.warning("the store did not answer", error=error)
            return self._refuse(Refusal(503, "busy", "the store did not answer", again=2))

    def refuse(self, status: int, message: str) -> Response:
        """Return the response to a request that breaks HTTP, or our limits of it."""
        return self._refuse(Refusal(status, "too_large" if status == 413 else "http", message))

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> Response:
        self.counters[refusal.code] += 1
        signed = self._signed(refusal, request) if request and refusal.certain else b""
        body = RefusalBody(refusal.code, refusal.message, self.signer.clock.seconds, signed)
        headers = (("retry-after", str(refusal.again)),) if refusal.again else ()
        return Response(refusal.status, msgspec.json.encode(body), "application/json", headers)

    def _signed(self, refusal: Refusal, request: Request) -> bytes:
        """Return our signed refusal, with which the origin may reroute the process."""
        if request.method != "POST" or request.path not in (*SIGNED, *_FORMER[:1]):
            return b""
        try:
            issuer = inspect(request.body, limit=MAX_BODY).issuer
        except Rejected:
            return b""
        movable = request.path.startswith("/v2/submit") and self.peers.get(issuer) is not None
        if refusal.code == "stranger_rate" and not movable:
            # A message refused before its signature was checked is not worth a signature of ours.
            return b""
        signed = SignedRefusal(
            refusal.code,
            refusal.message[:300],
            hashlib.sha256(request.body).digest(),
            self.signer.clock.seconds,
            self.signer.clock.latest,
            request.path,
            refusal.kept,
        )
        return self.signer.seal(Kind.REFUSAL, issuer, signed)

    async def _route(self, request: Request) -> Response:
        if request.path == "/v1/card":
            if request.method != "GET":
                raise Refusal(405, "method", "GET the card")
            if nonce := request.headers.get(DIAL):
                self.shown(nonce)
            return Response(200, self.card(), "application/cbor")
        if request.path.startswith(_CARDS) and request.method == "GET":
            found = self.card_of(request.path.removeprefix(_CARDS))
            if found is None:
                raise Refusal(404, "not_found", "no colony of this key is found through this one")
            return Response(200, found, "application/cbor")
        if request.path in _FORMER:
            raise Refusal(
                400,
                "version",
                f"this colony speaks version {VERSION} of the federation protocol, and this is "
                "version 1: upgrade the daemon of the colony that sent it",
            )
        endpoint = self._table.get(request.path)
        if endpoint is None:
            raise Refusal(404, "not_found", "there is nothing at this path")
        if request.method != "POST":
            raise Refusal(405, "method", "POST an envelope")
        if (size := len(request.body)) > endpoint.limit:
            raise Refusal(413, "too_large", f"{size} bytes; at most {endpoint.limit} here")
        if endpoint.knock is not None:
            endpoint.knock(request.remote, request.headers.get(KNOCK, ""), request.body)
        opened = await self._identify(request, endpoint)
        trusted = bool(self._trusted(opened.issuer)) and not endpoint.public
        if trusted and (refusal := request.signed(opened.issuer)):
            raise Refusal(503, "busy", refusal, again=2)
        message = self.peer_quotas.message
        try:
            with message(opened, endpoint.kind) if trusted else nullcontext():
                if endpoint.action is not None:
                    answer = await endpoint.action(opened, request.body)
                elif endpoint.placed is not None:
                    answer = await endpoint.placed(opened, request.remote)
                else:
                    answer = await self._each(opened, request, endpoint.each)
        except Refusal as refusal:
            if endpoint.keep is not None and request.remote.startswith(BROUGHT):
                refusal.kept = await endpoint.keep(opened, refusal)
            raise
        self.counters[f"ok_{endpoint.kind.value}"] += 1
        return Response(200, answer, "application/cose")

    async def _each(self, opened: VerifiedMessage, request: Request, path: str) -> bytes:
        """Answer each message inside of one, as if it had come alone. Raises Rejected (malformed).

        So each has its own checks, quotas, refusal and transaction, and none touches another.
        """
        inside = load(opened.payload, Submits).submits

        async def one(data: bytes) -> Answer:
            if self.peers.index.root(inspect(data, limit=len(data)).issuer) != opened.issuer:
                raise Rejected("malformed", "a message of another colony")
            alone = Request("POST", path, "", {}, data, request.remote)
            response = await self.handle(alone)
            if len(response.body) > ANSWER:
                # The sender would not read so much of an answer at `path`, either.
                return Answer(503, b"")
            again = dict(response.headers).get("retry-after", "0")
            return Answer(response.status, response.body, int(again))

        async def answer(data: bytes) -> Answer:
            try:
                return await one(data)
            except Rejected as rejected:
                refused = self._refuse(refusal_of(rejected))
                return Answer(refused.status, refused.body)
            except Exception:
                log.exception("one of several submissions failed", peer=opened.issuer)
                return Answer(500, b"")

        answers = await gather(answer, inside, len(inside))
        return self.signer.seal(Kind.RECEIPTS, opened.issuer, Receipts(answers))

    async def _identify(self, request: Request, endpoint: Endpoint) -> VerifiedMessage:
        """Open a message, and return it with the id under which its sender is kept.

        Raises Rejected, or Refusal for a sender that is not trusted.
        """
        kind = endpoint.kind
        card = self._card_in(request, endpoint) if kind in _INTRODUCING else None
        guest = self._guest(request, endpoint) if endpoint.guest is not None else None
        opened = self._open(request, endpoint, card or guest)
        if card is not None and kind is Kind.HELLO:
            hello = load(opened.payload, Hello)
            await self._follow(hello)
            self._count_card(card)
            near, source = is_near(request.remote), source_of(request.remote)
            entry = await self.peers.learn(card, hello.card, near=near, source=source)
            if entry is not None:
                entry.lastseen = self.signer.clock.seconds
        root = self.peers.index.root(opened.issuer)
        if root != opened.issuer and not endpoint.public:
            opened = msgspec.structs.replace(opened, issuer=root, signer=opened.issuer)
        if request.remote.startswith(BROUGHT):
            opened = msgspec.structs.replace(opened, way=request.remote)
        self._demand_trust(opened.issuer, public=endpoint.public or guest is not None)
        return opened

    def _guest(self, request: Request, endpoint: Endpoint) -> Card | None:
        """Return the card of a sender that is not trusted, None for a trusted one.

        Raises Refusal or Rejected.
        """
        seen = inspect(request.body, limit=endpoint.limit)
        if self._trusted(seen.issuer) or endpoint.guest is None:
            return None
        self._demand_trust(seen.issuer, public=True)
        try:
            return endpoint.guest(seen, request.remote)
        except Refusal as refusal:
            if refusal.status == 403:
                # Nobody expects it: it counts with all that strangers send.
                self._admission.stranger(request.remote, self.signer.clock.steady())
            raise

    def _open(self, request: Request, endpoint: Endpoint, card: Card | None) -> VerifiedMessage:
        """Open a message. A message of a colony that is not trusted is counted first."""
        # To look for the mistake in a guest's message would cost a check for each kind.
        name, mistakes = "", endpoint.guest is None

        def key_of(issuer: str) -> bytes | None:
            nonlocal name, mistakes
            if card is None:
                mistakes = self._admit(issuer, request)
            name = self._trusted(issuer)
            return self._key(issuer, card)

        try:
            opened = open_envelope(
                request.body,
                kind=endpoint.kind,
                audience=self.signer.ids,
                now=self.signer.clock.seconds,
                keys=key_of,
                limit=endpoint.limit,
                high_water=self.signer.clock.floor,
                explain=lambda: mistakes,
            )
        except Rejected as rejected:
            if name and rejected.code in ("bad_signature", "wrong_kind"):
                self._admission.failed(name, request.remote, self.signer.clock.steady())
            raise
        if name:
            self._admission.held(name, request.remote)
        return opened

    def _trusted(self, issuer: str) -> str:
        """Return the id under which a trusted colony is kept, "" for any other colony."""
        trusted = self.peers.state(issuer) == TRUSTED
        return self.peers.index.root(issuer) if trusted else ""

    def _admit(self, issuer: str, request: Request) -> bool:
        """Return whether to look for the fault in a message that names its sender.

        Raises Refusal (stranger_rate) before anything is checked.
        """
        now = self.signer.clock.steady()
        if name := self._trusted(issuer):
            return self._admission.trusted(name, request.remote, now)
        self._admission.stranger(request.remote, now)
        return True

    def _count_card(self, card: Card) -> None:
        """Count a trusted colony's newer card, which costs a write. Raises Refusal (card_rate)."""
        entry = self.peers.get(card.id)
        if entry is None or entry.peer.state != TRUSTED or card.id != entry.peer.wire:
            return
        if card.sequence > entry.peer.sequence:
            self.peer_quotas.card(entry.peer.id)

    async def _follow(self, hello: Hello) -> None:
        """Record a peer's new key, before its card is taken for a stranger's."""
        try:
            await follow(self.peers, hello.successors, self.signer.clock.seconds)
        except Refusal as refusal:
            usurped = refusal.code == "usurped"
            if usurped and (more := self._log_limiter.line(self.signer.clock.steady())) is not None:
                log.warning("succession refused", why=refusal.message, **more)
            raise

    def _key(self, issuer: str, card: Card | None) -> bytes | None:
        entry = self.peers.get(issuer)
        known = entry.peer.key_of(issuer, self.signer.clock.seconds) if entry else None
        if known is None and entry is not None and issuer != entry.peer.wire:
            now_is = entry.peer.wire[:12]
            raise Refusal(401, "superseded", f"this key was replaced; the colony is {now_is}")
        if known is None and card is not None and card.id == issuer:
            return card.public_key
        return known

    def _card_in(self, request: Request, endpoint: Endpoint) -> Card:
        """Return the card in a hello, by which a colony that we cannot reach introduces itself."""
        seen = inspect(request.body, limit=SIZES[Kind.HELLO].bytes)
        if not endpoint.public:
            self._admit(seen.issuer, request)
        data = load(seen.payload, Hello).card
        card = open_card(data, self.signer.clock.seconds, high_water=self.signer.clock.floor)
        if card.id != seen.issuer:
            raise Rejected("unknown_issuer", "the card is another colony's")
        return card

    def _demand_trust(self, issuer: str, *, public: bool) -> None:
        state = self.peers.state(issuer)
        if state == BLOCKED:
            raise Refusal(403, "blocked", "this colony blocks yours")
        if state != TRUSTED and not public:
            raise Refusal(
                403,
                "untrusted",
                f"this colony does not trust yours yet; there: colony peer trust {issuer[:12]}",
            )
