"""HTTP clients whose answers are not decoded, and not read further than the caller allows.

A server may answer a few kilobytes that decode to gigabytes. So every HTTP client of the daemon and
of the commands is made here, but for `pool`, which keeps to the same. Callers interpret the
answers.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, cast

import httpx
import msgspec


def reason_of(error: BaseException) -> str:
    """Return why a connection failed, as the system says it, else the text of the error.

    Attempts at several addresses are gathered in a group, whose own text names no reason.
    """
    for leaf in _leaves(error):
        if isinstance(leaf, OSError) and leaf.errno and not isinstance(leaf, ssl.SSLError):
            # The resolver numbers its errors below zero, and they bring their text.
            known = os.strerror(leaf.errno) if leaf.errno > 0 else leaf.strerror
            return (known or str(leaf)).lower()
    return str(error) or type(error).__name__


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif error is not None:
        # An error raised `from None` speaks for itself, except errors that the library renames so.
        library = type(error).__module__.partition(".")[0] in ("httpx", "httpcore")
        hidden = error.__suppress_context__ and not library
        yield from _leaves(error.__cause__ or (None if hidden else error.__context__))
        yield error


class TooLong(httpx.RemoteProtocolError):
    """An answer is longer than the caller allows."""


class HttpReply(msgspec.Struct, frozen=True):
    """A whole answer."""

    status_code: int
    headers: httpx.Headers
    content: bytes


def http_client(**options: Any) -> httpx.AsyncClient:
    """Return a client that asks for answers without a content coding and refuses all others.

    It passes over proxy variables: these must not divert calls to a local daemon. `options` are
    httpx's. An encoded answer raises httpx.RemoteProtocolError before its body is read.
    """
    return httpx.AsyncClient(
        trust_env=False,
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [_require_identity]},
        **options,
    )


async def _require_identity(response: httpx.Response) -> None:
    coding = response.headers.get("content-encoding", "")
    if any(each.strip().lower() not in ("", "identity") for each in coding.split(",")):
        raise httpx.RemoteProtocolError(
            f"the answer has the content coding {coding[:40]!r}, and only answers without one are "
            "taken; a proxy in between must not compress",
            request=response.request,
        )


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """Return the body of a streamed answer, at most `limit` bytes. Raises TooLong."""
    declared = response.headers.get("content-length", "")
    parts, total = [], int(declared) if declared.isdigit() else 0
    if total <= limit:
        total = 0
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as raw:
            async for part in raw:
                total += len(part)
                if total > limit:
                    break
                parts.append(part)
    if total > limit:
        raise TooLong(f"the answer is longer than {limit} bytes", request=response.request)
    return b"".join(parts)


async def ask(
    http: httpx.AsyncClient, method: str, url: str, *, limit: int, **options: Any
) -> HttpReply:
    """Send a request and return its answer, whose body has at most `limit` bytes.

    Raises httpx.HTTPError, among them TooLong.
    """
    async with http.stream(method, url, **options) as response:
        body = await read_body(response, limit)
        return HttpReply(response.status_code, response.headers, body)
