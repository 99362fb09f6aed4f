"""The space of history: its oldest files are dropped once all of it is larger than its quota."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from node.archive.chain import LARGEST, Dropped, drop, files, place

# A quota has about so many files: what is dropped at once is no more than this part of it.
_FILES = 16


def largest(quota: int) -> int:
    """Return how many bytes a file has when the next one begins; a quota of 0 is none."""
    return min(LARGEST, quota // _FILES) if quota else LARGEST


def make_room(histories: Path, quota: int) -> dict[str, Dropped]:
    """Drop the oldest files of all colonies' histories until they have at most `quota` bytes.

    The last file of each stays, and may hold one write more (some MiB). A quota of 0 drops
    nothing. Returns up to where each colony's was dropped. Raises HistoryError, OSError.
    """
    done: dict[str, Dropped] = {}
    if not quota:
        return done
    sizes: dict[Path, int] = {}
    old: list[Path] = []
    for history in histories.iterdir():
        there = files(history) if history.is_dir() else []
        for path in there:
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        old += there[:-1]
    total = sum(sizes.values())
    for path in sorted(old, key=place):
        if total <= quota:
            break
        done[path.parent.name] = drop(path.parent)
        total -= sizes[path]
    return done
