"""The port of ours that routers forward from outside: which mappings hold, and when to renew them.

Values in, values out: `node` talks to routers by UPnP and NAT-PMP, `wide` has the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

_RANK = ("NAT-PMP", "UPnP")  # NAT-PMP gives back what it does not get renewed


class MappingStatus(msgspec.Struct, frozen=True):
    """The state of the port mapping, for people.

    `port` is the router's port from which connections come to us, 0 for none; `by` the protocol
    that mapped it, `problem` what a router said instead, "" if none answered.
    """

    port: int
    by: str
    problem: str


class Mapped(msgspec.Struct, frozen=True):
    """A router forwards its `port` to us, as a mapping with this `handle` asked."""

    handle: int
    tcp: bool
    port: int
    by: str


class NotMapped(msgspec.Struct, frozen=True):
    """A router refused a mapping, or did not understand."""

    handle: int
    by: str
    problem: str


@dataclass
class PortMap:
    """The mappings of one port. `port` is the router's port, 0 without a mapping.

    libtorrent asks for mappings of `own`, its port, as well, first of TCP (handle 0), which serves
    nobody: a stray. It numbers mappings for each router anew.
    """

    own: int
    port: int = 0
    by: str = ""
    problem: str = ""
    _handles: frozenset[int] = frozenset()
    _asking: bool = True
    _told: dict[tuple[int, str], Mapped] = field(default_factory=dict)

    def status(self) -> MappingStatus:
        """Return the state, for people."""
        return MappingStatus(self.port, self.by, "" if self.port else self.problem)

    def renew(self) -> None:
        """Note that all mappings are given up, to be made anew; then call `asked`.

        The router's port stays what it was until a router answers, or `settle` is called.
        """
        self._handles, self._asking, self._told, self.problem = frozenset(), True, {}, ""

    def asked(self, handles: Sequence[int]) -> bool:
        """Take the handles of new mappings. Return whether the router's port changed."""
        self._handles, self._asking = frozenset(handles), False
        return self._decide()

    def settle(self) -> bool:
        """Note that routers had time to answer. Return whether the router's port changed."""
        return self._decide(answered=True)

    def heard(self, event: Mapped | NotMapped) -> bool:
        """Take what a router said. Return whether the router's port changed."""
        if isinstance(event, Mapped):
            self._told[event.handle, event.by] = event
        elif event.handle in self._handles:
            self.problem = f"{event.by}: {event.problem}"
        return not self._asking and self._decide()

    def stray(self) -> bool:
        """Return whether the first mapping is to be given up; once for each time it was made."""
        found = [key for key in self._told if key[0] == 0]
        if self._asking or 0 in self._handles or not found:
            return False
        for key in found:
            del self._told[key]
        return True

    def closed(self) -> None:
        """Forget all mappings: they are given up."""
        self.renew()
        self.port, self.by = 0, ""

    def _decide(self, *, answered: bool = False) -> bool:
        """Choose among the mappings; one that holds stays chosen."""
        ours = [
            each
            for each in self._told.values()
            if each.tcp and each.handle in self._handles and each.port != self.own
        ]
        ours.sort(key=lambda each: (each.port != self.port, _RANK.index(each.by)))
        if not ours and not answered:
            return False
        best = next(iter(ours), None)
        before = self.port
        self.port, self.by = (best.port, best.by) if best is not None else (0, "")
        return self.port != before
