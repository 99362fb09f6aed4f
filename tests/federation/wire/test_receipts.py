"""What a peer may answer to a submission and to a cancel; all else is no answer: doubt stays."""

from __future__ import annotations

import time
from typing import Any

from colonyd.keys import PrivateKey
from federation.forward import machine
from federation.forward.machine import Forward
from federation.forward.path import local_id
from federation.transport.connection import PeerResponse
from federation.wire import cbor
from federation.wire.envelope import Kind, inspect, seal
from federation.wire.signer import cti_of
from node.etcd.client import EtcdClient
from node.model.types import Process, State
from tests.federation.routing.support import BOTH, Side, Wire, deliver, three
from tests.support.parts import Led


class Liar(Wire):
    """The way to a peer that takes what it is sent, and signs whatever it likes as the receipt."""

    key: PrivateKey
    said: dict[str, Any] | None = None

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `Link.exchange`."""
        answer = await super().exchange(path, body, wait)
        if self.said is None or answer.status != 200:
            return answer
        truth: Any = cbor.decode(inspect(answer.data, limit=10_000).payload)
        now = int(time.time())
        payload = cbor.encode({**truth, **self.said})
        me = self.signer.key.id
        name = cti_of("lie")
        return PeerResponse(
            200,
            "",
            seal(self.key, Kind.RECEIPT, me, payload, cti=name, issued=now, expires=now + 60),
        )


async def liar(client: EtcdClient) -> tuple[Side, Side, Liar, Process]:
    """ant, its peer bee, the way between them, and a process that is to go there."""
    ant, bee, _ = await three(client, BOTH)
    entry = ant.federation.peers.known[bee.key.id]
    connection = Liar(entry, ant.federation.signer, Led())
    connection.to, connection.key = bee, bee.key
    return ant, bee, connection, await ant.submit()


async def of(ant: Side, bee: Side, process: Process) -> Forward:
    found = await ant.forward(bee, process)
    assert found is not None
    return found


async def test_a_receipt_for_a_submission_names_the_very_process(client: EtcdClient) -> None:
    ant, bee, connection, process = await liar(client)
    there = local_id(ant.key.id, process.processid, 1)
    lies: list[dict[str, Any]] = [
        {"remote": local_id(ant.key.id, process.processid, 2)},
        {"remote": "f" * 64},
        {"remote": there.upper()},
        {"remote": ""},
        {"status": "cancelled"},
        {"status": "already_closed"},
        {"status": "already_closed", "remote": ""},
        {"status": "declined", "remote": ""},
        {"status": ""},
        {"status": 1},
        {"attempt": 2},
        {"pid": "f" * 64},
        {"asked": b"\0" * 32},
        {"asked": b""},
        {"origin": bee.key.id},
    ]
    for copies, lie in enumerate(lies, 1):
        connection.said = lie
        await deliver(ant, bee, connection, process)
        forward = await of(ant, bee, process)
        assert (forward.state, forward.sent, forward.receipt) == (
            machine.ForwardState.DOUBT,
            copies,
            b"",
        ), lie
        assert (await ant.load(process)).state == State.WAITING, lie
        assert connection.entry.error.startswith("the receipt is"), lie
    connection.said = None
    await deliver(ant, bee, connection, process)
    forward = await of(ant, bee, process)
    assert (forward.state, forward.remoteprocessid) == (machine.ForwardState.ACCEPTED, there)


async def test_a_receipt_for_a_cancel_is_not_that_of_the_submission(client: EtcdClient) -> None:
    """Else whoever carries messages could show that one again, and the peer would never stop."""
    ant, bee, connection, process = await liar(client)
    await deliver(ant, bee, connection, process)
    await ant.processes.cancel("ant", process.processid)
    for lie in (
        {"status": "accepted"},
        {"remote": "f" * 64},
        {"status": "already_closed", "remote": ""},
        {"asked": b"\0" * 32},
        {"origin": bee.key.id},
    ):
        connection.said = lie
        await deliver(ant, bee, connection, process)
        forward = await of(ant, bee, process)
        assert (forward.state, forward.receipt) == (machine.ForwardState.CANCELLING, b""), lie
    connection.said = None
    await deliver(ant, bee, connection, process)
    assert (await of(ant, bee, process)).receipt, "closed by now, which it may say"


async def test_a_process_keeps_its_id_there_when_we_change_our_key(client: EtcdClient) -> None:
    """What was sent under the key before is known by it, whatever we are called when we ask."""
    ant, bee, connection, process = await liar(client)
    before = ant.key.id
    connection.said = {"status": "declined"}
    await deliver(ant, bee, connection, process)
    ant.federation.signer.succeed(PrivateKey.generate())
    connection.said = None
    await deliver(ant, bee, connection, process)
    forward = await of(ant, bee, process)
    assert forward.state == machine.ForwardState.ACCEPTED
    assert forward.remoteprocessid == local_id(before, process.processid, 1)
