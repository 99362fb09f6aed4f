"""Tickets: short-lived signed permissions for one transfer of one file's bytes, as a query string.

The holder of a ticket may do what it says until it expires: members get tickets by a call, and one
may be handed to a peer colony with a forwarded process. `daemon.blobs` serves the bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

import msgspec

from colonyd.errors import Denied, Invalid
from node.model.types import SECOND

PREFIX = "/files/"

# Seconds for which a ticket holds by default.
LIFETIME = 900
CHECKSUM = re.compile(r"[0-9a-f]{64}\Z")
_METHODS = ("GET", "PUT")
_CONTEXT = b"colonyd file ticket 1"


class Scope(msgspec.Struct, frozen=True):
    """The permission of a ticket: `method` GET or PUT on the bytes with a SHA-256 (hex) and size.

    `uploader` keeps the unfinished uploads of members apart; `expires` is in Unix seconds.
    """

    method: str
    colony: str
    checksum: str
    size: int
    expires: int
    uploader: str = ""


class Tickets:
    """Makes and checks tickets with a secret of this daemon. `now` gives Unix nanoseconds."""

    def __init__(self, secret: bytes, now: Callable[[], int]) -> None:
        self._key = hashlib.sha256(_CONTEXT + secret).digest()
        self._now = now

    def issue(
        self,
        method: str,
        colony: str,
        checksum: str,
        size: int,
        *,
        uploader: str = "",
        lifetime: int = LIFETIME,
    ) -> tuple[str, int]:
        """Return a query string, and when it expires (Unix seconds). Raises Invalid."""
        if method not in _METHODS:
            raise Invalid("method: GET or PUT")
        if not CHECKSUM.match(checksum):
            raise Invalid("checksum: the SHA-256 as 64 lower-case hex characters is needed")
        if not 0 <= size < 1 << 63:
            raise Invalid("size: bytes, 0 or more")
        expires = self._now() // SECOND + lifetime
        scope = Scope(method, colony, checksum, size, expires, uploader)
        fields = {
            "method": method,
            "colony": colony,
            "size": str(size),
            "expires": str(expires),
            "uploader": uploader,
            "signature": self._sign(scope),
        }
        return urlencode(fields), expires

    def check(self, method: str, checksum: str, query: str) -> Scope:
        """Return the permission of the ticket in `query`. HEAD goes with any ticket. Raises
        Denied.
        """
        fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
        try:
            scope = Scope(
                fields["method"],
                fields["colony"],
                checksum,
                int(fields["size"]),
                int(fields["expires"]),
                fields["uploader"],
            )
            signature = fields["signature"].encode()
        except (KeyError, ValueError):
            raise Denied("ticket: incomplete; get one with fileticketmsg") from None
        if not hmac.compare_digest(signature, self._sign(scope).encode()):
            raise Denied("ticket: not made by this daemon for these bytes")
        if method not in (scope.method, "HEAD"):
            raise Denied(f"ticket: it allows {scope.method}, not {method[:10]}")
        if self._now() >= scope.expires * SECOND:
            raise Denied("ticket: expired; get a new one with fileticketmsg")
        return scope

    def _sign(self, scope: Scope) -> str:
        # JSON keeps the fields apart, whatever text they hold.
        text = json.dumps(msgspec.structs.astuple(scope)).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
