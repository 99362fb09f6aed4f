"""Discovery of other colonies on the local network by DNS-SD, and our own announcement.

A sighting is an unproven address: the card fetched there must prove itself. Probes find out whether
a peer is alive, not announcements.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from federation.network.interfaces import Network
from federation.network.mdns import (
    SERVICE,
    Advertisement,
    MdnsResponder,
    Sighting,
    SightingQueue,
    instance_name,
    sightings,
)
from federation.network.monitor import NetworkMonitor
from node.host.log import get_logger
from node.host.ports import holder_of
from node.tasks.sync import WakeUp

__all__ = ["SERVICE", "Advertisement", "Sighting", "discover", "instance_name", "sightings"]

_RESOLVERS = 4  # so that a name that never resolves does not delay the others
_RESOLVE_S = 6.0
_OPEN_S = 15.0  # zeroconf's own bound for starting its thread is 9 s
_REGISTER_S = 15.0  # three probes and three announcements take 1.7 s
_GOODBYE_S = 3.0
_SWEEP_S = 60.0
_APART_S = 30.0  # seconds between two changes of our name
_BACKOFF_S = (1.0, 60.0)
_PAUSE_S = (5.0, 120.0)  # seconds of a pause after a flood
_MDNS_PORT = 5353
_HONEST_S = 600.0  # seconds: a responder that took so long to fill was not flooded

Heard = Callable[[Sequence[Sighting]], None]
T = TypeVar("T")
log = get_logger("discovery")


async def discover(
    me: Callable[[], Advertisement],
    heard: Heard,
    monitor: NetworkMonitor,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Announce `me()` and call `heard` with the addresses of every other colony, until cancelled.

    It starts at once and never fails: an error is logged, and the next try comes after 1 s to 60 s,
    or at once when the network changes. After every change, and after a sleep, it opens a new
    responder, which joins the groups of the new interfaces, withdraws old addresses, and hears all
    colonies again. After a flood it pauses, so that a flooding host takes only a part of our time
    and memory.
    """
    task_status.started()
    # Threads of its own: a hanging multicast socket must not use up those of the daemon.
    limiter = trio.CapacityLimiter(_RESOLVERS + 4)
    failures = floods = 0
    while True:
        turn, began = monitor.wakeup.event, trio.current_time()
        network = monitor.network
        if network is None:
            log.info("discovery waits for a network")
            await turn.wait()
            continue
        flooded, problem = False, ""
        try:
            flooded = await _session(me(), heard, network, turn, limiter)
        except* Exception as group:
            problem = _reasons(group)
            if "Address already in use" in problem:
                problem = await _who_keeps_mdns()
        lasted = trio.current_time() - began
        failures = failures + 1 if problem else 0
        floods = floods + 1 if flooded and lasted < _HONEST_S else 0
        if problem:
            pause = _pause(_BACKOFF_S, failures)
            log.warning("discovery failed", error=problem, retry=round(pause, 1))
            with trio.move_on_after(pause):
                await turn.wait()
        elif floods:
            pause = _pause(_PAUSE_S, floods)
            log.warning("discovery flooded", seconds=round(lasted, 1), retry=round(pause, 1))
            await trio.sleep(pause)


def _pause(bounds: tuple[float, float], times: int) -> float:
    least, most = bounds
    return min(most, least * 2.0 ** min(times - 1, 16)) * random.uniform(0.5, 1.0)


def _reasons(group: BaseExceptionGroup[Exception]) -> str:
    return "; ".join(
        _reasons(error)
        if isinstance(error, BaseExceptionGroup)
        else f"{type(error).__name__}: {error}"
        for error in group.exceptions
    )


async def _who_keeps_mdns() -> str:
    """Return which process has the mDNS port without sharing it, as the others do."""
    holder = await trio.to_thread.run_sync(holder_of, _MDNS_PORT, "udp")
    return (
        f"UDP port {_MDNS_PORT} (mDNS) is kept by {holder or 'a process that is not shown'}, which"
        " does not share it: stop that, or set federation.discovery = false and name peers"
    )


async def _blocking(limiter: trio.CapacityLimiter, deadline: float, call: Callable[[], T]) -> T:
    """Run `call` in a thread for at most `deadline` seconds. Raises trio.TooSlowError."""
    with trio.fail_after(deadline):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)


async def _session(
    me: Advertisement,
    heard: Heard,
    network: Network,
    turn: trio.Event,
    limiter: trio.CapacityLimiter,
) -> bool:
    """Run one responder until `turn`. Return whether a flood ended it before."""
    wakeup = WakeUp()
    token = trio.lowlevel.current_trio_token()

    def wake() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(wakeup.wake, idempotent=True)

    queue = SightingQueue(wake)
    responder = MdnsResponder(me, network, queue)
    session = _Session(responder, queue, wakeup, heard, limiter)
    try:
        await _blocking(limiter, _OPEN_S, responder.open)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.announce)
            nursery.start_soon(session.listen, nursery.cancel_scope)
            nursery.start_soon(session.sweep)
            for _ in range(_RESOLVERS):
                nursery.start_soon(session.resolve)
            await turn.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(_GOODBYE_S, shield=True):
            await trio.to_thread.run_sync(responder.close, abandon_on_cancel=True, limiter=limiter)
    return queue.flooded and not turn.is_set()


class _Session:
    """The tasks around one open responder."""

    def __init__(
        self,
        responder: MdnsResponder,
        queue: SightingQueue,
        wakeup: WakeUp,
        heard: Heard,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._responder, self._queue, self._wakeup = responder, queue, wakeup
        self._heard, self._limiter = heard, limiter

    async def announce(self) -> None:
        """Announce the colony, and again under another name if another host takes the first."""
        failures, apart = 0, False
        while True:
            event = self._wakeup.event
            try:
                announce = functools.partial(self._responder.announce, apart=apart)
                name, addresses = await _blocking(self._limiter, _REGISTER_S, announce)
            except Exception as error:
                # Without an announcement we still hear others, and may say hello to them.
                failures += 1
                pause = _pause(_BACKOFF_S, failures)
                log.warning("not announced", error=f"{type(error).__name__}: {error}")
                apart = True
                await trio.sleep(pause)
                continue
            failures = 0
            log.info("announced", name=name, addresses=",".join(addresses))
            await trio.sleep(_APART_S if apart else 0)
            while not self._queue.usurped:
                await event.wait()
                event = self._wakeup.event
            log.warning("somebody announces something else under our name", name=name)
            self._queue.usurped, apart = False, True

    async def listen(self, scope: trio.CancelScope) -> None:
        """Pass on sightings; end the session in a flood."""
        while True:
            event = self._wakeup.event
            if found := self._queue.take():
                self._heard(found)
            if self._queue.flooded:
                scope.cancel()
            await event.wait()

    async def sweep(self) -> None:
        """Pass on again, regularly, what is still announced: some of it was dropped."""
        while True:
            await trio.sleep(_SWEEP_S * random.uniform(0.8, 1.0))
            await _blocking(self._limiter, _OPEN_S, self._responder.sweep)

    async def resolve(self) -> None:
        """Ask for the missing parts of announcements."""
        while True:
            event = self._wakeup.event
            name = self._queue.take_name()
            if name is None:
                await event.wait()
                continue
            try:
                resolve = functools.partial(self._responder.resolve, name)
                await _blocking(self._limiter, _RESOLVE_S, resolve)
            except Exception as error:
                log.debug("not resolved", name=name, error=f"{type(error).__name__}: {error}")
