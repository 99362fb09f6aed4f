"""The record of a daemon's clocks in the store, by the identity of its home."""

from __future__ import annotations

import msgspec

from node.store.keys import ROOT


class ClockRecord(msgspec.Struct, frozen=True):
    """The clocks as a daemon last saw them, and the last step of its wall clock.

    `wall` is Unix ns; `steady` is ns of the clock that is never set, in the start of the machine
    that `boot` names. `by` (ns) and `at` are the last step and when it was seen (0 for none), the
    other fields how many things were given other times.
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
    """Return the key of the record of one home's daemon."""
    return f"{ROOT}clock/{identity}"
