"""Faults of our own etcd: why it does not start, by its last lines, and what to do next.

Values in, values out: `supervisor` reads the lines, and decides what follows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Stands for the home of the store in the next step.
_HOME = "--home HOME"
DAMAGE = (
    f"put a backup back (`colony restore --force FILE {_HOME}`), or begin with an empty store"
    f" (`colony init --new-store {_HOME}`); both move aside what is there and delete nothing"
)
# etcd takes such a store for a good one: it answers reads, and applies no write with an index that
# its database has already.
BEHIND = (
    "its write-ahead log (member/wal) ends before its database (member/snap/db) does, so a part of"
    " the log is lost and no write would be answered"
)
DISK_FULL = "the disk is full"
_LOG = "its write-ahead log (member/wal) is damaged or incomplete"
# etcd says nothing of it, and waits for a leader.
CUT_OFF = f"{_LOG}: it ends before the first state of the store"
_DATABASE = "its database (member/snap/db) is missing or damaged"

# The first that fits counts: messages of the system before those of etcd.
_CAUSES = (
    (r"no space left on device", DISK_FULL, "make room on it"),
    (
        r"read-only file system",
        "its file system is mounted read-only",
        "look for the reason with `dmesg`, then mount it writable",
    ),
    (
        r"permission denied",
        "the daemon's user may not use all of its files",
        f"`colony doctor {_HOME}` names files of other users; else give it mode 0700"
        " (chmod -R u+rwX)",
    ),
    (
        r"input/output error",
        "the disk gives errors",
        f"look at it with `dmesg` and copy what is left; then {DAMAGE}",
    ),
    (
        r"cannot be downgraded|version .*(lower|higher)|downgrade",
        "it was written by another version of etcd",
        "install that version of etcd again",
    ),
    (
        r"cannot allocate memory|out of memory|too many open files",
        "the host does not give it what it needs",
        "look for what uses it up, then start again",
    ),
    (
        r"cannot use none as id|\bwal(pb)?: |raft log|failed to (open|read|find|repair) WAL|proto: "
        r"|unexpected EOF|max entry size",
        _LOG,
        DAMAGE,
    ),
    (
        r"failed to open database|invalid database|checksum error|freepages|v3 backend"
        r"|unexpected fault address|\bpage \d+|no snapshot|snapshot file",
        _DATABASE,
        DAMAGE,
    ),
)
_TRACE = re.compile(r"goroutine \d+ \[|\[signal |\t")
_PANIC = ("panic: ", "fatal error: ")


@dataclass(frozen=True)
class Fault:
    """The fault, in words that follow "the store ...: ", and the next step."""

    what: str
    next: str

    @property
    def damaged(self) -> bool:
        """Return whether the store itself is broken, so that no other start will go better."""
        return self.next == DAMAGE


def following(step: str, directory: Path) -> str:
    """Return the next step about the store in `directory`, with its home as a command takes it."""
    return step.replace(_HOME, f"--home {shlex.quote(str(directory.parent))}")


def is_noise(line: str) -> bool:
    """Return whether a line begins the trace of a panic: the rest is for etcd's developers."""
    return _TRACE.match(line) is not None


def explain(lines: Sequence[str], how: str) -> Fault:
    """Return the fault of an etcd that ended before it served, by its last lines, without traces.

    `how` says how it ended. Warnings must not be among `lines`: they may be about anything.
    """
    text = "\n".join(lines)
    said = next((line for line in lines if line.startswith(_PANIC)), lines[-1] if lines else "")
    # A panic repeats the message of the error before it, which also has the reason.
    reason = next((line for line in lines if line.startswith(said.partition(": ")[2] + ": ")), said)
    told = f"etcd said: {reason}" if reason else f"etcd ended {how} and said nothing"
    for pattern, what, step in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return Fault(f"{what} ({told})", step)
    return Fault(
        f"etcd ended {how} ({told})", f"`colony doctor {_HOME}` looks for causes on this host"
    )
