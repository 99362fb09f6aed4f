"""The notes of `run --wait` about what a process waits for, and those of `colony process why`.

The reason is found in `cli.work.why`. The waiting itself is in `cli.core.lookup`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from cli.core.errors import FAILED, TIMEOUT, Failure
from cli.core.lookup import wait_closed
from cli.core.output import short, span
from cli.core.session import Session
from cli.core.terminal import print_note, quiet
from cli.work.why import QUEUED, Kind, Why, find_why
from colonyd.rpc import RpcError, Signed, Unreachable

_FIRST, _AGAIN = 1.0, 5.0  # seconds until the first note, and between later looks
_PATIENCE = 5.0  # seconds for the answers to one look
_NOT_WAITING = (Kind.ENDED, Kind.RUNNING)


class Unfinished(TimeoutError):
    """A process that was not waited for any longer. `reason` is what hinders it, or None."""

    def __init__(self, reason: Why | None) -> None:
        super().__init__()
        self.reason = reason


def unfinished(what: str, processid: str, error: BaseException) -> Failure:
    """Return the Failure for a wait that ended early, with what hinders the process."""
    name = shlex.quote(short(processid))
    step = f"`colony process why {name}`, `colony process wait {name}`"
    reason = error.reason if isinstance(error, Unfinished) else None
    return Failure(
        f"{what}: {reason.clause}" if reason is not None else what,
        code=TIMEOUT if isinstance(error, TimeoutError) else FAILED,
        next_step=f"{reason.next}; then {step}" if reason is not None and reason.next else step,
    )


async def why_waiting(session: Session, client: Signed, processid: str) -> Why:
    """Return why a process waits; `processid` is the whole id. Raises RpcError, Unreachable."""
    owner: Signed | None = None
    with suppress(Failure):  # it is only on the daemon's machine
        owner = Signed(client.client, session.owner_key())
    return await find_why(client, owner, processid, time.time())


async def wait_told(
    session: Session, client: Signed, processid: str, timeout: float | None
) -> dict[str, Any]:
    """Wait as `wait_closed` does; on a terminal, after a second, print on stderr what it waits for.

    Raises Unfinished, RpcError.
    """

    async def look() -> Why | None:
        """Return why it waits; None if the daemon is away or can't tell."""
        with suppress(RpcError, Unreachable), trio.move_on_after(_PATIENCE):
            return await why_waiting(session, client, processid)
        return None

    try:
        async with trio.open_nursery() as nursery:
            if sys.stderr.isatty() and not quiet():
                nursery.start_soon(_tell, look, processid)
            found = await wait_closed(client, processid, timeout)
            nursery.cancel_scope.cancel()
        return found
    except* TimeoutError:
        pass
    reason = await look()
    raise Unfinished(reason if reason is not None and reason.hindered else None)


async def _tell(look: Callable[[], Awaitable[Why | None]], processid: str) -> None:
    told: tuple[Kind | None, str] | None = None
    await trio.sleep(_FIRST)
    while True:
        reason = await look()
        if reason is not None and reason.kind not in (*_NOT_WAITING, Kind.UNKNOWN):
            # The place in the queue, and who asks for work, changes all the time: it is shown once.
            now = (None, "") if reason.kind in QUEUED else (reason.kind, reason.headline)
            if now != told:
                print_note(words(processid, reason))
            told = now
        await trio.sleep(_AGAIN)


def words(processid: str, reason: Why) -> str:
    """Return a finding as a note for people, with its reasons and its next step."""
    verb = "" if reason.kind in _NOT_WAITING else " waits"
    lines = [f"{short(processid)}{verb}: {reason.clause}"]
    lines += [f"  {each.text}" for each in reason.reasons]
    if reason.until is not None and verb:
        left = span(reason.until - time.time())
        lines.append(f"  it fails if nobody has taken it in {left}")
    if reason.next:
        lines.append(f"  next: {reason.next}")
    return "\n".join(lines)
