"""Notices when the machine's network changes, or its clock is set, or it was asleep.

What follows from that is done by those who listen: `discovery` announces anew, `membership.probe`
greets.
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

_TICK = 1.0  # seconds between looks at the clocks
_LOOK = 10.0  # seconds between looks at the interfaces where the kernel tells of changes
_LOOK_BLIND = 3.0  # ... and where it does not
_QUIET = 0.4  # seconds without further changes, after which one counts as done
_LATEST = 3.0  # seconds after which it counts as done in any case
_BLOCK = 1 << 16  # bytes read of what the kernel tells; only that it tells something counts

log = get_logger("surroundings")


@dataclass
class FlapDamper:
    """Makes an interface that comes and goes wait, longer and longer, to 30 s."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    window: float = 60.0  # seconds
    longest: float = 30.0

    def delay(self, now: float) -> float:
        """Seconds to wait before the next change is acted on. Call `acted` when it was."""
        lately = [at for at in self.recent if now - at < self.window]
        if len(lately) < 3:
            return 0.0
        due = lately[-1] + min(self.longest, 2.0 ** (len(lately) - 2))
        return max(0.0, due - now)

    def acted(self, now: float) -> None:
        """A change was acted on."""
        self.recent.append(now)


@dataclass
class NetworkMonitor:
    """The network as it is now: None while nothing `wanted` is there.

    `wakeup` rings at every change and every jump of the clocks; `reason` says what it was. `moves`
    counts those after which connections may be dead, which a clock that was set is not.
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
        """Look for the first time."""
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
        """Something may have changed."""
        self._stirs += 1
        self._stirred.wake()

    async def _listen(self) -> None:
        """Hear the kernel; where that is not possible, look often."""
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
                        # Whatever else is there belongs to it; a busy network must not busy us.
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
        """Wait until it is quiet: an interface that comes up tells so in several steps."""
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
