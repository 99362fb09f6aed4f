"""A process goes elsewhere, and the answer of the store to that is lost: it is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from federation.forward.machine import Forward
from federation.transport.errors import Unsent
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Put, Txn
from node.host.config import RouteConfig
from node.model.types import Process, State
from tests.federation.routing.support import BOTH, Side, _age, deliver, three, wire
from tests.support.colonies import Colony, world


class Silence:
    """Lets the write of a forward to `peer` happen, once, and says that there was no answer."""

    def __init__(self, patch: pytest.MonkeyPatch, peer: Side | Colony) -> None:
        commit = EtcdClient.commit
        self.happened = False

        async def silent(client: EtcdClient, txn: Txn) -> TxnResult:
            result = await commit(client, txn)
            place = f"/outbox/{peer.key.id}/"
            if not self.happened and any(
                isinstance(op, Put) and place in op.key for op in txn.success
            ):
                self.happened = True
                raise EtcdUnavailable("no answer from the store")
            return result

        patch.setattr(EtcdClient, "commit", silent)


async def known(side: Side, peer: Side, process: Process) -> Forward:
    """The forward of a process as its sender has it."""
    outbox = side.federation.outbox
    await outbox.refresh(peer.key.id)
    forward = outbox.entries[process.processid].forward
    assert forward.peer == peer.key.id
    return forward


async def test_what_a_route_sent_away(client: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ant, bee, _ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    process = await ant.submit()
    silence = Silence(monkeypatch, bee)
    with pytest.raises(EtcdUnavailable):
        await ant.tick()
    assert silence.happened
    assert (await ant.load(process)).peer == bee.key.id
    await known(ant, bee, process)
    await deliver(ant, bee, wire(ant, bee), process)
    assert len(bee.processes.queue.entries) == 1


async def test_what_a_peer_did_not_get_in_its_share_of_the_time(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ant, bee, cat = await three(client, BOTH)
    process, connection = await ant.submit(), wire(ant, bee)
    connection.trouble = Unsent("connection refused")
    await deliver(ant, bee, connection, process)
    await _age(ant, bee, process)
    silence = Silence(monkeypatch, cat)
    with pytest.raises(EtcdUnavailable):
        await ant.federation.sender.expire()
    assert silence.happened
    assert (await ant.load(process)).peer == cat.key.id
    assert [tried.peer for tried in (await known(ant, cat, process)).tried] == [bee.key.id]
    await deliver(ant, cat, wire(ant, cat), process)
    assert len(cat.processes.queue.entries) == 1


async def test_what_a_relay_passes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance and forward are one write; the repeat gets a receipt and writes nothing."""
    async with world(tmp_path) as colonies:
        ant, bee, cat = [await colonies.add(name) for name in ("ant", "bee", "cat")]
        for one, other in ((ant, bee), (bee, ant), (bee, cat), (cat, bee)):
            await one.trust(other, forward=True, max_hops=4)
        silence = Silence(monkeypatch, cat)
        with trio.fail_after(50):
            processid = await ant.submit("bee/cat")
            await cat.work("done")
            process = await ant.closed(processid)
        assert silence.happened
        assert (process.state, process.output) == (State.SUCCESSFUL, ["done"])
