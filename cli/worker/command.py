"""`colony worker`: runs shell commands as the functions of an executor.

Options, the executor's key, signals and printing are here; the work is in `colonyd.worker.engine`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from cli.core.errors import FAILED, NOT_FOUND, USAGE, Failure
from cli.core.keyfiles import check_member_name, own_home
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line, print_note
from cli.worker.options import ContainerOptions, SlurmOptions, container_options, slurm_options

if TYPE_CHECKING:
    from cli.worker.slurm import SlurmSettings
    from colonyd.keys import PrivateKey
    from colonyd.rpc import RpcClient
    from colonyd.worker.handler import Handler
    from colonyd.worker.registration import Report

MOST_SLOTS = 64


@colony_command(
    "worker",
    "colony worker --func upper='tr a-z A-Z'",
    "colony worker --func resize=./resize.sh --func thumb=./thumb.sh --slots 2",
    "colony worker --container upper='debian:12 tr a-z A-Z'",
    "colony worker --slurm --slurm-partition long --func fold=./f.sh --type hpc",
)
@click.option("--func", "funcs", multiple=True, metavar="NAME=COMMAND")
@container_options
@click.option("--type", "-T", "kind", default="cli", show_default=True, help="Type of executor.")
@click.option("--name", default=None, help="Name of the executor [host's name and type].")
@click.option(
    "--slots",
    type=click.IntRange(1, MOST_SLOTS),
    default=None,
    help="Processes at a time [1; 64 with --slurm].",
)
@click.option("--approve/--no-approve", default=True, help="Approve itself with the colony's key.")
@click.option(
    "--env", "env", multiple=True, metavar="NAME", help="Variable that commands get, too; repeat."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=None,
    help="Directory for its key and for results not handed in yet [the home].",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Its private key, if that lies elsewhere.",
)
@click.option(
    "--rerun", is_flag=True, help="Run again what it left when it was killed [that fails]."
)
@click.option("--grace", type=Seconds(), default=30.0, show_default=True, help="Seconds to finish.")
@slurm_options
def worker(
    session: Session,
    funcs: tuple[str, ...],
    kind: str,
    name: str | None,
    slots: int | None,
    approve: bool,
    env: tuple[str, ...],
    state: Path | None,
    key_file: Path | None,
    rerun: bool,
    grace: float,
    containers: ContainerOptions,
    slurm: SlurmOptions,
) -> None:
    """Take processes from the colony and run a shell command, a container or a job for each.

    The command gets the arguments as a JSON array on stdin: in a workflow, the node's own, then the
    outputs of the nodes it waited for. It gets COLONYD_PROCESS_ID,
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

    With --container the command is run in an image, by podman, docker or systemd-nspawn, without a
    shell of the worker's: same arguments, output and log. It has no network, no capabilities, a
    read-only root and a /tmp in memory, the limits of the conditions cpu, mem, storage, gpu and
    walltime, and the files of the spec's `fs`, which go back when it ended well. A condition that
    the engine can't hold makes the process fail. See docs/how-to/containers.md.

    With --slurm each command is a batch job, whose resources are the conditions of the process:
    nodes, processes, processespernode, cpu, mem, storage, gpu and walltime. Jobs go on when the
    worker ends, and the next worker of this name goes on with them.
    """
    from cli.core.progress import board
    from cli.worker.container import parsed
    from cli.worker.slurm import slurm_settings
    from colonyd.worker.engine import Engine
    from colonyd.worker.leaving import leave_on_signal
    from colonyd.worker.place import alone, default_name, executor_key, results_of
    from colonyd.worker.registration import Registration
    from colonyd.worker.results import Results
    from node.host.home import Home

    name = check_member_name(name or default_name(kind))
    functions = dict(parse_function(text) for text in funcs)
    contained = parsed(containers)
    if twice := functions.keys() & contained.keys():
        raise Failure(f"--func and --container both name {min(twice)}", code=USAGE)
    if not functions and not contained:
        raise Failure(
            "no function: name one with --func or --container",
            code=USAGE,
            next_step="colony worker --func upper='tr a-z A-Z'",
        )
    home = Home(_place(session, state))
    colony = session.colony()
    batch = slurm_settings(slurm, home.path, session.environ)
    if batch is not None and contained:
        raise Failure("--slurm is for --func: its jobs are commands, not containers", code=USAGE)
    with alone(home.path, colony, name, kind):
        key = executor_key(key_file or home.key(f"executor-{name}"), make=key_file is None)
        results = Results(results_of(home.path, name))
        environ = command_environment(session.environ, env)

        def owner() -> PrivateKey:
            try:
                return session.owner_key()
            except Failure as failure:
                raise Failure(
                    f"executor {name} has to be added, and {failure.message}",
                    code=NOT_FOUND,
                    next_step="as the colony's owner: `colony executor add"
                    f" {shlex.quote(name)} --type {shlex.quote(kind)} --id {key.id} --approve`",
                ) from None

        async def work() -> None:
            stop = anyio.Event()
            finished = False
            async with anyio.create_task_group() as group:
                await group.start(leave_on_signal, stop, group.cancel_scope, grace, print_note)
                async with AsyncExitStack() as stack:
                    client = await stack.enter_async_context(session.client())
                    say = _say_json if session.as_json else _say
                    runs = _Runs(session, name, key, environ, env, home.path, say)
                    if batch is None:
                        handlers = await runs.commands(stack, functions, rerun)
                        handlers |= await runs.containers(stack, containers, rerun)
                    else:
                        handlers = await runs.jobs(stack, batch, functions, client)
                    listed: dict[str, list[dict[str, str]]] = {each: [] for each in handlers}
                    registration = Registration(
                        client, colony, name, kind, listed, key, owner, approve, say, stop
                    )
                    many = slots or (MOST_SLOTS if batch is not None else 1)
                    shown = stack.enter_context(board())
                    await Engine(registration, handlers, results, many, shown).work()
                finished = True
                group.cancel_scope.cancel()

            if not finished:
                raise Failure("left before all work was finished; results are kept", code=FAILED)

        session.run(work)


@dataclass(frozen=True)
class _Runs:
    """Makes the handlers of this worker's functions; what they share is closed by a stack."""

    session: Session
    name: str
    key: PrivateKey
    environ: Mapping[str, str]  # what commands get
    names: tuple[str, ...]  # the variables that the owner adds
    state: Path
    report: Report

    async def commands(
        self, stack: AsyncExitStack, functions: Mapping[str, str], rerun: bool
    ) -> dict[str, Handler]:
        """Return handlers of shell commands."""
        from cli.worker.shell import ShellHandler
        from cli.worker.subprocess import open_guard

        guard = await stack.enter_async_context(open_guard())
        return {
            function: ShellHandler(command, self.environ, guard, rerun)
            for function, command in functions.items()
        }

    async def containers(
        self, stack: AsyncExitStack, options: ContainerOptions, rerun: bool
    ) -> dict[str, Handler]:
        """Return handlers of containers. Raises Failure when the engine does not work."""
        from cli.worker.container import open_containers
        from colonyd.names import in_file

        place = self.state / "work" / in_file(self.name)
        return await stack.enter_async_context(
            open_containers(self.session, options, self.key, self.environ, self.names, place, rerun)
        )

    async def jobs(
        self,
        stack: AsyncExitStack,
        batch: SlurmSettings,
        functions: Mapping[str, str],
        client: RpcClient,
    ) -> dict[str, Handler]:
        """Return handlers of batch jobs. Raises Failure when Slurm does not answer."""
        from cli.worker.slurm import SlurmHandler, open_slurm
        from colonyd.rpc import Signed

        opened = open_slurm(batch, self.environ, Signed(client, self.key), self.report)
        jobs = await stack.enter_async_context(opened)
        return {function: SlurmHandler(command, jobs) for function, command in functions.items()}


def _place(session: Session, state: Path | None) -> Path:
    """Return the directory that holds what this worker keeps: its user's. Raises Failure.

    It is the home, unless that is the service's: a member of its group has a directory of its own.
    """
    from colonyd.places import SYSTEM_HOME, data_directory
    from node.host.home import Home

    home = session.home
    if state is None and not Home(home).keys.is_dir():
        raise Failure(f"no colony at {home}", code=NOT_FOUND, next_step="`colony init`")
    place = state or home
    if state is None and home == SYSTEM_HOME != session.home_to_write:
        place = data_directory(session.environ) / "colony-worker"
    if place != home:
        try:
            Home(place).keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(
                f"{place}: {error.strerror}", next_step="choose another place with --state"
            ) from None
    own_home(session, place)
    return place


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


def _say(event: str, details: Mapping[str, object]) -> None:
    from colonyd.worker.registration import line_of

    print_note(line_of(event, details))


def _say_json(event: str, details: Mapping[str, object]) -> None:
    print_line(json.dumps({"event": event, **details}))
