"""The address of a daemon, and what answers there: nothing, another colony's daemon, or another
program.

`cli.core.session` decides which address that is.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from cli.core.errors import DENIED, UNREACHABLE, Failure
from colonyd.errors import Denied
from colonyd.keys import IdentityError, read_key
from colonyd.places import read_listening
from colonyd.rpc import RpcError, Unreachable
from node.host.home import Home
from node.host.ports import holder_of

if TYPE_CHECKING:
    from cli.core.session import Session

_PATIENCE = 5.0  # seconds


def not_colonyd(session: Session, reply: RpcError) -> Failure:
    """Return the Failure for a reply that is no Colonies envelope, with the owner of the port."""
    url = session.url()
    place = urlsplit(url).netloc
    holder = _who(url).removesuffix(", ")
    return Failure(
        f"{place} is not colonyd{f', but {holder}' if holder else ''}: its reply is not a Colonies"
        f" envelope (status {reply.status})",
        code=UNREACHABLE,
        next_step="name the daemon's own address with --server; where a proxy stands before the"
        " daemon, look at its log",
    )


def denied_by_another(session: Session, denial: RpcError) -> Failure | None:
    """Return the Failure for a denial by a server that is not this home's; None if it is.

    Keys that the environment names belong to whatever server it names: then it returns None.
    """
    keys = ("COLONIES_PRVKEY", "COLONIES_COLONY_PRVKEY", "COLONIES_SERVER_PRVKEY")
    own = session.own
    if not isinstance(denial, Denied) or (
        not own and any(session.environ.get(each) for each in keys)
    ):
        return None
    expected, url = _server_ids(session), session.url()
    there = trio.run(_server_at, session)
    if not expected or not there or there in expected:
        return None
    home = session.home
    return Failure(
        f"another colony answers at {url}: {_who(url)}server {there}, and not {expected[0]}, the"
        f" one of {home} ({denial.message})",
        code=DENIED,
        next_step=(
            f"start this colony's daemon (`colony --home {shlex.quote(str(home))} up`), on another"
            " port if that one is to go on"
            if own
            else "name this colony's own address with --server, or the other's home with --home"
        ),
    )


def _server_ids(session: Session) -> list[str]:
    """Return the ids of this home's server: of its key, and as its daemon found it in the store."""
    found: list[str] = []
    try:
        found.append(read_key(Home(session.home).key("server")).id)
    except (OSError, IdentityError):
        return []  # the home of a user of some server, or none
    if (told := read_listening(session.home)) is not None:
        found.append(told.serverid)
    return found


async def _server_at(session: Session) -> str:
    try:
        async with session.client() as client:
            told = await client.call("getserverinfomsg", {}, None, _PATIENCE)
    except (RpcError, Unreachable):
        return ""
    named = told.get("serverid") if isinstance(told, dict) else None
    return named if isinstance(named, str) and re.fullmatch("[0-9a-f]{64}", named) else ""


def _who(url: str) -> str:
    """Return the program at an address of this machine, if this user may see it."""
    from colonyd.tls import is_local

    parts = urlsplit(url)
    if parts.port is None or not is_local(parts.hostname or ""):
        return ""
    holder = holder_of(parts.port)
    return f"{holder}, " if holder is not None and holder.pid else ""


def not_reachable(session: Session, error: Unreachable) -> Failure:
    """Return the Failure for a daemon that does not answer, by what its home tells of it."""
    own = session.own
    place = f" --home {shlex.quote(str(session.home))}" if own and session.home_option else ""
    start = f"`colony{place} up`"
    told = read_listening(session.home) if own else None
    step = f"start it with {start}, or name another with --server"
    if told is not None:
        step = f"its daemon (pid {told.pid}) was killed or hangs: {step}"
    elif own and urlsplit(session.url()).port == 0:
        # With `rpc.port` 0 each start has a port of its own, and writes it into the home.
        return Failure(f"no daemon of {session.home} runs", code=UNREACHABLE, next_step=step)
    elif own:
        step = f"no daemon of {session.home} runs: {step}"
    return Failure(f"daemon not reachable at {error}", code=UNREACHABLE, next_step=step)
