"""Processes of this machine: a number that the kernel gives again is told from the process meant.

What a process is for is known to those who ask.
"""

from __future__ import annotations

from pathlib import Path


def start_time(pid: int) -> str:
    """Return when the process started, in clock ticks: together with the pid it is unique.

    Raises OSError if there is none.
    """
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[19]


def user_of(pid: int) -> int | None:
    """Return the user of a process; None if it has more than one, as a set-uid program has.

    The owner of /proc/PID is root for a process that hides its memory, whoever runs it.
    Raises OSError.
    """
    for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
        if line.startswith("Uid:"):
            users = {int(word) for word in line.split()[1:]}
            return users.pop() if len(users) == 1 else None
    return None
