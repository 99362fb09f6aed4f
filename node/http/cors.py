"""Cross-origin rules of the RPC port: which paths any web page may call, and what browsers are
told.

The paths are served by their handlers; WebSockets know no such rules.
"""

from __future__ import annotations

import msgspec

from node.http.message import Request, Response

# "*", because a browser holds nothing that it would add to a stranger page's request: no cookie,
# no HTTP login and no client certificate count here. All rights hang on a signature, made with a
# key that the page itself must hold; what is open without one (version, health) is open to anybody.
# Naming origins would protect nothing more, and a page that asks for credentials is refused by its
# browser, as "*" does not go with them.
_ANY_ORIGIN = ("access-control-allow-origin", "*")

# Exact paths, and prefixes. All others stay unreadable for pages of other origins.
_PATHS = frozenset({"/api", "/health"})
_PREFIXES: tuple[str, ...] = ("/files/",)

# Seconds that a browser may remember an answer: two hours is the most that Chromium keeps.
_MAX_AGE = 7200
_PREFLIGHT: tuple[tuple[str, str], ...] = (
    ("access-control-allow-methods", "GET, HEAD, POST, PUT"),
    ("access-control-allow-headers", "*"),
    ("access-control-max-age", str(_MAX_AGE)),
)
# A page of the internet that calls a node in its visitor's network is asked about beforehand. The
# signature guards a node there as anywhere, so the answer is yes.
_ASKS_PRIVATE = "access-control-request-private-network"
_PRIVATE = ("access-control-allow-private-network", "true")


def shared(path: str) -> bool:
    """Return whether pages of any origin may call `path`."""
    return path in _PATHS or path.startswith(_PREFIXES)


def preflight(request: Request) -> Response:
    """Answer the OPTIONS request that a browser sends ahead to a shared path."""
    headers = _PREFLIGHT
    if request.headers.get(_ASKS_PRIVATE) == "true":
        headers = (*headers, _PRIVATE)
    return readable(Response(204, headers=headers))


def readable(response: Response) -> Response:
    """Return `response` so that pages of any origin may read it, errors included."""
    return msgspec.structs.replace(response, headers=(*response.headers, _ANY_ORIGIN))
