"""Messages to systemd: readiness, status and watchdog by sd_notify(3), without a library.

Units are in `systemd/`; the daemon decides what counts as being alive.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping

import trio

from node.host.log import get_logger

log = get_logger("notify")

_STORE_PATIENCE = 8  # pings' intervals: four times the manager's own limit
_SEND_SECONDS = 1.0  # the most a message may wait on a service manager that does not read


class Notifier:
    """Sends messages to the service manager; does nothing where there is none."""

    def __init__(self, address: str | None, *, watchdog_interval: float | None = None) -> None:
        """Use the socket at `address`, a path or "@name" for an abstract one; the interval is in
        seconds.
        """
        self._address = None
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
        self.watchdog_interval = watchdog_interval if self._address else None
        self.ready_status = ""  # the last status of `ready`

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Take the manager's variables out of `environ`: children must not speak for us."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        interval = int(usec) / 2_000_000 if ours and usec.isdecimal() and int(usec) > 0 else None
        return cls(address, watchdog_interval=interval)

    @property
    def enabled(self) -> bool:
        """Return whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Say that start-up, or a reload, is complete."""
        self.ready_status = status
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self._send(*_status(text))

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon is shutting down."""
        return self._send("STOPPING=1", *_status(status))

    def reloading(self) -> bool:
        """Say that the configuration is being read again; `ready` must follow."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def ping(self) -> bool:
        """Tell the watchdog that the daemon is alive."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more, counted from now, to finish starting or stopping."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, *lines: str) -> bool:
        """Send one message; return False when there is no manager or it can't be reached."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(_SEND_SECONDS)
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError as failure:
            # A manager that went away is no reason for a colony to stop.
            log.warning("service manager unreachable", error=failure)
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    # A line break would start a new assignment, such as MAINPID=.
    return (f"STATUS={' '.join(text.splitlines())}",) if text else ()


async def watchdog(notifier: Notifier, store_answers: Callable[[], Awaitable[bool]]) -> None:
    """Ping at half the manager's interval, for as long as this event loop runs.

    A slow or restarting store is a matter of status, not of life: the supervisor brings it back,
    and a restart of the daemon would only add to the load. Only when it has not answered for
    `_STORE_PATIENCE` intervals are the pings held back, so that the manager starts both anew.
    Returns at once when no watchdog is configured.
    """
    interval = notifier.watchdog_interval
    if interval is None:
        return
    answered_at, patience = trio.current_time(), interval * _STORE_PATIENCE
    slow = held_back = False
    while True:
        began, answered = trio.current_time(), False
        with trio.move_on_after(interval / 3):
            answered = await store_answers()
        now = trio.current_time()
        if answered:
            answered_at = now
        if now - answered_at < patience:
            notifier.ping()
            held_back = False
        elif not held_back:
            held_back = True
            log.error("the store has not answered: no more pings", seconds=round(now - answered_at))
        if answered == slow:
            slow = not answered
            notifier.status("the store does not answer" if slow else notifier.ready_status)
        # Looked at each second until it is over: the next regular look may come too late.
        await trio.sleep_until(began + interval if answered else now + min(1.0, interval / 3))
