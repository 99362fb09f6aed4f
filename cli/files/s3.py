"""The bytes of files on an S3 server, where upstream's SDKs put them, with the same variables.

Requests are signed by botocore (the extra `colonyd[s3]`) and sent by httpx. The colony knows which
files exist, not the server.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.progress import Meter
from colonyd.client.files import FileDigest
from colonyd.http import HttpReply, ask, http_client

_CHUNK = 1 << 20
_ANSWER = 1 << 20  # bytes of an answer that is no file
_QUIET = 60.0  # seconds without a byte after which a connection counts as lost
MOST = 5 << 30  # bytes that one PUT may have
_TRUE = ("true", "1", "yes")


@dataclass(frozen=True)
class S3Settings:
    """The settings in $AWS_S3_*. `endpoint` is host:port; secrets never leave this machine."""

    endpoint: str
    accesskey: str
    secretkey: str
    bucket: str
    region: str = ""
    tls: bool = False
    verify: bool = True

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> S3Settings | None:
        """Return the settings, or None without $AWS_S3_ENDPOINT.

        Raises Failure when one is missing.
        """
        endpoint = environ.get("AWS_S3_ENDPOINT", "")
        if not endpoint:
            return None
        wanted = ("AWS_S3_ACCESSKEY", "AWS_S3_SECRETKEY", "AWS_S3_BUCKET")
        if lacking := [name for name in wanted if not environ.get(name)]:
            raise Failure(
                f"AWS_S3_ENDPOINT is set, but not {', '.join(lacking)}",
                code=USAGE,
                next_step="set them, or unset AWS_S3_ENDPOINT to keep files at the daemon",
            )
        scheme, separator, host = endpoint.partition("://")
        return cls(
            endpoint=(host if separator else endpoint).rstrip("/"),
            accesskey=environ["AWS_S3_ACCESSKEY"],
            secretkey=environ["AWS_S3_SECRETKEY"],
            bucket=environ["AWS_S3_BUCKET"],
            region=environ.get("AWS_S3_REGION", ""),
            tls=scheme == "https" or environ.get("AWS_S3_TLS", "").lower() in _TRUE,
            verify=environ.get("AWS_S3_SKIPVERIFY", "").lower() not in _TRUE,
        )


class S3Store:
    """One bucket of one server."""

    def __init__(self, settings: S3Settings) -> None:
        """Use the bucket of these settings. Raises Failure when the extra is not installed."""
        self._settings = settings
        self._sign = _signer(settings)
        self._ready = False
        self._http = http_client(verify=settings.verify, timeout=_QUIET)

    async def __aenter__(self) -> S3Store:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | bytes | None = None,
    ) -> HttpReply:
        signed = self._sign(method, url) | dict(headers or {})
        return await ask(self._http, method, url, limit=_ANSWER, headers=signed, content=content)

    async def _require_bucket(self) -> None:
        if self._ready:
            return
        url = _url(self._settings.tls, self._settings.endpoint, self._settings.bucket)
        answer = await self._send("HEAD", url)
        if answer.status_code == 404:
            answer = await self._send("PUT", url)
        _require(answer, f"bucket {self._settings.bucket}")
        self._ready = True

    async def put(self, path: Path, content: FileDigest, meter: Meter) -> dict[str, Any]:
        """Upload a file under a fresh random name. Raises Failure."""
        if content.size > MOST:
            raise Failure(f"{path}: over the 5 GiB that one upload to S3 may have")
        settings, name = self._settings, secrets.token_hex(32)
        url = _url(settings.tls, settings.endpoint, settings.bucket, name)
        try:
            await self._require_bucket()
            headers = {"content-length": str(content.size)}
            body = _Body(path, content.size, meter)
            _require(await self._send("PUT", url, headers, body.chunks()), str(path))
            if body.hashed.hexdigest() != content.checksum:
                await self._send("DELETE", url)
                raise Failure(f"{path}: it changed while it was read", next_step="try again")
        except httpx.TransportError as error:
            raise _unreachable(settings.endpoint, error) from None
        host, _, port = settings.endpoint.rpartition(":")
        place = {
            "server": host or port,
            "port": int(port) if host and port.isdigit() else 443 if settings.tls else 80,
            "tls": settings.tls,
            "region": settings.region,
            "bucket": settings.bucket,
            "object": name,
        }
        return {"protocol": "s3", "s3object": place}

    async def get(self, file: dict[str, Any], offset: int) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a version from `offset` on. Raises Failure, httpx.TransportError."""
        place = file["ref"]["s3object"]
        server, port = str(place["server"]), int(place["port"])
        # Upstream's Go client writes host:port as server, and -1 as port.
        endpoint = f"{server}:{port}" if port > 0 else server
        if endpoint != self._settings.endpoint:
            # The keys are for the server they were set for, not for one that a member wrote into a
            # file.
            raise Failure(
                f"{file['name']} is on {endpoint}, the keys are for {self._settings.endpoint}",
                code=NOT_FOUND,
                next_step="set AWS_S3_ENDPOINT and its keys for that server",
            )
        url = _url(self._settings.tls, endpoint, place["bucket"], place["object"])
        headers = self._sign("GET", url)
        if offset:
            headers["range"] = f"bytes={offset}-"
        async with self._http.stream("GET", url, headers=headers) as answer:
            _require(answer, str(file["name"]))
            if offset and answer.status_code != 206:
                raise Failure(f"{file['name']}: the server does not go on where it broke off")
            async for chunk in answer.aiter_raw():
                yield chunk


def _signer(settings: S3Settings) -> Any:
    """Return a function from method and URL to signed headers."""
    try:
        from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
        from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
        from botocore.config import Config  # type: ignore[import-untyped]
        from botocore.credentials import Credentials  # type: ignore[import-untyped]
    except ImportError:
        raise Failure(
            "S3 needs a library that signs its requests",
            next_step="pip install 'colonyd[s3]', or unset AWS_S3_ENDPOINT",
        ) from None
    credentials = Credentials(settings.accesskey, settings.secretkey)
    auth = S3SigV4Auth(credentials, "s3", settings.region or "us-east-1")
    # Bodies are streamed; their checksum is the colony's, and compared on every download.
    config = Config(s3={"payload_signing_enabled": False})

    def sign(method: str, url: str) -> dict[str, str]:
        request = AWSRequest(method=method, url=url)
        request.context["client_config"] = config
        auth.add_auth(request)
        return dict(request.headers.items())

    return sign


def _url(tls: bool, endpoint: str, *parts: str) -> str:
    for part in parts:
        # Bucket and object come from a file's metadata: they must not change the path.
        if not part.replace("-", "").replace(".", "").replace("_", "").isalnum():
            raise Failure(
                f"{part[:80]!r} is no bucket or object of S3 that this client can address"
            )
    return f"{'https' if tls else 'http'}://{endpoint}/{'/'.join(parts)}"


class _Body:
    """A file as it is sent: exactly the announced number of bytes, hashed on the way."""

    def __init__(self, path: Path, size: int, meter: Meter) -> None:
        self._path = path
        self._left = size
        self._meter = meter
        self.hashed = hashlib.sha256()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async with await trio.open_file(self._path, "rb") as file:
            while self._left:
                chunk = await file.read(min(_CHUNK, self._left))
                if not chunk:
                    raise Failure(f"{self._path}: it became shorter while it was read")
                self.hashed.update(chunk)
                self._left -= len(chunk)
                yield chunk
                self._meter(len(chunk))


def _require(answer: httpx.Response | HttpReply, what: str) -> None:
    if answer.status_code < 300:
        return
    reason = {403: "the server refuses these keys", 404: "not there"}.get(
        answer.status_code, f"the server answers {answer.status_code}"
    )
    raise Failure(
        f"{what}: {reason}", next_step="check AWS_S3_ENDPOINT, AWS_S3_BUCKET and the keys"
    )


def _unreachable(endpoint: str, error: Exception) -> Failure:
    return Failure(
        f"S3 server not reachable at {endpoint}: {str(error) or type(error).__name__}",
        next_step="check AWS_S3_ENDPOINT and AWS_S3_TLS",
    )
