"""What commands show on a terminal, and text that would command it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

from tests.support.daemons import REPOSITORY, Daemon

# Clipboard (OSC 52), title, C1 forms of the same, cursor, colours, DEL, bidi, line separator.
HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07 \x1b]0;title\x07 \x9d52;c;ZXZpbA==\x9c \x9b2J \x1b[31mred\x1b[0m"
    " back\x08space \x7f \u202eevil\u2066 line\u2028end \rover"
)


def on_terminal(command: list[str], environ: dict[str, str]) -> bytes:
    """What a command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ, cwd="/") as process:
        os.close(theirs)
        read = b""
        try:
            while chunk := os.read(ours, 65_536):
                read += chunk
        except OSError:
            pass  # Linux says EIO when the other end is closed
        process.wait(60)
    os.close(ours)
    return read.replace(b"\r\n", b"\n")


def obeyed(shown: bytes) -> set[str]:
    """The characters of `shown` that a terminal takes for commands."""
    return {c for c in shown.decode() if not c.isprintable() and c not in "\n\t"}


def on_screen(daemon: Daemon, *args: str, until: bytes = b"", **environ: str) -> bytes:
    """What a command writes on a terminal of 80x24; interrupted once it wrote `until`, and ended
    after 90 s.
    """
    command = [sys.executable, "-m", "cli.main", "--home", str(daemon.home)]
    command += ["--server", f"127.0.0.1:{daemon.port}", *args]
    environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm-256color"} | environ
    environ |= {"PYTHONPATH": str(REPOSITORY)}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def interruptible() -> None:
        # A test run in the background of a shell hands down that SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=environ, cwd="/", preexec_fn=interruptible
    ) as running:
        os.close(theirs)
        read, latest = b"", time.monotonic() + 90
        try:
            while chunk := os.read(ours, 65_536):
                read += chunk
                if time.monotonic() > latest:
                    running.kill()  # the assertions show what came instead
                elif until and until in read:
                    running.send_signal(signal.SIGINT)
        except OSError:
            pass  # Linux says EIO when the other end is closed
        running.wait(60)
    os.close(ours)
    return read.replace(b"\r\n", b"\n")
