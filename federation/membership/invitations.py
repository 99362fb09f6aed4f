"""Invitations, the inviting side: made, listed, revoked, and redeemed once with the secret.

`wire.invitation` has the token and what is derived from its secret, `membership.join` the joining
side, `peers.registry` the trust that follows.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound
from federation.peers.address_limit import AddressLimiter
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.policy import Policy, TokenBucket
from federation.peers.registry import BLOCKED
from federation.peers.unreachable import cannot_be
from federation.transport.endpoint import Endpoint
from federation.wire import invitation as tokens
from federation.wire.card import Card, open_card
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.invitation import Token
from federation.wire.messages import Join, Welcome, load
from federation.wire.refusals import BROUGHT, Refusal
from node.etcd.batch import read
from node.etcd.txn import Absent, Delete, ModRevision, Put
from node.host.log import get_logger
from node.model.codec import pack, unpack

MOST = 100  # open invitations
LONGEST = 30 * 86_400  # seconds
_KEEP_USED = 86_400  # seconds after its end in which the colony that redeemed it may ask again
_FRESH = 60  # seconds that a nonce of ours is valid, at least; twice that at most
_TRIES = 3

# Attempts a minute: of one address (an IPv6 /64 counts as one), and of all together. A join takes
# two. Attempts that prove knowledge of an invitation's secret count for that invitation alone.
_EACH, _ALL = 20, 600
_KNOWN = 1024  # keys of redeemed invitations in memory, the latest

log = get_logger("invitations")


class Invitation(msgspec.Struct, frozen=True):
    """A stored invitation, with a key made from its secret. Times are seconds since the epoch."""

    key: bytes
    created: int
    expires: int
    policy: Policy | None = None


class RedeemedInvitation(msgspec.Struct, frozen=True):
    """The colony that redeemed an invitation. With the key, a lost answer can be sent again."""

    key: bytes
    joiner: str
    expires: int


@dataclass
class Invitations:
    """The invitations of the home colony. `changed` is called when one is made, ended or redeemed.

    Where the colony is found by its id (`wide`), an invitation needs no address. It has none of
    ours while `hidden`, since nobody can connect to them.
    """

    context: Context
    own_card: OwnCard
    wide: bool = False
    hidden: Callable[[], bool] = lambda: False
    changed: Callable[[], None] = lambda: None
    _seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _limiter: AddressLimiter = field(default_factory=lambda: AddressLimiter(_EACH, _ALL))
    # Keys by name, open or redeemed, each with its attempts: asked before anything else.
    _known: dict[str, tuple[bytes, TokenBucket]] = field(default_factory=dict, repr=False)

    # -- calls of the owner -------------------------------------------------------------------

    async def invite(self, seconds: int, policy: Policy | None, addresses: list[str]) -> Token:
        """Make an invitation that is valid for `seconds`. The secret is in the token only.

        Raises Invalid for impossible fields, Conflict if too many are open.
        """
        if not 0 < seconds <= LONGEST:
            raise Invalid(f"expires: 1 to {LONGEST} seconds")
        for each in addresses:
            # Not compared with our own addresses: these are where we are.
            if why := cannot_be(each):
                raise Invalid(f"addresses: {each[:80]!r} {why}")
        places = addresses or ([] if self.hidden() else self.own_card.endpoints)
        if not places and not self.wide:
            raise Invalid("addresses: none is known; give one at which the other side reaches this")
        if await self.context.client.count(self.context.keys.invitations) >= MOST:
            raise Conflict(f"{MOST} invitations are open; revoke some: colony peer invite ls")
        secret, now = secrets.token_bytes(tokens.SECRET_BYTES), self.context.clock.seconds
        token = Token(
            self.context.signer.key.id,
            self.own_card.fingerprint,
            places[: tokens.MAX_ADDRESSES],
            now + seconds,
            secret,
        )
        try:
            tokens.write_token(token)
        except ValueError as error:
            raise Invalid(f"addresses: {error}") from None
        kept = Invitation(tokens.key_of(secret), now, token.expires, policy)
        await self.context.client.put(
            self.context.keys.invitation(tokens.name_of(secret)), pack(kept)
        )
        self._known[tokens.name_of(secret)] = (kept.key, TokenBucket())
        self.changed()
        log.info("invited", invitation=tokens.name_of(secret), expires=token.expires)
        return token

    async def open(self) -> list[tuple[str, Invitation]]:
        """Return the invitations that are not redeemed, by name."""
        items, _ = await self.context.client.range_all(self.context.keys.invitations)
        start = len(self.context.keys.invitations)
        return [(item.key[start:], unpack(item.value, Invitation)) for item in items]

    async def revoke(self, text: str) -> str:
        """Delete the invitation whose name begins with `text`. Raises NotFound or Invalid."""
        found = [name for name, _ in await self.open() if text and name.startswith(text)]
        if not found:
            raise NotFound(f"invitation: none that begins with {text[:40]!r} is open")
        if len(found) > 1:
            raise Invalid(f"invitation: {text!r} may be {', '.join(found[:5])}; give more of it")
        await self.context.client.delete(self.context.keys.invitation(found[0]))
        self._known.pop(found[0], None)
        self.changed()
        log.info("invitation revoked", invitation=found[0])
        return found[0]

    def names(self) -> list[str]:
        """Return the names of the invitations that are open, or were redeemed lately."""
        return list(self._known)

    async def load(self) -> None:
        """Read the invitations in the store, of which another daemon may have made some.

        Raises EtcdError.
        """
        opened = {name: kept.key for name, kept in await self.open()}
        items, _ = await self.context.client.range_all(self.context.keys.used_invitations)
        start = len(self.context.keys.used_invitations)
        used = sorted(
            ((unpack(item.value, RedeemedInvitation), item.key) for item in items), key=_ending
        )
        # The open ones last: a mailbox is told the last ones.
        listed = {key[start:]: each.key for each, key in used[-_KNOWN:]} | opened
        before = self._known
        self._known = {
            name: (key, before[name][1] if name in before else TokenBucket())
            for name, key in listed.items()
        }
        if before.keys() != self._known.keys():
            self.changed()

    async def sweep(self) -> None:
        """Delete expired invitations."""
        now = self.context.clock.seconds
        for name, kept in await self.open():
            if kept.expires < now:
                await self.context.client.delete(self.context.keys.invitation(name))
        items, _ = await self.context.client.range_all(self.context.keys.used_invitations)
        for item in items:
            if unpack(item.value, RedeemedInvitation).expires + _KEEP_USED < now:
                await self.context.client.delete(item.key)

    # -- endpoint for joiners -----------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which an invited colony joins."""
        return [Endpoint("/v1/join", Kind.JOIN, self.answer, knock=self.knock)]

    def knock(self, remote: str, shown: str, body: bytes) -> None:
        """Count an attempt from an address. Raises Refusal (join_rate).

        `shown` is the header KNOCK: colonies that know a secret do not queue with those that guess.
        """
        now = trio.current_time()
        known = self._shown(shown, body)
        if known is None:
            wait = self._limiter.take(remote, now)
        elif remote.startswith(BROUGHT):
            # The mailbox may bring one join again and again: others come by other ways.
            wait = self._limiter.of(f"{remote} {shown.partition(' ')[0]}").take(_EACH, now)
        else:
            wait = known.take(_EACH, now)
        if wait:
            raise Refusal(429, "join_rate", "too many attempts to join", again=int(wait) + 1)

    def _shown(self, shown: str, body: bytes) -> TokenBucket | None:
        """Return the attempts of the invitation whose key made `shown`, None for any other text.

        It always takes one hash and one MAC, so the time tells nothing about existing names.
        """
        name, _, told = shown.partition(" ")
        key, bucket = self._known.get(name, (self._seed, None))
        right = hmac.compare_digest(tokens.knock(key, body).hex().encode(), told.encode())
        return bucket if right else None

    def _challenges(self, issuer: str, nonce: bytes) -> list[bytes]:
        """Return our nonces for an exchange, the present one first; none is stored."""
        slot = int(trio.current_time() // _FRESH)
        said = f"{issuer}/{nonce.hex()}"
        return [
            hmac.digest(self._seed, f"{said}/{slot - back}".encode(), "sha256")[:16]
            for back in (0, 1)
        ]

    async def answer(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Return a nonce; or check the proof, trust the joiner, and return the signed welcome.

        One transaction, which compares the invitation, trusts the joiner and deletes the
        invitation: so only one of several joiners succeeds. The joiner stays on record, to be
        answered again.
        """
        join = load(opened.payload, Join)
        challenges = self._challenges(opened.issuer, join.nonce)
        if not join.answer and not join.proof:
            return self._welcome(opened, challenges[0], b"")
        if not any(hmac.compare_digest(join.answer, each) for each in challenges):
            raise Refusal(409, "join_stale", "the exchange took too long; begin again")
        card = open_card(join.card, self.context.clock.seconds, high_water=self.context.clock.floor)
        for _ in range(_TRIES):
            key = await self._verify(opened, join, card)
            if key is not None:
                return self._welcome(opened, join.answer, self._proof(key, "inviter", opened, join))
        raise Refusal(503, "busy", "the invitation changes too fast", again=1)

    async def _verify(self, opened: VerifiedMessage, join: Join, card: Card) -> bytes | None:
        """Trust the joiner. Return the invitation's key, or None to try again. Raises Refusal.

        A wrong secret takes the same reads and the same comparison as a right one.
        """
        places = (
            self.context.keys.invitation(join.invitation),
            self.context.keys.used_invitation(join.invitation),
        )
        fresh, used = await read(self.context.client, *places)
        kept = unpack(fresh.value, Invitation) if fresh else None
        past = unpack(used.value, RedeemedInvitation) if used else None
        key = kept.key if kept else past.key if past else secrets.token_bytes(32)
        right = hmac.compare_digest(self._proof(key, "joiner", opened, join), join.proof)
        if right and past is not None and past.joiner == opened.issuer:
            return key
        if not right or kept is None or fresh is None:
            raise Refusal(
                403,
                "join_refused",
                "no open invitation fits this token: it was used, was revoked, or is another "
                "colony's; ask for a new one (there: colony peer invite)",
            )
        if kept.expires < self.context.clock.seconds:
            raise Refusal(403, "join_expired", "the invitation has expired; ask for a new one")
        admitted = await self.context.peers.admit(
            card,
            join.card,
            kept.policy,
            compare=[ModRevision(places[0], fresh.mod_revision), Absent(places[1])],
            ops=[
                Delete(places[0]),
                Put(places[1], pack(RedeemedInvitation(key, opened.issuer, kept.expires))),
            ],
        )
        if admitted:
            log.info("joined", invitation=join.invitation, peer=opened.issuer)
            return key
        if self.context.peers.state(opened.issuer) == BLOCKED:
            raise Refusal(403, "blocked", "this colony blocks yours")
        return None

    def _proof(self, key: bytes, role: tokens.Role, opened: VerifiedMessage, join: Join) -> bytes:
        return tokens.proof(
            key,
            role,
            joiner=opened.issuer,
            inviter=self.context.signer.key.id,
            nonces=(join.nonce, join.answer),
            fingerprint=self.own_card.fingerprint,
        )

    def _welcome(self, opened: VerifiedMessage, nonce: bytes, proof: bytes) -> bytes:
        return self.context.signer.seal(Kind.WELCOME, opened.issuer, Welcome(nonce, proof))


def _ending(used: tuple[RedeemedInvitation, str]) -> tuple[int, str]:
    return used[0].expires, used[1]
