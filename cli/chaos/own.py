"""The workers that `colony chaos` starts for a run of its own, and the command that they run.

The run itself is in `cli.chaos.command`.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cli.core.errors import Failure
from cli.worker.subprocess import Reaper

FUNCTION = "chaos"
_LINE = 1 << 20  # bytes of one line that a worker prints
_GRACE = 5.0  # seconds for a worker to finish what it has in hand when the run is over
_PAUSE = 0.5  # seconds before a worker that ended by itself is started again


def command_of(journal: Path, work: float) -> str:
    """Return the shell command of the function: it writes down its start and its end.

    Its output is the id of its process and the arguments. A line is written by one `write` at the
    end of the file, so that lines of several workers do not mix.
    """
    file = shlex.quote(str(journal))
    return (
        f'echo "start $COLONYD_PROCESS_ID" >> {file}; read -r given; sleep {work:.3f}; '
        f'echo "end $COLONYD_PROCESS_ID" >> {file}; '
        'printf \'["%s",%s\' "$COLONYD_PROCESS_ID" "${given#?}"'
    )


@dataclass
class OwnWorker:
    """One worker of the run. It is killed, and comes back as itself or as another executor."""

    base: Path  # directory of the run
    stem: str
    words: list[str]  # of `colony`, up to the options that differ from worker to worker
    environ: dict[str, str]
    keep: bool  # it comes back under its name and with its key
    accepted: Callable[[str, str], None]  # gets the process and the executor that was thanked
    names: list[str] = field(default_factory=list)  # all executors that it has been
    _ready: bool = False
    _child: trio.Process | None = None
    _stopping: bool = False

    @property
    def name(self) -> str:
        return self.names[-1] if self.names else self.stem

    def up(self) -> bool:
        """Return whether it takes work."""
        return self._ready

    async def kill(self, number: signal.Signals) -> bool:
        """Send the worker a signal; `run` starts it again."""
        child = self._child
        if child is None or child.returncode is not None:
            return False
        self._ready = False
        child.send_signal(number)
        return True

    async def run(self, guard: Reaper) -> None:
        """Keep the worker running until `stop`. Raises Failure if its first start fails."""
        first = True
        while not self._stopping:
            if not (self.keep and self.names):
                self.names.append(f"{self.stem}-{len(self.names) + 1}")
            was_ready = await self._life(guard)
            if first and not was_ready and not self._stopping:
                raise Failure(
                    f"worker {self.name} did not start: {self._said()}",
                    next_step="`colony doctor` looks for causes",
                )
            if not was_ready and not self._stopping:
                await trio.sleep(_PAUSE)
            first = first and not was_ready

    def _said(self) -> str:
        lines = (self.base / f"{self.name}.err").read_text("utf-8", "replace").strip().splitlines()
        return "; ".join(lines[-2:]) or "it said nothing"

    async def _life(self, guard: Reaper) -> bool:
        """Run the worker until it ends; return whether it was ready."""
        state = self.base / self.name
        state.mkdir(mode=0o700, exist_ok=True)
        words = [*self.words, "--name", self.name, "--state", str(state)]
        was_ready = False
        with (self.base / f"{self.name}.err").open("ab") as errors:
            child = await trio.lowlevel.open_process(
                words,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this command, which then ends them
            )
        self._child = child
        await guard.watch(child.pid)
        try:
            if self._stopping:
                child.terminate()
            assert child.stdout is not None
            rest = b""
            async for piece in child.stdout:
                *lines, rest = (rest + piece)[-_LINE:].split(b"\n")
                for line in lines:
                    was_ready = self._told(line) or was_ready
            await child.wait()
            return was_ready
        finally:
            self._ready = False
            if child.returncode is None:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()
            with trio.CancelScope(shield=True):
                await guard.forget(child.pid)
                if child.stdout is not None:
                    await child.stdout.aclose()
            self._child = None

    def _told(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
        except ValueError:
            return False  # cut off by the kill
        if not isinstance(event, dict):
            return False
        if event.get("event") in ("successful", "failed"):
            self.accepted(str(event.get("processid")), self.name)
        if event.get("event") == "ready":
            self._ready = True
            return True
        return False

    async def stop(self) -> None:
        """End the worker, within some seconds."""
        self._stopping = True
        child = self._child
        if child is None:
            return
        child.terminate()
        with trio.move_on_after(_GRACE + 2):
            await child.wait()
        if child.returncode is None:
            child.kill()


def worker_words(home: Path, server: str | None, kind: str, command: str) -> list[str]:
    """Return the words that start a worker of the run, but for its name and directory."""
    isolated = ["-I"] if sys.flags.isolated else []
    words = [sys.executable, *isolated, "-m", "cli.main", "--home", str(home), "--json"]
    if server:
        words += ["--server", server]
    words += ["worker", "--type", kind, "--func", f"{FUNCTION}={command}"]
    return [*words, "--grace", str(_GRACE)]


def environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment of the workers: that of this command, without an executor's key."""
    mine = ("COLONIES_PRVKEY", "COLONIES_EXECUTOR_NAME")
    return {name: value for name, value in environ.items() if name not in mine}
