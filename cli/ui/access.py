"""Access to the web page: one-time addresses, cookies, and the checks of a request's headers.

Values in, values out: `cli.ui.server` reads requests and sends the answers.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlsplit

_MOST_BROWSERS = 8  # that are signed in at a time; the oldest is signed out
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "colony-ui"
ENTRY = "/enter"


class Refused(Exception):
    """A request that may not be answered: the HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Access:
    """Who may see the page: browsers with a cookie, which a one-time address gives.

    All that needs the cookie lies below `base`, a path that nobody can guess. Browsers send a
    cookie to every port of a host, and with a path only below that path: so another server on this
    machine, which the same browser visits, does not get it.
    """

    def __init__(self, secret: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> None:
        self._secret = secret
        self.base = f"/{secret()[:16]}/"
        self._entry = secret()
        self._cookies: dict[str, None] = {}

    def entry(self) -> str:
        """Return the path and query of the address that signs one browser in."""
        return f"{ENTRY}?token={self._entry}"

    def enter(self, query: str) -> str:
        """Use up the one-time token of a query; return the value of the Set-Cookie header.

        Raises Refused for a token that is wrong or used.
        """
        given = parse_qs(query).get("token", [""])[0]
        if not _same(given, self._entry):
            raise Refused(403, "this address was used before, or is not of this run")
        self._entry = self._secret()
        value = self._secret()
        while len(self._cookies) >= _MOST_BROWSERS:
            del self._cookies[next(iter(self._cookies))]
        self._cookies[value] = None
        return f"{COOKIE}={value}; Path={self.base}; HttpOnly; SameSite=Strict"

    def check(self, method: str, headers: Mapping[str, str], path: str = "") -> None:
        """Check where a request was sent to, and by which page. Raises Refused.

        A name that an attacker lets point to 127.0.0.1 (DNS rebinding) is no name of ours. The port
        is free: `ssh -L` may give the page another one.
        """
        host = headers.get("host", "")
        if _hostname(host) not in _LOOPBACK:
            raise Refused(421, f"this server is 127.0.0.1 or localhost, not {host[:80]!r}")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            raise Refused(403, "another page asks: only this server's own page may")
        # A one-time address may be a link on any page: it proves itself.
        entering = method == "GET" and path == ENTRY
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not entering:
            raise Refused(403, "another page asks: only this server's own page may")
        if method != "POST":
            return
        if origin is None:
            raise Refused(403, "a change needs the header Origin")
        if headers.get("content-type", "") != "application/json":
            raise Refused(415, "a call's body is application/json")

    def require_cookie(self, headers: Mapping[str, str]) -> None:
        """Check that a browser was signed in. Raises Refused."""
        for pair in headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE and any(_same(value, known) for known in self._cookies):
                return
        raise Refused(403, "this browser is not signed in")


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), known.encode())


def _hostname(host: str) -> str:
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        return ""
    plain = parts.username is None and not (parts.path or parts.query or parts.fragment)
    return (parts.hostname or "") if plain else ""
