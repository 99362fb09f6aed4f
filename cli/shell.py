"""Runs one shell command as a function of an executor, with bounds on its output and its life.

It knows nothing of RPC: arguments in, an ending out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

__all__ = ["MOST_OUTPUT", "Ending", "environment", "output_of", "run_command"]

MOST_OUTPUT = 1_000_000  # bytes of stdout; a result must fit into one RPC message
_STDERR_KEPT = 4_000  # bytes: the tail of stderr that goes into the process's errors
_KILL_AFTER = 3.0  # seconds between SIGTERM and SIGKILL
# What a command gets of the worker's environment. The rest may hold keys and passwords
# (COLONIES_PRVKEY, AWS_S3_SECRETKEY), or steer programs (NOTIFY_SOCKET).
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
_DRAIN = 2.0  # seconds for the pipes to end once the command has: a child may hold them open


@dataclass(frozen=True)
class Ending:
    """How a command ended: its output, or what to report as errors."""

    out: list[Any]
    errors: list[str]

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return not self.errors


def output_of(stdout: bytes) -> list[Any]:
    """The output elements in a command's stdout: a JSON array's, else the one text.

    A trailing newline is dropped, and bytes that are no UTF-8 are replaced.
    """
    text = stdout.decode("utf-8", "replace")
    text = text.removesuffix("\n").removesuffix("\r")
    if text.lstrip().startswith("["):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if isinstance(parsed, list):
            return parsed
    return [text]


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
    command: str, args: list[Any], environ: Mapping[str, str], *, most_output: int = MOST_OUTPUT
) -> Ending:
    """Run `command` in a shell with `args` as a JSON array on its stdin, and wait for its end.

    Its environment is `environ` and nothing else. It gets a process group of its own; on
    cancellation the group is terminated, then killed.
    """
    try:
        child = await trio.lowlevel.open_process(
            command,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(environ),
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte; E2BIG for a huge environment
        return Ending([], [f"the command could not be started: {error}"])
    pipes = _Pipes()
    data = json.dumps(args).encode()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, child, data)
            nursery.start_soon(_read_stderr, child, pipes)
            nursery.start_soon(_read_stdout, child, pipes, most_output)
            await child.wait()
            # Background children may keep the pipes open: their output is not awaited for long.
            nursery.cancel_scope.deadline = trio.current_time() + _DRAIN
    finally:
        await _end(child)
    if pipes.too_large:
        return Ending([], [f"the command's output is larger than {most_output} bytes"])
    if child.returncode == 0:
        return Ending(output_of(pipes.stdout), [])
    return Ending([], _errors(child.returncode, pipes.stderr))


def _errors(code: int | None, stderr: bytes) -> list[str]:
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    errors = [f"the command ended with {how}"]
    if tail := stderr.decode("utf-8", "replace").strip():
        errors.append(tail)
    return errors


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


async def _read_stderr(child: trio.Process, pipes: _Pipes) -> None:
    assert child.stderr is not None
    async for chunk in child.stderr:
        pipes.stderr = (pipes.stderr + bytes(chunk))[-_STDERR_KEPT:]


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
