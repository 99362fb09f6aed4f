"""The RPC client: signs payloads, posts envelopes to `/api`, turns replies into values or errors.

Callers decide what follows from an error, and how to show it to people.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import anyio
import httpx

from colonyd.errors import Denied, Invalid, RpcError, of_status
from colonyd.http import TooLong, ask, http_client, reason_of
from colonyd.keys import PrivateKey, sign_payload

__all__ = ["LONGEST_REPLY", "NoEnvelope", "RpcClient", "RpcError", "Unreachable"]

LONGEST_REPLY = 256 << 20  # bytes of one reply: a listing of a full store of 2 GiB
_LONGEST_HEALTH = 65_536

_UNSIGNED = frozenset({"versionmsg", "getserverinfomsg"})
# OpenSSL's name for an answer in plain text.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_RESEND_PAUSE = 0.2  # seconds before the first repeat of an envelope; doubles


class NoEnvelope(RpcError):
    """The answer is no Colonies server's, or that of a proxy before one."""

    @classmethod
    def of(cls, status: int, message: str) -> NoEnvelope:
        """Return the error of a reply; it is of the class that its status means, too."""
        kinds = (cls, type(of_status(status, message)))
        error: NoEnvelope = type(cls.__name__, kinds, {})(message)
        error.status = status
        return error


class Unreachable(Exception):
    """No reply arrived; whether the call had an effect is unknown unless `sent` is false."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RpcClient:
    """Calls one daemon. Use as an async context manager; safe for concurrent calls."""

    def __init__(
        self,
        url: str,
        verify: ssl.SSLContext | bool = True,
        *,
        audience: str = "",
        again: Callable[[], str] | None = None,
    ) -> None:
        """Call the server at the base address `url`, such as http://127.0.0.1:50080.

        `verify` checks its certificate; True: the authorities of the system. `audience` is the id
        of the server that all requests are signed for; without one, the server is asked. `again`
        returns the address anew when nothing listens, or when a call is denied: a daemon may have
        been started elsewhere; "" while there is none.
        """
        self.url = url.rstrip("/")
        self._given = audience
        self._again = again
        self._learned: str | None = None
        # Reading the authorities' certificates takes longer than most calls.
        self.verify = False if self.url.lower().startswith("http://") else verify
        self._http = http_client(
            verify=self.verify,
            limits=httpx.Limits(max_connections=128, keepalive_expiry=30.0),
        )

    async def __aenter__(self) -> RpcClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

    async def call(
        self,
        payloadtype: str,
        fields: dict[str, Any],
        key: PrivateKey | None,
        timeout: float = 10.0,
        *,
        attempts: int = 1,
    ) -> Any:
        """Make one call and return its reply's payload. `timeout` is seconds per attempt.

        With `attempts` above 1 the *same bytes* are sent again after a lost connection: the nonce
        in them lets the node give the first answer again, and change nothing twice.
        Raises RpcError, Unreachable.
        """
        audience = "" if key is None else await self.audience(timeout)
        try:
            return await self._send(payloadtype, fields, key, audience, timeout, attempts)
        except RpcError as error:
            if isinstance(error, Denied):
                # Another colony's daemon may answer where ours was.
                self._look_again()
            if self._given or not audience or not error.message.startswith("audience"):
                raise
        # The server goes on under another key; or another colony's took its place, while ours is
        # away. Until that is known no other call may be signed for it.
        now = await self._asked(timeout)
        try:
            reply = await self._send(payloadtype, fields, key, now, timeout, attempts)
        except RpcError as error:
            if isinstance(error, Denied) and self._again is not None:
                why = f"{self.url}: another server answers there ({error.message})"
                raise Unreachable(why, sent=False) from error
            self._learned = now
            raise
        self._learned = now
        return reply

    def _look_again(self) -> None:
        """Let the next call go to where the daemon says now that it is."""
        if self._again is not None and (url := self._again()) and url != self.url:
            self.url, self._learned = url, None

    async def audience(self, timeout: float = 10.0) -> str:
        """Return the id of the server, "" if it tells none, as upstream's don't."""
        if self._given:
            return self._given
        if self._learned is None:
            self._learned = await self._asked(timeout)
        return self._learned

    async def _asked(self, timeout: float) -> str:
        """Return the id that the server tells, "" for none. Raises Unreachable."""
        try:
            told = await self._post("getserverinfomsg", _ASKING, timeout)
        except RpcError:
            told = None
        named = told.get("serverid") if isinstance(told, dict) else None
        return named if isinstance(named, str) else ""

    async def _send(
        self,
        payloadtype: str,
        fields: dict[str, Any],
        key: PrivateKey | None,
        audience: str,
        timeout: float,
        attempts: int,
    ) -> Any:
        body = encode(payloadtype, fields, key, audience)
        pause = _RESEND_PAUSE
        for left in reversed(range(attempts)):
            try:
                return await self._post(payloadtype, body, timeout)
            except Unreachable:
                if left == 0:
                    raise
            await anyio.sleep(pause)
            pause *= 2
        raise ValueError("attempts must be at least 1")

    async def health(self, timeout: float = 5.0) -> int:
        """Return the HTTP status of the daemon's own health: 200 means that it can serve.

        Raises Unreachable.
        """
        try:
            with anyio.fail_after(timeout):
                url = f"{self.url}/health"
                return (await ask(self._http, "GET", url, limit=_LONGEST_HEALTH)).status_code
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise Unreachable(f"{self.url}: {_reason(error)}", sent=False) from error

    async def _post(self, payloadtype: str, body: bytes, timeout: float) -> Any:
        limits = httpx.Timeout(timeout, connect=min(timeout, 5.0))
        try:
            with anyio.fail_after(timeout):
                reply = await ask(
                    self._http,
                    "POST",
                    f"{self.url}/api",
                    limit=LONGEST_REPLY,
                    content=body,
                    headers={"content-type": "application/json"},
                    timeout=limits,
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            failure = Unreachable(f"{self.url}: {_reason(error)}", sent=False)
            self._look_again()
            raise failure from error
        except TooLong as error:
            message = f"{payloadtype}: {error}; ask for fewer at a time"
            raise of_status(502, message) from None
        except (httpx.TransportError, TimeoutError) as error:
            raise Unreachable(f"{self.url}: {_reason(error)}", sent=True) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"{self.url}: not a server address ({error})", sent=False) from error
        return decode(payloadtype, reply.status_code, reply.content)


@dataclass(frozen=True)
class Signed:
    """The calls of one key to one daemon."""

    client: RpcClient
    key: PrivateKey

    async def call(
        self, payloadtype: str, fields: dict[str, Any], timeout: float = 10.0, *, attempts: int = 1
    ) -> Any:
        """Make one call as `RpcClient.call` does, signed with the key."""
        return await self.client.call(payloadtype, fields, self.key, timeout, attempts=attempts)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "no answer in time"
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ssl.SSLCertVerificationError):
            why = below.verify_message.rstrip(".")
            return f"its certificate is not trusted ({why}); COLONIES_SERVER_PIN names its SHA-256"
        if isinstance(below, ssl.SSLError) and below.reason in _NO_TLS:
            return "the server there does not speak TLS; write http:// instead of https://"
        below = below.__cause__ or below.__context__
    # What of a request is unread when the server closes makes the close a reset.
    silent = isinstance(error, httpx.RemoteProtocolError) and "without sending" in str(error)
    if silent or isinstance(error, httpx.ReadError | httpx.WriteError | httpx.CloseError):
        return (
            "it closed the connection without an answer, as a port for TLS does (https://, or the"
            " federation's port)"
        )
    return reason_of(error)


def encode(
    payloadtype: str, fields: dict[str, Any], key: PrivateKey | None, audience: str = ""
) -> bytes:
    """Return the request envelope; signed ones carry a nonce, the time (Unix s) and the server's
    id.

    Reads carry them too: a server with `rpc.replay = "strict"` demands them of every call.
    Raises Invalid for fields without a form in JSON.
    """
    payload: dict[str, Any] = {"msgtype": payloadtype, **fields}
    if key is not None:
        payload["nonce"] = secrets.token_hex(16)
        payload["issuedat"] = int(time.time())
        if audience:
            payload["audience"] = audience
    try:
        data = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        data = json.dumps(payload).encode()  # the server tells what is wrong with lone surrogates
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"{payloadtype}: no form in JSON: {error}") from None
    text = base64.b64encode(data).decode("ascii")
    if key is None and payloadtype not in _UNSIGNED:
        raise ValueError(f"{payloadtype} must be signed")
    signature = "" if key is None else sign_payload(key, text)
    envelope = {"payloadtype": payloadtype, "payload": text, "signature": signature}
    return json.dumps(envelope).encode()


_ASKING = encode("getserverinfomsg", {}, None)


def decode(payloadtype: str, status: int, body: bytes) -> Any:
    """Parse a reply envelope. Raises RpcError for error replies and for bytes that are no
    envelope.
    """
    try:
        envelope = json.loads(body)
        payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
        failed = bool(envelope.get("error")) or envelope.get("payloadtype") == "error"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        code = status if status >= 400 else 502
        raise NoEnvelope.of(code, f"{payloadtype}: the reply is not a Colonies envelope") from None
    if not failed and status < 400:
        return payload
    message = payload.get("message") if isinstance(payload, dict) else None
    stated = payload.get("status") if isinstance(payload, dict) else None
    raise of_status(
        stated if isinstance(stated, int) and stated >= 400 else max(status, 400),
        message if isinstance(message, str) and message else "the server gave no reason",
    )
