"""Storms colonies for as long as wanted: `python -m tests.checker --minutes 30 --seed 7`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.checker.nemeses import NEMESES
from tests.checker.storm import storm


def main() -> int:
    """Storm after storm; 1 once something is wrong, and then the journal is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="how long to go on")
    parser.add_argument("--seconds", type=float, default=40, help="of one storm")
    parser.add_argument("--seed", type=int, help="of the first storm; the next ones count on")
    parser.add_argument("--nemesis", action="append", choices=list(NEMESES), help="only these")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    end = time.monotonic() + 60 * arguments.minutes
    while True:
        place = Path(tempfile.mkdtemp(prefix="checker-"))
        print(f"seed {seed}: {place}", flush=True)
        wanted = arguments.nemesis or list(NEMESES)
        report = trio.run(storm, place, seed, arguments.seconds, wanted)
        print(f"  {len(report.befell)} nemeses: {', '.join(report.befell)}")
        print(f"  {report.told} lines, {report.processes} processes, {len(report.faults)} faults")
        for fault in [*report.faults, *report.left]:
            print(f"  {fault}")
        if report.faults:
            return 1
        if time.monotonic() > end:
            return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
