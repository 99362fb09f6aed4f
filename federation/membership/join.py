"""Invitations, the joining side: from a token to mutual trust.

`wire.invitation` reads tokens; `invitations` is the inviting side.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.policy import Policy
from federation.peers.registry import Peer, PeerState
from federation.transport.connection import Guide, PeerConnection, fetch_card
from federation.transport.errors import Lost, RemoteRefusal, TransportError, Unsent
from federation.wire import invitation as tokens
from federation.wire.card import Card
from federation.wire.envelope import Kind, Rejected
from federation.wire.invitation import KNOCK, Token, TokenError
from federation.wire.messages import Join, Welcome, load
from node.host.log import get_logger
from node.model.errors import Conflict, Denied, Invalid

_PATH = "/v1/join"
_TRIES = 3  # of one message whose answer was lost

log = get_logger("joining")


@dataclass
class _Inviter(Guide):
    """The guide to an invitation's address, and nowhere else. `key` is derived from its secret."""

    name: str
    key: bytes

    def headers(self, body: bytes) -> Mapping[str, str]:
        """Return the proof of the secret: with it, the message does not queue with strangers'."""
        return {KNOCK: f"{self.name} {tokens.knock(self.key, body).hex()}"}

    async def ways(self, address: str) -> list[str]:
        """Return the address: the owner gave the invitation."""
        return [address]

    async def renew(self, address: str) -> None:
        """Refuse any other certificate. Raises Unsent."""
        raise Unsent(f"{address}: shows another certificate than the invitation says")


@dataclass
class Joiner:
    """Joins other colonies for the home colony."""

    context: Context
    own_card: OwnCard

    async def join(self, text: str, policy: Policy | None) -> PeerState:
        """Prove a token's secret, be trusted there, then trust the inviting colony.

        It may be repeated: the colony that redeemed a token is answered again. Our own trust is the
        last step, after the other side has proven the secret as well. Raises RpcError.
        """
        token = self._read(text)
        problems: list[str] = []
        for address in token.addresses:
            try:
                return await self._at(address, token, policy)
            except TransportError as error:
                if error.final:
                    raise Denied(f"the invitation was not accepted: {error}") from None
                problems.append(str(error))
        raise Conflict(f"nobody who could accept the invitation was reached: {'; '.join(problems)}")

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
        if not await self.context.peers.admit(card, data, policy, compare=[], ops=[], unblock=True):
            raise Conflict("the peer's record changed meanwhile; try again")
        entry = self.context.peers.find(card.id)
        entry.give(address)
        entry.prove(address)
        log.info("joined", peer=card.id, called=card.name)
        return entry

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
