"""Capabilities that colonies offer each other: our own statement, and the latest ones of peers.

Values in, values out: `exchange` sends statements, `routing.rules` uses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import msgspec

from federation.peers.policy import Policy
from federation.wire.clock import SigningClock
from federation.wire.messages import Capabilities, Offer
from node.model.types import SECOND, Executor, ExecutorState, Function

# Seconds that a statement is believed, by the receiver's clock: the sender's may be wrong.
STALE = 90.0
# Seconds that its signature is valid, by the sender's clock.
LIFETIME = 7200
# Seconds after which an executor that neither polls nor runs anything counts as away. The store
# gets a sign of life once a minute.
HEARD = 120
_MOST_TYPES, _MOST_FUNCTIONS, _LONGEST = 64, 256, 200
_MOST_BYTES = 40_000  # of the functions of all types together
_ANYTHING = "*"


@dataclass(frozen=True)
class CapacitySnapshot:
    """What the node's indexes say about one colony at `now` (Unix ns).

    `polling` counts the polls that wait, by type and executor; `running` has the type and the
    executor id of each running process.
    """

    now: int
    executors: Sequence[Executor] = ()
    functions: Sequence[Function] = ()
    polling: Mapping[tuple[str, str], int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    running: Sequence[tuple[str, str]] = ()


def present(survey: CapacitySnapshot) -> list[Executor]:
    """Return the approved executors that poll, run a process, or were heard from within `HEARD`."""
    busy = {executorid for _, executorid in survey.running}
    return [
        each
        for each in survey.executors
        if each.state == ExecutorState.APPROVED
        and (
            (each.executortype, each.executorname) in survey.polling
            or each.executorid in busy
            or survey.now - each.lastheardfromtime <= HEARD * SECOND
        )
    ]


def offers(survey: CapacitySnapshot) -> dict[str, Offer]:
    """Return what the present executors offer, by type.

    An executor runs the functions it registered; one that registered none gets any function.
    """
    named: dict[str, set[str]] = {}
    for function in survey.functions:
        named.setdefault(function.executorname, set()).add(function.funcname)
    here: dict[str, list[Executor]] = {}
    for each in present(survey):
        here.setdefault(each.executortype, []).append(each)
    free: Counter[str] = Counter()
    for (executortype, _), polls in survey.polling.items():
        free[executortype] += polls
    running = Counter(executortype for executortype, _ in survey.running)
    found: dict[str, Offer] = {}
    room = _MOST_BYTES
    for executortype in sorted(here, key=lambda name: (-len(here[name]), name))[:_MOST_TYPES]:
        names: set[str] = set()
        for each in here[executortype]:
            names |= named.get(each.executorname, {_ANYTHING})
        if len(executortype) > _LONGEST:
            continue
        functions = _bounded(names, room)
        room -= sum(map(_bytes_of, functions))
        found[executortype] = Offer(
            functions=functions,
            executors=len(here[executortype]),
            free=free[executortype],
            waiting=survey.waiting.get(executortype, 0),
            running=running[executortype],
        )
    return found


def _bounded(names: set[str], room: int) -> list[str]:
    if _ANYTHING in names:
        return [_ANYTHING]
    kept: list[str] = []
    for name in sorted(name for name in names if len(name) <= _LONGEST)[:_MOST_FUNCTIONS]:
        room -= _bytes_of(name)
        if room < 0:
            break
        kept.append(name)
    return kept


def _bytes_of(name: str) -> int:
    """Return the bytes of a name in a statement: at least eight, to limit their number."""
    return max(8, len(name.encode()) + 3)


def permitted(found: Mapping[str, Offer], policy: Policy) -> dict[str, Offer]:
    """Return the part of the offers that a policy lets a peer use."""
    allowed: dict[str, Offer] = {}
    for executortype, offer in found.items():
        if not _listed(policy.executor_types, executortype):
            continue
        names = offer.functions
        if policy.functions:
            names = (
                list(policy.functions)
                if _ANYTHING in names
                else [name for name in names if _listed(policy.functions, name)]
            )
        if names:
            allowed[executortype] = msgspec.structs.replace(offer, functions=names)
    return allowed


def _listed(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def fits(patterns: Iterable[str], name: str) -> bool:
    """Return whether a name matches one of the names and globs."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def same(one: Capabilities, other: Capabilities) -> bool:
    """Return whether two statements of ours differ too little to send another message."""
    if (one.accepting, one.labels, one.types.keys()) != (
        other.accepting,
        other.labels,
        other.types.keys(),
    ):
        return False
    if (one.limits.get("room") == 0) != (other.limits.get("room") == 0):
        return False
    return all(_alike(offer, other.types[name]) for name, offer in one.types.items())


def _alike(one: Offer, other: Offer) -> bool:
    if one.functions != other.functions or (one.free == 0) != (other.free == 0):
        return False
    less, more = sorted((load(one), load(other)))
    return more - less <= max(0.5, less / 2)


def load(offer: Offer, sent: int = 0) -> float:
    """Return the load of the executors of a type: below 1, some are free.

    `sent` counts the processes sent there since the statement.
    """
    slots = max(1, offer.executors, offer.free + offer.running)
    return (offer.waiting + offer.running + sent) / slots


@dataclass
class Statement:
    """A peer's statement. `at` is when it came, in seconds of the receiver's steady clock.

    `sent` counts, by type, the processes sent there since that have not ended.
    """

    said: Capabilities
    at: float
    sent: Counter[str] = field(default_factory=Counter)

    def stale(self, now: float) -> bool:
        """Return whether it is too old to be believed at `now`, on the same clock."""
        return now - self.at > STALE


@dataclass
class CapabilityCache:
    """The latest statement of each peer."""

    clock: SigningClock
    statements: dict[str, Statement] = field(default_factory=dict)

    def take(self, peerid: str, said: Capabilities) -> bool:
        """Store a verified statement. Return False if it is not newer than the stored one."""
        known = self.statements.get(peerid)
        if known is not None and said.seq <= known.said.seq:
            return False
        self.statements[peerid] = Statement(said, self.clock.steady())
        return True

    def drop(self, peerid: str) -> None:
        """Drop the statement of a peer that is no longer trusted."""
        self.statements.pop(peerid, None)

    def get(self, peerid: str) -> Statement | None:
        """Return the latest statement, which may be stale."""
        return self.statements.get(peerid)

    def age(self, peerid: str) -> float | None:
        """Return the seconds since the latest statement came."""
        known = self.statements.get(peerid)
        return None if known is None else self.clock.steady() - known.at

    def together(self, peerid: str) -> int:
        """Return how many submissions a peer takes in one message; 1 if it did not tell."""
        known = self.statements.get(peerid)
        return max(1, known.said.limits.get("together", 1)) if known is not None else 1

    def sent(self, peerid: str, executortype: str) -> None:
        """Count a process that is sent to a peer."""
        known = self.statements.get(peerid)
        if known is not None:
            known.sent[executortype] += 1

    def ended(self, peerid: str, executortype: str) -> None:
        """Uncount a closed process at a peer; the statement may still count it."""
        known = self.statements.get(peerid)
        if known is not None and known.sent[executortype] > 0:
            known.sent[executortype] -= 1
