"""`colony chaos`: kills workers at random, under a bound, and tells what became of the processes.

The rules are in `cli.chaos.judge`, the workers in `cli.chaos.workers` and
`cli.chaos.own`.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import trio

from cli.chaos.judge import RUNNING, Evidence, Verdict, bound_of, judge, overdue, read
from cli.core.errors import FAILED, NOT_FOUND, USAGE, Failure
from cli.core.inputs import duration
from cli.core.output import at, print_fields, print_json, print_table, short, span
from cli.core.session import Session, colony_command, confirm, finish
from cli.core.terminal import print_line, print_note

if TYPE_CHECKING:
    from cli.chaos.own import OwnWorker
    from cli.chaos.workers import Found, Storm
    from colonyd.rpc import RpcClient
    from colonyd.worker.watcher import Watcher

_ROUND = 0.5  # seconds between rounds of readings
_AT_ONCE = 8  # calls at the same time
_AHEAD = 20  # processes, beside those that workers run, that a round of readings looks at
_BEFORE = 600  # seconds before the run: what was submitted then may be run by it
_SETTLE = 60.0  # seconds for what was interrupted to be closed or taken up again
_CLEAN = 60.0  # seconds to remove what a run made
_RETRIES = 1000
_WORK = (0.05, 0.5)  # seconds of the shortest command; the longest, as a part of the deadline
_SIGNALS = ("KILL", "TERM", "INT")


@dataclass(frozen=True)
class _Plan:
    """What the options say, whoever is killed."""

    seconds: float
    every: float
    most: str
    number: signal.Signals
    seed: int


@dataclass
class _Run:
    """One run against a colony: its calls, and what they told."""

    session: Session
    client: RpcClient
    colony: str
    stop: trio.Event
    evidence: Evidence = field(default_factory=Evidence)

    async def member(self, kind: str, **fields: Any) -> Any:
        """Call as the user, for as long as the daemon is away. Raises RpcError."""
        return await self._patient(kind, fields, owner=False)

    async def owner(self, kind: str, **fields: Any) -> Any:
        """Call as the colony's owner, for as long as the daemon is away. Raises RpcError."""
        return await self._patient(kind, fields, owner=True)

    async def _patient(self, kind: str, fields: dict[str, Any], *, owner: bool) -> Any:
        from colonyd.rpc import Unreachable

        key = self.session.owner_key() if owner else self.session.member_key()
        for left in reversed(range(6)):
            try:
                return await self.client.call(kind, fields, key, attempts=4)
            except Unreachable:
                if not left:
                    raise
                await trio.sleep(2.0)

    async def look(self, ids: Iterable[str]) -> None:
        """Read processes by their ids."""
        from colonyd.errors import NotFound

        async def one(processid: str) -> None:
            try:
                found = await self.member("getprocessmsg", processid=processid)
            except NotFound:
                self.evidence.gone.add(processid)
            else:
                self.evidence.see(read(found))

        await _together(ids, one)


async def _together(items: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do `work` for each item, some at a time."""
    turns = trio.CapacityLimiter(_AT_ONCE)

    async def one(item: str) -> None:
        async with turns:
            await work(item)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)


@colony_command(
    "chaos",
    "colony chaos --workers 4 --processes 200",
    "colony chaos --dry-run",
    "colony chaos --for 10min --every 20s --max-down 25% --type cli",
    "colony chaos --executor lab-cli --restart --yes",
)
@click.option("--for", "long", default="60s", show_default=True, help="How long it goes on.")
@click.option("--every", default="5s", show_default=True, help="Time from one kill to the next.")
@click.option(
    "--max-down",
    "most",
    default="1",
    show_default=True,
    metavar="N|N%",
    help="How many may be down at once.",
)
@click.option(
    "--signal",
    "number",
    type=click.Choice(_SIGNALS, case_sensitive=False),
    default="KILL",
    show_default=True,
    help="How they are ended.",
)
@click.option("--seed", type=int, default=None, help="Repeat the choices of a run.")
@click.option("--executor", "names", multiple=True, metavar="NAME", help="Only this one; repeat.")
@click.option("--type", "-T", "kind", default=None, help="Only workers of this type.")
@click.option(
    "--state",
    "places",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIRECTORY",
    help="Look for workers with this --state, too; repeat.",
)
@click.option("--restart", is_flag=True, help="Start those again that no service restarts.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=None,
    help="Start and kill workers of its own, this many.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 10_000),
    default=None,
    help="How many processes those get [200].",
)
@click.option("--deadline", default="5s", show_default=True, help="Of each of those processes.")
@click.option("--work", default=None, help="How long each runs [as long as fills the time].")
@click.option("--same-name", is_flag=True, help="They come back with their keys, as a service.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def chaos(
    session: Session,
    long: str,
    every: str,
    most: str,
    number: str,
    seed: int | None,
    names: tuple[str, ...],
    kind: str | None,
    places: tuple[Path, ...],
    restart: bool,
    workers: int | None,
    processes: int | None,
    deadline: str,
    work: str | None,
    same_name: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Kill workers at random, one at a time, and tell what became of the processes.

    It takes workers of this machine, user and colony that come back: a service restarts them, or
    --restart does, with the same words, environment and directory. Never are more than --max-down
    of them down at once. With --workers it needs none: it starts its own, gives them processes,
    and removes all of it afterwards; a killed one comes back as a new executor, or with --same-name
    as itself.

    Then it judges by what the colony tells. Lost: a process without an end. Doubled: a process with
    two accepted results, or with another's output. That a command starts again after a kill is
    allowed, and counted. A worker that comes back with its key closes what it ran as failed
    (interrupted): a shell command is not run twice behind its owner's back. Ctrl-C ends the run
    and leaves all workers up. Exit code 0: none is lost, none is doubled.
    """
    plan = _Plan(
        duration(long, "--for"),
        duration(every, "--every"),
        most,
        signal.Signals[f"SIG{number.upper()}"],
        secrets.randbelow(1 << 31) if seed is None else seed,
    )
    if plan.every > plan.seconds:
        raise Failure(
            "--every is longer than --for: nothing would be killed",
            code=USAGE,
            next_step=f"give a longer --for, such as --for {plan.every * 10:.0f}s",
        )
    if workers is None and processes is None:
        if work is not None or same_name:
            raise Failure(
                "--work and --same-name are for workers that this command starts",
                code=USAGE,
                next_step="add --workers 4, or leave them out",
            )
        _others(session, plan, _Choice(names, kind, places, restart), dry_run, yes)
        return
    if names or kind or places or restart:
        raise Failure(
            "--workers starts workers of its own: --executor, --type, --state and --restart are for"
            " those that run already",
            code=USAGE,
            next_step="leave out one or the other",
        )
    count, amount = workers or 4, processes or 200
    limit = math.ceil(duration(deadline, "--deadline"))
    least, part = _WORK
    filling = min(max(least, plan.seconds * 0.8 * count / amount), limit * part)
    takes = filling if work is None else duration(work, "--work")
    if takes >= limit:
        raise Failure(
            f"--work is {takes:g} s and the deadline {limit} s: no process could end in time",
            code=USAGE,
            next_step=f"give --deadline {math.ceil(takes * 2)}s, or less --work",
        )
    _own(session, plan, _Load(count, amount, limit, takes, same_name), dry_run)


def _bound(plan: _Plan, count: int) -> int:
    try:
        return bound_of(plan.most, count)
    except ValueError as error:
        raise Failure(
            f"--max-down: {error}", code=USAGE, next_step="give a number of workers: --max-down 1"
        ) from None


@asynccontextmanager
async def _stopped_by_signals(stop: trio.Event) -> AsyncIterator[None]:
    """Let the first Ctrl-C or SIGTERM set `stop`; the run ends by itself then."""

    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if not stop.is_set():
                    print_note("stopping; all workers are brought up, or ended if they are its own")
                stop.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        yield
        nursery.cancel_scope.cancel()


# -- workers that run already -------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Which of the workers may be killed."""

    names: tuple[str, ...]
    kind: str | None
    places: tuple[Path, ...]
    restart: bool


def _others(session: Session, plan: _Plan, choice: _Choice, dry_run: bool, yes: bool) -> None:
    colony = session.colony()
    targets = session.run(lambda: _targets(session, colony, choice))
    bound = _bound(plan, len(targets))
    if dry_run:
        _show_plan(session, plan, colony, targets, bound)
        return
    named = ", ".join(target.name for target in targets[:5])
    more = f" and {len(targets) - 5} more" if len(targets) > 5 else ""
    confirm(
        yes,
        f"kill workers of colony {colony} at random for {span(plan.seconds)},"
        f" at most {bound} down at once: {named}{more}",
    )
    storm, verdict, missing = session.run(lambda: _storm_others(session, plan, targets, bound))
    _report(session, plan, storm, verdict, missing, stopped=False)


async def _targets(session: Session, colony: str, choice: _Choice) -> list[Found]:
    """Return the workers that may be killed. Raises Failure if there is none."""
    from cli.chaos.workers import SERVICES, find, service_of
    from colonyd.places import data_directory

    places = [session.home, data_directory(session.environ) / "colony-worker", *choice.places]
    with suppress(OSError):
        places += sorted(SERVICES.iterdir())
    own = os.geteuid()
    here = [each for each in find(places, colony) if own in (0, each.uid)]
    if unknown := set(choice.names) - {each.name for each in here}:
        raise Failure(
            f"no worker {', '.join(sorted(unknown))} of this user runs on this machine",
            code=NOT_FOUND,
            next_step="`colony chaos --dry-run` lists those that do; --state names the directory of"
            " one that has its own",
        )
    chosen = [
        each
        for each in here
        if (not choice.names or each.name in choice.names)
        and choice.kind in (None, each.holder.kind)
    ]
    if not chosen:
        raise Failure(
            f"no worker of colony {colony} runs on this machine as this user",
            code=NOT_FOUND,
            next_step="start one with `colony worker`, or let this command start some:"
            " `colony chaos --workers 4`",
        )
    for each in chosen:
        each.unit = await service_of(each.holder.pid)
        # Root must not run as root what another user's process says that it was started with.
        each.restart = choice.restart and not each.unit and each.uid == own
    able = [each for each in chosen if each.unit or each.restart]
    if not able:
        raise Failure(
            f"{len(chosen)} workers run here, and nothing would start them again",
            next_step="give --restart as the user who runs them, or run them as services:"
            " `colony service worker add`",
        )
    if left := [each.name for each in chosen if each not in able]:
        how = "other users'" if choice.restart else "--restart"
        print_note(f"left alone, as nothing starts them again: {', '.join(left)} ({how})")
    return able


def _show_plan(
    session: Session, plan: _Plan, colony: str, targets: Sequence[Found], bound: int
) -> None:
    rows = [
        {
            "name": each.name,
            "type": each.holder.kind,
            "pid": each.holder.pid,
            "back": each.unit or "--restart",
        }
        for each in targets
    ]
    if session.as_json:
        print_json({"colony": colony, "seed": plan.seed, "bound": bound, "workers": rows})
        return
    print_table(
        ["NAME", "TYPE", "PID", "STARTED AGAIN BY"], [[*row.values()] for row in rows], "none"
    )
    turns = int(plan.seconds / plan.every)
    print_line(f"{turns} kills at most ({plan.number.name}), at most {bound} down at once")


async def _storm_others(
    session: Session, plan: _Plan, targets: Sequence[Found], bound: int
) -> tuple[Storm, Verdict, list[str]]:
    from cli.chaos.workers import Storm
    from cli.core.progress import board

    stop = trio.Event()
    began = time.time()
    async with session.client() as client, _stopped_by_signals(stop):
        run = _Run(session, client, session.colony(), stop)
        rows = await run.member("getexecutorsmsg", colonyname=run.colony) or []
        ids = {row["executorname"]: row["executorid"] for row in rows if row.get("state") != 3}
        watched = [ids[each.name] for each in targets if each.name in ids]
        await _in_hand(run, watched)
        with board() as shown:
            shown.begin("chaos", "chaos")
            say = _teller(shown, plan)
            dice = random.Random(plan.seed)
            storm = Storm(targets, bound, plan.every, plan.number, dice, say)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_others, run, watched)
                await storm.rage(plan.seconds, stop)
                missing = await storm.calm()
                nursery.cancel_scope.cancel()
            await _settle(run, {ids.get(name, "") for name in storm.kills}, time.time())
        await _ended_since(run, watched, began)
        await run.look(list(run.evidence.expected))
        lost = {ids.get(name, "") for name in missing}
        for reading in run.evidence.last.values():
            limit = at(reading.execdeadline)
            stranded = reading.state == RUNNING and reading.assignedexecutorid in lost
            if overdue(reading, limit, time.time()) or (stranded and limit is None):
                run.evidence.orphans.add(reading.processid)
        return storm, judge(run.evidence, over=False), missing


def _teller(shown: Watcher, plan: _Plan) -> Callable[[str], None]:
    began = time.monotonic()

    def say(text: str) -> None:
        print_note(text)
        share = min(1.0, (time.monotonic() - began) / plan.seconds)
        shown.tell("chaos", f"{share:.0%} {text}")

    return say


async def _in_hand(run: _Run, executors: Sequence[str]) -> None:
    for executorid in executors:
        rows = await run.member(
            "getprocesshistmsg", colonyname=run.colony, executorid=executorid,
            seconds=10 * 365 * 86400, state=RUNNING,
        )  # fmt: skip
        for row in rows or []:
            run.evidence.see(read(row))


async def _watch_others(run: _Run, executors: Sequence[str]) -> None:
    while True:
        await _in_hand(run, executors)
        await run.look(run.evidence.open)
        await trio.sleep(_ROUND)


async def _settle(run: _Run, killed: set[str], until: float) -> None:
    """Wait for the ends of what killed executors ran when they were killed, before `until`."""
    with trio.move_on_after(5.0 if run.stop.is_set() else _SETTLE):
        while True:
            await run.look(run.evidence.open)
            rest = [run.evidence.last[each] for each in run.evidence.open]
            if not any(
                r.state == RUNNING
                and r.assignedexecutorid in killed
                and (at(r.starttime) or 0.0) < until
                for r in rest
            ):
                return
            await trio.sleep(_ROUND)


async def _ended_since(run: _Run, executors: Sequence[str], began: float) -> None:
    """Take in what these executors ended since `began` (Unix s)."""
    from colonyd.rpc import RpcError

    seconds = int(time.time() - began) + _BEFORE
    for executorid in executors:
        for state in (2, 3, 4):
            try:
                rows = await run.member(
                    "getprocesshistmsg", colonyname=run.colony, executorid=executorid,
                    seconds=seconds, state=state,
                )  # fmt: skip
            except RpcError as error:
                print_note(f"not all that ended is judged: {error.message}")
                continue
            for row in rows or []:
                if (at(row.get("endtime")) or 0.0) >= began:
                    run.evidence.see(read(row))


# -- workers of its own -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Load:
    """The workers and processes of a run of its own. Times in seconds."""

    workers: int
    processes: int
    deadline: int
    work: float
    same_name: bool


def _own(session: Session, plan: _Plan, load: _Load, dry_run: bool) -> None:
    bound = _bound(plan, load.workers)
    if dry_run:
        told = {"colony": session.colony(), "seed": plan.seed, "bound": bound}
        told |= {"workers": load.workers, "processes": load.processes}
        told |= {"deadline": load.deadline, "work": load.work}
        if session.as_json:
            print_json(told)
        else:
            print_fields(told.items())
        return
    storm, verdict, missing, stopped = session.run(lambda: _storm_own(session, plan, load, bound))
    _report(session, plan, storm, verdict, missing, stopped=stopped)


async def _storm_own(
    session: Session, plan: _Plan, load: _Load, bound: int
) -> tuple[Storm, Verdict, list[str], bool]:
    from cli.chaos.own import OwnWorker, command_of, environment, worker_words
    from cli.chaos.workers import Storm
    from cli.core.progress import board
    from cli.worker.subprocess import open_guard

    run_name = f"chaos-{secrets.token_hex(4)}"
    base = Path(tempfile.mkdtemp(prefix=f"colony-{run_name}-"))
    journal = base / "journal"
    journal.touch()
    stop, enough = trio.Event(), trio.Event()
    command = command_of(journal, load.work)
    words = worker_words(session.home, session.server_option, run_name, command)
    environ = environment(session.environ)
    async with session.client() as client, _stopped_by_signals(stop), open_guard() as guard:
        run = _Run(session, client, session.colony(), stop)
        accepted = run.evidence.accepted
        workers = [
            OwnWorker(
                base, f"{run_name}-{number}", words, environ, load.same_name,
                lambda processid, name: accepted.append((processid, name)),
            )
            for number in range(1, load.workers + 1)
        ]  # fmt: skip
        try:
            with board() as shown:
                shown.begin("chaos", "chaos")
                dice = random.Random(plan.seed)
                storm = Storm(workers, bound, plan.every, plan.number, dice, print_note)
                async with trio.open_nursery() as nursery:
                    for worker in workers:
                        nursery.start_soon(worker.run, guard)
                    await _all_up(storm, stop)
                    await _submit(run, load, run_name)
                    nursery.start_soon(_watch_own, run, load, shown, enough)
                    await storm.rage(plan.seconds, enough)
                    missing = [] if stop.is_set() else await storm.calm()
                    rest = len(run.evidence.open) * load.work / load.workers
                    with trio.move_on_after(2 * rest + 3 * load.deadline + _SETTLE):
                        await enough.wait()
                    with trio.CancelScope(shield=True):
                        await _stop_all(workers)
                    nursery.cancel_scope.cancel()
            stopped = stop.is_set()
            if not stopped:
                await run.look(list(run.evidence.expected))
            run.evidence.journal(journal.read_text("utf-8").splitlines())
            return storm, judge(run.evidence, over=not stopped), missing, stopped
        finally:
            with trio.move_on_after(_CLEAN, shield=True) as scope:
                await _stop_all(workers)
                await _remove(run, workers)
            shutil.rmtree(base, ignore_errors=True)
            if scope.cancelled_caught:
                print_note(f"left behind: executors and processes of type {run_name}")


async def _all_up(storm: Storm, stop: trio.Event) -> None:
    async def end() -> None:
        await stop.wait()
        scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            missing = await storm.calm()
            nursery.cancel_scope.cancel()
        if missing:
            raise Failure(
                f"workers that were not ready within a minute: {', '.join(missing)}",
                next_step="`colony doctor` looks for causes",
            )


async def _stop_all(workers: Sequence[OwnWorker]) -> None:
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(worker.stop)


async def _submit(run: _Run, load: _Load, kind: str) -> None:
    """Submit the processes; each has arguments of its own, which its output repeats."""
    from cli.chaos.own import FUNCTION

    async def one(number: str) -> None:
        if run.stop.is_set():
            return
        args = [int(number), f"{kind}/{number}"]
        spec = {
            "funcname": FUNCTION,
            "args": args,
            "maxexectime": load.deadline,
            "maxretries": _RETRIES,
            "conditions": {"colonyname": run.colony, "executortype": kind},
        }
        reading = read(await run.member("submitfuncspecmsg", spec=spec))
        run.evidence.see(reading)
        run.evidence.expected[reading.processid] = [reading.processid, *args]

    await _together(map(str, range(load.processes)), one)


async def _watch_own(run: _Run, load: _Load, shown: Watcher, enough: trio.Event) -> None:
    """Read the processes until each has an end, or the run is stopped."""
    while not run.stop.is_set():
        rest = run.evidence.open
        if not rest:
            break
        await run.look(rest[: 2 * load.workers + _AHEAD])
        done = load.processes - len(run.evidence.open)
        shown.tell("chaos", f"{done}/{load.processes} ended")
        with trio.move_on_after(_ROUND):
            await run.stop.wait()
    enough.set()


async def _remove(run: _Run, workers: Sequence[OwnWorker]) -> None:
    """Remove the processes and executors of the run."""
    from colonyd.rpc import RpcError, Unreachable

    failed: list[str] = []

    async def process(processid: str) -> None:
        try:
            with suppress(RpcError):
                await run.member("cancelprocessmsg", processid=processid)
            await run.member("removeprocessmsg", processid=processid)
        except (RpcError, Unreachable) as error:
            failed.append(f"process {short(processid)}: {error}")

    async def executor(name: str) -> None:
        from colonyd.errors import NotFound

        try:
            await run.owner("removeexecutormsg", colonyname=run.colony, executorname=name)
        except NotFound:
            pass  # it was ended before it had registered
        except (RpcError, Unreachable) as error:
            failed.append(f"executor {name}: {error}")

    await _together(run.evidence.expected, process)
    await _together([name for worker in workers for name in worker.names], executor)
    if failed:
        print_note(f"left behind: {'; '.join(failed[:5])}")
        print_note("  next: `colony executor rm NAME`, `colony process rm ID`")


# -- the report ---------------------------------------------------------------------------------


def _report(
    session: Session,
    plan: _Plan,
    storm: Storm,
    verdict: Verdict,
    missing: list[str],
    *,
    stopped: bool,
) -> None:
    good = verdict.good and not missing and not stopped
    if session.as_json:
        print_json(
            {
                "good": good,
                "stopped": stopped,
                "seed": plan.seed,
                "signal": plan.number.name,
                "kills": storm.kills,
                "bound": storm.bound,
                "mostdown": storm.down,
                "notback": missing,
                **msgspec.to_builtins(verdict),
            }
        )
        finish(0 if good else FAILED)
        return
    failed = f"{verdict.failed}"
    if verdict.interrupted:
        failed += f", of which {verdict.interrupted} were interrupted and closed by their worker"
    again = f"{verdict.reassigned}"
    if verdict.retries > verdict.reassigned:
        again += f", {verdict.retries} times in all"
    print_fields(
        [
            ("kills", f"{len(storm.kills)} ({plan.number.name}), seed {plan.seed}"),
            ("down at once", f"{storm.down} at most, {storm.bound} allowed"),
            ("processes", verdict.processes),
            ("successful", verdict.successful),
            ("failed", failed),
            ("cancelled", verdict.cancelled or None),
            ("without an end", verdict.open or None),
            ("re-assigned", again),
            ("started again", f"{verdict.restarted}" if verdict.restarted else None),
            ("lost", len(verdict.lost)),
            ("doubled", len(verdict.doubled)),
            ("not up again", ", ".join(missing)),
        ]
    )
    for word, findings in (("lost", verdict.lost), ("doubled", verdict.doubled)):
        for finding in findings[:20]:
            print_line(f"{word} {finding.processid}: {finding.why}")
    if not verdict.processes:
        print_note("the workers ran no process meanwhile: nothing was judged")
    if stopped:
        print_note("stopped before all processes had ended: this run proves nothing")
    if missing:
        print_note("  next: look into the workers' logs, then start them again")
    finish(0 if good else FAILED)
