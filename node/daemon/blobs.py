"""The bytes of files over HTTP: `GET`, `HEAD` and `PUT /files/<sha256>` with a ticket.

A part of an upload is one request within the limit of bodies; a download streams, or returns a
range. `handlers.files` makes tickets, `files.blobs` keeps the bytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, TooMany
from node.etcd.pressure import Need
from node.files.blobs import BlobStore
from node.files.catalog import Files
from node.files.tickets import CHECKSUM, PREFIX, Scope
from node.http.message import Request, Response
from node.rpc.dispatch import failure

_CHUNK = 1 << 18
# Up to this size an answer is one write; above it streams, and ends the connection.
_WHOLE = 1 << 20
# Seconds for one chunk to be taken by the client.
_PATIENCE = 60.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19})\Z")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})\Z")
_BINARY = "application/octet-stream"
_SAFE = (
    ("access-control-expose-headers", "content-range, file-size, upload-offset"),
    ("x-content-type-options", "nosniff"),
    ("content-disposition", "attachment"),
    ("cache-control", "private"),
)


async def answer(files: Files, request: Request) -> Response:
    """Answer a request below PREFIX. Raises RpcError, EtcdError."""
    checksum = request.path[len(PREFIX) :]
    blobs, tickets = files.blobs, files.tickets
    if blobs is None or tickets is None or not CHECKSUM.match(checksum):
        raise NotFound("path: /files/ and a SHA-256 in lower-case hex")
    scope = tickets.check(request.method, checksum, request.query)
    if refusal := request.signed(f"ticket {scope.colony} {scope.uploader}"):
        raise TooMany(refusal)
    if scope.method == "PUT":
        if request.method == "HEAD":
            return _progress(blobs.offset(scope), complete=False)
        return await _take(files, blobs, scope, request)
    size = blobs.size_of(checksum)
    if size is None:
        raise NotFound("path: these bytes are not here any more")
    return await _give(blobs.file(checksum), size, request)


async def _take(files: Files, blobs: BlobStore, scope: Scope, request: Request) -> Response:
    files.client.pressure.demand(Need.GROWS)
    offset = _part(request, scope)
    try:
        progress = await blobs.write(scope, offset, request.body)
    except Conflict as error:
        reached = (*_SAFE, ("upload-offset", str(blobs.offset(scope))))
        return Response(error.status, failure(error.status, error.message), headers=reached)
    if progress.complete:
        await files.hold(scope.colony, scope.checksum, scope.size)
    return _progress(progress.offset, complete=progress.complete)


def _progress(offset: int, *, complete: bool) -> Response:
    body = msgspec.json.encode({"offset": offset, "complete": complete})
    return Response(200, body, "application/json", (*_SAFE, ("upload-offset", str(offset))))


def _part(request: Request, scope: Scope) -> int:
    """Return where the part in a PUT begins. Without a content-range the body is everything."""
    text = request.headers.get("content-range")
    if text is None:
        first, length, total = 0, scope.size, scope.size
    else:
        match = _CONTENT_RANGE.match(text)
        if match is None:
            raise Invalid("content-range: expected 'bytes FIRST-LAST/SIZE'")
        total = int(match[3])
        first = int(match[1]) if match[1] else total
        length = int(match[2]) - first + 1 if match[2] else 0
    if total != scope.size:
        raise Invalid(f"content-range: the ticket is for {scope.size} bytes, not {total}")
    if length != len(request.body):
        raise Invalid(f"content-range: it says {length} bytes, the body has {len(request.body)}")
    return first


async def _give(path: Path, size: int, request: Request) -> Response:
    first, length, status = 0, size, 200
    headers = [*_SAFE, ("accept-ranges", "bytes"), ("etag", f'"{path.name}"')]
    if text := request.headers.get("range"):
        wanted = _wanted(text, size)
        if wanted is None:
            return Response(416, headers=(("content-range", f"bytes */{size}"),))
        first, length, status = *wanted, 206
        headers.append(("content-range", f"bytes {first}-{first + length - 1}/{size}"))
    if request.method == "HEAD":
        headers.append(("file-size", str(size)))
        return Response(status, b"", _BINARY, tuple(headers))
    if length <= _WHOLE:
        async with await trio.open_file(path, "rb") as file:
            await file.seek(first)
            return Response(status, await file.read(length), _BINARY, tuple(headers))
    return _stream(path, first, length, status, headers)


def _wanted(text: str, size: int) -> tuple[int, int] | None:
    """Return first byte and length of a single range; None when it can't be satisfied."""
    match = _RANGE.match(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, length) if length else None
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    return (first, last - first + 1) if first <= last else None


def _stream(
    path: Path, first: int, length: int, status: int, headers: list[tuple[str, str]]
) -> Response:
    """Return an answer that takes the connection over and writes chunk by chunk."""
    lines = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Partial Content'}",
        f"content-type: {_BINARY}",
        *(f"{name}: {value}" for name, value in headers),
        # Like every answer below this path, by the rules of `cors`.
        "access-control-allow-origin: *",
        f"content-length: {length}",
        "connection: close",
        "\r\n",
    ]
    head = "\r\n".join(lines).encode("ascii")

    async def write(stream: trio.abc.Stream, ahead: bytes) -> None:
        out, left = head, length
        async with await trio.open_file(path, "rb") as file:
            await file.seek(first)
            while True:
                with trio.move_on_after(_PATIENCE) as patience:
                    await stream.send_all(out)
                if patience.cancelled_caught or not left:
                    return
                out = await file.read(min(_CHUNK, left))
                if not out:
                    return
                left -= len(out)

    taken: Any = write
    return Response(status, b"", _BINARY, (), taken)
