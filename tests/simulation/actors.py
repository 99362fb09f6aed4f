"""Those who use the colonies of a simulated world: submitters, executors, and the owner's hand.

Each is a client that may lose its connection at any moment, and knows no more than one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import trio

from colonyd.errors import RpcError
from federation.outbox.resolve import resolve
from node.etcd.errors import EtcdError
from node.handlers.work.processes import submit_spec
from node.model.types import Conditions, Executor, FunctionSpec, Process, State
from node.processes.queue import Candidate
from node.rpc import requests as req
from node.rpc.calls import Caller
from tests.simulation.colony import TYPE, Site
from tests.simulation.network import Gone
from tests.simulation.world import World

__all__ = ["Job", "Worker", "patiently", "submit_and_watch"]

T = TypeVar("T")
_PAUSE = 1.0  # seconds between tries of a client


class Job(msgspec.Struct, frozen=True):
    """One submission: when (virtual seconds), to which colony, with which limits (seconds)."""

    number: int
    at: float
    target: str
    wait: int
    run: int
    retries: int
    cancel: float | None = None  # seconds after it was accepted
    decide: float | None = None  # seconds after which a person ends a doubt, if there is one
    remove: float | None = None  # seconds after all that


async def patiently(site: Site, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask a daemon until there is an answer. Raises RpcError for a refusal."""
    while True:
        try:
            return await site.call(ask)
        except (Gone, EtcdError):
            pass
        except RpcError as error:
            if error.status not in (409, 503):
                raise
            site.world.counts["conflict"] += 1
        await trio.sleep(_PAUSE * site.world.dice.uniform(0.5, 1.5))


async def submit_and_watch(site: Site, job: Job, submitted: Callable[[str], None]) -> None:
    """Submit the same signed bytes until there is an answer; then perhaps cancel."""
    world = site.world
    await trio.sleep(job.at)
    nonce = f"{site.name}-{job.number}"
    body = hashlib.sha256(nonce.encode()).digest()
    caller = Caller(site.user.id, nonce=nonce, submission=body)
    processid = hashlib.sha3_256(f"{site.user.id}/{nonce}".encode()).hexdigest()

    async def submit() -> dict[str, Any]:
        spec = FunctionSpec(
            funcname="f",
            args=[job.number],
            maxwaittime=job.wait,
            maxexectime=job.run,
            maxretries=job.retries,
            conditions=Conditions(colonyname=job.target, executortype=TYPE),
        )
        assert site.node is not None
        return await submit_spec(site.node, caller, req.SubmitProcess(spec=spec))

    world.note(site.name, "submit", processid[:6], "to", job.target, job.wait, job.run)
    try:
        found = await patiently(site, submit)
    except RpcError as error:
        world.note(site.name, "not submitted", error)
        return
    assert found["processid"] == processid, "the same signed bytes are one process"
    submitted(processid)
    if job.cancel is not None:
        await trio.sleep(job.cancel)
        await _cancel(site, processid)
    if job.decide is not None:
        await trio.sleep(job.decide)
        await _decide(site, processid, requeue=world.chance(0.6))
    if job.remove is not None:
        await trio.sleep(job.remove)
        await _remove(site, processid)


async def _cancel(site: Site, processid: str) -> None:
    async def cancel() -> Process:
        assert site.node is not None
        return await site.node.processes.cancel(site.name, processid)

    site.world.note(site.name, "cancel", processid[:6])
    try:
        await patiently(site, cancel)
    except RpcError as error:
        site.world.note(site.name, "not cancelled", processid[:6], error)


async def _decide(site: Site, processid: str, *, requeue: bool) -> None:
    async def decide() -> Process:
        assert site.federation is not None
        return await resolve(site.federation.outbox, processid, requeue=requeue)

    world = site.world
    try:
        found = await site.call(decide)
        world.counts["decision"] += 1
        world.note(site.name, "decided", processid[:6], found.state.name)
    except (Gone, EtcdError, RpcError) as error:
        world.note(site.name, "not decided", processid[:6], error)


async def _remove(site: Site, processid: str) -> None:
    async def remove() -> None:
        assert site.node is not None
        await site.node.processes.remove(site.name, processid)

    try:
        await site.call(remove)
        site.world.note(site.name, "removed", processid[:6])
    except (Gone, EtcdError, RpcError) as error:
        site.world.note(site.name, "not removed", processid[:6], error)


class Worker:
    """An executor: polls, runs for a drawn time, then closes, fails, or forgets."""

    def __init__(self, world: World, site: Site, executor: Executor, longest: float) -> None:
        self.world, self.site, self.executor, self.longest = world, site, executor, longest
        self.candidate = Candidate(site.name, executor.executortype, executor.executorname)

    async def run(self) -> None:
        """Work for ever."""
        while True:
            try:
                process = await self._take()
            except (Gone, EtcdError):
                await trio.sleep(_PAUSE)
                continue
            except RpcError:
                await trio.lowlevel.checkpoint()
                continue
            await self._work(process)

    async def _take(self) -> Process:
        async def assign() -> Process:
            node = self.site.node
            assert node is not None
            if self.world.healed:
                # What it forgot it finds again: a person would restart it, or remove it.
                mine = node.processes.running.of_executor(self.site.name, self.executor.executorid)
                for processid in mine:
                    found = await node.processes.load(self.site.name, processid)
                    if found is not None and found[0].state == State.RUNNING:
                        return found[0]
            return await node.assigner.assign(self.candidate, self.executor, 60)

        if not self.site.up:
            await self.site.arrived.wait()
        if self.world.chance(self.world.faults.vanish):
            with trio.move_on_after(self.world.dice.uniform(0.0, 3.0)):
                return await self.site.call(assign)
            raise Gone("the executor hung up")
        return await self.site.call(assign)

    async def _work(self, process: Process) -> None:
        world = self.world
        world.note(self.site.name, "runs", process.processid[:6], self.executor.executorname)
        await trio.sleep(world.dice.uniform(0.0, self.longest))
        if world.chance(world.faults.vanish):
            world.fault("vanish", self.site.name, process.processid[:6])
            return
        failed = world.chance(world.faults.fail)
        output: list[object] = [f"{process.processid[:6]} run {process.attempt}"]

        async def close() -> None:
            node = self.site.node
            assert node is not None
            await node.processes.close(
                self.site.name,
                process.processid,
                self.executor.executorid,
                State.FAILED if failed else State.SUCCESSFUL,
                output=None if failed else output,
                errors=["it broke"] if failed else None,
            )

        try:
            await patiently(self.site, close)
        except RpcError as error:
            world.note(self.site.name, "not closed", process.processid[:6], error)
