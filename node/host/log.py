"""Structured logging: one logfmt line per event on stderr, with priorities under the journal.

Callers decide what is logged; no file, rotation or metric is here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

_ROOT = "colonyd"
_LONGEST_VALUE = 2048  # characters; a remote party must not be able to fill the disk with one line
_SECRET_WORDS = ("secret", "password", "passwd", "token", "private", "prvkey", "credential")
# sd-daemon(3) priorities by stdlib level.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.DEBUG, 7),
)


class Logger:
    """A named logger of events; fields are keyword arguments and secrets are never printed."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def _emit(
        self, level: int, event: str, fields: Mapping[str, object], *, trace: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            # The event is an argument, never a format string: a "%" in it is only a "%".
            self._logger.log(level, "%s", event, extra={"fields": fields}, exc_info=trace)

    def debug(self, event: str, /, **fields: object) -> None:
        """Log an event for developers."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a normal, noteworthy event."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log an event of degraded work."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log a failure that a person should look at."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log a failure with the traceback of the exception being handled."""
        self._emit(logging.ERROR, event, fields, trace=True)


def get_logger(name: str) -> Logger:
    """Return the logger called `name`, below the daemon's own root logger."""
    return Logger(logging.getLogger(f"{_ROOT}.{name}"))


def _is_secret(name: str) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in _SECRET_WORDS)


def _value(name: str, value: object) -> str:
    if _is_secret(name):
        return "[redacted]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray | memoryview):
        # Raw bytes may be a key or a body; neither belongs into a log.
        return f"[{len(value)} bytes]"
    text = format(value, ".6g") if isinstance(value, float) else str(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "…"
    if not text.isprintable():
        # Line breaks would forge lines and escape sequences would drive a terminal.
        return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f")
    if not text or any(character in text for character in ' "=\\'):
        return json.dumps(text, ensure_ascii=False)
    return text


class _Formatter(logging.Formatter):
    """Turns records, our own and those of libraries, into logfmt lines."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix(f"{_ROOT}.")
        parts = []
        if not self._journal:  # the journal keeps time and level itself
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            parts.append(f"ts={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()}")
        parts.append(f"name={_value('name', name)} event={_value('event', record.getMessage())}")
        fields: Mapping[str, object] = getattr(record, "fields", {})
        parts.extend(f"{key}={_value(key, value)}" for key, value in fields.items())
        lines = [" ".join(parts)]
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            lines.extend(f"  {_printable(line)}" for line in trace.splitlines())
        if self._journal:
            prefix = next((f"<{n}>" for level, n in _PRIORITIES if record.levelno >= level), "<7>")
            lines = [prefix + line for line in lines]
        return "\n".join(lines)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def under_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether `stream` is the very pipe that systemd's $JOURNAL_STREAM ("device:inode")
    names.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


def configure_logging(
    level: str = "info",
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send the daemon's events of `level` and above, and libraries' warnings, to `stream`.

    Only the program's entry point calls this; a second call replaces the first.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _Formatter(journal=under_journal(stream, os.environ if environ is None else environ))
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_ROOT).setLevel(level.upper())
