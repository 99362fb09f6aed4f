"""Lookup of processes by abbreviated ids, and waiting for their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from cli.core.errors import FAILED, NOT_FOUND, OK, USAGE, Failure
from cli.core.output import cell_text, short, state_name
from cli.core.session import Session
from colonyd.replies import newest
from colonyd.rpc import Signed, Unreachable

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey

SUCCESSFUL = 2
_POLL_FIRST, _POLL_MOST = 0.05, 1.0  # seconds between polls of a process
_PAGE = 100  # the most processes one call returns


async def wait_closed(client: Signed, processid: str, timeout: float | None) -> dict[str, Any]:
    """Poll until the process is closed, and return it; `timeout` in seconds. Raises TimeoutError,
    RpcError.

    A daemon that restarts meanwhile is waited for: the process outlives it.
    """
    pause = _POLL_FIRST
    with trio.move_on_after(float("inf") if timeout is None else timeout):
        while True:
            try:
                found: dict[str, Any] = await client.call("getprocessmsg", {"processid": processid})
                if found["state"] >= SUCCESSFUL:
                    return found
            except Unreachable:
                pause = _POLL_MOST
            await trio.sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST)
    raise TimeoutError(processid)


def explain_end(found: dict[str, Any]) -> int:
    """Say on stderr how a process ended, unless it went well; return the exit code."""
    if found["state"] == SUCCESSFUL:
        return OK
    errors = "; ".join(cell_text(error) for error in found.get("errors") or [])
    raise Failure(
        f"process {short(found['processid'])} {state_name(found['state'])}"
        + (f": {errors}" if errors else ""),
        code=FAILED,
        next_step=f"`colony process show {short(found['processid'])}`",
    )


async def find_id(client: Signed, colony: str, text: str) -> str:
    """Complete the prefix of an id from the last processes of each state; full ids pass."""
    if len(text) == 64:
        return text
    found = {
        row["processid"]
        for rows in [await _list(client, colony, state, _PAGE) for state in range(5)]
        for row in rows
        if row["processid"].startswith(text.lower())
    }
    if len(found) == 1:
        return str(found.pop())
    if found:
        raise Failure(
            f"{len(found)} processes begin with {text!r}", code=USAGE, next_step="give more of it"
        )
    raise Failure(
        f"no recent process begins with {text!r}",
        code=NOT_FOUND,
        next_step="`colony process ls`, or give all 64 characters",
    )


async def _list(
    client: Signed, colony: str, state: int, count: int, **filters: str
) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {"colonyname": colony, "count": count, "state": state}
    fields |= {"executortype": "", "label": "", "initiator": ""} | filters
    rows, _ = await newest(lambda asked: client.call("getprocessesmsg", asked), fields)
    return rows


async def full_id(session: Session, client: Signed, text: str) -> str:
    """Complete an id of the session's colony; full ids pass without asking."""
    colony = "" if len(text) == 64 else session.colony()
    return await find_id(client, colony, text)


def call_about(
    session: Session,
    key: PrivateKey,
    processid: str,
    payloadtype: str,
    fields: dict[str, Any],
    **how: Any,
) -> str:
    """Make one call about a process whose id may be cut short; returns the whole id.

    `how` goes to `Client.call`.
    """

    async def work() -> str:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            await client.call(payloadtype, {"processid": full, **fields}, **how)
            return full

    return session.run(work)
