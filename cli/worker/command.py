"""`colony worker`: runs shell commands as the functions of an executor.

Options, the executor's key, signals and printing are here; the work is in `cli.worker.engine`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from cli.core.errors import FAILED, NOT_FOUND, USAGE, Failure
from cli.core.keyfiles import check_member_name, own_home
from cli.core.output import short
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line, print_note

if TYPE_CHECKING:
    from node.host.keys import PrivateKey


@colony_command(
    "worker",
    "colony worker --func upper='tr a-z A-Z'",
    "colony worker --func resize=./resize.sh --func thumb=./thumb.sh --slots 2",
)
@click.option("--func", "funcs", multiple=True, required=True, metavar="NAME=COMMAND")
@click.option("--type", "kind", default="cli", show_default=True, help="Type of executor.")
@click.option("--name", default=None, help="Name of the executor [host's name and type].")
@click.option("--slots", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--approve/--no-approve", default=True, help="Approve itself with the colony's key.")
@click.option(
    "--env", "env", multiple=True, metavar="NAME", help="Variable that commands get, too; repeat."
)
@click.option("--grace", type=float, default=30.0, show_default=True, help="Seconds to finish.")
def worker(
    session: Session,
    funcs: tuple[str, ...],
    kind: str,
    name: str | None,
    slots: int,
    approve: bool,
    env: tuple[str, ...],
    grace: float,
) -> None:
    """Take processes from the colony and run a shell command for each.

    The command gets the arguments as a JSON array on stdin, and COLONYD_PROCESS_ID,
    COLONYD_FUNCTION and COLONYD_KWARGS (JSON) in its environment. Of the worker's own environment
    it gets PATH, HOME, USER, LOGNAME, SHELL, LANG, LANGUAGE, LC_*, TZ and TMPDIR, and what --env
    names: keys and passwords stay here. Its stdout is the output (a
    JSON array: all elements of the output); an exit status other than 0 makes the process fail
    with the end of stderr. It may have 8 MB, 12 MB as JSON; for a process of another colony 4 MB go
    back. What a daemon does not take as an array, such as one with more than 100000 strings,
    brackets and commas, is one text. COLONYD_KWARGS has at most 128 KiB, as all variables of
    Linux: large values go as arguments. Lines on stderr are logged as they come (`colony process
    logs -f`), and lines written to $COLONYD_PROGRESS as progress: echo 40% > $COLONYD_PROGRESS. On
    SIGTERM the commands in hand are finished, for --grace seconds.
    """
    from cli.worker.engine import Worker, WorkerSettings
    from cli.worker.subprocess import open_guard
    from node.host.home import Home
    from node.model.names import in_file

    name = check_member_name(name or default_name(kind))
    functions = dict(parse_function(text) for text in funcs)
    home = Home(session.home)
    if not home.keys.is_dir():
        raise Failure(f"no colony at {home.path}", code=NOT_FOUND, next_step="`colony init`")
    own_home(session)
    colony = session.colony()
    with _alone(home.path / f"{in_file(f'worker-{name}')}.lock", name):
        key = executor_key(home.key(f"executor-{name}"))
        results = home.path / "results" / in_file(name)
        results.mkdir(mode=0o700, parents=True, exist_ok=True)
        environ = command_environment(session.environ, env)
        settings = WorkerSettings(colony, name, kind, functions, slots, results, approve, environ)

        async def work() -> None:
            stop = trio.Event()
            finished = False
            async with trio.open_nursery() as nursery:
                await nursery.start(_signals, stop, nursery.cancel_scope, grace)
                async with session.client() as client, open_guard() as guard:
                    say = _say_json if session.as_json else _say
                    own = Worker(client, settings, key, session.owner_key, say, stop, guard)
                    await own.work()
                finished = True
                nursery.cancel_scope.cancel()

            if not finished:
                raise Failure("left before all work was finished; results are kept", code=FAILED)

        session.run(work)


def parse_function(text: str) -> tuple[str, str]:
    """Split 'NAME=COMMAND'. Raises Failure (usage)."""
    name, _, command = text.partition("=")
    if not name.strip() or not command.strip():
        raise Failure(
            f"--func {text!r}: write it as NAME=COMMAND",
            code=USAGE,
            next_step="colony worker --func upper='tr a-z A-Z'",
        )
    return name.strip(), command


def command_environment(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the environment of commands. Raises Failure (usage) for a name that is not set."""
    from cli.worker.subprocess import environment

    for name in names:
        if name not in environ:
            raise Failure(
                f"--env {name}: not set in the worker's environment",
                code=USAGE,
                next_step=f"`export {name.partition('=')[0]}=...` first, then name it with --env",
            )
    return environment(environ, names)


def default_name(kind: str) -> str:
    """Return a name for the executor made from the host's name and its type."""
    host = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9_.\-]", "-", f"{host}-{kind}").lstrip("-.")[:63] or kind


def executor_key(path: Path) -> PrivateKey:
    """Read the executor's key, or make it."""
    from node.host.keys import IdentityError, PrivateKey, read_key, write_key

    try:
        with contextlib.suppress(FileNotFoundError):
            return read_key(path)
        key = PrivateKey.generate()
        write_key(path, key)
        return key
    except (OSError, IdentityError) as error:
        raise Failure(f"{path}: {error}", next_step="choose another --name or --home") from None


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    # Two workers with one key would each take the other's processes for leftovers.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"a worker called {name} runs already in this home",
                code=FAILED,
                next_step="give this one another --name",
            ) from None
        yield
    finally:
        os.close(descriptor)


async def _signals(
    stop: trio.Event,
    scope: trio.CancelScope,
    grace: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Stop taking processes at the first signal, and leave `grace` seconds later, or at the second
    signal.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                scope.cancel()
                return
            stop.set()
            scope.deadline = trio.current_time() + grace
            print_note("finishing; once more to leave at once")


def _say(event: str, details: Mapping[str, object]) -> None:
    shown = dict(details)
    if "processid" in shown:
        shown["processid"] = short(shown["processid"])
    text = " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in shown.items()
    )
    print_note(f"{event} {text}")


def _say_json(event: str, details: Mapping[str, object]) -> None:
    print_line(json.dumps({"event": event, **details}))
