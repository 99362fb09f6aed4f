"""The reason why a process does not run: what it waits for, and the next step.

`colony process why`, `run --wait` and the page of `colony ui` tell the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from cli.core.output import ago, at, short, state_name
from colonyd.replies import parse_time
from colonyd.rpc import RpcError

_SENT = ("queued", "doubt", "accepted", "cancelling")  # states of a forward at a peer
_MOST = 5  # executors, parents and peers that are told one by one
_PAGE = 100  # the most processes that one call returns
_PATIENCE = 5.0  # seconds for each answer
_WAITING, _RUNNING, _SUCCESSFUL = 0, 1, 2

Row = dict[str, Any]


class Kind(StrEnum):
    """What a process waits for."""

    ENDED = "ended"  # it does not wait: it has an end
    RUNNING = "running"  # it does not wait: an executor runs it
    PAUSED = "paused"  # the colony hands out no work
    NOBODY = "nobody"  # no executor can take it
    RESOURCES = "resources"  # who asks for work has not the CPU or memory
    PARENTS = "parents"  # other processes of its workflow
    FORWARDED = "forwarded"  # another colony has it, or it is on its way there
    AWAY = "away"  # it is for a colony that does not answer, or is not trusted
    ROUTE = "route"  # a route is to lead it to another colony
    BUSY = "busy"  # who could take it runs something else
    SILENT = "silent"  # who could take it does not ask for work
    SOON = "soon"  # who can take it asks for work
    UNKNOWN = "unknown"  # the daemon doesn't tell


QUEUED = (Kind.BUSY, Kind.SILENT, Kind.SOON)
_HINDERED = (Kind.PAUSED, Kind.NOBODY, Kind.RESOURCES, Kind.AWAY, Kind.SILENT)


class Reason(msgspec.Struct):
    """One line of the answer; `process` is the id of the process that it is about, or ""."""

    text: str
    process: str = ""


class Why(msgspec.Struct):
    """Why a process does not run. `headline` is a sentence that begins with a capital letter and
    no name; `until` is when it fails if nobody takes it, in Unix s. `hindered`: somebody has to do
    something before it can run.
    """

    kind: Kind
    headline: str
    reasons: list[Reason] = []
    next: str = ""
    until: float | None = None
    hindered: bool = False

    def __post_init__(self) -> None:
        self.hindered = self.kind in _HINDERED

    @property
    def clause(self) -> str:
        """Return the headline as it stands behind a colon."""
        return self.headline[:1].lower() + self.headline[1:]


class Caller(Protocol):
    """The calls of one key to a daemon, as `colonyd.rpc.Signed` makes them."""

    async def call(self, payloadtype: str, fields: Row, timeout: float = ...) -> Any:
        """Make one call. Raises RpcError, Unreachable."""


class Answers(msgspec.Struct):
    """What the daemon says about a process. None, or no row, is what was not asked or refused."""

    process: Row
    forward: Row | None = None
    waiting: Row = {}
    peer: Row = {}
    siblings: list[Row] = []  # processes of its workflow
    route: Row | None = None
    executors: list[Row] | None = None
    running: list[Row] = []
    now: float = 0.0  # Unix s

    @property
    def conditions(self) -> Row:
        """Return the conditions of its spec."""
        return (self.process.get("spec") or {}).get("conditions") or {}

    @property
    def sent(self) -> bool:
        """Return whether a peer has it, or it is on its way there."""
        return (self.forward or {}).get("state") in _SENT


async def find_why(member: Caller, owner: Caller | None, processid: str, now: float) -> Why:
    """Return why a process does not run; `processid` is the whole id.

    Raises RpcError, Unreachable.
    """
    process = await member.call("getprocessmsg", {"processid": processid}, _PATIENCE)
    answers = Answers(process, now=now)
    if process.get("state") in (_WAITING, _RUNNING):
        answers.forward = await _maybe(member, "getforwardmsg", processid=processid)
    return explain(await complete(member, owner, answers))


async def complete(member: Caller, owner: Caller | None, known: Answers) -> Answers:
    """Ask for what `known` lacks: at most three calls. What may not be asked stays away.

    `known` has the process, and its forward if there is one. Raises Unreachable.
    """
    process = known.process
    here = {"colonyname": known.conditions.get("colonyname")}
    if process.get("state") == _WAITING:
        told = await _maybe(member, "getwaitingmsg", processid=process["processid"])
        known.waiting = told or {}
    told = known.waiting
    if told.get("peer") or known.sent:
        asked = told.get("peer") or (known.forward or {}).get("peer")
        known.peer = await _maybe(owner, "getpeermsg", peer=asked) or {}
    elif told.get("parents"):
        fields = {**here, "processgraphid": process.get("processgraphid"), "state": -1}
        rows = await _maybe(member, "getprocessesmsg", **fields, count=_PAGE)
        known.siblings = rows or []
    elif told.get("route"):
        age = max(0.0, known.now - (at(process.get("submissiontime")) or known.now))
        known.route = await _maybe(owner, "explainroutemsg", spec=process["spec"], age=age)
    elif told.get("able") and not told.get("asking"):
        if known.executors is None:
            known.executors = await _maybe(member, "getexecutorsmsg", **here)
        rows = await _maybe(member, "getprocessesmsg", **here, state=_RUNNING, count=_PAGE)
        known.running = rows or []
    return known


async def _maybe(caller: Caller | None, kind: str, **fields: Any) -> Any:
    """Make one call; return None without a key, and for what is refused or not there."""
    if caller is not None:
        with suppress(RpcError):
            return await caller.call(kind, fields, _PATIENCE)
    return None


def explain(answers: Answers) -> Why:
    """Return the reason in the daemon's answers."""
    found = _reason(answers)
    found.until = at(answers.process.get("waitdeadline"))
    return found


def _reason(answers: Answers) -> Why:
    state, told, conditions = answers.process.get("state"), answers.waiting, answers.conditions
    if state == _RUNNING and answers.sent:
        # It is the peer's: it may wait there, or the peer may be gone with it.
        why, there = _with_peer(answers), (answers.forward or {}).get("there") or {}
        if why.kind is Kind.AWAY or there.get("state") != _RUNNING:
            return why
    if state != _WAITING:
        kind = Kind.RUNNING if state == _RUNNING else Kind.ENDED
        return Why(kind, f"It does not wait: it is {state_name(state)}")
    if told.get("paused"):
        return Why(
            Kind.PAUSED,
            "Assignments are paused in this colony: no process is given to an executor",
            [Reason(_before(told))],
            "resume them: `colony resume`, as the colony's owner",
        )
    if told.get("peer") or answers.sent:
        return _with_peer(answers)
    if told.get("parents") or answers.process.get("waitforparents"):
        return _after_parents(answers)
    if told.get("why") and told.get("asking"):
        wants = ", ".join(
            f"{name} {conditions[name]}" for name in ("cpu", "mem", "gpu") if conditions.get(name)
            and not isinstance(conditions[name], dict)
        )  # fmt: skip
        return Why(
            Kind.RESOURCES,
            "No executor that asks for work has the CPU or memory that it wants",
            [Reason(f"it wants {wants}")] if wants else [],
            "start an executor on a larger machine, or submit it again with less",
        )
    if told.get("why"):
        headline = f"Nobody can take it: {told['why']}"
        wanted = [Reason(_wanted(conditions))]
        return Why(Kind.NOBODY, headline, wanted, str(told.get("next") or ""))
    if told.get("route"):
        return _by_route(answers)
    if "able" not in told:
        return Why(Kind.UNKNOWN, "The daemon does not tell what for")
    return _queued(answers)


def _after_parents(answers: Answers) -> Why:
    """Return the reason of a process whose parents have not ended."""
    parents = answers.process.get("parents") or []
    late = [
        row
        for row in answers.siblings
        if row["processid"] in parents and row.get("state") != _SUCCESSFUL
    ]
    waiting = [row["processid"] for row in late if row.get("state") == _WAITING]
    return Why(
        Kind.PARENTS,
        f"It waits for {len(late) or 'other'} process{'es' * (len(late) != 1)} of its workflow",
        [
            Reason(f"{_named(row)} is {state_name(row.get('state'))}", str(row["processid"]))
            for row in late[:_MOST]
        ],
        f"`colony process why {short(waiting[0])}`" if waiting else "",
    )


def _by_route(answers: Answers) -> Why:
    """Return the reason of a process that a route is to lead to another colony."""
    reasons = [Reason(f"the route is: {answers.waiting['route']}")]
    if answers.route is not None:
        reasons.append(Reason(f"now: {answers.route.get('why')}"))
        reasons += [
            Reason(f"{peer['name']}: {peer['why']}")
            for route in answers.route.get("routes") or []
            for peer in route.get("peers") or []
            if not peer.get("eligible")
        ][:_MOST]
    return Why(
        Kind.ROUTE,
        "No executor here can take it; it waits to go to another colony by a route",
        reasons,
        "is a peer of the route up, and does it have such an executor? `colony peer ls` tells",
    )


def _queued(answers: Answers) -> Why:
    """Return the reason of a process that executors can take: all are busy or silent, or soon."""
    told, now = answers.waiting, datetime.fromtimestamp(answers.now, UTC)
    able, asking = (int(told.get(each) or 0) for each in ("able", "asking"))
    names = [str(each) for each in told.get("executors") or []]
    listed = ", ".join([*names, *(["..."] if able > len(names) else [])])
    before = f"{_before(told)}; who can take it: {listed}; asking for work now: {asking or 'none'}"
    reasons = [Reason(before)]
    if asking:
        headline = f"Soon: {asking} executor{'s' * (asking != 1)} ask{'s' * (asking == 1)} for work"
        return Why(Kind.SOON, f"{headline} now", reasons)
    mine = [each for each in answers.executors or [] if _suits(each, answers.conditions)]
    work = {str(row.get("assignedexecutorid")): row for row in answers.running}
    for each in mine[:_MOST]:
        if (row := work.get(each["executorid"])) is not None:
            since = ago(parse_time(row.get("starttime")), now)
            text = f"{each.get('executorname')} runs {_named(row)}, which started {since}"
            reasons.append(Reason(text, str(row["processid"])))
        else:
            heard = ago(parse_time(each.get("lastheardfromtime")), now)
            last = f"was last heard from {heard}" if heard else "was never heard from"
            text = f"{each.get('executorname')} does not ask for work; it {last}"
            reasons.append(Reason(text))
    busy = sum(each["executorid"] in work for each in mine)
    count = able or len(mine)
    if busy and busy >= count:
        headline = (
            f"All {count} executors that could take it are busy"
            if count > 1
            else f"The only executor that could take it, {names[0] if names else '?'}, is busy"
        )
        step = "wait, or start another executor of this type"
        return Why(Kind.BUSY, headline, reasons, step)
    return Why(
        Kind.SILENT,
        f"{count} executor{'s' * (count != 1)} could take it, and none asks for work",
        reasons,
        "is the program of that executor running, and does it reach this daemon?",
    )


def _with_peer(answers: Answers) -> Why:
    """Return the reason of a process that was given to a peer."""
    forward, peer = answers.forward or {}, answers.peer
    name = str(forward.get("peername") or peer.get("name") or short(answers.waiting.get("peer")))
    seen, tries = float(peer.get("lastseen") or 0), int(forward.get("attempts") or 0)
    heard = ago(datetime.fromtimestamp(seen, UTC), datetime.fromtimestamp(answers.now, UTC))
    error = str(forward.get("lasterror") or peer.get("error") or "")
    lines = [
        f"{name} was last heard from {heard}" if seen else "",
        f"sent {tries} time{'s' * (tries != 1)}" if tries else "not sent yet" if forward else "",
        f"the last error: {error}" if error else "",
    ]
    reasons = [Reason(line) for line in lines if line]
    step = f"is the daemon of {name} up and its federation port open? `colony peer ping {name}`"
    if peer and peer.get("state") != "trusted":
        headline = f"It is for colony {name}, which is {peer.get('state')} here"
        return Why(Kind.AWAY, headline, reasons, f"`colony peer trust {name}`, if that is meant")
    match forward.get("state"):
        case "accepted" if not forward.get("lasterror"):
            there = forward.get("there") or {}
            doing = state_name(there.get("state")) if there else "waiting"
            headline = f"Colony {name} has accepted it, where it is {doing}"
            step = f"look at it there: process {short(forward.get('remoteprocessid'))}"
            return Why(Kind.FORWARDED, headline, reasons[: bool(seen)], step)
        case "accepted":
            headline = f"Colony {name} has accepted it, and does not answer"
        case "doubt":
            headline = f"Colony {name} may have it, and does not answer"
        case "cancelling":
            kind = Kind.AWAY if error else Kind.FORWARDED
            return Why(kind, f"It is being cancelled at {name}", reasons, step if error else "")
        case _ if error:
            headline = f"It is for {name}, which does not answer"
        case "queued":
            return Why(Kind.FORWARDED, f"It is on its way to {name}", reasons)
        case _:
            headline = f"It is with colony {name}, or on its way there"
            return Why(Kind.FORWARDED, headline, reasons)
    return Why(Kind.AWAY, headline, reasons, step)


def _before(told: Row) -> str:
    ahead = int(told.get("ahead") or 0)
    return f"{ahead or 'no'} process{'es' * (ahead != 1)} before it in the queue"


def _suits(executor: Row, conditions: Row) -> bool:
    wanted: Sequence[str] = [name for name in conditions.get("executornames") or [] if name]
    place = str(conditions.get("locationname") or "").lower()
    return (
        executor.get("state") == 1
        and executor.get("executortype") == conditions.get("executortype")
        and (not wanted or executor.get("executorname") in wanted)
        and place in ("", str(executor.get("locationname") or "").lower())
    )


def _wanted(conditions: Row) -> str:
    parts = [f'it asks for an executor of type "{conditions.get("executortype")}"']
    if conditions.get("executornames"):
        parts.append("named " + " or ".join(map(str, conditions["executornames"])))
    if conditions.get("locationname"):
        parts.append(f'at "{conditions["locationname"]}"')
    return ", ".join(parts)


def _named(process: Row) -> str:
    spec = process.get("spec") or {}
    return f"{spec.get('nodename') or spec.get('funcname')} ({short(process.get('processid'))})"
