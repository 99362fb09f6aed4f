"""Keys, ids and signatures of colonies, executors and users, and the files that hold keys.

Nothing here knows of messages or envelopes: callers pass digests or bytes and get ids back.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import coincurve
from coincurve.ecdsa import cdata_to_der, deserialize_compact

# Half of the group order of secp256k1 (SEC 2, section 2.4.1): a larger s is the malleable twin.
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class IdentityError(ValueError):
    """A key, id or signature that is malformed; the message never contains secret bytes."""


def id_of(public_key: bytes) -> str:
    """Return the 64 hex characters of the id of a 65-byte uncompressed public key.

    Upstream hashes the lower-case hex *text* of the key with SHA3-256, not its bytes.
    """
    return hashlib.sha3_256(public_key.hex().encode()).hexdigest()


@dataclass(frozen=True)
class PrivateKey:
    """A secp256k1 private key; `repr` shows the id only."""

    _key: coincurve.PrivateKey = field(repr=False)
    public_key: bytes = field(repr=False)
    id: str

    @classmethod
    def _of(cls, key: coincurve.PrivateKey) -> PrivateKey:
        public = key.public_key.format(compressed=False)
        return cls(key, public, id_of(public))

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key from the system's randomness."""
        return cls._of(coincurve.PrivateKey())

    @classmethod
    def from_hex(cls, text: str) -> PrivateKey:
        """Parse 64 hex characters. Raises IdentityError, which never shows them."""
        try:
            raw = bytes.fromhex(text.strip())
            if len(raw) != 32:
                raise ValueError
            return cls._of(coincurve.PrivateKey(raw))
        except ValueError:
            raise IdentityError("a private key is 64 hex characters of a secp256k1 key") from None

    @property
    def hex(self) -> str:
        """Return the secret itself as 64 hex characters."""
        return self._key.to_hex().rjust(64, "0")

    def sign(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest: r (32) ‖ s (32) ‖ recovery id (1), RFC 6979 nonce, low s."""
        return self._key.sign_recoverable(digest, hasher=None)

    def sign_es256k(self, message: bytes) -> bytes:
        """Sign `message` as ES256K (RFC 8812): ECDSA over its SHA-256, r ‖ s, 64 bytes, low s."""
        return self._key.sign_recoverable(message)[:64]


@lru_cache(maxsize=1024)
def recover_id(digest: bytes, signature: bytes) -> str:
    """Return the id whose key made the 65-byte `signature` of the 32-byte `digest`.

    The last ones are remembered: a client that polls sends the same bytes, since its signatures
    are deterministic, and to recover a key takes longer than to read the whole request.

    Raises IdentityError for a wrong length, a high s or a signature without a key.
    """
    if len(signature) != 65:
        raise IdentityError("a signature is 65 bytes (130 hex characters)")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER or signature[64] > 3:
        raise IdentityError("the signature has a high s or a recovery id over 3")
    try:
        public = coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError:
        raise IdentityError("no key can have made this signature") from None
    return id_of(public.format(compressed=False))


def verify_es256k(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether the 64-byte `signature` of `message` holds under the 65-byte key; never
    raises.
    """
    if len(signature) != 64 or int.from_bytes(signature[32:], "big") > _HALF_ORDER:
        return False
    try:
        der = cdata_to_der(deserialize_compact(signature))
        return coincurve.PublicKey(public_key).verify(der, message)
    except ValueError:
        return False


def _digest(payload: str) -> bytes:
    return hashlib.sha3_256(payload.encode("ascii")).digest()


def sign_payload(key: PrivateKey, payload: str) -> str:
    """Sign the base64 text of an RPC payload as upstream does; 130 hex characters."""
    return key.sign(_digest(payload)).hex()


def recover_payload(payload: str, signature: str) -> str:
    """Return the id that signed the base64 text of an RPC payload. Raises IdentityError."""
    try:
        return recover_id(_digest(payload), bytes.fromhex(signature))
    except ValueError as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError("signature: not hex, or the payload is not ASCII") from None


def read_key(path: Path) -> PrivateKey:
    """Read a key file. Raises FileNotFoundError, or IdentityError naming the file."""
    try:
        return PrivateKey.from_hex(path.read_text("ascii"))
    except (IdentityError, UnicodeDecodeError):
        raise IdentityError(f"{path}: not a private key (64 hex characters)") from None


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a key file with mode 0600, durably. Raises FileExistsError: never overwrites."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(key.hex + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # A full disk must not leave a file that is no key, and in the way of the next try.
        path.unlink(missing_ok=True)
        raise
