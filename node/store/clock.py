"""What the store keeps of a daemon's clocks, by the identity of its home."""

from __future__ import annotations

import msgspec

from node.store.keys import ROOT


class ClockRecord(msgspec.Struct, frozen=True):
    """The clocks as a daemon last saw them, and the last step of its wall clock.

    `wall` is Unix ns; `steady` is ns of the clock that is not set, in the start of the machine that
    `boot` names. `by` and `at` are the last step in ns and when it was seen (0 for none), the
    others how many were given other times.
    """

    wall: int
    steady: int
    boot: str
    by: int = 0
    at: int = 0
    crons: int = 0
    generators: int = 0
    processes: int = 0


def seen(identity: str) -> str:
    """What the daemon of one home saw."""
    return f"{ROOT}clock/{identity}"
