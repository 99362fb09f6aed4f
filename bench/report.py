"""What the commands that measure share: a place for stores, a report, and failures in a line."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from bench.daemon import BenchError
from colonyd.errors import ColonyError
from colonyd.rpc import Unreachable
from node.etcd.errors import EtcdError

T = TypeVar("T")

_LAST = 5  # lines of each log that are shown with a failure
# A refused or unanswered call, a connection that was dropped, a daemon that ended.
_FAILURES = (BenchError, ColonyError, EtcdError, OSError, RuntimeError, Unreachable)


def report(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[Path], T],
    show: Callable[[T], Iterable[str]],
) -> int:
    """Measure in a new directory and show what was found; return the exit code.

    The figures go to `--json`, too, if that is given; the directory goes, unless `--keep` is. When
    a daemon or the load fails, the code is 1: a line tells why, and the ends of the logs follow.
    """
    place = Path(tempfile.mkdtemp(prefix="cbench-", dir=options.dir))
    try:
        found = measure(place)
    except (*_FAILURES, ExceptionGroup) as error:
        reason = _failure(error)
        if reason is None:
            raise
        print(f"{name}: stopped in the middle: {reason}", file=sys.stderr)
        print("\n".join(_ends(place)), file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {place}", file=sys.stderr)
        else:
            shutil.rmtree(place, ignore_errors=True)
    if figures := getattr(options, "json", None):
        figures.write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(show(found)))
    return 0


def _failure(error: Exception) -> Exception | None:
    """Return the failure that an error is, or the first one of a group; None for anything else."""
    if isinstance(error, ExceptionGroup):
        found = [_failure(each) for each in error.exceptions]
        return None if None in found else found[0]
    return error if isinstance(error, _FAILURES) else None


def _ends(place: Path) -> Iterator[str]:
    """Return the last lines of the log of each daemon below a directory."""
    for log in sorted(place.rglob("colonyd.log")):
        yield f"{log.relative_to(place)} ends with:"
        yield from log.read_text(errors="replace").splitlines()[-_LAST:]
    yield "Run it again with --keep to have the homes afterwards."
