"""One shell command as a function of an executor, with bounds on its output and its life.

It knows nothing of RPC: arguments in, a result out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from colonyd.errors import RpcError
from colonyd.worker.handler import MOST_JSON, Ending
from node.rpc.calls import MAX_TOKENS
from node.rpc.incremental import parse

MOST_OUTPUT = 8_000_000  # bytes of stdout
_MOST_VARIABLE = 131_072  # bytes of NAME=VALUE and a NUL: Linux' MAX_ARG_STRLEN
_AROUND = 100  # tokens of a closing message that are not the output's
STDERR_KEPT = 4_000  # bytes: the tail of stderr that goes into the process's errors
_KILL_AFTER = 3.0  # seconds between SIGTERM and SIGKILL
# The variables of the worker's environment that a command gets. The rest may hold keys and
# passwords (COLONIES_PRVKEY, AWS_S3_SECRETKEY), or steer programs (NOTIFY_SOCKET).
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
_MOST_DEPTH = 60  # arrays and objects; a daemon takes 64, some of them the message's own
_DRAIN = 2.0  # seconds for the pipes to end once the command has: a child may hold them open


def output_of(stdout: bytes) -> list[Any]:
    """Return the output elements in a command's stdout: a JSON array's, else the one text.

    An array that a daemon would refuse is a text, too: NaN, numbers beyond a double or 64 bits,
    lone surrogates, deep nesting, too many elements. A trailing newline is dropped, and bytes that
    are no UTF-8 are replaced.
    """
    text = stdout.decode("utf-8", "replace")
    text = text.removesuffix("\n").removesuffix("\r")
    if text.lstrip().startswith("["):
        try:
            parsed = _parsed(text.encode())
        except RpcError:
            return [text]
        if isinstance(parsed, list) and _accepted(parsed):
            return parsed
    return [text]


def _parsed(text: bytes) -> Any:
    """Return the value of a JSON text, read with the daemon's bounds. Raises RpcError beyond
    them.
    """
    steps = parse(text, MAX_TOKENS - _AROUND, _MOST_DEPTH)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _accepted(value: Any) -> bool:
    """Return whether a daemon takes `value` as output: shallow enough, its integers small
    enough.
    """
    stack = [(value, 1)]
    while stack:
        current, depth = stack.pop()
        if depth > _MOST_DEPTH or (isinstance(current, int) and not -(2**63) <= current < 2**63):
            return False
        if isinstance(current, dict):
            stack.extend((inner, depth + 1) for inner in current.values())
        elif isinstance(current, list):
            stack.extend((inner, depth + 1) for inner in current)
    return True


@dataclass(frozen=True)
class OutputSink:
    """Gets the output of a running command as it comes: standard error, and progress."""

    stderr: Callable[[bytes], None]
    progress: Callable[[bytes], None]


# Reads "+ GROUP" and "- GROUP". At the end of its input, which is the end of the worker in any
# case, it kills the groups that are left. Signals for the worker's group do not reach it.
_GUARD = """
trap '' INT TERM HUP
groups=' '
while read -r sign group; do
    case $sign in
        +) groups="$groups$group " ;;
        -) case $groups in
            *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;;
        esac ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
[ $# -eq 0 ] || exec "$@"
"""


@dataclass(frozen=True)
class Reaper:
    """A process that outlives the worker by a moment, to end the commands that it leaves.

    Linux' parent-death signal would end the shell only, not the shell's children. A command that
    leaves its process group (setsid) is not found; in a systemd unit the control group is.
    """

    _stdin: trio.abc.SendStream
    _turn: trio.Lock = field(default_factory=trio.Lock)

    async def watch(self, group: int) -> None:
        """Have a process group killed if this process ends before `forget`."""
        await self._tell(f"+ {group}\n")

    async def forget(self, group: int) -> None:
        """Have a process group left alone: it has ended, and its number may be used again."""
        await self._tell(f"- {group}\n")

    async def _tell(self, line: str) -> None:
        # Each slot reports its own command, and a stream takes one sender at a time.
        async with self._turn:
            with contextlib.suppress(trio.BrokenResourceError):  # it was killed: work goes on
                await self._stdin.send_all(line.encode())


@contextlib.asynccontextmanager
async def open_guard(
    at_end: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> AsyncIterator[Reaper]:
    """Run a reaper for as long as the block takes. It ends with the command `at_end`, if any, in
    `environ`: that removes what is in no process group.
    """
    child = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", _GUARD, "guard", *at_end],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=dict(environ or {}),
    )
    assert child.stdin is not None
    try:
        yield Reaper(child.stdin)
    finally:
        with trio.move_on_after(_KILL_AFTER, shield=True):
            await child.stdin.aclose()
            await child.wait()


def environment(environ: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables of `environ` that a command gets: an allow-list, `LC_*`, and `also`."""
    kept = {*_KEPT_VARIABLES, *also}
    return {
        name: value for name, value in environ.items() if name in kept or name.startswith("LC_")
    }


@dataclass
class _Pipes:
    stdout: bytes = b""
    stderr: bytes = b""
    too_large: bool = False


async def run_command(
    command: str | Sequence[str],
    args: list[Any],
    environ: Mapping[str, str],
    *,
    most_output: int = MOST_OUTPUT,
    hearing: OutputSink | None = None,
    guard: Reaper | None = None,
    fifo: Path | None = None,
    why: Callable[[int], Awaitable[str]] | None = None,
    cwd: Path | None = None,
) -> Ending:
    """Run `command` in a shell, or a list of words without one, with `args` as a JSON array on its
    stdin, and wait for its end.

    Its environment is `environ`, and with `hearing` COLONYD_PROGRESS: a file to which it may write
    lines of progress; with `fifo` they come from there and the variable is the caller's. It gets a
    process group of its own; on cancellation the group is terminated, then killed. `why` may say
    what a status other than 0 means.
    """
    reader, writer = (-1, -1) if not hearing else _both_ends(fifo) if fifo else os.pipe()
    if hearing and not fifo:
        environ = {**environ, "COLONYD_PROGRESS": f"/dev/fd/{writer}"}
    try:
        child = await trio.lowlevel.open_process(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(environ),
            pass_fds=[writer] if hearing and not fifo else [],
            cwd=cwd,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte; E2BIG for a huge environment
        if hearing:
            os.close(reader)
        if fifo:
            os.close(writer)
        return Ending([], [f"the command could not be started: {_not_started(error, environ)}"])
    finally:
        if hearing and not fifo:
            os.close(writer)
    pipes = _Pipes()
    data = json.dumps(args).encode()
    progress = trio.lowlevel.FdStream(reader) if hearing else None
    try:
        if guard is not None:
            await guard.watch(child.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, child, data)
            nursery.start_soon(_read_stderr, child, pipes, hearing)
            nursery.start_soon(_read_stdout, child, pipes, most_output)
            if hearing is not None and progress is not None:
                nursery.start_soon(_read_progress, progress, hearing)
            await child.wait()
            if fifo:
                os.close(writer)  # a FIFO that nobody writes to any more ends
                writer = -1
            # Background children may keep the pipes open: their output is not awaited for long.
            nursery.cancel_scope.deadline = trio.current_time() + _DRAIN
    finally:
        await _end(child)
        with trio.CancelScope(shield=True):
            if progress is not None:
                await progress.aclose()
            if fifo and writer >= 0:
                os.close(writer)
            if guard is not None:
                await guard.forget(child.pid)
    if pipes.too_large:
        return Ending([], [f"the command's output is larger than {most_output} bytes"])
    ending = ending_of(child.returncode, pipes.stdout, pipes.stderr)
    if why is not None and child.returncode and (meaning := await why(child.returncode)):
        return Ending([], [meaning, *ending.errors])
    return ending


def _both_ends(fifo: Path) -> tuple[int, int]:
    """Open a FIFO for reading, and for writing: so that it has no end between two writers."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return reader, os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)


def _not_started(error: Exception, environ: Mapping[str, str]) -> str:
    """Return why a command was not started, naming the variable that the kernel does not take."""
    if isinstance(error, OSError) and error.errno == errno.E2BIG:
        for name, value in environ.items():
            size = len(os.fsencode(f"{name}={value}")) + 1
            if size > _MOST_VARIABLE:
                return (
                    f"the variable {name} has {size} bytes, and the kernel takes 128 KiB"
                    f" ({_MOST_VARIABLE} bytes)"
                    + (
                        "; give large values as arguments: the command reads them from stdin"
                        if name == "COLONYD_KWARGS"
                        else ""
                    )
                )
    return str(error)


def ending_of(code: int | None, stdout: bytes, stderr: bytes) -> Ending:
    """Return the result of a command that ended with `code`, of a signal the negative number.

    `stderr` is the end of what it wrote there.
    """
    if code == 0:
        out = output_of(stdout)
        if len(msgspec.json.encode(out)) > MOST_JSON:
            return Ending([], [f"the command's output is larger than {MOST_JSON} bytes as JSON"])
        return Ending(out, [])
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    errors = [f"the command ended with {how}"]
    if tail := stderr.decode("utf-8", "replace").strip():
        errors.append(tail)
    return Ending([], errors)


async def _feed(child: trio.Process, data: bytes) -> None:
    assert child.stdin is not None
    try:
        async with child.stdin as stream:
            await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # a command need not read its arguments


async def _read_stdout(child: trio.Process, pipes: _Pipes, most: int) -> None:
    assert child.stdout is not None
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in child.stdout:
            size += len(chunk)
            if size > most:
                pipes.too_large = True
                _signal(child, signal.SIGKILL)
                return
            chunks.append(bytes(chunk))
    finally:
        pipes.stdout = b"".join(chunks)


async def _read_stderr(child: trio.Process, pipes: _Pipes, hearing: OutputSink | None) -> None:
    assert child.stderr is not None
    async for chunk in child.stderr:
        pipes.stderr = (pipes.stderr + bytes(chunk))[-STDERR_KEPT:]
        if hearing is not None:
            hearing.stderr(bytes(chunk))


async def _read_progress(stream: trio.abc.ReceiveStream, hearing: OutputSink) -> None:
    async for chunk in stream:
        hearing.progress(bytes(chunk))


def _signal(child: trio.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the whole group is gone
        os.killpg(child.pid, number)


async def _end(child: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        if child.returncode is None:
            _signal(child, signal.SIGTERM)
            with trio.move_on_after(_KILL_AFTER):
                await child.wait()
            # Still there, or gone with children left in its group: none may outlive the call.
            _signal(child, signal.SIGKILL)
            await child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                await pipe.aclose()
