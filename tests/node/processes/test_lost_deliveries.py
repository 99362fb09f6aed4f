"""Hand-outs whose answers are lost go back, and those that their executors know of stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from node.etcd.client import EtcdClient
from node.model.types import Process, State
from node.processes.assignment import Assigner, PendingAssignment
from node.processes.deadlines import expire
from tests.node.daemon.support import doctor
from tests.node.processes.support import ADA, BOB, Scene
from tests.support.daemons import Daemon
from tests.support.sides import Side

Make = Callable[..., Daemon]


@pytest.fixture
async def scene(client: EtcdClient) -> Scene:
    return Scene(client)


async def state(scene: Scene, process: Process) -> tuple[State, int, int]:
    found = await scene.stored(process)
    return found.state, found.attempt, found.retries


async def hand_out(scene: Scene) -> tuple[Process, PendingAssignment]:
    """A process in an answer that is on its way."""
    await scene.submit()
    process = await scene.poll()
    return process, scene.assigner.deliver(process)


async def test_a_lost_answer_gives_the_process_back(scene: Scene) -> None:
    process, handed = await hand_out(scene)
    await handed.lost()
    assert await state(scene, process) == (State.WAITING, 1, 0)
    again = await scene.poll(BOB)
    assert (again.processid, again.attempt) == (process.processid, 2)
    await handed.lost()
    await expire(scene.one, scene.assigner)
    assert await state(scene, process) == (State.RUNNING, 2, 0), "that one was taken"


async def test_with_the_store_away_it_is_given_back_later(scene: Scene) -> None:
    process, handed = await hand_out(scene)
    scene.store.away = True
    await handed.lost()
    scene.store.away = False
    assert await state(scene, process) == (State.RUNNING, 1, 0)
    await expire(scene.one, scene.assigner)
    assert await state(scene, process) == (State.WAITING, 1, 0)


def it_speaks(assigner: Assigner, process: Process, handed: PendingAssignment) -> None:
    assigner.heard(process.processid, ADA.executorid)


def it_was_taken(assigner: Assigner, process: Process, handed: PendingAssignment) -> None:
    handed.taken()


def a_repeat_was_taken(assigner: Assigner, process: Process, handed: PendingAssignment) -> None:
    """The same signed request on another connection."""
    assigner.deliver(process).taken()


def a_repeat_is_on_its_way(assigner: Assigner, process: Process, handed: PendingAssignment) -> None:
    assigner.deliver(process)


@pytest.mark.parametrize(
    "known", [it_speaks, it_was_taken, a_repeat_was_taken, a_repeat_is_on_its_way]
)
async def test_what_its_executor_knows_of_is_left_alone(
    scene: Scene, known: Callable[[Assigner, Process, PendingAssignment], None]
) -> None:
    process, handed = await hand_out(scene)
    known(scene.assigner, process, handed)
    await handed.lost()
    await expire(scene.one, scene.assigner)
    assert await state(scene, process) == (State.RUNNING, 1, 0)


async def test_that_somebody_else_speaks_of_it_says_nothing(scene: Scene) -> None:
    process, handed = await hand_out(scene)
    scene.assigner.heard(process.processid, BOB.executorid)
    await handed.lost()
    assert await state(scene, process) == (State.WAITING, 1, 0)


async def test_an_answer_of_before_says_nothing_of_the_next_attempt(scene: Scene) -> None:
    process, handed = await hand_out(scene)
    await handed.lost()
    again = await scene.poll()
    second = scene.assigner.deliver(again)
    handed.taken()
    await second.lost()
    assert await state(scene, process) == (State.WAITING, 2, 0)


async def test_a_process_that_has_ended_is_left_alone(scene: Scene) -> None:
    process, handed = await hand_out(scene)
    await scene.other.close("dev", process.processid, ADA.executorid, State.SUCCESSFUL)
    await handed.lost()
    await expire(scene.one, scene.assigner)
    assert await state(scene, process) == (State.SUCCESSFUL, 1, 0)


@pytest.mark.slow
async def test_what_may_have_been_lost_with_the_daemon_is_shown(make_daemon: Make) -> None:
    """What has no limit, and of which its executor says nothing after a kill."""
    daemon = make_daemon("lab", COLONYD_FEDERATION__ENABLED="false")
    await trio.to_thread.run_sync(daemon.start)
    async with daemon.client() as client:
        side = Side(daemon, client)
        await side.hire()
        found = []
        for limit in (-1, -1, -1, 600):
            await side.submit("lab", maxexectime=limit)
            taken = await side.call("assignprocessmsg", side.worker, colonyname="lab", timeout=5)
            found.append(str(taken["processid"]))

        async def silent() -> list[str]:
            status = await side.patient("getnodestatusmsg")
            assert status["silent"]["count"] == len(status["silent"]["processids"])
            return sorted(status["silent"]["processids"])

        assert await silent() == []
        daemon.kill()
        await trio.to_thread.run_sync(daemon.start)
        assert await silent() == sorted(found[:3])
        assert (await trio.to_thread.run_sync(doctor, daemon))["running"]["ok"] is None
        await side.call("addlogmsg", side.worker, processid=found[0], message="here")
        await side.call("getprocessmsg", side.user, processid=found[1])
        assert await silent() == sorted(found[1:3])
        await side.call("closesuccessfulmsg", side.worker, processid=found[1], out=[])
        await side.call("cancelprocessmsg", processid=found[2])
        assert await silent() == []
        assert (await trio.to_thread.run_sync(doctor, daemon))["running"]["ok"] is True
