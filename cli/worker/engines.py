"""The command lines of podman, docker and systemd-nspawn for one process of a function.

Values in, an argv out: the owner's settings and the conditions of a spec. Nothing of a spec becomes
an option. The containers run in `cli.worker.container`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from node.model.quantities import parse_cpu, parse_memory
from node.model.types import Conditions

ENGINES = ("podman", "docker", "nspawn")
PROGRAMS = {"podman": "podman", "docker": "docker", "nspawn": "systemd-nspawn"}
# Labels of a container.
EXECUTOR, PROCESS, RUN = "colonyd.executor", "colonyd.process", "colonyd.run"
PROGRESS = "/run/colonyd/progress"  # the FIFO in a container
ANY = "*"  # the image is the spec's
NOBODY = 65534
MOUNTS = ("/cfs",)  # where upstream's examples mount files
_MOST_PIDS = 512
_TMP = 256 << 20  # bytes of /tmp in a container
_LEAST_MEMORY = 6 << 20  # bytes; docker starts nothing with less
_AFTER = 10  # seconds past its time after which podman ends a container without its worker
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_MACHINES = "/var/lib/machines"  # where machinectl keeps them
_SHELL = ("/bin/sh", "-c")
_OPTIONS = "podman and docker options are the worker's: write NAME='IMAGE COMMAND WORDS'"


class Refused(Exception):
    """A process can't run as its spec says; the text names the field."""


@dataclass(frozen=True)
class Function:
    """A function of the worker: an image and the command in it, none for the image's own."""

    image: str
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the owner of the worker allows its containers."""

    engine: str
    executor: str  # the executor's id: a label of its containers
    run: str = "0"  # this run of the worker: another label
    user: str = f"{NOBODY}:{NOBODY}"  # UID:GID in containers
    keep_id: bool = False  # podman without root: the user inside is the worker's
    network: bool = False
    images: tuple[str, ...] = ()  # patterns of what a spec may name
    mounts: tuple[str, ...] = MOUNTS  # fs.mount is one of these or below
    gpus: int = 0
    pull: str = "missing"
    variables: tuple[str, ...] = ()  # names of the owner's variables
    nofile: int = 4096
    nproc: int = 4096
    booted: bool = False  # systemd is there to hold limits for nspawn


@dataclass(frozen=True)
class Limits:
    """The limits of one process; 0 is none. Sizes in bytes, times in seconds."""

    cpu: int = 0  # millicores
    mem: int = 0
    storage: int = 0
    gpus: int = 0
    walltime: int = 0
    maxexectime: int = 0


def parse_container(text: str) -> tuple[str, Function]:
    """Split 'NAME=IMAGE WORDS', with a shell's quotes. Raises ValueError."""
    name, _, rest = text.partition("=")
    words = shlex.split(rest)
    if not name.strip() or not words:
        raise ValueError("write it as NAME='IMAGE COMMAND WORDS'")
    image, *command = words
    if image != ANY and image.startswith("-"):
        raise ValueError(f"{image!r} is no image: {_OPTIONS}")
    return name.strip(), Function(image, tuple(command))


# -- what a spec asks for ---------------------------------------------------------------------


def limits_of(spec: Mapping[str, Any], settings: Settings) -> Limits:
    """Return the limits that the conditions of a spec set. Raises Refused for one that the
    engine can't hold.
    """
    try:
        asked = msgspec.convert(spec.get("conditions") or {}, Conditions)
        exectime = msgspec.convert(spec.get("maxexectime") or 0, int)
    except msgspec.ValidationError as error:
        raise Refused(f"conditions: {error}") from None
    for field in ("nodes", "processes", "processespernode"):
        if getattr(asked, field) > 1:
            raise Refused(f"conditions.{field}: a container is one process on one machine")
    cpu = _amount("cpu", asked.cpu)
    mem, storage = _amount("mem", asked.mem), _amount("storage", asked.storage)
    if 0 < mem < _LEAST_MEMORY:
        raise Refused(f"conditions.mem: {asked.mem} is too little; a container needs 6Mi")
    if settings.engine == "nspawn" and not settings.booted:
        for field, amount in (("cpu", cpu), ("mem", mem)):
            if amount:
                raise Refused(
                    f"conditions.{field}: systemd-nspawn holds no limits where systemd is not"
                    " the init system; run the worker with podman or docker"
                )
    gpus = _gpus(asked, settings)
    return Limits(cpu, mem, storage, gpus, max(asked.walltime, 0), max(exectime, 0))


def _amount(field: str, text: str) -> int:
    try:
        return parse_cpu(text) if field == "cpu" else parse_memory(text)
    except ValueError as error:
        raise Refused(f"conditions.{field}: {error}") from None


def _gpus(asked: Conditions, settings: Settings) -> int:
    count = asked.gpu.count
    if (asked.gpu.name or _amount("gpu.mem", asked.gpu.mem)) and not count:
        count = 1
    if count <= 0:
        return 0
    if settings.engine == "nspawn" or settings.gpus < count:
        raise Refused(f"conditions.gpu.count: {count}, and this worker gives {settings.gpus} GPUs")
    if _amount("gpu.mem", asked.gpu.mem):
        raise Refused("conditions.gpu.mem: no engine limits the memory of a GPU")
    if asked.gpu.name:
        raise Refused("conditions.gpu.name: this worker has GPUs by their number only")
    return count


def command_of(
    function: Function, kwargs: Mapping[str, Any], settings: Settings
) -> tuple[str, tuple[str, ...]]:
    """Return the image and command of a process. Raises Refused.

    Where the owner wrote `*`, the image is `docker-image` of the named arguments, as upstream's
    container executors have it, and must match one of the owner's patterns. Without words after
    the `*` the command is their `cmd` and `args`, run by the shell of the container.
    """
    if function.image != ANY:
        return function.image, function.command
    image = kwargs.get("docker-image")
    if not isinstance(image, str) or not _IMAGE.fullmatch(image):
        raise Refused("kwargs.docker-image: name an image, such as localhost/tools:1")
    if settings.engine == "nspawn":
        raise Refused("kwargs.docker-image: systemd-nspawn runs only what its owner names")
    if not any(_pattern(pattern).fullmatch(image) for pattern in settings.images):
        raise Refused(
            f"kwargs.docker-image: {image} is not allowed here; allowed: "
            + ", ".join(settings.images)
        )
    return image, function.command or (*_SHELL, _shell_text(kwargs))


def _pattern(text: str) -> re.Pattern[str]:
    # No star matches a slash: debian:* must not allow the registry debian:5000.
    parts = {"*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(c) or re.escape(c) for c in text))


def _shell_text(kwargs: Mapping[str, Any]) -> str:
    command, first, args = kwargs.get("cmd"), kwargs.get("init-cmd"), kwargs.get("args") or []
    if not isinstance(command, str) or not command:
        raise Refused("kwargs.cmd: name the command to run in the image")
    if not isinstance(args, list):
        raise Refused("kwargs.args: a list of words")
    text = " ".join([command, *map(str, args)])
    return f"{first};{text}" if isinstance(first, str) and first else text


@dataclass(frozen=True)
class Mounted:
    """Files in the container: the owner's directory for them, and the spec's in it."""

    place: PurePosixPath
    path: PurePosixPath

    @property
    def inner(self) -> PurePosixPath:
        """Return the spec's directory relative to the owner's."""
        return self.path.relative_to(self.place)


def check_mount(mount: str, settings: Settings) -> Mounted:
    """Return where files are mounted in the container. Raises Refused for a place that the owner
    did not give: files there would stand in for the image's own.
    """
    path = PurePosixPath(mount)
    odd = ".." in path.parts or not mount.isprintable() or len(mount) > 1024
    for place in settings.mounts:
        if path.is_relative_to(place) and not odd:
            return Mounted(PurePosixPath(place), path)
    places = ", ".join(settings.mounts)
    raise Refused(f"fs.mount: {mount[:100]!r} is not in a directory for files here: {places}")


# -- command lines ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One container to run."""

    name: str
    processid: str
    image: str
    command: tuple[str, ...]
    limits: Limits
    progress: Path  # a FIFO of this host
    files: Path | None = None  # the directory of this host that is at the owner's place for files
    mounted: Mounted | None = None


# The variables of each process; their values are in the engine's own environment, so that they
# are neither in a list of processes nor read as options.
VARIABLES = ("COLONYD_PROCESS_ID", "COLONYD_FUNCTION", "COLONYD_KWARGS", "COLONYD_PROGRESS")


def run(job: Job, settings: Settings) -> list[str]:
    """Return the command that runs a container with its three standard streams."""
    if settings.engine == "nspawn":
        return _nspawn(job, settings)
    return _oci(job, settings)


def _oci(job: Job, settings: Settings) -> list[str]:
    limits = job.limits
    words = [PROGRAMS[settings.engine], "run", "--interactive", f"--name={job.name}"]
    labels = {EXECUTOR: settings.executor, RUN: settings.run, PROCESS: job.processid}
    words += [f"--label={name}={value}" for name, value in labels.items()]
    words += [f"--pull={settings.pull}", "--log-driver=none"]
    words += ["--read-only", f"--tmpfs=/tmp:rw,nosuid,nodev,size={_TMP},mode=1777"]
    words += ["--cap-drop=all", "--security-opt=no-new-privileges", f"--user={settings.user}"]
    words += [f"--pids-limit={_MOST_PIDS}"]
    words += [f"--ulimit=nofile={settings.nofile}:{settings.nofile}"]
    words += [f"--ulimit=nproc={settings.nproc}:{settings.nproc}"]
    if not settings.network:
        words.append("--network=none")
    if settings.engine == "podman":
        words += ["--read-only-tmpfs=false", "--http-proxy=false"]
        if settings.keep_id:
            words.append("--userns=keep-id")
        if times := [each for each in (limits.walltime, limits.maxexectime) if each]:
            words.append(f"--timeout={min(times) + _AFTER}")
    if limits.cpu:
        words.append(f"--cpus={limits.cpu / 1000:.3f}")
    if limits.mem:
        words += [f"--memory={limits.mem}", f"--memory-swap={limits.mem}"]
    if limits.gpus and settings.engine == "docker":
        words.append(f"--gpus={limits.gpus}")
    elif limits.gpus:
        words += [f"--device=nvidia.com/gpu={number}" for number in range(limits.gpus)]
    words += [f"--env={name}" for name in (*VARIABLES, *settings.variables)]
    words.append(f"--mount=type=bind,src={job.progress},dst={PROGRESS}")
    if job.files and job.mounted:
        words.append(f"--mount=type=bind,src={job.files},dst={job.mounted.place}")
        words.append(f"--workdir={job.mounted.path}")
    return [*words, job.image, *job.command]


def _nspawn(job: Job, settings: Settings) -> list[str]:
    limits = job.limits
    place = job.image if "/" in job.image else f"{_MACHINES}/{job.image}"
    words = [PROGRAMS["nspawn"], "--quiet", f"--directory={place}", f"--machine={job.name}"]
    words += ["--read-only", "--console=pipe", "--as-pid2", "--timezone=off"]
    words += ["--private-users=pick"]
    words += ["--private-users-ownership=map", "--drop-capability=all", "--no-new-privileges=yes"]
    words += ["--settings=no", f"--rlimit=NOFILE={settings.nofile}"]
    if settings.booted:
        words.append(f"--property=TasksMax={_MOST_PIDS}")
        if limits.cpu:
            words.append(f"--property=CPUQuota={max(limits.cpu // 10, 1)}%")
        if limits.mem:
            words += [f"--property=MemoryMax={limits.mem}", "--property=MemorySwapMax=0"]
    else:
        words += ["--register=no", "--keep-unit", f"--rlimit=NPROC={settings.nproc}"]
    if not settings.network:
        words.append("--private-network")
    words += [f"--setenv={name}" for name in (*VARIABLES, *settings.variables)]
    words.append(f"--bind={job.progress}:{PROGRESS}:idmap")
    if job.files and job.mounted:
        # The directory has to be in the image, which is read-only.
        words.append(f"--bind={job.files}:{job.mounted.place}:idmap")
        words.append(f"--chdir={job.mounted.path}")
    return [*words, "--", *job.command]


def listing(settings: Settings, *, this_run: bool = False) -> list[str]:
    """Return the command that lists the containers of this executor, or of this run of it."""
    label = f"{RUN}={settings.run}" if this_run else f"{EXECUTOR}={settings.executor}"
    words = [PROGRAMS[settings.engine], "ps", "--all", "--quiet", "--no-trunc"]
    return [*words, f"--filter=label={label}"]


def removal(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return the command that kills and removes containers."""
    words = [PROGRAMS[settings.engine], "rm", "--force", "--volumes"]
    if settings.engine == "podman":
        words += ["--time=0", "--ignore"]
    return [*words, *names]


def question(settings: Settings, name: str) -> list[str]:
    """Return the command that prints whether a container ran out of memory: `true` or `false`."""
    return [PROGRAMS[settings.engine], "inspect", "--format={{.State.OOMKilled}}", name]


def explained(status: int, killed_for_memory: bool, limits: Limits, engine: str) -> str:
    """Return what the exit status of a container says, "" if nothing beyond the number."""
    if limits.mem and (killed_for_memory or status == 137):
        sure = "" if killed_for_memory else ", as it seems"
        return (
            f"it was killed for memory{sure}: it needed more than the {limits.mem >> 20} MiB of"
            " conditions.mem"
        )
    if status == 125 and engine != "nspawn":
        return f"{engine} could not start the container"
    if status in (126, 127):
        return "the command is not in the image, or can't be run"
    return ""
