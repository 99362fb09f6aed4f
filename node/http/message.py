"""Messages of a handler: a request, a response, and the first bytes of a response.

`connection` moves them.
"""

from __future__ import annotations

import http
import json
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TypeAlias

import msgspec
import trio

_REASONS = {int(status): status.phrase for status in http.HTTPStatus}

# Gets the stream and the bytes already read past the request; owns the connection until it returns,
# writes the 101 itself, and is cancelled at once on drain.
Upgrade: TypeAlias = Callable[[trio.abc.Stream, bytes], Awaitable[None]]


def _nobody(identity: str) -> str:
    return ""


class Request(msgspec.Struct, gc=False):
    """A complete request: `path` is percent-decoded, `query` raw, header names lower-case.

    `signed` gets the id of a signer with a right; it returns why the signer is refused, or "".
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    remote: str
    signed: Callable[[str], str] = _nobody


class Response(msgspec.Struct):
    """The answer of a handler; `upgrade`, if set, takes the connection over and nothing is sent."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    upgrade: Upgrade | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def plain_error(status: int, message: str) -> Response:
    """Return the answer to a request that never reached a handler, or whose handler crashed."""
    body = json.dumps({"status": status, "message": message}).encode()
    return Response(status, body, "application/json")


def head(response: Response, second: int) -> bytes:
    """Return status line and headers, dated `second` (Unix time).

    Raises ValueError for a line break.
    """
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}",
        f"date: {formatdate(second, usegmt=True)}",
        f"content-type: {response.content_type}",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    # h11 would take a third of the whole request's time to write these few bytes; it would only
    # guard against a line break in a handler's header.
    if any("\n" in line or "\r" in line for line in lines):
        raise ValueError("line break in a response header")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")
