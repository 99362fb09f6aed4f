"""Many seeds on all cores, added up; the program behind `scripts/simulate`.

What one seed is, is in `scenario`.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TextIO

import msgspec

from tests.simulation.roaming import roam, roaming_table
from tests.simulation.scale import ALL, measure, table
from tests.simulation.scenario import Result, play

__all__ = ["Summary", "main", "run_seeds"]

_CHUNK = 20  # seeds given to a process at a time
_NICENESS = 10  # of many processes: whoever works at the machine comes first


@dataclass
class Summary:
    """What many seeds came to. `seconds` is real time."""

    seeds: int = 0
    seconds: float = 0.0
    virtual: float = 0.0
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one seed."""
        self.seeds += 1
        self.virtual += result.elapsed
        self.events += result.events
        self.faults.update(result.faults)
        self.outcomes.update(result.outcomes)
        if result.problem:
            self.broken.append(result)

    def lines(self) -> list[str]:
        """For people."""

        def counted(counts: Counter[str]) -> str:
            return ", ".join(f"{kind} {number}" for kind, number in counts.most_common())

        return [
            f"{self.seeds} seeds in {self.seconds:.1f} s: {self.seeds / self.seconds:.0f} a second,"
            f" {self.virtual / 3600:.1f} hours of virtual time, {self.events} events",
            f"faults: {counted(self.faults) or 'none'}",
            f"outcomes: {counted(self.outcomes) or 'none'}",
            f"broken: {len(self.broken)}",
        ]


def run_seeds(
    seeds: Sequence[int], colonies: int | None = None, *, processes: int = 1, stop: int = 0
) -> Summary:
    """Play all `seeds`; end early after `stop` broken ones, unless that is 0."""
    summary, begin = Summary(), time.perf_counter()
    for result in _results(seeds, colonies, processes):
        summary.add(result)
        if stop and len(summary.broken) >= stop:
            break
    summary.seconds = max(time.perf_counter() - begin, 1e-6)
    return summary


def _results(seeds: Sequence[int], colonies: int | None, processes: int) -> Iterator[Result]:
    if processes <= 1:
        for seed in seeds:
            yield play(seed, colonies)
        return
    parts = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        for outcome_poller in pool.map(_chunk, parts, [colonies] * len(parts)):
            yield from msgspec.msgpack.decode(outcome_poller, type=list[Result])


def _begin() -> None:
    os.nice(_NICENESS)
    gc.freeze()  # what was imported is never garbage; what is played is, so only now


def _chunk(seeds: Sequence[int], colonies: int | None) -> bytes:
    return msgspec.msgpack.encode([play(seed, colonies) for seed in seeds])


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 when an invariant was broken."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Play colonies on virtual time over a faulty network, and judge what happens.",
        epilog="example: scripts/simulate --seeds 1000 --colonies 5; "
        "scripts/simulate --seed 4711 replays one with its trace; "
        "scripts/simulate --scale 10,100 counts messages where nothing fails; "
        "scripts/simulate --roam 10,100 where colonies move, hide, die and find each other",
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds [200]")
    parser.add_argument("--first", type=int, default=0, help="the first of them [0]")
    parser.add_argument("--colonies", type=int, help="colonies in each world [drawn: 3 to 8]")
    parser.add_argument("--seed", type=int, help="play only this one and print its trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="[all cores]")
    scale = parser.add_argument_group("traffic of larger worlds, see docs/scale.md")
    scale.add_argument("--scale", type=_numbers, help="colonies in each, such as 10,100,1000")
    scale.add_argument("--roam", type=_numbers, help="the same for colonies on the move")
    scale.add_argument("--hostile", type=float, default=0.1, help="nodes of the DHT that lie [0.1]")
    scale.add_argument("--peers", type=_peers, default=4, help='that each trusts, or "all" [4]')
    scale.add_argument("--minutes", type=int, default=2, help="virtual ones of work [2]")
    scale.add_argument("--introductions", choices=("pending", "trust"), default="pending")
    scale.add_argument("--others", type=int, default=0, help="nodes of the DHT of others [0]")
    options = parser.parse_args(arguments)
    if options.scale is not None:
        return _scale(options)
    if options.roam is not None:
        return _roam(options)
    if options.seed is not None:
        return _replay(options.seed, options.colonies)
    seeds = range(options.first, options.first + options.seeds)
    summary = run_seeds(seeds, options.colonies, processes=options.processes)
    print("\n".join(summary.lines()))
    if not summary.broken:
        return 0
    for result in summary.broken[:20]:
        print(f"seed {result.seed}: {result.problem}", file=sys.stderr)
    first = summary.broken[0].seed
    print(f"\nThe first of them again, seed {first}:", file=sys.stderr)
    _replay(first, options.colonies, out=sys.stderr)
    extra = f" --colonies {options.colonies}" if options.colonies else ""
    print(f"replay: scripts/simulate --seed {first}{extra}", file=sys.stderr)
    return 1


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _peers(text: str) -> int:
    return ALL if text == "all" else int(text)


def _scale(options: argparse.Namespace) -> int:
    rows = (
        measure(colonies, options.peers, options.minutes, mode=options.introductions)
        for colonies in options.scale
    )
    for line in table(rows):
        print(line, flush=True)
    return 0


def _roam(options: argparse.Namespace) -> int:
    worlds = (
        roam(each, options.minutes, hostile=options.hostile, others=options.others)
        for each in options.roam
    )
    for line in roaming_table(worlds):
        print(line, flush=True)
    return 0


def _replay(seed: int, colonies: int | None, out: TextIO | None = None) -> int:
    result = play(seed, colonies, keep=True)
    print("\n".join(result.trace), file=out)
    print(f"trace {result.trace_hash}", file=out)
    if result.problem:
        print(f"BROKEN {result.problem}", file=out)
    return 1 if result.problem else 0
