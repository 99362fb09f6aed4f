"""A process as a batch job of Slurm: its conditions as options of sbatch, its script, its states.

Values only; `cli.worker.slurm` runs Slurm's commands and reads files. Nothing that a submitter
chooses is in the script, and in the options only numbers and a checked name of a GPU.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from node.model.quantities import parse_cpu, parse_memory
from node.model.types import Conditions

_MOST = 2**31 - 1  # of a count, of MiB, of minutes: Slurm's numbers have 32 bits
_MINUTE = 60
_MIB = 1024**2
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_OPTION = re.compile(r"--([a-z][a-z0-9\-]*)(=[^\n\0]*)?")
# Options that make several jobs of one, or none, or that have sbatch not return.
_NOT_FOR_OWNERS = ("array", "wrap", "wait", "test-only", "help", "usage", "version")
PENDING = "PENDING"
_REASONS = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled in Slurm",
    "DEADLINE": "it did not end by its deadline in Slurm",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for (conditions.mem)",
    "PREEMPTED": "another job took its place",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "it ran into its wall time (conditions.walltime, or maxexectime)",
}
_ENDED = {*_REASONS, "COMPLETED", "FAILED"}
# What sbatch says of a request that no node fits, and the fields that it may mean.
_REFUSALS = (
    ("memory", ("mem",)),
    ("generic resource", ("gpu",)),
    ("gres", ("gpu",)),
    ("temporary disk", ("storage",)),
    ("time limit", ("walltime",)),
    ("node count", ("nodes",)),
    ("cpu count", ("cpu", "processes", "processespernode")),
    ("more processors", ("cpu", "processes", "processespernode")),
    ("task", ("processes", "processespernode")),
)
# Reasons for which Slurm lets a job wait, although no node that it has will ever fit.
_NEVER = {
    "BadConstraints": (),
    "PartitionConfig": (),
    "PartitionNodeLimit": ("nodes",),
    "PartitionTimeLimit": ("walltime",),
}
# What sbatch says when it may work later. It may also have worked: the answer was lost.
_LATER = (
    "unable to contact",
    "timed out",
    "zero bytes",
    "standby",
    "connection refused",
    "connection reset",
    "communication",
    "unable to resolve",
    "try again",
    "temporarily",
    "munge",
    "protocol authentication",
    "submitjob",
    "job submit limit",
    "maxsubmit",
    "slurm_persist",
)


class Unfit(Exception):
    """A condition that a job of Slurm can't have; the text names its field."""


@dataclass(frozen=True)
class Request:
    """The resources of a job. 0 and "" leave the choice to Slurm."""

    nodes: int = 0
    processes: int = 0
    processespernode: int = 0
    cpu: int = 0  # of each process
    mem: int = 0  # MiB of each node
    storage: int = 0  # MiB of the local disk of each node
    gpu: str = ""  # as --gres has it, of each node
    walltime: int = 0  # minutes

    def options(self) -> list[str]:
        """Return the options of sbatch."""
        options = [
            f"--{option}={value}{unit}"
            for option, value, unit in (
                ("nodes", self.nodes, ""),
                ("ntasks", self.processes, ""),
                ("ntasks-per-node", self.processespernode, ""),
                ("cpus-per-task", self.cpu, ""),
                ("mem", self.mem, "M"),
                ("tmp", self.storage, "M"),
                ("time", self.walltime, ""),
            )
            if value
        ]
        return [*options, f"--gres={self.gpu}"] if self.gpu else options

    def asked(self, names: Iterable[str] = ()) -> str:
        """Return the fields that were asked for, all or those of `names`, in words."""
        chosen = set(names)
        fields = [
            f"conditions.{name}"
            for name, value in msgspec.structs.asdict(_Shown.of(self)).items()
            if value and (not chosen or name in chosen)
        ]
        return ", ".join(fields) or "the worker's own options for Slurm"


class _Shown(msgspec.Struct):
    """The fields of a request by the names of the conditions."""

    nodes: int
    processes: int
    processespernode: int
    cpu: int
    mem: int
    storage: int
    gpu: str
    walltime: int

    @classmethod
    def of(cls, request: Request) -> _Shown:
        return cls(**vars(request))


def request_of(spec: Mapping[str, Any], left: float | None) -> Request:
    """Return the resources for a function spec. Raises Unfit.

    `left` is the time in seconds until the process is taken back, None without a limit: no job
    is given longer.
    """
    try:
        asked = msgspec.convert(spec.get("conditions") or {}, Conditions)
    except msgspec.ValidationError as error:
        raise Unfit(f"conditions: {error}") from None
    nodes, processes, pernode = _counts(asked)
    gpu = _gpu(asked)
    if asked.gpu.nodecount:
        if nodes not in (0, asked.gpu.nodecount):
            raise Unfit(
                f"conditions.gpu.nodecount: {asked.gpu.nodecount} of {nodes} nodes; in a job of"
                " Slurm all nodes are alike"
            )
        nodes = asked.gpu.nodecount
    return Request(
        nodes=nodes,
        processes=processes,
        processespernode=pernode,
        cpu=_up(_amount("cpu", asked.cpu, parse_cpu), 1000, "cpu"),
        mem=_up(_amount("mem", asked.mem, parse_memory), _MIB, "mem"),
        storage=_up(_amount("storage", asked.storage, parse_memory), _MIB, "storage"),
        gpu=gpu,
        walltime=_minutes(asked.walltime, left),
    )


def _counts(asked: Conditions) -> tuple[int, int, int]:
    nodes = _count("nodes", asked.nodes)
    processes = _count("processes", asked.processes)
    pernode = _count("processespernode", asked.processespernode)
    if pernode and processes and not nodes:
        nodes = -(-processes // pernode)
    if pernode and nodes and processes > nodes * pernode:
        raise Unfit(
            f"conditions.processes: {processes} are more than {nodes} nodes with {pernode} each"
        )
    return nodes, processes, pernode


def _count(name: str, value: int) -> int:
    if not 0 <= value <= _MOST:
        raise Unfit(f"conditions.{name}: {value} is not from 0 to {_MOST}")
    return value


def _amount(name: str, text: str, parse: Any) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise Unfit(f"conditions.{name}: {error}") from None


def _up(value: int, unit: int, name: str) -> int:
    return _count(name, -(-value // unit))


def _gpu(asked: Conditions) -> str:
    gpu = asked.gpu
    count = _count("gpu.count", gpu.count)
    _count("gpu.nodecount", gpu.nodecount)
    if _amount("gpu.mem", gpu.mem, parse_memory):
        raise Unfit(
            "conditions.gpu.mem: Slurm does not choose a GPU by its memory; name its kind in"
            " conditions.gpu.name"
        )
    if not count:
        if gpu.name or gpu.nodecount:
            raise Unfit("conditions.gpu.count: 0, though a GPU is described; write how many a node")
        return ""
    if gpu.name and not _GPU.fullmatch(gpu.name):
        raise Unfit(
            f"conditions.gpu.name: {gpu.name[:64]!r} is no kind of GPU in Slurm; it has letters,"
            " digits, '_', '.' and '-'"
        )
    return f"gpu:{gpu.name}:{count}" if gpu.name else f"gpu:{count}"


def _minutes(walltime: int, left: float | None) -> int:
    seconds = _count("walltime", walltime)
    if left is not None:
        seconds = max(1, min(seconds or _MOST, int(left)))
    return _up(seconds, _MINUTE, "walltime")


def owner_option(text: str) -> str:
    """Return an option that the worker's owner gives to every job. Raises ValueError."""
    found = _OPTION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r}: write it as --NAME or --NAME=VALUE, as one word")
    for refused in _NOT_FOR_OWNERS:
        if refused.startswith(found[1]):
            raise ValueError(f"{text!r}: each process is one job that the worker follows")
    return text


def spool_path(path: Path) -> Path:
    """Return a directory whose path Slurm takes as it stands. Raises ValueError."""
    if not path.is_absolute() or re.search(r"[%\\\n\0]", str(path)):
        raise ValueError(f"{path}: give an absolute path without '%', backslash and newline")
    return path


def batch_script(place: Path) -> str:
    """Return the script of a job whose files lie in `place`. It holds nothing of the process.

    A second job of one process ends at once: the first has made the link `job`. A job that Slurm
    starts again begins with empty files. `exit` comes last, with the command's exit status and
    the size of its output in bytes: another node may see them before it sees all of the output.
    """
    return f"""\
#!/bin/sh
# Written by colony worker. The files of the process lie in this directory:
place={shlex.quote(str(place))}
[ -f "$place/command" ] || exit 0
ln -sn "$SLURM_JOB_ID" "$place/job" 2>/dev/null
[ "$(readlink "$place/job")" = "$SLURM_JOB_ID" ] || exit 0
rm -f "$place/exit"
: >"$place/out" && : >"$place/err" && : >"$place/progress" || exit 73
# Slurm signals the whole job: the command ends by it, and this script tells how.
trap : TERM INT
/bin/sh "$place/command" <"$place/args.json" >>"$place/out" 2>>"$place/err"
code=$?
echo "$code $(wc -c <"$place/out")" >"$place/exit.part" && mv "$place/exit.part" "$place/exit"
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it."""

    id: str
    state: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Return whether the job has ended, for good."""
        return self.state in _ENDED

    @property
    def by_itself(self) -> bool:
        """Return whether the job ended because its script did."""
        return self.state in ("COMPLETED", "FAILED")

    @property
    def is_final(self) -> bool:
        """Return whether Slurm ended the job and does not start it again."""
        return self.state in ("CANCELLED", "DEADLINE", "OUT_OF_MEMORY", "TIMEOUT")

    def waits(self) -> str:
        """Return a sentence about a job that waits in Slurm's queue, or ""."""
        if self.state != PENDING or self.reason in ("", "None"):
            return ""  # it has just come: Slurm has not looked at it yet
        return f"job {self.id} waits: {self.reason}"

    def why(self) -> str:
        """Return how an ended job ended, in words."""
        reason = _REASONS.get(self.state, f"it ended without a result ({self.state})")
        more = f" ({self.reason})" if self.reason not in ("", "None", self.state) else ""
        return f"job {self.id} of Slurm: {reason}{more}"


QUEUE_FORMAT = "%i|%T|%j|%r"


def parse_queue(text: str) -> dict[str, list[Job]]:
    """Return the jobs of each name in an output of squeue with QUEUE_FORMAT, the oldest first."""
    found: dict[str, list[Job]] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 3)
        if len(parts) == 4 and parts[0].isdigit():
            found.setdefault(parts[2], []).append(Job(parts[0], parts[1], parts[3]))
    for jobs in found.values():
        jobs.sort(key=lambda job: int(job.id))
    return found


def parse_accounting(text: str) -> Job | None:
    """Return the job in an output of `sacct --parsable2 --format=JobIDRaw,State`, or None."""
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 2 and parts[0].isdigit() and parts[1]:
            return Job(parts[0], parts[1].split()[0])  # "CANCELLED by 1000"
    return None


def parse_submitted(text: str) -> str:
    """Return the job id that `sbatch --parsable` printed, or ""."""
    found = re.match(r"(\d{1,18})(;[^\n]*)?\s*\Z", text)
    return found[1] if found else ""


def is_passing(said: str) -> bool:
    """Return whether sbatch failed for a cause that passes."""
    said = said.lower()
    return any(text in said for text in _LATER)


def refused(said: str, request: Request) -> str:
    """Return why sbatch refused a job, with the fields that it may mean."""
    text = " ".join(said.split())[:500]
    lower = text.lower()
    for words, names in _REFUSALS:
        if words in lower:
            return f"{request.asked(names)}: this Slurm can't hold that: {text}"
    if "not available" in lower or "constraint" in lower:
        return f"{request.asked()}: this Slurm can't hold that: {text}"
    return f"Slurm refused the job: {text}"


def never(job: Job, request: Request) -> str:
    """Return why a job that waits can never start, with the fields that it may mean; or ""."""
    if job.state != PENDING or job.reason not in _NEVER:
        return ""
    return f"{request.asked(_NEVER[job.reason])}: this Slurm can't hold that: {job.reason}"
