"""The live log of a running process: lines of stderr and progress, gathered into bounded log
messages.

`LiveLog` is values only; `relay` sends its messages. What runs is the handler's matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

MOST_LINE = 4_000  # bytes; a longer line is cut
MOST_MESSAGE = 16_000  # bytes of one log message, which holds the lines of about a second
MOST_PROCESS = 1_000_000  # bytes of all messages of one process: flash and history keep them
_EVERY = 1.0  # seconds between two messages


class LiveLog:
    """Lines and progress that were not sent yet. All sizes are in bytes."""

    def __init__(self, most_message: int = MOST_MESSAGE, most_process: int = MOST_PROCESS) -> None:
        self.filled = anyio.Event()
        self.finished = anyio.Event()  # nothing more comes
        self.sent = anyio.Event()  # `relay` has ended
        self._most_message, self._left = most_message, most_process
        self._lines: list[str] = []
        self._size = 0
        self._dropped = 0
        self._progress = self.latest = ""  # `latest` stays when it was sent
        self._unfinished: dict[str, bytes] = {"stderr": b"", "progress": b""}

    def stderr(self, data: bytes) -> None:
        """Take bytes of standard error."""
        for line in self._split("stderr", data):
            if self._size + len(line) > self._most_message:
                self._dropped += 1
            else:
                self._lines.append(line.decode("utf-8", "replace").rstrip("\r"))
                self._size += len(line) + 1
            self.filled.set()

    def progress(self, data: bytes) -> None:
        """Take bytes of progress: each line replaces the one before."""
        for line in self._split("progress", data):
            self._progress = self.latest = line.decode("utf-8", "replace").strip()
            self.filled.set()

    def finish(self) -> None:
        """Take the rest without a newline as lines: nothing more comes."""
        self.finished.set()
        self.stderr(b"\n" if self._unfinished["stderr"] else b"")
        self.progress(b"\n" if self._unfinished["progress"] else b"")
        self.filled.set()

    def _split(self, source: str, data: bytes) -> list[bytes]:
        *lines, rest = (self._unfinished[source] + data).split(b"\n")
        # Beyond the bound, the end of a line is read and dropped.
        self._unfinished[source] = rest[:MOST_LINE]
        return [line[:MOST_LINE] for line in lines]

    def take(self) -> str:
        """Return the next message, or "" when there is nothing to send."""
        lines, self._lines, self._size = self._lines, [], 0
        dropped, self._dropped = self._dropped, 0
        progress, self._progress = self._progress, ""
        self.filled = anyio.Event()
        if self._left <= 0:
            return ""
        if dropped:
            lines.append(f"({dropped} lines left out: more than is logged of a second)")
        if progress:
            lines.append(f"progress: {progress}")
        message = "\n".join(lines)
        self._left -= len(message.encode())
        if self._left <= 0:
            message += "\n(nothing more of this process is logged: it has logged enough)"
        return message


async def relay(feed: LiveLog, send: Callable[[str], Awaitable[bool]]) -> None:
    """Send messages, one a second, until the feed is finished or `send` returns False."""
    try:
        while True:
            await feed.filled.wait()
            last = feed.finished.is_set()
            if (message := feed.take()) and not await send(message):
                return
            if last:
                return
            with anyio.move_on_after(_EVERY):
                await feed.finished.wait()
    finally:
        feed.sent.set()
