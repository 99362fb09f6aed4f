"""Transfers of files' bytes between this machine and the place where a colony keeps them.

Bytes go to the daemon's own directory; other places are a `Store`, too. Every download is checked
against the colony's checksum.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import anyio
import anyio.to_thread
import httpx
import msgspec
from msgspec import Meta

from colonyd.client.values import OddReply
from colonyd.errors import ColonyError, Denied, Unavailable
from colonyd.fsync import publish
from colonyd.http import ask, http_client, read_body
from colonyd.rpc import RpcClient, Unreachable, decode

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey

Meter = Callable[[int], None]  # gets how many bytes were done since the last time

_CHUNK = 1 << 20
_ATTEMPTS = 6  # tries without progress before a transfer is given up
_PAUSE = 0.2  # seconds before the second try; doubles
_QUIET = 30.0  # seconds without a byte after which a connection counts as lost
_SLOWEST = 20e6  # bytes a second at which a daemon hashes and syncs what has arrived
_ANSWER = 1 << 20  # bytes of an answer that is no file
_PART = 16 << 20  # bytes of an upload's part at most: it is held in memory


@dataclass(frozen=True)
class FileDigest:
    """The content of a file on this machine: SHA-256 in hex and size in bytes."""

    checksum: str
    size: int


class Store(Protocol):
    """A place for bytes."""

    async def put(self, path: Path, content: FileDigest, meter: Meter) -> dict[str, Any]:
        """Upload and return the file's `ref`."""

    def get(self, file: dict[str, Any], offset: int) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a version of a file from `offset` on."""


def digest(path: Path) -> FileDigest:
    """Hash a file. Raises OSError."""
    hashed, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return FileDigest(hashed.hexdigest(), size)


_PARTIAL = re.compile(r"\.colonyd-[0-9a-f]{8}\.part")


def is_partial(name: str) -> bool:
    """Return whether a name is that of an incomplete download."""
    return _PARTIAL.fullmatch(name) is not None


async def fetch(
    store: Store,
    file: dict[str, Any],
    target: Path,
    progress: Meter,
    may_replace: Callable[[Path], bool] = lambda path: False,
) -> None:
    """Write a version of a file to `target`, which appears only when whole and checked.

    A file that is at `target` by then stays, unless `may_replace` allows it. After a broken
    connection the download goes on from there. Raises TargetExists, other ColonyErrors, RpcError.
    """
    partial = target.with_name(f".colonyd-{secrets.token_hex(4)}.part")
    hashed, size, idle = hashlib.sha256(), int(file["size"]), 0
    try:
        async with await anyio.open_file(partial, "xb") as out:
            done = 0
            while done < size:
                before = done
                try:
                    async with aclosing(store.get(file, done)) as chunks:
                        async for chunk in chunks:
                            if done + len(chunk) > size:
                                raise ColonyError(
                                    f"{file['name']}: more than its {size} bytes come"
                                )
                            await out.write(chunk)
                            hashed.update(chunk)
                            done += len(chunk)
                            progress(len(chunk))
                except (httpx.TransportError, Unreachable) as error:
                    idle = 0 if done > before else idle + 1
                    if idle >= _ATTEMPTS:
                        raise ColonyError(
                            f"{file['name']}: {error or type(error).__name__}"
                        ) from None
                    await anyio.sleep(_PAUSE * 2**idle)
                    continue
                if done < size:
                    raise ColonyError(f"{file['name']}: it ends after {done} of {size} bytes")
        if hashed.hexdigest() != file["checksum"] and file["checksum"]:
            raise ColonyError(
                f"{file['name']}: the bytes that arrived are not those of the checksum",
                next_step="nothing was kept; upload the file anew where it came from",
            )
        await anyio.to_thread.run_sync(_publish, partial, target, may_replace)
    except OSError as error:
        raise ColonyError(f"{target}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


class TargetExists(ColonyError):
    """Another file is at the place of a download, and stays."""


def _publish(partial: Path, target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Give a complete download its name. Raises TargetExists or OSError."""
    if os.path.lexists(target) and may_replace(target):
        os.replace(partial, target)
        return
    try:
        publish(partial, target)
    except FileExistsError:
        raise TargetExists(
            f"{target}: something of this name, in upper or lower case, is there; it stays",
            next_step="move it away, or choose another place",
        ) from None


class _Reached(msgspec.Struct):
    """How far an upload is: `offset` bytes have arrived, and whether the file is there."""

    offset: Annotated[int, Meta(ge=0)] = 0
    complete: bool = False


class Ticket(_Reached):
    """The right to one transfer, at a path of the server."""

    url: str = ""
    partsize: Annotated[int, Meta(ge=1)] = _PART


def _reached(answer: bytes) -> _Reached:
    try:
        return msgspec.json.decode(answer, type=_Reached)
    except msgspec.MsgspecError as error:
        raise OddReply(f"the server sent an odd answer to an upload: {error}") from None


class DaemonStore:
    """The directory of a daemon: uploads in parts that go on after an interruption."""

    def __init__(self, client: RpcClient, colony: str, key: PrivateKey) -> None:
        """Use `client`, which must stay open meanwhile."""
        self._client = client
        self._colony = colony
        self._key = key
        self._http = http_client(verify=client.verify)

    async def __aenter__(self) -> DaemonStore:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def _ticket(self, method: str, content: FileDigest) -> Ticket:
        fields = {
            "colonyname": self._colony,
            "method": method,
            "checksum": content.checksum,
            "size": content.size,
        }
        told = await self._client.call("fileticketmsg", fields, self._key, attempts=3)
        try:
            ticket = msgspec.convert(told, Ticket)
        except msgspec.ValidationError as error:
            raise OddReply(f"the server sent an odd ticket: {error}") from None
        if not ticket.url.startswith("/"):
            # Put behind the server's address, "@host/" would be at another.
            raise ColonyError(f"the server names no path of its own: {ticket.url[:80]!r}")
        return ticket

    async def put(self, path: Path, content: FileDigest, meter: Meter) -> dict[str, Any]:
        """Upload the bytes of a file that the daemon lacks. Raises ColonyError, RpcError,
        Unreachable.
        """
        ticket = await self._ticket("PUT", content)
        done = ticket.offset
        meter(done)
        idle = fallen = 0
        async with await anyio.open_file(path, "rb") as file:
            while not ticket.complete:
                wrong = "the server takes no more of it"
                reached: _Reached
                try:
                    reached = await self._put_part(ticket, file, done, content)
                except (httpx.TransportError, _Retry) as error:
                    wrong = str(error)
                    await anyio.sleep(_PAUSE * 2 ** (idle + 1))
                    reached = ticket = await self._ticket("PUT", content)
                if reached.complete:
                    meter(max(0, content.size - done))
                    break
                if reached.offset > done:
                    idle = 0
                    meter(reached.offset - done)
                else:
                    # Bytes may get lost, and the upload begin anew there; but not for ever.
                    idle += 1
                    fallen += reached.offset < done
                done = reached.offset
                if max(idle, fallen) >= _ATTEMPTS:
                    raise ColonyError(f"{path}: the upload breaks off: {wrong}")
        return {"protocol": "colonyd", "s3object": {"object": content.checksum}}

    async def _put_part(
        self, ticket: Ticket, file: Any, offset: int, content: FileDigest
    ) -> _Reached:
        """Send one part; return how far the upload is then."""
        size = content.size
        await file.seek(offset)
        length = min(ticket.partsize, _PART, size - offset)
        if length < 0:
            raise OddReply(f"the server has {offset} bytes of a file of {size}")
        part = await file.read(length)
        if len(part) < length:
            raise ColonyError(f"{file.name}: it became shorter while it was read")
        span = f"{offset}-{offset + len(part) - 1}" if part else "*"
        # The last part is answered when the whole file is hashed and on the disk.
        patience = httpx.Timeout(_QUIET + size / _SLOWEST, connect=5.0)
        answer = await ask(
            self._http,
            "PUT",
            self._client.url + ticket.url,
            limit=_ANSWER,
            content=part,
            headers={"content-range": f"bytes {span}/{size}"},
            timeout=patience,
        )
        if answer.status_code == 200:
            return _reached(answer.content)
        reached = answer.headers.get("upload-offset", "")
        if answer.status_code == 409 and reached.isdigit() and int(reached) != offset:
            return _Reached(int(reached))
        try:
            decode("PUT", answer.status_code, answer.content)
        except (Denied, Unavailable) as error:
            # An expired ticket, and a store that is away, are worth a new ticket.
            raise _Retry(error.message) from None
        raise _Retry(f"status {answer.status_code}")

    async def get(self, file: dict[str, Any], offset: int) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a version from `offset` on. Raises RpcError, httpx.TransportError."""
        content = FileDigest(file["checksum"], int(file["size"]))
        ticket = await self._ticket("GET", content)
        headers = {"range": f"bytes={offset}-"} if offset else {}
        url = self._client.url + ticket.url
        async with self._http.stream("GET", url, headers=headers, timeout=_QUIET) as answer:
            if answer.status_code != (206 if offset else 200):
                body = await read_body(answer, _ANSWER)
                decode("GET", max(answer.status_code, 400), body)
            async for chunk in answer.aiter_raw():
                yield chunk


class _Retry(Exception):
    """The same part may go through with a new ticket."""
