"""Invitations, the joining side: from a token to mutual trust.

`wire.invitation` reads tokens; `invitations` is the inviting side.
"""

from __future__ import annotations

import functools
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from colonyd.errors import Conflict, Denied, Invalid
from federation.membership.finder import Finder
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.policy import Policy
from federation.peers.registry import Peer, PeerState
from federation.transport.connection import Carrier, Guide, PeerConnection, fetch_card
from federation.transport.errors import Lost, RemoteRefusal, TransportError, Unsent
from federation.transport.ways import MailboxWays
from federation.wire import invitation as tokens
from federation.wire.card import Card, open_card
from federation.wire.envelope import Kind, Rejected
from federation.wire.invitation import KNOCK, Token, TokenError
from federation.wire.messages import Join, Welcome, load
from node.host.log import get_logger

_PATH = "/v1/join"
_SOUGHT = 40.0  # seconds, two look-ups: the inviter may have been announced a moment ago
_TRIES = 3  # of one message whose answer was lost

log = get_logger("joining")


def _ignore(mailbox: str) -> None:
    """Do nothing: there is no other mailbox."""


@dataclass
class _Search:
    """What finds the inviting colony by its id, and the problems on the way."""

    finder: Finder
    mailbox_ways: MailboxWays
    problems: list[str]


@dataclass
class _Inviter(Guide):
    """The guide to an invitation's address, and nowhere else. `key` is derived from its secret.

    With a `carrier`, it leads to a mailbox of the inviting colony.
    """

    name: str
    key: bytes
    carrier: Carrier | None = None
    doubts: Callable[[str], None] = field(default_factory=lambda: _ignore)

    def misled(self, mailbox: str) -> None:
        """Tell that a mailbox brought an answer which proves nothing."""
        self.doubts(mailbox)

    def knock(self, body: bytes) -> str:
        """Return the proof of the secret: with it, the message does not queue with strangers'."""
        return f"{self.name} {tokens.knock(self.key, body).hex()}"

    def headers(self, body: bytes) -> Mapping[str, str]:
        """Return the header of the proof."""
        return {KNOCK: self.knock(body)}

    def around(self) -> Carrier | None:
        """Return the way through a mailbox, or None."""
        return self.carrier

    async def ways(self, address: str) -> list[str]:
        """Return the address: the owner gave the invitation."""
        return [address]

    async def renew(self, address: str) -> None:
        """Refuse any other certificate. Raises Unsent."""
        raise Unsent(f"{address}: shows another certificate than the invitation says")


@dataclass
class Joiner:
    """Joins other colonies for the home colony.

    With a `finder` and `mailbox_ways`, an inviting colony whose addresses lead nowhere is found by
    its id.
    """

    context: Context
    own_card: OwnCard
    finder: Finder | None = None
    mailbox_ways: MailboxWays | None = None

    async def join(self, text: str, policy: Policy | None) -> PeerState:
        """Prove a token's secret, be trusted there, then trust the inviting colony.

        It may be repeated: the colony that redeemed a token is answered again. Our own trust is the
        last step, after the other side has proven the secret as well. Raises RpcError.
        """
        token = self._read(text)
        if self.finder is not None:
            self.finder.ask(token.id)
        problems: list[str] = []
        for address in token.addresses:
            try:
                return await self._at(address, token, policy)
            except TransportError as error:
                if error.final:
                    raise Denied(f"the invitation was not accepted: {error}") from None
                problems.append(str(error))
        if self.finder is not None and self.mailbox_ways is not None:
            found = _Search(self.finder, self.mailbox_ways, problems)
            if (entry := await self._found(found, token, policy)) is not None:
                return entry
        raise Conflict(f"nobody who could accept the invitation was reached: {'; '.join(problems)}")

    async def _found(
        self, search: _Search, token: Token, policy: Policy | None
    ) -> PeerState | None:
        """Join the inviting colony where it is found by its id, directly or by its mailboxes.

        Return None if it was not reached, with the reasons in the search. Raises RpcError.
        """
        entry = await search.finder.locate(token.id, _SOUGHT, afresh=True)
        problems = search.problems
        if entry is None or search.finder.wide is None:
            problems.append(search.finder.why_not_found(token.id))
            return None
        for address in entry.proven:
            try:
                return await self._at(address, token, policy)
            except TransportError as error:
                problems.append(str(error))
        if entry.peer.fingerprint != token.fingerprint:
            problems.append("its card names another certificate than the invitation")
            return None
        for mailbox in entry.peer.mailboxes:
            await search.finder.locate(mailbox)
        denied: TransportError | None = None
        for _ in entry.peer.mailboxes:
            try:
                return await self._through(search.mailbox_ways, entry, token, policy)
            except TransportError as error:
                # A mailbox may lie about the answer, so the others have their turn.
                denied = error if error.final else denied
                problems.append(str(error))
        if denied is not None:
            raise Denied(f"the invitation was not accepted: {denied}")
        return None

    async def _through(
        self, mailbox_ways: MailboxWays, entry: PeerState, token: Token, policy: Policy | None
    ) -> PeerState:
        """Join by one of the colony's mailboxes. Raises TransportError, RpcError."""
        guide = _Inviter(tokens.name_of(token.secret), tokens.key_of(token.secret))
        guide.carrier = mailbox_ways.through(entry, guide.knock)
        guide.doubts = functools.partial(mailbox_ways.misled, entry=entry)
        if guide.carrier is None:
            raise Unsent("none of its mailboxes was found")
        data, clock = entry.latest or entry.peer.card, self.context.clock
        try:
            card = open_card(data, clock.seconds, high_water=clock.floor)
        except Rejected as error:
            raise Unsent(f"its card is of no use: {error}") from None
        await self._prove(PeerConnection(PeerState(entry.peer), self.context.signer, guide), token)
        return await self._admit(card, data, policy)

    def _read(self, text: str) -> Token:
        try:
            token = tokens.read_token(text)
        except TokenError as error:
            raise Invalid(f"token: {error}") from None
        if token.id == self.context.signer.key.id:
            raise Invalid("token: this colony made it; use it at the colony that is invited")
        now = max(self.context.clock.seconds, int(self.context.clock.floor))
        if token.expires < now:
            raise Invalid(f"token: it expired {now - token.expires} s ago; ask for a new one")
        return token

    async def _at(self, address: str, token: Token, policy: Policy | None) -> PeerState:
        """Join at one address. Raises TransportError, RpcError."""
        card, data = await fetch_card(address, self.context.clock, pinned=token.fingerprint)
        if card.id != token.id:
            raise Unsent(f"{address}: another colony lives there ({card.id[:12]})")
        connection = self._connection(address, card, token)
        try:
            await self._prove(connection, token)
        finally:
            await connection.close()
        entry = await self._admit(card, data, policy)
        entry.give(address)
        entry.prove(address)
        return entry

    async def _admit(self, card: Card, data: bytes, policy: Policy | None) -> PeerState:
        """Trust the inviting colony, which has proven the secret. Raises RpcError."""
        if not await self.context.peers.admit(card, data, policy, compare=[], ops=[], unblock=True):
            raise Conflict("the peer's record changed meanwhile; try again")
        log.info("joined", peer=card.id, called=card.name)
        return self.context.peers.find(card.id)

    def _connection(self, address: str, card: Card, token: Token) -> PeerConnection:
        peer = Peer(
            card.id,
            name=card.name,
            public_key=card.public_key,
            fingerprint=card.fingerprint,
            endpoints=[address],
        )
        guide = _Inviter(tokens.name_of(token.secret), tokens.key_of(token.secret))
        return PeerConnection(PeerState(peer), self.context.signer, guide)

    async def _prove(self, connection: PeerConnection, token: Token) -> None:
        """Exchange nonces and proofs with the inviting colony. Raises TransportError."""
        key, name = tokens.key_of(token.secret), tokens.name_of(token.secret)
        card, nonce = self.own_card.card(), secrets.token_bytes(16)
        theirs = (await self._say(connection, Join(card, name, nonce))).nonce

        def proof(role: tokens.Role) -> bytes:
            return tokens.proof(
                key,
                role,
                joiner=self.context.signer.key.id,
                inviter=token.id,
                nonces=(nonce, theirs),
                fingerprint=token.fingerprint,
            )

        welcome = await self._say(connection, Join(card, name, nonce, theirs, proof("joiner")))
        if not hmac.compare_digest(welcome.proof, proof("inviter")):
            raise RemoteRefusal("join_unproven", "the other side does not know the secret itself")

    async def _say(self, connection: PeerConnection, message: Join) -> Welcome:
        """Send one message, again if its answer is lost. Raises TransportError."""
        body = self.context.signer.seal(Kind.JOIN, connection.id, message)
        for left in reversed(range(_TRIES)):
            try:
                opened, _ = await connection.post(_PATH, body, Kind.WELCOME)
                return load(opened.payload, Welcome)
            except Lost:
                if not left:
                    raise
            except Rejected as error:
                raise Lost(f"the answer is not valid: {error}") from None
        raise AssertionError("unreachable")
