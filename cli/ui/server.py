"""The HTTP server of the page: static files, calls, downloads, and the headers of every answer.

The connections are `node.http`'s; who may ask is `cli.ui.access`'s.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import msgspec
import trio

from cli.ui.access import ENTRY, Access, Refused
from cli.ui.api import Api
from cli.ui.context import Context
from cli.ui.download import download
from node.http.message import Request, Response
from node.http.server import Limits

LIMITS = Limits(
    max_body=1 << 20,
    idle_timeout=60.0,
    max_connections=32,
    max_per_signer=32,
    max_unsigned=32,
    max_unsigned_per_address=32,
    names="colony ui: ",
)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, no text that becomes HTML, no frame around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    ("cache-control", "no-store"),
    ("content-security-policy", POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)
# It leads a browser on to an address.
ENTERED = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="0;url={base}"><title>colony</title>
<p><a href="{base}">Go on to the page</a></p></html>"""
_CLOSED = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>colony: not signed in</title>
<h1>This browser is not signed in</h1>
<p>Open the address that <code>colony ui</code> has printed last. Each address signs in one browser,
and works once.</p></html>"""


class Site:
    """The handler of all requests. `entered` is called when a one-time address was used."""

    def __init__(
        self, context: Context, api: Api, access: Access, entered: trio.Event | None = None
    ) -> None:
        self._context, self._api, self._access = context, api, access
        self._static = _static()
        self.entered = entered or trio.Event()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            self._access.check(request.method, request.headers, request.path)
            return await self._answer(request)
        except Refused as refused:
            if request.method == "GET" and refused.status == 403:
                return _page(403, _CLOSED)
            return _text(refused.status, str(refused))

    async def _answer(self, request: Request) -> Response:
        access, method, path = self._access, request.method, request.path
        if method == "GET" and path == ENTRY:
            cookie = access.enter(request.query)
            self.entered.set()
            self.entered = trio.Event()
            answer = _page(200, ENTERED.format(base=access.base))
            answer.headers = (*answer.headers, ("set-cookie", cookie))
            return answer
        if path == "/favicon.ico":
            # Browsers ask for it by themselves, and call a refusal an error of the page.
            return Response(204, headers=HEADERS)
        if not path.startswith(access.base):
            return _page(403, _CLOSED)
        access.require_cookie(request.headers)
        if refusal := request.signed("browser"):
            return _text(429, refusal)
        below = path[len(access.base) :]
        if method == "POST" and below.startswith("api/"):
            return await self._call(below[4:], request)
        if method != "GET":
            return _text(405, "GET, or POST below api/")
        if below == "download":
            return await download(self._context, request.query, HEADERS)
        found = self._static.get(below or "index.html")
        return Response(200, *found, headers=HEADERS) if found else _text(404, "nothing here")

    async def _call(self, name: str, request: Request) -> Response:
        status, body = await self._api.answer(self._context, name, request.body)
        # A page that looks again and again gets what it has already in a few bytes.
        digest = hashlib.blake2b(body, digest_size=12).hexdigest()
        if status == 200 and request.headers.get("x-seen") == digest:
            return Response(204, headers=HEADERS)
        return Response(status, body, "application/json", (*HEADERS, ("x-seen", digest)))


def failed(status: int, message: str) -> Response:
    """Return the answer to a request that no handler got, or whose handler crashed."""
    body = msgspec.json.encode({"error": message, "next": "reload the page"})
    return Response(status, body, "application/json", HEADERS)


def _static() -> dict[str, tuple[bytes, str]]:
    """Return the page's files by name, each with its type."""
    place = resources.files("cli.ui") / "static"
    return {
        each.name: (each.read_bytes(), _TYPES[each.name.rpartition(".")[2]])
        for each in place.iterdir()
        if each.name.rpartition(".")[2] in _TYPES
    }


def _page(status: int, text: str) -> Response:
    return Response(status, text.encode(), "text/html; charset=utf-8", HEADERS)


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode("utf-8", "replace"), headers=HEADERS)
