"""Compares what clients were told with what the colonies say in the end. Values in, faults out.

The workload it knows: each submission has a token as its only argument, the right output is
`output_of` the token, nothing fails or has a limit, and workers take up again what they have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import msgspec

from tests.checker.journal import Kind, Told

__all__ = ["Final", "compare", "output_of"]

_SUCCESSFUL = "2"


class Final(msgspec.Struct, frozen=True):
    """A process as its colony says in the end; `state` as on the wire, `logs` its lines."""

    pid: str
    token: str
    state: str
    output: str
    logs: tuple[str, ...] = ()


def output_of(token: str) -> str:
    """The right output of a process with a token."""
    return f"{token}!"


def compare(told: Iterable[Told], final: Mapping[str, Mapping[str, Final]]) -> list[str]:
    """What is wrong, one sentence each; `final` is by colony and process id.

    A colony of which `final` says nothing is not judged.
    """
    lines = [each for each in told if each.colony in final]
    faults = [*_lost(lines, final), *_doubled_submissions(lines, final)]
    by_process: dict[tuple[str, str], list[Told]] = defaultdict(list)
    for line in lines:
        if line.pid:
            by_process[line.colony, line.pid].append(line)
    for (colony, pid), about in by_process.items():
        name = f"{colony}: process {pid[:12]}"
        found = final[colony].get(pid)
        for fault in (*_handed(about), *_backwards(about), *_ended(about, found)):
            faults.append(f"{name}: {fault}")
    for colony, processes in final.items():
        for process in processes.values():
            for fault in _unasked(process, by_process[colony, process.pid]):
                faults.append(f"{colony}: process {process.pid[:12]}: {fault}")
    return [*faults, *_apart(final)]


def _lost(lines: list[Told], final: Mapping[str, Mapping[str, Final]]) -> Iterator[str]:
    for line in lines:
        if line.kind == Kind.SUBMITTED:
            found = final[line.colony].get(line.pid)
            if found is None:
                yield f"{line.colony}: {line.token} was taken as {line.pid[:12]} and is lost"
            elif found.token != line.token:
                yield f"{line.colony}: {line.token} became {found.token}"


def _doubled_submissions(
    lines: list[Told], final: Mapping[str, Mapping[str, Final]]
) -> Iterator[str]:
    for colony, processes in final.items():
        for token, count in Counter(each.token for each in processes.values()).items():
            if count > 1:
                yield f"{colony}: {token} is there {count} times"
    seen: dict[tuple[str, str], str] = {}
    for line in lines:
        if line.kind == Kind.SUBMITTED:
            first = seen.setdefault((line.colony, line.token), line.pid)
            if first != line.pid:
                yield f"{line.colony}: {line.token} was answered with two ids"


def _handed(about: list[Told]) -> Iterator[str]:
    """Nothing has a limit: whoever was told that a process is theirs keeps it."""
    given = [line for line in about if line.kind == Kind.ASSIGNED]
    for first, second in pairwise(given):
        yield f"handed to {first.who} and then to {second.who}"
    holders = {line.who for line in about if line.kind in (Kind.ASSIGNED, Kind.ADOPTED)}
    if len(holders) > 1 and len(given) < 2:
        yield f"was with {' and '.join(sorted(holders))}"
    for line in about:
        if line.kind == Kind.REFUSED:
            yield f"{line.who} may not close it: {line.value}"
    ends = [line.at for line in about if line.kind == Kind.CLOSED]
    for line in about:
        if line.kind in (Kind.ASSIGNED, Kind.ADOPTED) and ends and line.began > ends[0]:
            yield f"given to {line.who} after it was closed"


def _backwards(about: list[Told]) -> Iterator[str]:
    """An end is final, for whoever asks after it was told."""
    end: Told | None = None
    for line in about:
        if line.kind != Kind.SEEN:
            continue
        if end is not None and line.began > end.at and line.value != end.value:
            yield f"seen in state {line.value} after state {end.value}"
        if end is None and line.value >= _SUCCESSFUL:
            end = line


def _ended(about: list[Told], found: Final | None) -> Iterator[str]:
    if found is None:
        return  # lost, if it was promised: told above
    state, output = found.state, found.output
    for line in about:
        if line.kind == Kind.CLOSED and (state, output) != (_SUCCESSFUL, line.value):
            yield f"closed with {line.value!r}, and is in state {state} with {output!r}"
        if line.kind == Kind.SEEN and line.value >= _SUCCESSFUL and line.value != state:
            yield f"was seen in state {line.value}, and is in state {state}"
        if line.kind == Kind.LOGGED and found.logs.count(line.value) != 1:
            yield f"its log line {line.value!r} is there {found.logs.count(line.value)} times"
    repeated = [text for text, count in Counter(found.logs).items() if count > 1]
    if repeated:
        yield f"log lines are there more than once: {repeated[:3]}"


def _unasked(found: Final, about: list[Told]) -> Iterator[str]:
    """What the colony says, and nobody has done."""
    if found.state < _SUCCESSFUL:
        yield f"it has not ended: state {found.state}"
    elif found.state != _SUCCESSFUL:
        yield f"it did not succeed: state {found.state}"
    elif found.output != output_of(found.token):
        yield f"its output is {found.output!r}, not {output_of(found.token)!r}"
    worked = {line.kind for line in about}
    handed = worked & {Kind.ASSIGNED, Kind.ADOPTED}
    if handed and found.state == _SUCCESSFUL and Kind.CLOSING not in worked:
        yield "it ended, and nobody closed it"


def _apart(final: Mapping[str, Mapping[str, Final]]) -> Iterator[str]:
    """Colonies must agree on what one did for the other."""
    outcomes: dict[str, tuple[str, str, str]] = {}
    for colony, processes in final.items():
        for process in processes.values():
            there = outcomes.setdefault(process.token, (colony, process.state, process.output))
            if there[1:] != (process.state, process.output):
                yield (
                    f"{process.token}: {there[0]} says state {there[1]} with {there[2]!r},"
                    f" {colony} says state {process.state} with {process.output!r}"
                )
