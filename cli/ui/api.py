"""The table of the page's calls: name, whether it changes something, parameters, handler.

Each module of a page adds its rows; `cli.ui.server` answers by them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from cli.core.errors import USAGE, Failure
from cli.core.session import rpc_failure
from cli.ui.clip import clip_all
from cli.ui.context import ODD, Context
from colonyd.rpc import RpcError, Unreachable

_LONGEST_ANSWER = 8 << 20  # bytes
_CUTS = (100_000, 10_000, 1000, 200)  # characters of each text, until the answer is short enough

P = TypeVar("P", bound=msgspec.Struct)


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""


@dataclass(frozen=True)
class Action:
    """One call of the page. `changes` is whether it needs `--write`."""

    name: str
    changes: bool
    params: type[msgspec.Struct]
    handler: Callable[[Context, Any], Awaitable[Any]]


class Api:
    """The calls of one module; the server has those of all."""

    def __init__(self) -> None:
        self.rows: dict[str, Action] = {}

    def row(
        self, name: str, params: type[P], *, changes: bool = False
    ) -> Callable[[Callable[[Context, P], Awaitable[Any]]], Callable[[Context, P], Awaitable[Any]]]:
        """Add a handler under a name."""

        def add(
            handler: Callable[[Context, P], Awaitable[Any]],
        ) -> Callable[[Context, P], Awaitable[Any]]:
            if name in self.rows:
                raise ValueError(f"{name} is there already")
            self.rows[name] = Action(name, changes, params, handler)
            return handler

        return add

    def include(self, other: Api) -> None:
        """Take over the rows of another table."""
        if twice := self.rows.keys() & other.rows.keys():
            raise ValueError(f"twice: {twice}")
        self.rows |= other.rows

    async def answer(self, context: Context, name: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the JSON of a call's answer; a failure is {error, next}."""
        try:
            return 200, await self._run(context, name, body)
        except Exception as error:
            status, message, step = _reason(error)
            return status, msgspec.json.encode({"error": message, "next": step})

    async def _run(self, context: Context, name: str, body: bytes) -> bytes:
        action = self.rows.get(name)
        if action is None:
            raise Failure(f"no call {name[:40]!r}", next_step="reload the page")
        if action.changes and not context.write:
            raise _ReadOnly("this page only reads", code=USAGE, next_step="`colony ui --write`")
        params = msgspec.json.decode(body or b"{}", type=action.params)
        found = await action.handler(context, params)
        answer = msgspec.json.encode(found)
        for most in _CUTS:
            if len(answer) <= _LONGEST_ANSWER:
                break
            # Better a page with cut texts than none, whoever wrote the long ones.
            answer = msgspec.json.encode(clip_all(msgspec.to_builtins(found), most))
        if len(answer) > _LONGEST_ANSWER:
            raise Failure(
                f"the answer has {len(answer)} bytes, more than a page takes",
                next_step="ask for fewer, or use the command line",
            )
        return answer


class _ReadOnly(Failure):
    """A change without `--write`."""


def _reason(error: Exception) -> tuple[int, str, str]:
    """Return the status, the message and the next step for an error.

    Raises one that is neither known nor comes of an odd answer of the daemon.
    """
    while isinstance(error, ExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, RpcError):
        failure = rpc_failure(error.status, error.message)
        return min(error.status, 599), failure.message, failure.next_step
    if isinstance(error, Unreachable):
        return 503, f"the daemon does not answer: {error}", "is it up? `colony doctor` looks"
    if isinstance(error, _ReadOnly):
        return 403, error.message, error.next_step
    if isinstance(error, Failure):
        return 400, error.message, error.next_step
    if isinstance(error, msgspec.MsgspecError):
        return 400, f"the call's parameters: {error}", "reload the page"
    if isinstance(error, ODD):
        return 502, odd(error), "is the daemon of this command's version? `colony version`"
    raise error


def odd(error: Exception) -> str:
    """Return what is wrong with an answer that has led to an error of the kind `ODD`."""
    return f"the daemon's answer is not what this page expects ({type(error).__name__})"
