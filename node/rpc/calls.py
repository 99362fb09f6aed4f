"""Calls: what a row of the table says, and the decorator that makes a function the handler of one.

A module with calls makes a `Calls` of a section of the documentation, and decorates its handlers:

    calls: Calls[Node] = Calls("Crons")

    @calls.row("getcronmsg", CronById, Who.SIGNED, reply="Cron", rights=MINE)
    async def get(node: Node, caller: Caller, request: CronById) -> dict[str, Any]:
        '''A cron by id.'''

The first line of the docstring is what the documentation says of the call. `calls.of(node)` are the
rows with their handlers bound to a node: `rpc.dispatch` serves them, and `daemon.reference` makes
the documentation of them.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Generic, TypeVar

from colonyd.errors import Denied
from node.etcd.pressure import Need
from node.model.json import null_is_absent
from node.model.types import Executor
from node.rpc.replay import Once
from node.store.directory import Member

# Strings, brackets and commas in one request, and in one that may hold many objects, or bytes as
# numbers.
MAX_TOKENS = 100_000
LIGHT = 4  # rows that any member may list at any time, however large they are
MANY_TOKENS = 1_200_000
# The rights of calls that any signer may make: text for the documentation.
MINE = "member of the colony it belongs to"
SELF = "the executor itself"
ASSIGNED = "the executor it is assigned to"
PARTY = "who submitted the process, or the executor that runs it"

R = TypeVar("R")


class Who(enum.Enum):
    """The role that a call demands: upstream's roles, and one of the home colony."""

    ANYONE = "anyone, unsigned"
    SIGNED = "any signer; the handler decides"
    SERVER = "server owner"
    OWNER = "colony owner"
    MEMBER = "approved executor or user"
    LOOSE = "executor of any state or user"
    BOTH = "approved executor, user or colony owner"


@dataclass(slots=True)
class Caller:
    """The signer of a request. `member` is set for member calls of one colony. Nobody changes it:
    `frozen` would cost each call a microsecond.
    """

    id: str
    colony: str = ""
    member: Member | None = None
    nonce: str = ""
    submission: bytes = b""
    issued: float = 0.0

    @property
    def executor(self) -> Executor:
        """Return the calling executor. Raises Denied when a user calls."""
        if not isinstance(self.member, Executor):
            raise Denied("only an executor may call this")
        return self.member


@dataclass(frozen=True)
class Call(Generic[R]):
    """One row of the table. `colony` names the colony in which the role is checked.

    `once` is how the call is kept from happening twice, if it changes something. `again` answers a
    repeat of a call that happened together with its marker, by the first key that it wrote.
    `harmless` tells which requests of it change nothing. `lasting` is for calls that put clocks
    right: they are served whatever times the store has seen, and their markers stay.

    `need` is the call's effect on the store, and so the use from which on it is refused. `most` is
    how many bytes a request may have (0: as many as a body, `rpc.max_body`), `tokens` how many
    strings, brackets and commas. Few `heavy` requests are served at the same time. Requests that
    `poll` wait for something to happen, and take no turn of the signer's other calls.

    `keeps` is set where the signed text is stored: the handler has it as `caller.submission`. The
    payload type of the answer is the call's own, or `answers`. A handler of a listing may return
    its rows in pages, as an asynchronous generator of lists.

    `section`, `about`, `reply`, and `rights` where the handler checks them, are for the
    documentation.
    """

    payloadtype: str
    request: type[R]
    who: Who
    handler: Callable[[Caller, R], Awaitable[Any]]
    colony: Callable[[R], str] | None = None
    once: Once = Once.FIRST
    again: Callable[[Caller, R, str], Awaitable[Any]] | None = None
    harmless: Callable[[R], bool] | None = None
    lasting: bool = False
    need: Need = Need.GROWS
    most: int = 0
    tokens: int = MAX_TOKENS
    heavy: Callable[[R], bool] | None = None
    polls: Callable[[R], bool] | None = None
    keeps: bool = False
    answers: str = ""
    section: str = ""
    about: str = ""
    reply: str = "{}"
    rights: str = ""

    def __post_init__(self) -> None:
        if self.payloadtype.startswith(("get", "subscribe")):  # upstream's names for reading
            object.__setattr__(self, "need", Need.FREES)

    @cached_property
    def takes_nulls(self) -> bool:
        """Return whether a request may be read with its nulls: those of some are pruned before."""
        return null_is_absent(self.request)

    def reads(self, request: R) -> bool:
        """Return whether a request changes nothing, so that a repeat does no harm."""
        if self.payloadtype.startswith("get"):
            return True
        return self.harmless is not None and self.harmless(request)


def every(request: object) -> bool:
    """Return True for all requests of a call that is always `heavy`, or always `harmless`."""
    return True


def many(request: Any) -> bool:
    """Return whether a request asks for more than `LIGHT` rows, or for all: `heavy` of a call with
    a count.
    """
    return not 0 < request.count <= LIGHT


N = TypeVar("N")
T = TypeVar("T")
Handler = Callable[[N, Caller, R], Awaitable[T]]


class Calls(Generic[N]):
    """The calls of one module, in the order of its functions; `section` is of the documentation.

    `home` returns the name of the colony in which roles are checked, whatever the request names.
    """

    def __init__(self, section: str, *, home: Callable[[N], str] | None = None) -> None:
        self.section = section
        self.home = home
        self._makers: list[Callable[[N], Call[Any]]] = []

    def of(self, node: N) -> list[Call[Any]]:
        """Return the rows of the table, with their handlers bound to `node`."""
        return [make(node) for make in self._makers]

    def row(
        self,
        payloadtype: str,
        request: type[R],
        who: Who,
        *,
        reply: str = "{}",
        rights: str = "",
        section: str = "",
        colony: str | Callable[[R], str] = "colonyname",
        once: Once = Once.FIRST,
        again: Callable[[N, Caller, R, str], Awaitable[Any]] | None = None,
        reads: bool = False,
        harmless: Callable[[R], bool] | None = None,
        lasting: bool = False,
        need: Need = Need.GROWS,
        most: int = 0,
        tokens: int = MAX_TOKENS,
        heavy: Callable[[R], bool] | None = None,
        polls: Callable[[R], bool] | None = None,
        keeps: bool = False,
        answers: str = "",
    ) -> Callable[[Handler[N, R, T]], Handler[N, R, T]]:
        """Make a function the handler of a call; the fields are those of `Call`.

        The first line of its docstring is `about`.

        Where `who` is a role in a colony, `colony` names it: the dotted name of a field of the
        request, or a function of it. A call that `reads` changes nothing, whatever the request; a
        call whose name begins with "get" reads by default.
        """

        def decorate(handler: Handler[N, R, T]) -> Handler[N, R, T]:
            self._makers.append(
                lambda node: Call(
                    payloadtype,
                    request,
                    who,
                    partial(handler, node),
                    colony=self._colony(node, who, colony),
                    once=once,
                    again=partial(again, node) if again else None,
                    harmless=every if reads else harmless,
                    lasting=lasting,
                    need=need,
                    most=most,
                    tokens=tokens,
                    heavy=heavy,
                    polls=polls,
                    keeps=keeps,
                    answers=answers,
                    section=section or self.section,
                    about=(handler.__doc__ or "").partition("\n")[0],
                    reply=reply,
                    rights=rights,
                )
            )
            return handler

        return decorate

    def _colony(
        self, node: N, who: Who, named: str | Callable[[R], str]
    ) -> Callable[[R], str] | None:
        if who in (Who.ANYONE, Who.SIGNED, Who.SERVER):
            return None
        if (home := self.home) is not None:
            return lambda request: home(node)
        return attrgetter(named) if isinstance(named, str) else named
