"""Notes of `run --wait` while it waits: what the process waits for, and when no executor can take
it.

The waiting itself is in `cli.core.lookup`.
"""

from __future__ import annotations

import sys
from typing import Any

import trio

from cli.core.client import RpcError, Signed, Unreachable
from cli.core.lookup import wait_closed
from cli.core.output import short
from cli.core.terminal import print_note

_FIRST, _AGAIN = 1.0, 5.0  # seconds until the first note, and between later looks


async def wait_told(client: Signed, processid: str, timeout: float | None) -> dict[str, Any]:
    """Wait as `wait_closed` does; after a second, print on stderr what hinders the process.

    On a terminal, also print what it waits for as long as nothing hinders it.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, client, processid)
        found = await wait_closed(client, processid, timeout)
        nursery.cancel_scope.cancel()
    return found


async def _tell(client: Signed, processid: str) -> None:
    told, pause = "", _FIRST
    calm = sys.stderr.isatty()
    while True:
        await trio.sleep(pause)
        pause = _AGAIN
        try:
            found = await client.call("getwaitingmsg", {"processid": processid})
        except Unreachable:
            continue
        except RpcError:
            return  # the daemon's version can't tell
        hindered, text = words(found)
        if text and text != told and (hindered or calm):
            print_note(text)
            told = text
        calm = False  # the place in the line is shown once


def words(found: dict[str, Any]) -> tuple[bool, str]:
    """Return whether something hinders a process, and what it waits for; "" when it does not
    wait.
    """
    name = short(found.get("processid"))
    if found.get("state") != 0:
        return False, ""
    if found.get("paused"):
        text = f"{name} waits: assignments are paused in this colony"
        return True, f"{text}\n  next: `colony process resume`, as the colony's owner"
    if why := found.get("why"):
        return True, f"{name} waits, and nobody can take it: {why}\n  next: {found.get('next')}"
    if peer := found.get("peer"):
        return False, f"{name} is with colony {short(peer)}, or on its way there"
    if found.get("parents"):
        return False, f"{name} waits for other processes of its workflow"
    if route := found.get("route"):
        return False, f"{name} waits for another colony, by {route}"
    if "able" not in found:
        return False, ""
    able, asking, ahead = (int(found.get(each) or 0) for each in ("able", "asking", "ahead"))
    names = ", ".join([*found.get("executors", []), *(["..."] if able > 3 else [])])
    asks = f"asking for work now: {asking or 'none'}"
    return False, f"{name} waits, {ahead} before it; who can take it: {names}; {asks}"
