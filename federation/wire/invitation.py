"""The text of an invitation, what is derived from its secret, and the proofs of the secret.

Values in, values out. `membership.invitations` says what an invitation allows, and that it is
redeemed once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from typing import Literal, TypeAlias

import msgspec

from federation.wire import cbor
from federation.wire.address import split_address

# The header of a join, "NAME MAC" in hex. It proves knowledge of a secret before the message is
# read.
KNOCK = "colonyd-knock"
Role: TypeAlias = Literal["joiner", "inviter"]

SECRET_BYTES = 16
MAX_ADDRESSES = 4
_VERSION = 1
_CHECK = 4  # bytes at the end, against typing mistakes
_LONGEST = 2048  # characters
_HOST, _V4, _V6 = 0, 4, 6
# The alphabet has none of these, so each can be replaced.
_SLIPS = str.maketrans({"0": "O", "1": "I", "8": "B"})


class TokenError(ValueError):
    """Text that is no token; the message says what to do."""


class Token(msgspec.Struct, frozen=True):
    """An invitation: the inviting colony, its addresses and certificate, the end, the secret.

    `id` and `fingerprint` are 64 hex characters, `addresses` "host:port", `expires` seconds since
    the epoch.
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
    if not 1 <= len(token.addresses) <= MAX_ADDRESSES:
        raise ValueError(f"a token has 1 to {MAX_ADDRESSES} addresses")
    parts = [
        bytes((_VERSION,)),
        token.secret,
        bytes.fromhex(token.id),
        bytes.fromhex(token.fingerprint),
        token.expires.to_bytes(5, "big"),
        bytes((len(token.addresses),)),
        *map(_pack_address, token.addresses),
    ]
    body = b"".join(parts)
    return base64.b32encode(body + _check(body)).decode().rstrip("=")


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"colonyd/1/token" + body).digest()[:_CHECK]


def _pack_address(address: str) -> bytes:
    host, port = split_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        ip = None
    if ip is None or "%" in host:
        name = host.encode()
        if len(name) > 255:
            raise ValueError(f"{address[:80]!r} is too long") from None
        return bytes((_HOST, len(name))) + name + port.to_bytes(2, "big")
    return bytes((_V4 if ip.version == 4 else _V6,)) + ip.packed + port.to_bytes(2, "big")


def read_token(text: str) -> Token:
    """Return the token in a text; spaces, dashes, small letters and look-alike digits do no harm.

    Raises TokenError.
    """
    letters = "".join(text.split()).replace("-", "").rstrip("=").upper().translate(_SLIPS)
    if not letters:
        raise TokenError("it is empty; `colony peers invite` on the other side prints one")
    try:
        if len(letters) > _LONGEST:
            raise ValueError
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError):
        raise TokenError(
            "it is not a token; copy all of what `colony peers invite` printed"
        ) from None
    body, check = data[:-_CHECK], data[-_CHECK:]
    if not hmac.compare_digest(_check(body), check):
        raise TokenError("it is incomplete or mistyped; copy it again")
    if body[:1] != bytes((_VERSION,)):
        raise TokenError(
            f"it is of version {body[:1].hex() or 'none'}; this colonyd reads version {_VERSION}"
        )
    try:
        return _read(_Bytes(body[1:]))
    except ValueError:
        raise TokenError("it makes no sense; ask for a new one") from None


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise ValueError("too short")
        piece, self.data = self.data[:count], self.data[count:]
        return piece


def _read(data: _Bytes) -> Token:
    secret, colony, fingerprint = data.take(SECRET_BYTES), data.take(32), data.take(32)
    expires, count = int.from_bytes(data.take(5), "big"), data.take(1)[0]
    if not 1 <= count <= MAX_ADDRESSES:
        raise ValueError("addresses")
    addresses = [_read_address(data) for _ in range(count)]
    if data.data:
        raise ValueError("too long")
    return Token(colony.hex(), fingerprint.hex(), addresses, expires, secret)


def _read_address(data: _Bytes) -> str:
    kind = data.take(1)[0]
    if kind == _HOST:
        host = data.take(data.take(1)[0]).decode()
    elif kind in (_V4, _V6):
        host = str(ipaddress.ip_address(data.take(4 if kind == _V4 else 16)))
    else:
        raise ValueError("kind of address")
    address = f"[{host}]" if ":" in host else host
    address += f":{int.from_bytes(data.take(2), 'big')}"
    split_address(address)
    return address


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
