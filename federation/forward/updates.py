"""Updates of a running process between colonies: size, rate, and what is new.

Values in, values out. `inbox.updates` reads and sends updates, `outbox.updates` stores them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from colonyd.errors import Invalid
from federation.wire.envelope import Rejected
from federation.wire.json import require_bounded
from federation.wire.messages import Extra, Follow, Line, News
from node.model.numbers import beyond_float
from node.model.types import Attribute, Log, Process

NEVER = 2**63 - 1  # a time after all lines: no more are wanted
MAX_LINES = 10_000  # of one process, kept at its origin
MAX_LINE_BYTES = 4 * 2**20  # of all these lines
MAX_OUTPUT = 256 * 2**10  # bytes of output that is sent before the end
_MOST_CONTAINERS = 8_192  # lists and objects in output that is sent before the end
MAX_ATTRIBUTES = 100  # of one process
_MESSAGE = 64_000  # characters of one line that are sent
MOST_WEIGHT = 240_000  # of the processes in one poll, see `weight_of`
_PART = 128 * 2**10  # characters of lines, or of attributes, in one update
_LINES = 100  # in one update
_NAME = 128  # characters of an executor's name, with the names of the colonies before it
_ENV = 3  # the type of attributes that came with the submission


class FollowState(msgspec.Struct, frozen=True):
    """How much of a process at `peer` is in our store. Times are Unix ns.

    The fields from `version` to `heard` are the peer's, as in a `Follow`. `state` is the state
    there; while the process runs, `executor` has it since `start`. `shown` is the time of the last
    line by our clock; `lines` and `size` count what was kept. `tail`: the outcome has come, but not
    all updates.
    """

    peer: str
    attempt: int
    version: int = 0
    line: int = 0
    attributes: int = 0
    output: bytes = b""
    heard: dict[str, int] = {}
    state: int = 0
    executor: str = ""
    start: int = 0
    shown: int = 0
    lines: int = 0
    size: int = 0
    tail: bool = False


def begin(known: FollowState | None, peer: str, attempt: int) -> FollowState:
    """Return the state of an attempt at a peer; limits go on counting over all attempts."""
    if known is None:
        return FollowState(peer, attempt)
    if (known.peer, known.attempt) == (peer, attempt):
        return known
    return FollowState(peer, attempt, shown=known.shown, lines=known.lines, size=known.size)


def follow_of(pid: str, followed: FollowState) -> Follow:
    """Return the part of a poll that asks about a process."""
    return Follow(
        pid,
        followed.attempt,
        followed.version,
        followed.line,
        followed.attributes,
        followed.output,
        followed.heard,
    )


def weight_of(follow: Follow) -> int:
    """Return how many bytes a `Follow` takes in a poll; each item of it counts as 32 bytes."""
    names = sum(max(len(name.encode()) + 12, 64) for name in follow.heard)
    return 480 + names


def digest_of(out: bytes) -> bytes:
    """Return a digest that tells one output from another; b"" for none."""
    return hashlib.sha256(out).digest()[:8] if out not in (b"", b"[]") else b""


def named(executor: str, colony: str) -> str:
    """Return our name for an executor of another colony."""
    return f"{executor[:_NAME]}@{colony}".replace("/", "_")[: 2 * _NAME]


# -- sending -------------------------------------------------------------------------------------


def lines_of(logs: Sequence[Log]) -> tuple[list[Line], bool]:
    """Return the first lines that fit one update, and whether there are more."""
    lines: list[Line] = []
    room = _PART
    for log in logs[:_LINES]:
        message = log.message
        if len(message) > _MESSAGE:
            message = f"{message[:_MESSAGE]} … ({len(message)} characters)"
        if lines and len(message) > room:
            break
        room -= len(message)
        lines.append(Line(log.timestamp, log.executorname[: 2 * _NAME], message))
    return lines, len(lines) < len(logs)


def added_after(process: Process, known: int) -> tuple[list[Extra], int, bool]:
    """Return the attributes after the first `known`, their new count, and if there are more."""
    given = process.spec.env or {}
    mine = [
        each for each in process.attributes if each.attributetype != _ENV or each.key not in given
    ]
    extras: list[Extra] = []
    room, count = _PART, known
    for each in mine[known:]:
        size = len(each.key) + len(each.value)
        if extras and size > room:
            return extras, count, True
        count += 1
        if size > 2 * _PART:
            continue  # too large for any update; a reader finds it at the peer
        room -= size
        extras.append(Extra(each.key, each.value, each.attributetype))
    return extras, count, False


# -- receiving -----------------------------------------------------------------------------------


def admit(
    followed: FollowState, news: News, colony: str, ahead: int, now: int
) -> tuple[FollowState, list[tuple[int, str, str]]]:
    """Return the new state, and the new lines to store: time by our clock, executor, message.

    `ahead` is how many ns the peer's clock is ahead of ours. Times grow from line to line, and none
    is later than `now`: a reader that goes on after its last line misses none.
    """
    kept: list[tuple[int, str, str]] = []
    line, shown, lines, size = followed.line, followed.shown, followed.lines, followed.size
    for each in news.lines:
        if each.at <= line:
            continue
        line = each.at
        shown = max(shown + 1, min(each.at - ahead, now))
        length = len(each.message.encode())
        if lines >= MAX_LINES or size + length > MAX_LINE_BYTES:
            kept.append((shown, named("colonyd", colony), f"further lines are at {colony} only"))
            line = NEVER
            break
        lines, size = lines + 1, size + length
        kept.append((shown, named(each.executor, colony), each.message))
    after = msgspec.structs.replace(followed, line=line, shown=shown, lines=lines, size=size)
    return after, kept


def fresh_extras(news: News, process: Process) -> list[Extra]:
    """Return the attributes of an update that the process lacks, up to its limit."""
    have = {(each.key, each.attributetype) for each in process.attributes}
    fresh: list[Extra] = []
    for each in news.added:
        if (each.key, each.kind) in have:
            continue
        if len(process.attributes) + len(fresh) >= MAX_ATTRIBUTES:
            break
        have.add((each.key, each.kind))
        fresh.append(each)
    return fresh


def as_attribute(extra: Extra, process: Process, attributeid: str) -> Attribute:
    """Return an attribute as the process at its origin has it."""
    return Attribute(
        targetid=process.processid,
        key=extra.key,
        value=extra.value,
        attributetype=extra.kind,
        attributeid=attributeid,
        targetcolonyname=process.colonyname,
        targetprocessgraphid=process.processgraphid,
    )


def output_of(out: bytes) -> list[object]:
    """Return the decoded output so far. Raises Invalid."""
    if len(out) > MAX_OUTPUT:
        raise Invalid(f"news: the output has more than {MAX_OUTPUT} bytes")
    try:
        require_bounded(out, most=_MOST_CONTAINERS)
        value: list[object] = msgspec.json.decode(out, type=list)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Rejected) as error:
        raise Invalid(f"news: the output: {error}") from None
    if beyond_float(out, value):
        raise Invalid("news: a number in the output beyond what a 64-bit float holds")
    return value


@dataclass
class PollLimiter:
    """Limits polls of one peer right after an update: `burst` at once, then `rate` a second.

    Times are in seconds of one clock.
    """

    rate: float = 10.0
    burst: float = 30.0
    level: float = 30.0
    at: float = 0.0

    def take(self, now: float) -> float:
        """Return the seconds to wait before the next poll."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate) - 1
        self.at = now
        return max(0.0, -self.level / self.rate)
