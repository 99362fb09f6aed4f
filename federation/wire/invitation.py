"""The text of an invitation, what is derived from its secret, and the proofs of the secret.

Values in, values out. `membership.invitations` says what an invitation allows, and that it is
redeemed once.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, TypeAlias

import msgspec

from federation.wire import cbor
from federation.wire.compact import (
    ByteReader,
    Garbled,
    NoCode,
    check,
    pack_address,
    read_code,
    write_code,
)

# The header of a join, "NAME MAC" in hex. It proves knowledge of a secret before the message is
# read.
KNOCK = "colonyd-knock"
Role: TypeAlias = Literal["joiner", "inviter"]

SECRET_BYTES = 16
MAX_ADDRESSES = 4
_VERSION = 1
_PURPOSE = "token"
_LONGEST = 2048  # characters


class TokenError(ValueError):
    """Text that is no token; the message says what to do."""


class Token(msgspec.Struct, frozen=True):
    """An invitation: the inviting colony, its addresses and certificate, the end, the secret.

    `id` and `fingerprint` are 64 hex characters, `addresses` "host:port", `expires` seconds since
    the epoch. Without an address, the inviting colony is looked up by its id.
    """

    id: str
    fingerprint: str
    addresses: list[str]
    expires: int
    secret: bytes


def write_token(token: Token) -> str:
    """Return the token as base32 text. Raises ValueError for fields that no token can hold."""
    if len(token.secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    if len(token.addresses) > MAX_ADDRESSES:
        raise ValueError(f"a token has at most {MAX_ADDRESSES} addresses")
    parts = [
        bytes((_VERSION,)),
        token.secret,
        bytes.fromhex(token.id),
        bytes.fromhex(token.fingerprint),
        token.expires.to_bytes(5, "big"),
        bytes((len(token.addresses),)),
        *map(pack_address, token.addresses),
    ]
    return write_code(b"".join(parts), _PURPOSE)


def _check(body: bytes) -> bytes:
    return check(body, _PURPOSE)


def read_token(text: str) -> Token:
    """Return the token in a text; spaces, dashes, small letters and look-alike digits do no harm.

    Raises TokenError.
    """
    try:
        body = read_code(text, _PURPOSE, _LONGEST)
    except NoCode:
        raise TokenError(
            "it is not a token; copy all of what `colony peer invite` printed"
        ) from None
    except Garbled:
        raise TokenError("it is incomplete or mistyped; copy it again") from None
    if not body:
        raise TokenError("it is empty; `colony peer invite` on the other side prints one")
    if body[:1] != bytes((_VERSION,)):
        raise TokenError(
            f"it is of version {body[:1].hex() or 'none'}; this colonyd reads version {_VERSION}"
        )
    try:
        return _read(ByteReader(body[1:]))
    except ValueError:
        raise TokenError("it makes no sense; ask for a new one") from None


def _read(data: ByteReader) -> Token:
    secret, colony, fingerprint = data.take(SECRET_BYTES), data.take(32), data.take(32)
    expires, count = data.number(5), data.number(1)
    if count > MAX_ADDRESSES:
        raise ValueError("addresses")
    addresses = [data.address() for _ in range(count)]
    if data.data:
        raise ValueError("too long")
    return Token(colony.hex(), fingerprint.hex(), addresses, expires, secret)


def _derive(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, f"colonyd/1/invitation/{purpose}".encode(), "sha256")


def key_of(secret: bytes) -> bytes:
    """Return the key that the inviting side keeps instead of the secret, and that makes proofs."""
    return _derive(secret, "key")


def name_of(secret: bytes) -> str:
    """Return the name of the invitation, 16 hex characters. It tells nothing of secret or key."""
    return _derive(secret, "name")[:8].hex()


def knock(key: bytes, body: bytes) -> bytes:
    """Return 32 bytes that prove, before a message is read, that its sender knows the key."""
    said = b"colonyd/1/invitation/knock" + hashlib.sha256(body).digest()
    return hmac.digest(key, said, "sha256")


def proof(
    key: bytes,
    role: Role,
    *,
    joiner: str,
    inviter: str,
    nonces: tuple[bytes, bytes],
    fingerprint: str,
) -> bytes:
    """Return 32 bytes that prove that `role` knows the key, valid in this exchange only.

    `nonces` are the joiner's and the inviter's. `fingerprint` is that of the certificate that the
    inviter shows; the proof is valid over that certificate only.
    """
    said = ["colonyd/1/join", role, joiner, inviter, *nonces, fingerprint]
    return hmac.digest(key, cbor.encode(said), "sha256")
