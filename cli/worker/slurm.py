"""Slurm as the place where the functions of an executor run: one batch job a process.

Slurm's commands, the spool directory and the poll of the queue are here. What is asked of Slurm,
and what its answers mean, is in `cli.worker.slurmjob`.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.worker.files import remove
from cli.worker.options import SlurmOptions
from cli.worker.shell import variables
from cli.worker.slurmjob import (
    QUEUE_FORMAT,
    Job,
    Request,
    Unfit,
    batch_script,
    is_passing,
    never,
    owner_option,
    parse_accounting,
    parse_queue,
    parse_submitted,
    refused,
    request_of,
    spool_path,
)
from cli.worker.subprocess import MOST_OUTPUT, STDERR_KEPT, ending_of
from colonyd.errors import NotFound, RpcError
from colonyd.rpc import Signed, Unreachable
from colonyd.worker.engine import RUNNING, deadline_of
from colonyd.worker.handler import Ending, Execution

NEEDED = ("sbatch", "squeue", "scancel")
MOST_STDERR = 256_000_000  # bytes that a job may write to its standard error
_MOST_KWARGS = 100_000  # bytes of COLONYD_KWARGS; larger ones are in COLONYD_KWARGS_FILE alone
_CHUNK = 64_000  # bytes of standard error that are read at once; they are logged within bounds
_QUEUE_EVERY = 3.0  # seconds between two looks at Slurm's queue, for all jobs in one call
_LOOK_EVERY = 1.0  # seconds between two looks at the files of a job
_ANSWER = 60.0  # seconds for one of Slurm's commands
_LAST_CANCELS = 5.0  # seconds for cancels when the worker leaves
_RETRY_FIRST, _RETRY_MOST = 1.0, 30.0  # seconds between two tries to submit
_MISSING = 3  # answers of Slurm without the job after which it is gone
_SETTLE = 30.0  # seconds in which the files of an ended job, or the state of a killed one, come
_SETTLE_SOON = 2.0  # seconds of the same where Slurm itself ended the job
_SWEEP_EVERY = 5.0  # seconds between two looks at whether ended processes are closed

Report = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True)
class SlurmSettings:
    """The worker's options for Slurm. `options` go to sbatch with every job."""

    spool: Path
    options: list[str]
    environ: Mapping[str, str]  # what Slurm's own commands need besides


def slurm_settings(
    options: SlurmOptions, state: Path, environ: Mapping[str, str]
) -> SlurmSettings | None:
    """Return the settings for Slurm, None without --slurm. Raises Failure.

    The spool is below `state` unless an option names one.
    """
    named = {
        "partition": options.slurm_partition,
        "account": options.slurm_account,
        "qos": options.slurm_qos,
    }
    words = [f"--{name}={value}" for name, value in named.items() if value is not None]
    words += options.slurm_option
    if not options.slurm:
        if words or options.slurm_spool:
            raise Failure("options for Slurm without --slurm", code=USAGE, next_step="add --slurm")
        return None
    try:
        checked = [owner_option(word) for word in words]
        place = spool_path((options.slurm_spool or state / "slurm").absolute())
    except ValueError as error:
        raise Failure(str(error), code=USAGE, next_step="`colony worker --help`") from None
    if missing := [name for name in NEEDED if not shutil.which(name, path=environ.get("PATH"))]:
        raise Failure(
            f"Slurm's commands are not here: {', '.join(missing)}",
            code=NOT_FOUND,
            next_step="start the worker on a login node, or install slurm-client",
        )
    conf = {name: environ[name] for name in ("SLURM_CONF",) if name in environ}
    return SlurmSettings(place, checked, conf)


@asynccontextmanager
async def open_slurm(
    settings: SlurmSettings, environ: Mapping[str, str], signed: Signed, report: Report
) -> AsyncIterator[Slurm]:
    """Follow Slurm's queue for as long as the block takes. Raises Failure.

    `environ` is what commands get. Each executor has its own directory in the spool, named by its
    id: what lies there is this executor's.
    """
    spool = settings.spool / signed.key.id
    try:
        settings.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.mkdir(mode=0o700, exist_ok=True)
        _require_own(spool)
    except OSError as error:
        raise Failure(
            f"{spool}: {error.strerror}", next_step="choose another place with --slurm-spool"
        ) from None

    async def ours(processid: str) -> bool | None:
        try:
            found = await signed.call("getprocessmsg", {"processid": processid})
        except NotFound:
            return False
        except (RpcError, Unreachable):
            return None
        mine = found.get("assignedexecutorid") == signed.key.id
        return bool(found.get("state") == RUNNING and mine)

    slurm = Slurm(spool, {**environ, **settings.environ}, settings.options, report, ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slurm.run)
        yield slurm
        nursery.cancel_scope.cancel()


class _Record(msgspec.Struct):
    """The file `record.json` of a process, written before its job is submitted."""

    attempt: int  # how often the process had been given back
    request: Request
    job: str = ""  # "" while it is not known whether sbatch worked


@dataclass(frozen=True)
class _Files:
    """The files of a job at one moment. Sizes are in bytes."""

    job: str  # the job that runs the command, or ""
    size: int  # of the output so far
    stderr: bytes  # the next piece
    stderr_size: int
    progress: bytes
    exit: tuple[int, int] | None  # exit status, and size of the output


@dataclass
class Slurm:
    """The jobs of one executor. `ours` tells whether a process still runs as this executor's, or
    None while the daemon does not answer; `run` must run while handlers do.
    """

    spool: Path
    environ: Mapping[str, str]  # of Slurm's commands, and by them of the jobs
    options: list[str]  # of the owner, for each job
    report: Report
    ours: Callable[[str], Awaitable[bool | None]]
    _following: set[str] = field(default_factory=set)
    _unwanted: set[str] = field(default_factory=set)  # to cancel, then to remove
    _jobs: dict[str, list[Job]] = field(default_factory=dict)
    _answers: int = 0  # how often squeue has answered
    _look_now: trio.Event = field(default_factory=trio.Event)
    _answered: trio.Event = field(default_factory=trio.Event)
    _away: bool = False

    # -- the poll -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at the queue and clear up until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._poll)
                nursery.start_soon(self._sweep)
        finally:
            if self._unwanted:
                with trio.move_on_after(_LAST_CANCELS, shield=True):
                    await self._cancel(sorted(self._unwanted))

    async def _poll(self) -> None:
        while True:
            if names := sorted(self._following | self._unwanted):
                await self._ask(names)
            with trio.move_on_after(_QUEUE_EVERY):
                await self._look_now.wait()
            self._look_now = trio.Event()

    async def _ask(self, names: list[str]) -> None:
        """Ask Slurm for the jobs of these processes, in one call; then cancel what nobody wants."""
        code, out, said = await self._command(
            "squeue", "--me", "--states=all", "--noheader", f"--format={QUEUE_FORMAT}",
            f"--name={','.join(names)}",
        )  # fmt: skip
        if code != 0:
            if not self._away:
                self.report("slurm is away", {"error": said})
            self._away = True
            return
        if self._away:
            self.report("slurm is back", {})
        self._away = False
        self._jobs = parse_queue(out)
        self._answers += 1
        self._answered.set()
        self._answered = trio.Event()
        unwanted = sorted(self._unwanted & set(names))
        alive = [name for name in unwanted if any(not job.ended for job in self._found(name))]
        if alive:
            await self._cancel(alive)
        for name in unwanted:
            if name not in alive:
                await trio.to_thread.run_sync(remove, self._place(name))
                self._unwanted.discard(name)

    async def _cancel(self, names: list[str]) -> None:
        """Cancel all jobs of these processes."""
        for name in names:
            ids = [job.id for job in self._found(name) if not job.ended]
            if not ids:
                ids = [f"--name={name}", "--me"]  # none is known: sbatch may have worked
            code, _, said = await self._command("scancel", *ids)
            if code != 0:
                self.report("not cancelled", {"processid": name, "error": said})

    def _found(self, processid: str) -> list[Job]:
        return self._jobs.get(processid, [])

    async def _next_answer(self) -> None:
        """Wait for an answer of Slurm to a question that is asked from now on."""
        wanted = self._answers + 2  # one may be on its way already
        self._look_now.set()
        while self._answers < wanted:
            await self._answered.wait()
            self._look_now.set()

    async def _sweep(self) -> None:
        """Remove the files of processes that are closed, and cancel the jobs of those that are not
        ours any more: what an earlier worker left, too.
        """
        while True:
            names = await trio.to_thread.run_sync(_names, self.spool)
            for name in names:
                if name in self._following or name in self._unwanted:
                    continue
                mine = await self.ours(name)
                if mine is False and name not in self._following:
                    self._unwanted.add(name)
            await trio.sleep(_SWEEP_EVERY)

    async def _command(self, *words: str) -> tuple[int, str, str]:
        return await _run(self.environ, *words)

    # -- one process ----------------------------------------------------------------------------

    def _place(self, processid: str) -> Path:
        return self.spool / processid

    async def execute(self, command: str, execution: Execution) -> Ending:
        """Run a process as a job, or go on with the job that it has already.

        The job goes on when this is cancelled, unless the process is withdrawn.
        """
        self._following.add(execution.id)
        try:
            return await self._execute(command, execution)
        except Unfit as error:
            return Ending([], [str(error)])
        finally:
            if execution.withdrawn:
                self._unwanted.add(execution.id)
                self._look_now.set()
            self._following.discard(execution.id)

    async def _execute(self, command: str, execution: Execution) -> Ending:
        place = self._place(execution.id)
        await self._cleared(execution.id)
        attempt = int(execution.process.get("retries") or 0)
        record = await trio.to_thread.run_sync(_read_record, place)
        if record is not None and record.attempt != attempt:
            self._unwanted.add(execution.id)  # its job is of an attempt that was taken back
            await self._cleared(execution.id)
            record = None
        if record is None:
            deadline = deadline_of(execution.process)
            left = None if deadline is None else deadline - time.time()
            record = _Record(attempt, request_of(execution.spec, left))
            await trio.to_thread.run_sync(_prepare, place, record, command, execution)
        elif not record.job:  # the worker ended between this record and the answer of sbatch
            record.job = await self._job_of(execution.id)
        if not record.job:
            try:
                record.job = await self._submit(execution, record)
            except Unfit:
                self._unwanted.add(execution.id)
                raise
            with suppress(OSError):  # the job is found by its name, too
                await trio.to_thread.run_sync(_write_record, place, record)
        self.report("submitted", {"processid": execution.id, "job": record.job})
        return await self._follow(execution, record)

    async def _cleared(self, processid: str) -> None:
        """Wait until an earlier job of the process is cancelled and its files are removed."""
        while processid in self._unwanted:
            await self._next_answer()

    async def _job_of(self, processid: str) -> str:
        """Return the job that a process has already, or "" if Slurm has none."""
        files = await trio.to_thread.run_sync(_look, self._place(processid), 0)
        if files.job:
            return files.job
        await self._next_answer()
        found = self._found(processid)
        return found[0].id if found else ""

    async def _submit(self, execution: Execution, record: _Record) -> str:
        """Submit the job, once; return its id. Raises Unfit.

        While Slurm does not answer it is not known whether a job was made: the queue tells.
        """
        place = self._place(execution.id)
        options = [
            *self.options,
            *record.request.options(),
            "--parsable",
            f"--job-name={execution.id}",
            f"--output={place}/slurm.log",
            f"--error={place}/slurm.log",
            "--open-mode=append",
        ]
        environ = _job_environment(self.environ, place, execution)
        pause = _RETRY_FIRST
        while True:
            _, out, said = await _run(environ, "sbatch", *options, text=batch_script(place))
            if job := parse_submitted(out):
                return job
            if not is_passing(said):
                raise Unfit(refused(said, record.request))
            self.report("not submitted", {"processid": execution.id, "error": said})
            execution.progress(b"waits for Slurm to take the job\n")
            await trio.sleep(pause)
            pause = min(pause * 2, _RETRY_MOST)
            if job := await self._job_of(execution.id):
                return job

    async def _follow(self, execution: Execution, record: _Record) -> Ending:
        """Follow a job to its end: stream its lines, tell its waits, and return its result."""
        place = self._place(execution.id)
        told = _Told(execution)
        offset = await trio.to_thread.run_sync(_read_offset, place)
        missing, seen, ended_at = 0, self._answers, 0.0
        self._look_now.set()
        while True:
            files = await trio.to_thread.run_sync(_look, place, offset)
            if files.stderr_size < offset:  # Slurm started the job again
                offset = 0
                continue
            if files.stderr:
                await trio.to_thread.run_sync(_write_offset, place, offset)
                execution.stderr(files.stderr)
                offset += len(files.stderr)
            job = self._current(execution.id, files.job or record.job)
            if job is not None:
                told.job(job, self._answers, began=bool(files.job))
                if why := never(job, record.request):
                    return await self._drop(execution.id, why)
            told.progress(files.progress)
            if files.size > MOST_OUTPUT:
                why = f"the command's output is larger than {MOST_OUTPUT} bytes"
                return await self._drop(execution.id, why)
            if files.stderr_size > MOST_STDERR:
                why = f"the command's standard error is larger than {MOST_STDERR} bytes"
                return await self._drop(execution.id, why)
            done = files.exit is not None and files.size >= files.exit[1]
            if len(files.stderr) == _CHUNK:
                continue  # there may be more
            # A command that a signal ended was ended by Slurm, perhaps: its state tells why.
            killed = files.exit is not None and files.exit[0] >= 128
            if done and not killed:
                return await self._ending(place, files, None)
            if self._answers > seen:
                seen = self._answers
                missing = missing + 1 if job is None else 0
            # Without a state that is final, a killed command may be started again by Slurm.
            if (job is not None and job.ended) or missing >= _MISSING:
                ended_at = ended_at or trio.current_time()
                if trio.current_time() >= ended_at + _settling(job, done):
                    if job is None and not done:
                        job = await self._accounted(files.job or record.job)
                    return await self._ending(place, files, job)
            else:
                ended_at = 0.0
            await trio.sleep(_LOOK_EVERY)

    def _current(self, processid: str, wanted: str) -> Job | None:
        """Return the job of a process as Slurm showed it last."""
        found = self._found(processid)
        return next((job for job in found if job.id == wanted), None)

    async def _drop(self, processid: str, why: str) -> Ending:
        """Cancel a job, and return its failure."""
        await self._cancel([processid])
        return Ending([], [why])

    async def _accounted(self, job: str) -> Job | None:
        """Return a job that Slurm's controller has forgotten from its accounting, if it has one."""
        words = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State")
        code, out, _ = await self._command(*words, f"--jobs={job}")
        return parse_accounting(out) if code == 0 else None

    async def _ending(self, place: Path, files: _Files, job: Job | None) -> Ending:
        """Return the result of a job that has ended."""
        if files.exit is not None and files.exit[0] == 0 and files.size >= files.exit[1]:
            out = await trio.to_thread.run_sync(_read, place / "out", MOST_OUTPUT)
            return await trio.to_thread.run_sync(ending_of, 0, out, b"")
        stderr = await trio.to_thread.run_sync(_read_end, place / "err")
        by_itself = job is None or job.by_itself
        if files.exit is not None and by_itself:
            if files.exit[0] == 0:
                return Ending([], ["the command's output did not arrive in the spool directory"])
            return ending_of(files.exit[0], b"", stderr)
        why = f"job {files.job}: Slurm knows it no more, and its command left no result"
        log = await trio.to_thread.run_sync(_read_end, place / "slurm.log")
        texts = (data.decode("utf-8", "replace").strip() for data in (stderr, log))
        return Ending([], [job.why() if job else why, *(text for text in texts if text)])


@dataclass(frozen=True)
class SlurmHandler:
    """Runs a command as a batch job for each process."""

    command: str
    slurm: Slurm
    resumes = True
    reruns = False

    async def __call__(self, execution: Execution) -> Ending:
        """Run the command; its stdout is the output."""
        return await self.slurm.execute(self.command, execution)


@dataclass
class _Told:
    """What the log of a process was told of its job; each thing once."""

    execution: Execution
    last_progress: bytes = b""
    last_wait: str = ""
    began_at: int | None = None  # how often Slurm had answered when the command had begun

    def progress(self, data: bytes) -> None:
        lines = data.strip().splitlines()
        if lines and lines[-1] != self.last_progress:
            self.last_progress = lines[-1]
            self.execution.progress(lines[-1] + b"\n")

    def job(self, job: Job, answers: int, *, began: bool) -> None:
        """Tell of a wait, the same one once. What Slurm said of a job before it began is old."""
        if began and self.began_at is None:
            self.began_at = answers
        if self.began_at is not None and answers < self.began_at + 2:
            return
        waits = job.waits()
        if waits and began and not self.last_wait:
            self.execution.stderr(f"job {job.id} was put back into the queue\n".encode())
        if waits and waits != self.last_wait:
            self.execution.progress(f"{waits}\n".encode())
        self.last_wait = waits


def _settling(job: Job | None, done: bool) -> float:
    """Return the seconds for which an ended job may show more: its files, or a new start."""
    if job is not None and job.is_final:
        return _SETTLE_SOON
    return 0.0 if done and (job is None or job.by_itself) else _SETTLE


async def _run(environ: Mapping[str, str], *words: str, text: str = "") -> tuple[int, str, str]:
    """Run one of Slurm's commands; return its exit status, output, and what it complained of.

    One that takes too long is ended: (-1, "", "... timed out").
    """
    with trio.move_on_after(_ANSWER):
        try:
            done = await trio.run_process(
                words,
                stdin=text.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=dict(environ),
            )
        except OSError as error:
            return -1, "", f"{words[0]}: {error.strerror}; try again"
        out, said = (data.decode("utf-8", "replace") for data in (done.stdout, done.stderr))
        return done.returncode, out, said.strip()
    return -1, "", f"{words[0]} timed out"


def _job_environment(
    environ: Mapping[str, str], place: Path, execution: Execution
) -> dict[str, str]:
    own = variables(execution)
    if len(own["COLONYD_KWARGS"]) > _MOST_KWARGS:
        del own["COLONYD_KWARGS"]
    own["COLONYD_KWARGS_FILE"] = str(place / "kwargs.json")
    own["COLONYD_PROGRESS"] = str(place / "progress")
    return {**environ, **own}


# -- files, in threads: the file system is a network's ------------------------------------------


def _require_own(spool: Path) -> None:
    """Raise Failure for a directory that another user made or may write to: a job runs the command
    that lies in it, as this user. Raises OSError.
    """
    found = spool.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Failure(
            f"{spool}: it is not a directory of this user",
            next_step="remove it, or choose another place with --slurm-spool",
        )
    spool.chmod(0o700)


def _names(spool: Path) -> list[str]:
    try:
        return sorted(path.name for path in spool.iterdir() if path.is_dir())
    except OSError:
        return []  # the file system is away: the next look may find it


def _prepare(place: Path, record: _Record, command: str, execution: Execution) -> None:
    """Make the directory of a process, its record last."""
    remove(place)
    place.mkdir(mode=0o700)
    (place / "args.json").write_text(json.dumps(execution.args))
    (place / "kwargs.json").write_text(json.dumps(execution.kwargs))
    (place / "command").write_text(f"{command}\n")
    (place / "progress").touch()
    _write_record(place, record)


def _write_record(place: Path, record: _Record) -> None:
    part = place / "record.part"
    with part.open("wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    part.replace(place / "record.json")


def _read_record(place: Path) -> _Record | None:
    try:
        return msgspec.json.decode((place / "record.json").read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_offset(place: Path, offset: int) -> None:
    with suppress(OSError):
        (place / "offset").write_text(str(offset))


def _read_offset(place: Path) -> int:
    try:
        return int((place / "offset").read_text())
    except (OSError, ValueError):
        return 0


def _read(path: Path, most: int, start: int = 0) -> bytes:
    """Return up to `most` bytes of a regular file from `start`; b"" where there is none.

    The job may write what it likes here: a FIFO must not stop the worker, nor a link lead it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        file.seek(start)
        return file.read(most)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _read_end(path: Path) -> bytes:
    return _read(path, STDERR_KEPT, max(0, _size(path) - STDERR_KEPT))


def _look(place: Path, offset: int) -> _Files:
    """Read what a job has written; `exit` first, so that the rest is complete when it is there."""
    parts = _read(place / "exit", 100).split()
    numbers = [int(part) for part in parts if part.isdigit()]
    ended = (numbers[0], numbers[1]) if len(parts) == len(numbers) == 2 else None
    job = ""
    with suppress(OSError):
        job = os.readlink(place / "job")
    return _Files(
        job=job if job.isdigit() else "",
        size=_size(place / "out"),
        stderr=_read(place / "err", _CHUNK, offset),
        stderr_size=_size(place / "err"),
        progress=_read_end(place / "progress"),
        exit=ended,
    )
