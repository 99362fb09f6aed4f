"""The policy of a trusted colony: what it may do here, and whether a submission keeps to it.

Values in, values out: the inbox counts, asks and refuses; `peers.registry` has the trust.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec

from federation.wire.messages import MAX_HOPS
from federation.wire.refusals import Refusal
from node.host.config import PolicyConfig
from node.model.types import FunctionSpec

_FULL_AGAIN = 5  # seconds after which a peer may ask again whether there is room

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Patterns = Annotated[list[Pattern], msgspec.Meta(max_length=64)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]


class PolicyError(ValueError):
    """A policy that makes no sense; the message names the field."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one colony may do here. Empty lists allow all, a limit of 0 is none.

    Lists hold names or globs (`*`, `?`, `[a-z]`), case matters. `max_waiting` and `max_running`
    count its processes here, `rate` submissions a minute (as many may come at once), `max_body`
    bytes of a submission. `messages` counts messages of every kind a minute, `max_entries` and
    `max_kept` what it may leave in the store: entries, and their bytes. `forward` lets its
    processes go on to other colonies, `max_hops` counts the hops from the origin to where a
    process ends.
    """

    functions: Patterns = []
    executor_types: Patterns = []
    labels: Patterns = []
    max_waiting: Limit = 0
    max_running: Limit = 0
    rate: Limit = 0
    max_body: Limit = 0
    messages: Limit = 20_000
    max_entries: Limit = 500_000
    max_kept: Bytes = 512 * 2**20
    forward: bool = False
    max_hops: Annotated[int, msgspec.Meta(ge=1, le=MAX_HOPS)] = 1


def read(value: Mapping[str, Any]) -> Policy:
    """Return the policy of these names and values. Raises PolicyError."""
    try:
        policy = msgspec.convert(dict(value), Policy)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$.")
        name = where.removesuffix("`")
        text = f"{name}: {problem}" if name else problem
        raise PolicyError(f"policy.{text}" if name else f"policy: {text}") from None
    if policy.forward and policy.max_hops < 2:
        raise PolicyError("policy.max_hops: forwarding further takes at least 2 hops")
    return policy


def changed(base: Policy, change: Mapping[str, Any]) -> Policy:
    """Return `base` with some fields replaced. Forwarding sets the second hop that it needs.

    Raises PolicyError.
    """
    value = msgspec.to_builtins(base) | change
    if change.get("forward") is True and "max_hops" not in change:
        value["max_hops"] = max(2, base.max_hops)
    if change.get("max_hops") == 1 and "forward" not in change:
        value["forward"] = False
    return read(value)


def of_config(section: PolicyConfig) -> Policy:
    """Return the configured default policy. Forwarding means two hops at least."""
    fields: dict[str, Any] = msgspec.structs.asdict(section)
    fields |= {"max_body": int(section.max_body), "max_kept": int(section.max_kept)}
    if section.forward:
        fields["max_hops"] = max(2, section.max_hops)
    return Policy(**fields)


def _allowed(patterns: list[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def violation_of(policy: Policy, spec: FunctionSpec, *, size: int, hops: int) -> Refusal | None:
    """Return what the policy never allows about a submission, or None.

    `size` is its bytes as received. `hops` counts its hops so far, this one included.
    """
    if policy.max_body and size > policy.max_body:
        message = f"{size} bytes; at most {policy.max_body} are taken from your colony here"
        return Refusal(413, "policy_body", message)
    if hops > policy.max_hops:
        message = f"{hops} hops away from its origin; at most {policy.max_hops} from your colony"
        return Refusal(403, "policy_hops", message)
    for code, what, patterns, name in (
        ("policy_function", "function", policy.functions, spec.funcname),
        (
            "policy_executortype",
            "executor type",
            policy.executor_types,
            spec.conditions.executortype,
        ),
        ("policy_label", "label", policy.labels, spec.label),
    ):
        if not _allowed(patterns, name):
            return Refusal(403, code, f"{what} {name[:80]!r} is not open to your colony here")
    return None


def onward(policy: Policy, *, hops: int, limit: int) -> Refusal | None:
    """Return why a process after `hops` hops may not take another; None if it may.

    `limit` is how many hops its origin allows.
    """
    if not policy.forward:
        return Refusal(403, "policy_forward", "your colony's processes are not forwarded from here")
    if hops + 1 > limit:
        message = f"{hops} hops away from its origin, which allows {limit} (federation.hops there)"
        return Refusal(403, "policy_hops", message)
    if hops + 1 > policy.max_hops:
        message = f"{hops} hops away from its origin; at most {policy.max_hops} from your colony"
        return Refusal(403, "policy_hops", message)
    return None


def opening(peer: str, *, hops: int, further: bool) -> str:
    """Return the command by which an owner accepts processes from `peer` after `hops` hops.

    `further`: they also go on from there. "" if no policy can allow it, or none is needed.
    """
    options = ["--forward"] if further else []
    if hops + further > 2 or (hops > 1 and not further):
        options.append(f"--max-hops {hops + further}")
    if not options or hops + further > MAX_HOPS:
        return ""
    return f"colony peer policy {shlex.quote(peer)} {' '.join(options)}"


def explained(
    problem: Refusal, home: str, peer: str, *, hops: int, limit: int, further: bool
) -> Refusal:
    """Return the refusal, with the command that allows it if the owner of `home` can.

    `limit` is how many hops the origin allows, `further` whether the process goes on from here.
    """
    command = opening(peer, hops=hops, further=further)
    if problem.code not in ("policy_hops", "policy_forward") or not command or hops > limit:
        return problem
    if further and hops + 1 > limit:
        return problem
    message = f"{problem.message}; the owner of {home} allows it by `{command}`"
    return Refusal(problem.status, problem.code, message, problem.again)


@dataclass
class TokenBucket:
    """A token bucket of one period's tokens, full at first; times in seconds of one clock."""

    level: float | None = None
    at: float = 0.0
    period: float = 60.0

    def take(self, rate: int, now: float, count: float = 1.0) -> float:
        """Take `count` of `rate` tokens a period. Return 0, or the seconds until there are enough.

        A full bucket gives more than it holds, and is empty then.
        """
        before = float(rate) if self.level is None else self.level
        elapsed = max(0.0, now - self.at)
        self.level = min(float(rate), before + elapsed * rate / self.period)
        self.at = now
        count = min(count, float(rate))
        # Without the margin, rounding could refuse a peer that came exactly when told to.
        if self.level >= count - 1e-6:
            self.level = max(0.0, self.level - count)
            return 0.0
        return (count - self.level) * self.period / rate

    def is_full(self, now: float) -> bool:
        """Return whether it is as a new one, so that it need not be kept."""
        return now - self.at >= self.period

    def put_back(self) -> None:
        """Put back a token that was not used."""
        if self.level is not None:
            self.level += 1  # `take` keeps it below the limit


@dataclass
class SubmissionLimiter:
    """Limits the rate and the waiting processes of every peer, in memory.

    A restart fills the buckets again. A place is held from the check until the submission is
    counted by the index of waiting processes. The check never waits, so two submissions cannot
    share the last place.
    """

    _buckets: dict[str, TokenBucket] = field(default_factory=dict)
    _held: Counter[str] = field(default_factory=Counter)

    def held(self, peer: str) -> int:
        """Return how many places are held."""
        return self._held[peer]

    def enter(self, peer: str, policy: Policy, waiting: int, now: float) -> Refusal | None:
        """Hold a place and take a token, or return why not. `waiting` processes are there already.

        After each None, call `leave`.
        """
        if policy.max_waiting and waiting + self._held[peer] >= policy.max_waiting:
            message = f"{waiting} of your colony's processes wait here; no more than that"
            return Refusal(429, "policy_waiting", message, again=_FULL_AGAIN)
        if policy.rate:
            wait = self._buckets.setdefault(peer, TokenBucket()).take(policy.rate, now)
            if wait > 0:
                message = f"more than {policy.rate} submissions a minute"
                return Refusal(429, "policy_rate", message, again=math.ceil(wait))
        self._held[peer] += 1
        return None

    def leave(self, peer: str, *, used: bool) -> None:
        """Give the place back; and the token, unless something new was submitted."""
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]
        bucket = self._buckets.get(peer)
        if bucket is not None and not used:
            bucket.put_back()
