"""Containers as the functions of an executor: by podman, docker or systemd-nspawn.

The command lines are made in `cli.worker.engines`, files come and go in `cli.worker.files`.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from cli.core.errors import USAGE, Failure
from cli.core.session import Session
from cli.files.session import FileSession, file_session
from cli.worker.engines import (
    ANY,
    ENGINES,
    MOUNTS,
    NOBODY,
    PROGRAMS,
    PROGRESS,
    Function,
    Job,
    Refused,
    Settings,
    check_mount,
    command_of,
    explained,
    limits_of,
    listing,
    parse_container,
    question,
    removal,
    run,
)
from cli.worker.files import MOST_BYTES, Tree, Unfit, give, layout_of, remove
from cli.worker.options import ContainerOptions
from cli.worker.shell import variables
from cli.worker.subprocess import OutputSink, Reaper, open_guard, run_command
from colonyd.errors import ColonyError, RpcError
from colonyd.keys import PrivateKey
from colonyd.rpc import Unreachable
from colonyd.worker.handler import Ending, Execution, Handler

_CALL = 60.0  # seconds for the engine to list or remove containers
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
_USER = re.compile(r"\d{1,9}(:\d{1,9})?")
_LOOK = 2.0  # seconds between two looks at the size of a process's files
_KEPT = ("CONTAINERS_", "DOCKER_", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_")


def engine_environment(environ: Mapping[str, str], command: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the engine's client: a command's, and those that steer engines."""
    return {**command, **{n: v for n, v in environ.items() if n.startswith(_KEPT)}}


def chosen_engine(engine: str | None, environ: Mapping[str, str]) -> str:
    """Return the engine, by default the first that is installed. Raises Failure."""
    for name in [engine] if engine else ENGINES:
        if shutil.which(PROGRAMS[name], path=environ.get("PATH")):
            return name
    wanted = PROGRAMS[engine] if engine else "no podman, docker or systemd-nspawn"
    raise Failure(
        f"{wanted} is not installed" if engine else f"{wanted} here",
        next_step="apt-get install podman",
    )


def settings_of(engine: str, executor: str, user: str | None, **owners: object) -> Settings:
    """Return the settings for an engine on this machine, run by this user. Raises Failure."""
    root = os.geteuid() == 0
    if engine == "nspawn" and not root:
        raise Failure("systemd-nspawn needs root", code=USAGE, next_step="--engine podman")
    own = f"{os.geteuid()}:{os.getegid()}"
    made = Settings(
        engine,
        executor,
        secrets.token_hex(8),
        user or (f"{NOBODY}:{NOBODY}" if root else own),
        keep_id=engine == "podman" and not root,
        nofile=_bound(resource.RLIMIT_NOFILE),
        nproc=_bound(resource.RLIMIT_NPROC),
        booted=Path("/run/systemd/system").is_dir(),
    )
    return replace(made, **owners)  # type: ignore[arg-type]


def _bound(what: int) -> int:
    # An engine can't raise a limit beyond its own; podman's default is to try.
    hard = resource.getrlimit(what)[1]
    return 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)


def parsed(options: ContainerOptions) -> dict[str, Function]:
    """Return the functions that run in containers. Raises Failure (usage)."""
    functions = {}
    for text in options.container:
        try:
            name, function = parse_container(text)
        except ValueError as error:
            raise Failure(
                f"--container {text!r}: {error}",
                code=USAGE,
                next_step="colony worker --container upper='IMAGE tr a-z A-Z'",
            ) from None
        if function.image == ANY and not options.image_allow:
            raise Failure(
                f"--container {text!r}: which images may a spec name?",
                code=USAGE,
                next_step="name them, such as --image-allow 'localhost/*'",
            )
        functions[name] = function
    for path in options.mount_at:
        if not _PATH.fullmatch(path) or ".." in path.split("/") or not path.strip("/"):
            raise Failure(f"--mount-at {path!r}: not a directory of a container", code=USAGE)
    if options.container_user and not _USER.fullmatch(options.container_user):
        raise Failure(f"--container-user {options.container_user!r}: UID or UID:GID", code=USAGE)
    return functions


@asynccontextmanager
async def open_containers(
    session: Session,
    options: ContainerOptions,
    key: PrivateKey,
    command_environ: Mapping[str, str],
    names: tuple[str, ...],
    place: Path,
    rerun: bool = False,
) -> AsyncIterator[dict[str, Handler]]:
    """Give the handlers of the functions in containers, after what an earlier run left is gone.

    Raises Failure when the engine does not work.
    """
    functions = parsed(options)
    if not functions:
        yield {}
        return
    environ = engine_environment(session.environ, command_environ)
    engine = chosen_engine(options.engine, environ)
    settings = settings_of(
        engine,
        key.id,
        options.container_user,
        network=options.container_network,
        images=options.image_allow,
        mounts=options.mount_at or MOUNTS,
        gpus=options.gpus,
        pull=options.pull,
        variables=names,
    )
    if engine == "nspawn" and any(not each.command for each in functions.values()):
        raise Failure("--container: systemd-nspawn needs a command after the image", code=USAGE)
    if {",", ":"} & set(str(place)):  # they separate the parts of a mount
        raise Failure(f"{place}: no comma or colon may be in it", next_step="another --state")
    async with file_session(session, key) as files, open_guard(at_end(settings), environ) as guard:
        containers = Containers(settings, environ, place, files, guard)
        await containers.clean()
        yield {name: ContainerHandler(each, containers, rerun) for name, each in functions.items()}


@dataclass(frozen=True)
class Containers:
    """The containers of one worker: an engine, a place for files, the calls about files."""

    settings: Settings
    environ: Mapping[str, str]  # of the engine's client
    place: Path  # a directory of this worker's own: one directory in it for each process
    files: FileSession
    guard: Reaper | None = None

    async def clean(self) -> list[str]:
        """Remove the containers and files that a killed worker left; return the ids of the
        containers. Raises Failure when the engine does not run.
        """
        left = await clean(self.settings, self.environ)
        await trio.to_thread.run_sync(remove, self.place)
        self.place.mkdir(mode=0o700, parents=True)
        return left


async def clean(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Remove all containers of an executor and return their ids. Raises Failure."""
    if settings.engine == "nspawn":
        return []  # they end with systemd-nspawn, which is in a process group of the worker's
    left = (await _ask(listing(settings), environ)).split()
    if left:
        await _ask(removal(settings, left), environ)
    return left


def at_end(settings: Settings) -> list[str]:
    """Return the command that removes all containers of an executor; () where none stay."""
    if settings.engine == "nspawn":
        return []
    found = f"left=$({shlex.join(listing(settings, this_run=True))})"
    return [
        "/bin/sh",
        "-c",
        f'{found} && [ -n "$left" ] && {shlex.join(removal(settings, []))} $left',
    ]


async def _ask(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what a command of the engine prints. Raises Failure."""
    wrong: str = "no answer"
    with trio.move_on_after(_CALL):
        try:
            done = await trio.run_process(
                list(command),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}") from None
        if done.returncode == 0:
            return str(done.stdout.decode("utf-8", "replace"))
        wrong = done.stderr.decode("utf-8", "replace").strip()[-500:]
    raise Failure(
        f"{command[0]} does not work: {wrong}",
        next_step=f"try `{command[0]} info` as this user, or another --engine",
    )


@dataclass(frozen=True)
class ContainerHandler:
    """Runs a container for each process of a function."""

    function: Function
    containers: Containers
    reruns: bool = False
    resumes = False

    async def __call__(self, execution: Execution) -> Ending:
        """Run the container; its stdout is the output, as with a shell command."""
        settings, spec = self.containers.settings, execution.spec
        try:
            limits = limits_of(spec, settings)
            image, command = command_of(self.function, execution.kwargs, settings)
            layout = layout_of(spec, execution.id)
            mounted = check_mount(layout.mount, settings) if layout else None
        except (Refused, Unfit) as error:
            return Ending([], [str(error)])
        work = self.containers.place / execution.id
        name = f"colonyd-{execution.id[:24]}-{secrets.token_hex(4)}"
        tree = None
        try:
            work.mkdir(mode=0o700)
            fifo = work / "progress"
            os.mkfifo(fifo)
            fifo.chmod(0o622)  # its directory is for the worker alone
            files = None
            if layout and mounted:
                files = work / "files"
                inner = mounted.inner
                files.joinpath(inner).mkdir(parents=True)
                tree = Tree(files, layout, limits.storage or MOST_BYTES, inner.parts)
            job = Job(name, execution.id, image, command, limits, fifo, files, mounted)
            return await self._run(execution, job, tree)
        except (Unfit, ColonyError, RpcError, Unreachable, OSError) as error:
            return Ending([], [f"files: {error}"])
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(remove, work)

    async def _run(self, execution: Execution, job: Job, tree: Tree | None) -> Ending:
        own = self.containers
        if tree and job.files:
            await tree.fill(own.files)
            user, _, group = own.settings.user.partition(":")
            if os.geteuid() == 0 and own.settings.engine != "nspawn":
                ids = int(user), int(group or user)
                await trio.to_thread.run_sync(give, job.files, *ids)
        environ = {**own.environ, **variables(execution), "COLONYD_PROGRESS": PROGRESS}
        ending: Ending | None = None
        wrong = f"it was ended after {job.limits.walltime} seconds: conditions.walltime"
        with trio.move_on_after(job.limits.walltime or float("inf")):
            async with trio.open_nursery() as nursery:
                over: list[str] = []
                if tree:
                    nursery.start_soon(_look, tree, over, nursery.cancel_scope)
                ending = await self._contained(execution, job, environ)
                nursery.cancel_scope.cancel()
            if over:
                ending, wrong = None, over[0]
        if ending is None:
            return Ending([], [wrong])
        if tree and ending.ok:
            await tree.bring_back(own.files)
        return ending

    async def _contained(
        self, execution: Execution, job: Job, environ: Mapping[str, str]
    ) -> Ending:
        own = self.containers
        try:
            return await run_command(
                run(job, own.settings),
                execution.args,
                environ,
                hearing=OutputSink(execution.stderr, execution.progress),
                guard=own.guard,
                fifo=job.progress,
                why=partial(self._why, job),
            )
        finally:
            if own.settings.engine != "nspawn":
                # The client has ended, or was terminated and told the container so, and killed.
                with trio.CancelScope(shield=True):
                    await _gone(removal(own.settings, [job.name]), own.environ, execution)

    async def _why(self, job: Job, status: int) -> str:
        own = self.containers
        killed = False
        if job.limits.mem and own.settings.engine != "nspawn":
            try:
                answer = await _ask(question(own.settings, job.name), own.environ)
                killed = answer.strip() == "true"
            except Failure:
                pass  # it says so itself, as well as it can
        return explained(status, killed, job.limits, own.settings.engine)


async def _gone(command: Sequence[str], environ: Mapping[str, str], execution: Execution) -> None:
    try:
        await _ask(command, environ)
    except Failure as failure:
        execution.stderr(f"the container was not removed: {failure.message}\n".encode())


async def _look(tree: Tree, over: list[str], scope: trio.CancelScope) -> None:
    """End the container when its files are beyond their bounds."""
    while True:
        await trio.sleep(_LOOK)
        try:
            await tree.check()
        except Unfit as error:
            over.append(str(error))
            scope.cancel()
            return
