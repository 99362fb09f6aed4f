"""The network monitor: notices changes of the network, a set clock, and a sleep of the machine.

Its listeners act on that: `discovery` announces anew, `membership.probe` says hello.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from federation.network.interfaces import Network, survey
from federation.network.netlink import NetlinkError, watch_socket
from node.host.clock import SET, ClockSample, jumped, moment
from node.host.log import get_logger
from node.tasks.sync import WakeUp

_TICK = 1.0  # seconds between checks of the clocks
_LOOK = 10.0  # seconds between checks of the interfaces if the kernel tells of changes
_LOOK_BLIND = 3.0  # ... and if it does not
_QUIET = 0.4  # seconds without a further change, after which a change counts as done
_LATEST = 3.0  # seconds after which it counts as done in any case
_BLOCK = 1 << 16  # bytes read from the kernel; only the fact counts that there are some

log = get_logger("surroundings")


@dataclass
class FlapDamper:
    """Delays the changes of an interface that comes and goes, longer each time, up to 30 s."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    window: float = 60.0  # seconds
    longest: float = 30.0

    def delay(self, now: float) -> float:
        """Return the seconds to wait before the next change. Call `acted` afterwards."""
        lately = [at for at in self.recent if now - at < self.window]
        if len(lately) < 3:
            return 0.0
        due = lately[-1] + min(self.longest, 2.0 ** (len(lately) - 2))
        return max(0.0, due - now)

    def acted(self, now: float) -> None:
        """Count a change."""
        self.recent.append(now)


@dataclass
class NetworkMonitor:
    """The network as it is now: None while nothing `wanted` is there.

    `wakeup` wakes at every change and every jump of the clocks; `reason` says which. `moves` counts
    changes after which connections may be dead; a clock that was set is none of these.
    """

    wanted: Sequence[str] = ()
    look: Callable[[Sequence[str]], Network | None] = survey
    clocks: Callable[[], ClockSample] = moment
    network: Network | None = None
    reason: str = ""
    moves: int = 0
    wakeup: WakeUp = field(default_factory=WakeUp)
    damper: FlapDamper = field(default_factory=FlapDamper)
    _stirred: WakeUp = field(default_factory=WakeUp)
    _stirs: int = 0

    def start(self) -> None:
        """Read the network for the first time."""
        self.network = self._survey()

    async def run(self) -> None:
        """Watch until cancelled. It never fails."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._watch_clocks)
            await self._watch_network()

    def _survey(self) -> Network | None:
        try:
            return self.look(self.wanted)
        except (OSError, ValueError) as error:
            log.warning("interfaces not seen", error=error)
            return self.network

    def _wake(self, reason: str) -> None:
        self.reason = reason
        self.moves += not reason.startswith(SET)
        self.wakeup.wake()

    def stir(self) -> None:
        """Note that the network may have changed."""
        self._stirs += 1
        self._stirred.wake()

    async def _listen(self) -> None:
        """Listen to the kernel; without rtnetlink, check more often."""
        while True:
            try:
                with watch_socket() as told:
                    self.stir()
                    while True:
                        try:
                            await told.recv(_BLOCK)
                        except OSError as error:
                            if error.errno != errno.ENOBUFS:
                                raise
                        self.stir()
                        # Messages within this time belong to the same change; a busy network must
                        # not keep us busy.
                        await trio.sleep(_QUIET / 4)
            except (NetlinkError, OSError) as error:
                log.debug("changes not told", error=error)
                await trio.sleep(_LOOK_BLIND)
                self.stir()

    async def _watch_network(self) -> None:
        while True:
            event = self._stirred.event
            now = self._survey()
            if now == self.network:
                with trio.move_on_after(_LOOK):
                    await event.wait()
                await self._settle()
                continue
            await trio.sleep(self.damper.delay(trio.current_time()))
            now = self._survey()
            if now == self.network:
                continue
            self.damper.acted(trio.current_time())
            self.network = now
            log.info("network changed", addresses=",".join(now.addresses) if now else "none")
            self._wake("network changed")

    async def _settle(self) -> None:
        """Wait until the changes have ended: an interface comes up in several steps."""
        latest = trio.current_time() + _LATEST
        stirs = -1
        while stirs != self._stirs and trio.current_time() < latest:
            stirs, event = self._stirs, self._stirred.event
            with trio.move_on_after(_QUIET):
                await event.wait()

    async def _watch_clocks(self) -> None:
        before = self.clocks()
        while True:
            await trio.sleep(_TICK)
            now = self.clocks()
            what = jumped(before, now)
            before = now
            if what:
                log.info("time jumped", what=what)
                self.stir()
                self._wake(what)
