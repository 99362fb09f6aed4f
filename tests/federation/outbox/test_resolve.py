"""A person ends a doubt: two daemons, one of which went away with a process of the other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from colonyd.errors import RpcError as NodeError
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from federation.forward import machine
from federation.outbox.outbox import Outbox
from federation.outbox.resolve import resolve
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import Peers
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.txn import Delete, Op, Put, Txn
from node.host.clock import Clock
from node.model.codec import pack
from node.model.types import Conditions, FunctionSpec, Process, State
from node.processes.service import Processes
from node.store.work import processes as store_processes
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.interleaved import Meddled
from tests.support.parts import ledger_of
from tests.support.sides import Side, pair

Make = Callable[..., Daemon]
pytestmark = pytest.mark.slow


async def colony(side: Side, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the `colony` command as the owner of a side."""
    command = [sys.executable, "-m", "cli.main", "--home", str(side.daemon.home)]
    command += ["--server", side.client.url, *words]
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True)

    return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def gone(make: Make) -> AsyncIterator[tuple[Side, Side, str, str]]:
    """`bee` runs a process of `ant`'s and is gone; its id at both."""
    async with pair(make) as (ant, bee):
        processid = await ant.submit("bee")
        fields = {"colonyname": "bee", "timeout": 30}
        there = await bee.call("assignprocessmsg", bee.worker, **fields)

        async def accepted() -> bool:
            return bool((await ant.forward(processid))["state"] == "accepted")

        await until(50, accepted)
        await trio.to_thread.run_sync(bee.daemon.kill)
        yield ant, bee, processid, there["processid"]


async def cancelled(side: Side, processid: str) -> None:
    """Wait until a process was told to stop."""

    async def ask() -> bool:
        found = await side.patient("getprocessmsg", processid=processid)
        return bool(found["state"] == 4)

    await until(60, ask)


async def test_nobody_waits_any_more(make_daemon: Make) -> None:
    async with gone(make_daemon) as (ant, bee, here, there):
        done = await colony(ant, "process", "resolve", here[:12], "--failed", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["state"] == 3
        process = await ant.call("getprocessmsg", processid=here)
        assert process["state"] == 3
        assert process["errors"] == ["given up by the owner: in doubt, peer bee may still run it"]
        again = await colony(ant, "process", "resolve", here, "--requeue", "--yes")
        assert again.returncode != 0
        assert "failed already, and stays so" in again.stderr
        # What could not be said then is said when it returns, and also after a crash of ours.
        ant.daemon.kill()
        await trio.to_thread.run_sync(ant.daemon.start)
        await trio.to_thread.run_sync(bee.daemon.start)
        await cancelled(bee, there)
        assert (await ant.patient("getprocessmsg", processid=here))["state"] == 3


async def test_it_runs_here_after_all(make_daemon: Make) -> None:
    async with gone(make_daemon) as (ant, bee, here, there):
        await ant.hire()
        unsure = await colony(ant, "process", "resolve", here, "--requeue")
        assert unsure.returncode != 0, "nobody was there to say yes"
        assert (await ant.forward(here))["state"] == "accepted"
        done = await colony(ant, "process", "resolve", here, "--requeue", "--yes")
        assert done.returncode == 0, done.stderr
        assert "waiting" in done.stdout
        taken = await ant.call("assignprocessmsg", ant.worker, colonyname="ant", timeout=20)
        assert taken["processid"] == here
        assert taken["spec"]["args"] == ["x"]
        await ant.call("closesuccessfulmsg", ant.worker, processid=here, out=["mine"])
        await trio.to_thread.run_sync(bee.daemon.start)
        await cancelled(bee, there)
        process = await ant.call("getprocessmsg", processid=here)
        assert (process["state"], process["out"]) == (2, ["mine"])
        forward = await ant.forward(here)
        assert [tried["peer"] for tried in forward["tried"]] == [bee.owner.id]


async def test_an_outcome_that_was_on_its_way_changes_nothing(make_daemon: Make) -> None:
    """The peer had closed it before it heard: its signed word is kept, and counts no more."""
    async with gone(make_daemon) as (ant, bee, here, there):
        await ant.hire()
        await trio.to_thread.run_sync(ant.daemon.stop)
        await trio.to_thread.run_sync(bee.daemon.start)
        await bee.patient("closesuccessfulmsg", bee.worker, processid=there, out=["theirs"])
        await trio.to_thread.run_sync(bee.daemon.stop)
        await trio.to_thread.run_sync(ant.daemon.start)
        owner = ant.owner
        await ant.patient("resolveprocessmsg", owner, processid=here, decision="requeue")
        await ant.work("mine")
        await trio.to_thread.run_sync(bee.daemon.start)

        async def late() -> dict[str, Any] | None:
            forward = await ant.forward(here)
            return forward if forward.get("late") else None

        found = await until(60, late)
        assert found is not None
        told = found["late"]
        assert (told["issuer"], told["signaturevalid"]) == (bee.owner.id, True)
        assert told["answers"] is True, "what was sent there is known although it went elsewhere"
        assert (told["state"], told["out"]) == (2, ["theirs"])
        shown = await colony(ant, "process", "show", here)
        assert "successful at bee" in shown.stdout, shown
        process = await ant.call("getprocessmsg", processid=here)
        assert (process["state"], process["out"]) == (2, ["mine"])


async def test_who_may_not_and_what_is_in_no_doubt(make_daemon: Make) -> None:
    async with gone(make_daemon) as (ant, _, here, _there):
        with pytest.raises(RpcError) as caught:
            await ant.call("resolveprocessmsg", ant.user, processid=here, decision="failed")
        assert caught.value.status == 403
        with pytest.raises(RpcError, match="decision") as caught:
            await ant.call("resolveprocessmsg", ant.owner, processid=here, decision="both")
        assert caught.value.status == 400
        with pytest.raises(RpcError, match="is not in colony") as caught:
            await ant.call("resolveprocessmsg", ant.owner, processid="0" * 64, decision="failed")
        assert caught.value.status == 404
        own = await ant.submit("ant")
        with pytest.raises(RpcError, match="at no other colony") as caught:
            await ant.call("resolveprocessmsg", ant.owner, processid=own, decision="failed")
        assert caught.value.status == 400
        queued = await ant.submit("bee")
        with pytest.raises(RpcError, match="not in doubt, it is queued; cancel it instead"):
            await ant.call("resolveprocessmsg", ant.owner, processid=queued, decision="failed")
        assert (await ant.forward(here))["state"] == "accepted"


# -- on a store alone --------------------------------------------------------------------


class Overtaken(Meddled):
    """Something happens before a forward is read, or just after."""

    before: Callable[[], Awaitable[object]] | None = None
    after: Callable[[], Awaitable[object]] | None = None

    async def get(self, key: str) -> KeyValue | None:
        if "/outbox/" not in key:
            return await self._client.get(key)
        before, self.before = self.before, None
        if before is not None:
            await before()
        found = await self._client.get(key)
        after, self.after = self.after, None
        if after is not None:
            await after()
        return found


async def doubtful(client: EtcdClient) -> tuple[Overtaken, Outbox, Process, list[Op]]:
    """A process in doubt, and what takes its forward away."""
    store = Overtaken(client)
    meddled = cast(EtcdClient, store)
    key, peer, federated = PrivateKey.generate(), PrivateKey.generate(), Keys("ant")
    signer, processes = Signer(key, SigningClock()), Processes(meddled, Clock(time.time_ns))
    peers = Peers(meddled, federated, signer)
    outbox = ledger_of(Context("ant", signer, meddled, processes, peers, federated))
    spec = FunctionSpec(funcname="f", conditions=Conditions("bee", executortype="t"))
    now = time.time_ns()
    process = Process("a" * 64, "b" * 64, "me", "ant", spec, now, now, peer=peer.id)
    forward = machine.sending(machine.new_forward(process), b"sealed", now)
    place = federated.forward(peer.id, process.processid)
    await client.commit(store_processes.submit(process, b"", [Put(place, pack(forward))]).txn)
    return store, outbox, process, [Delete(place)]


async def close(client: EtcdClient, process: Process, extra: list[Op]) -> None:
    """Another daemon takes in that the process failed."""
    others = Processes(client, Clock(time.time_ns))

    def step(known: Process, revision: int) -> store_processes.Transition:
        now = time.time_ns()
        return store_processes.close(
            known, revision, State.FAILED, now, errors=["theirs"], extra=extra
        )

    await others.change("ant", process.processid, step)


async def test_an_outcome_that_comes_before_the_forward_is_read_is_what_is_told(
    client: EtcdClient,
) -> None:
    store, outbox, process, gone = await doubtful(client)
    store.before = lambda: close(client, process, gone)
    with pytest.raises(NodeError, match="failed already, and stays so") as caught:
        await resolve(outbox, process.processid, requeue=True)
    assert caught.value.status == 400


async def test_an_outcome_that_comes_after_the_forward_was_read_is_what_is_told(
    client: EtcdClient,
) -> None:
    store, outbox, process, _ = await doubtful(client)
    store.after = lambda: close(client, process, [])
    with pytest.raises(NodeError, match="failed already, and stays so") as caught:
        await resolve(outbox, process.processid, requeue=True)
    assert caught.value.status == 400


async def test_a_process_without_a_forward_is_to_be_looked_at_again(client: EtcdClient) -> None:
    _, outbox, process, gone = await doubtful(client)
    await client.commit(Txn([], gone))
    with pytest.raises(NodeError, match="no forward of the process is under way") as caught:
        await resolve(outbox, process.processid, requeue=False)
    assert caught.value.status == 409
