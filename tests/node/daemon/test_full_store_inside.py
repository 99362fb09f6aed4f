"""What a full store does to each part that adds to it: calls, timers, peers' work, peers' news."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.errors import Denied
from colonyd.keys import PrivateKey
from colonyd.rpc import encode
from federation.forward import machine
from federation.peers.policy import SubmissionLimiter
from federation.wire.envelope import Kind
from federation.wire.messages import Cancel, Receipt
from federation.wire.messages import load as load_message
from node.etcd.client import EtcdClient
from node.etcd.errors import StoreFull
from node.etcd.pressure import Need, Pressure
from node.etcdserver.supervisor import own_limit
from node.http.message import Response
from node.model.codec import pack
from node.model.types import Colony, User
from node.rpc.calls import Call, Caller, Who
from node.rpc.dispatch import Table
from node.store import keys
from node.store.directory import Directory
from tests.federation.inbox.support import PID, Lab, code, submission
from tests.federation.inbox.support import lab as lab
from tests.node.timers.support import cron
from tests.support.clocked import World, workflow, world
from tests.support.colonies import world as colonies

MIB = 2**20
QUOTA = 1024 * MIB


def fill(client: EtcdClient | Pressure, percent: int) -> None:
    """Have a store say that so much of it is in use."""
    pressure = client if isinstance(client, Pressure) else client.pressure
    pressure.quota = QUOTA
    used = percent * QUOTA // 100
    pressure.take_in(size=used, used=used, alarm=False, counted=pressure.since)


# -- calls -----------------------------------------------------------------------------------


class Plain(msgspec.Struct):
    colonyname: str = ""


def test_members_are_refused_what_grows_and_strangers_are_left_to_the_handler() -> None:
    member, stranger = PrivateKey.generate(), PrivateKey.generate()
    directory = Directory()
    directory.apply(keys.colony("dev"), pack(Colony("0" * 64, "dev")), 1)
    directory.apply(keys.user("dev", "ann"), pack(User("dev", member.id, "ann")), 2)
    table = Table(directory, time.time_ns)
    reached: list[str] = []

    async def handle(caller: Caller, request: Plain) -> None:
        if caller.id == stranger.id:
            raise Denied("strangers are refused here")
        reached.append(caller.id)

    def of(request: Plain) -> str:
        return request.colonyname

    table.add(Call("addmsg", Plain, Who.MEMBER, handle, of))
    table.add(Call("anymsg", Plain, Who.SIGNED, handle))
    table.add(Call("removemsg", Plain, Who.MEMBER, handle, of, need=Need.FREES))
    fill(table.pressure, 85)

    def ask(kind: str, key: PrivateKey) -> bytes:
        return encode(kind, {"colonyname": "dev"}, key)

    body = ask("addmsg", member)
    for each in (body, ask("anymsg", member)):
        with pytest.raises(StoreFull, match=r"etcd\.quota"):
            trio.run(table.answer, each)
    assert table.answered["addmsg", 507] == 1
    assert trio.run(table.answer, ask("addmsg", stranger))[0] == 403
    assert trio.run(table.answer, ask("anymsg", stranger))[0] == 403
    assert trio.run(table.answer, ask("removemsg", member))[0] == 200
    # What was refused was not served: the same request is good once there is room.
    fill(table.pressure, 50)
    assert trio.run(table.answer, body)[0] == 200
    assert reached == [member.id, member.id]


# -- timers ----------------------------------------------------------------------------------


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.start()
        yield made


async def test_crons_wait_and_run_once_when_there_is_room(dev: World) -> None:
    await dev.node.crons.add(cron(), workflow())
    fill(dev.client, 85)
    dev.advance(3600)
    (key,) = dev.node.crons.index.timer_queue.due(dev.now) or [
        next(iter(dev.node.crons.index._known))
    ]
    await dev.node.leader.elected()
    assert await dev.node.crons.act(key) > 1
    assert await dev.graphs() == []
    fill(dev.client, 50)
    assert await dev.node.crons.act(key) == 0
    assert len(await dev.graphs()) == 1


# -- what peers send -------------------------------------------------------------------------


def submitted(lab: Lab, pid: str) -> bytes:
    return lab.seal(Kind.SUBMIT, msgspec.structs.replace(submission(), pid=pid))


async def cancel(lab: Lab, pid: str) -> Response:
    return await lab.post("cancel", Kind.CANCEL, Cancel(pid, 1))


async def peers_work_waits(lab: Lab) -> None:
    """A submission is refused so that its sender may go elsewhere; what is here stays and ends."""
    await lab.befriend()
    sealed = submitted(lab, PID)
    receipt = (await lab.raw("submit", sealed)).body
    fill(lab.client, 85)
    refused = await lab.raw("submit", submitted(lab, "2" * 64))
    assert (refused.status, code(refused)) == (429, "store_full")
    assert dict(refused.headers)["retry-after"] == "30"
    body: dict[str, Any] = msgspec.json.decode(refused.body)
    assert body["signed"], "only a signed refusal lets its sender go elsewhere"
    assert (await lab.raw("submit", sealed)).body == receipt
    assert len(lab.processes.queue.entries) == 1
    assert (await cancel(lab, "3" * 64)).status == 200

    # Nearly nothing is left: a cancel of what never came is a marker for two weeks.
    fill(lab.client, 92)
    assert code(await cancel(lab, "4" * 64)) == "store_full"
    ended = load_message(lab.opened(await cancel(lab, PID), Kind.RECEIPT).payload, Receipt)
    assert ended.status == "cancelled"
    assert not lab.processes.queue.entries
    # It was not forgotten what the policy allows.
    assert lab.inbox.limiter == SubmissionLimiter()

    fill(lab.client, 50)
    assert (await lab.raw("submit", submitted(lab, "2" * 64))).status == 200


async def test_peers_work_waits_until_there_is_room(lab: Lab) -> None:
    await peers_work_waits(lab)


async def test_that_test_notices_an_inbox_that_always_takes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pressure, "refuses", lambda self, need: False)
    with pytest.raises(AssertionError):
        await peers_work_waits(lab)


async def test_news_are_asked_for_again_when_there_is_room(tmp_path: Path) -> None:
    """What a process said meanwhile is kept where it runs, and is not lost with its end."""
    async with colonies(tmp_path, ["ant", "bee"]) as two:
        ant, bee = two["ant"], two["bee"]
        await ant.trust(bee)
        await bee.trust(ant)
        pid = await ant.submit("bee")
        update_consumer = ant.fed.outcome_poller.update_consumer
        await ant.until(
            lambda: any(
                entry.forward.state == machine.ForwardState.ACCEPTED
                for entry in ant.fed.outbox.entries.values()
            )
        )
        peer = ant.fed.outbox.entries[pid].forward.peer
        assert [each.pid for each in update_consumer.wanted(peer, 30)[0]] == [pid]
        fill(ant.client, 85)
        assert update_consumer.wanted(peer, 30) == ([], False, 30)
        assert ant.fed.exchange.statement(peer).accepting is False
        fill(ant.client, 50)
        assert [each.pid for each in update_consumer.wanted(peer, 30)[0]] == [pid]
        assert ant.fed.exchange.statement(peer).accepting is True


# -- etcd's own limit --------------------------------------------------------------------------


def test_etcds_own_limit_is_above_what_its_file_has(tmp_path: Path) -> None:
    assert own_limit(tmp_path, 100 * MIB) == 125 * MIB
    file = tmp_path / "data" / "member" / "snap" / "db"
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(300 * MIB)
    assert own_limit(tmp_path, 100 * MIB) == 325 * MIB
    assert own_limit(tmp_path, 0) == 2560 * MIB
