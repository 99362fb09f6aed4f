"""The download of a file of the colony: its bytes go from the daemon through to the browser.

`colonyd.client.files` gets them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs, quote

import httpx
import trio

from cli.core.errors import Failure
from cli.ui.api import odd
from cli.ui.context import ODD, Context
from colonyd.client.files import DaemonStore
from colonyd.errors import ColonyError
from colonyd.rpc import RpcError, Unreachable
from node.http.message import Response, head

_HELD = 65_536  # bytes that are kept back until the checksum is known


async def download(context: Context, query: str, headers: Sequence[tuple[str, str]]) -> Response:
    """Return the response that streams the newest version of a file; a sentence if it can't be had.

    `query` names it by `label` and `name`.
    """
    asked = parse_qs(query)
    label, name = (asked.get(each, [""])[0] for each in ("label", "name"))
    try:
        found = await context.here("getfilemsg", label=label, name=name, latest=True)
    except RpcError as error:
        return _told(error.status, error.message, headers)
    except Unreachable as error:
        return _told(503, str(error), headers)
    try:
        return _begin(context, dict(found[0]), headers)
    except ODD as error:
        return _told(502, odd(error), headers)


def _begin(
    context: Context, version: dict[str, Any], headers: Sequence[tuple[str, str]]
) -> Response:
    if version["ref"]["protocol"] != "colonyd":
        where = version["ref"]["s3object"].get("server") or "an S3 server"
        return _told(
            409,
            f"its bytes are on {where}, whose keys this command does not use: `colony file get`",
            headers,
        )
    # A name is another's text: it is quoted whole, and the browser never shows the bytes itself.
    named = quote(str(version["name"]), safe="")
    extra = (
        ("content-disposition", f"attachment; filename*=UTF-8''{named}"),
        ("content-length", str(max(0, int(version["size"])))),
        ("connection", "close"),
    )
    begin = Response(200, b"", "application/octet-stream", (*headers, *extra))

    async def stream(to: trio.abc.Stream, ahead: bytes) -> None:
        start = head(begin, int(context.activity.clock())) + b"\r\n"
        try:
            await to.send_all(start)
            await _send(context, version, to)
        except (
            RpcError,
            Unreachable,
            ColonyError,
            Failure,
            httpx.TransportError,
            trio.BrokenResourceError,
            *ODD,
        ):
            pass  # the length is wrong then: the browser says that the download failed

    begin.upgrade = stream
    return begin


async def _send(context: Context, version: dict[str, object], to: trio.abc.Stream) -> None:
    """Send the bytes; the last of them only if all have the checksum. Raises Failure."""
    digest, held = hashlib.sha256(), b""
    async with DaemonStore(context.client, context.colony, context.member) as store:
        async with aclosing(store.get(version, 0)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                held += chunk
                if len(held) > _HELD:
                    await to.send_all(held[:-1])
                    held = held[-1:]
    if digest.hexdigest() != version["checksum"]:
        raise Failure("the bytes do not have the checksum")
    await to.send_all(held)


def _told(status: int, text: str, headers: Sequence[tuple[str, str]]) -> Response:
    return Response(status, text.encode("utf-8", "replace"), headers=tuple(headers))
