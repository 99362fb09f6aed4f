"""A mailbox that lies about what it carried: work never runs elsewhere on its word.

The mailbox is ours to play; all else is as it runs: routes, the outbox, the way by a mailbox, and
the gate of the colony behind it.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.forward import machine
from federation.forward.machine import Forward
from federation.peers.policy import Policy
from federation.peers.registry import PENDING, TRUSTED, Peer, PeerState
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost
from federation.transport.ways import pass_on
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, inspect
from federation.wire.messages import Cancel, Pass, Passed, SignedRefusal, Submit, load
from federation.wire.refusals import BROUGHT
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient
from node.http.server import Request
from node.model.codec import pack
from node.model.types import Process, State
from tests.federation.routing.support import BOTH, Side, three
from tests.support.daemons import until
from tests.support.parts import Led

Say = Callable[[PeerResponse], Awaitable[PeerResponse]]


class Mailbox(PeerConnection):
    """The way from ant to the mailbox that bee polls. It keeps what it carried.

    `say` makes the mailbox's answer of bee's; `carries` is whether it hands anything to bee at all.
    """

    key: PrivateKey
    bee: Side
    say: Say
    carries = True
    remote = BROUGHT
    kept: list[tuple[str, bytes]]
    asked = b""

    async def connect(self) -> Any:
        """Always there."""

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        self.asked = body
        wish = load(inspect(body, limit=len(body)).payload, Pass)
        if not self.carries:
            return PeerResponse(429, "5", b'{"code":"mailbox_absent"}')
        self.kept.append((wish.path, wish.body))
        return await self.say(await self.bring(wish.path, wish.body))

    async def bring(self, path: str, body: bytes) -> PeerResponse:
        """Hand a message to bee; its answer."""
        request = Request("POST", path, "", {}, body, self.remote)
        response = await self.bee.federation.server.handle(request)
        after = dict(response.headers).get("retry-after", "")
        return PeerResponse(response.status, after, bytes(response.body))

    async def passed(self, answer: PeerResponse) -> PeerResponse:
        """An answer of bee, as an honest mailbox gives it to ant."""
        message = Passed(answer.status, answer.retry_after, answer.data)
        signer = Signer(self.key, SigningClock())
        return PeerResponse(200, "", signer.seal(Kind.PASSED, self.signer.key.id, message))

    def signed(self, told: PeerResponse) -> PeerResponse:
        """A refusal under which the mailbox puts its own name, as a peer does."""
        said = msgspec.json.decode(told.data)
        digest = hashlib.sha256(self.asked).digest()
        denial = SignedRefusal(said["code"], "no", digest, path="/v1/pass", kept=True)
        sealed = Signer(self.key, SigningClock()).seal(Kind.REFUSAL, self.signer.key.id, denial)
        return PeerResponse(told.status, "", msgspec.json.encode(said | {"signed": sealed}))


class Scene:
    """ant, which would send work to bee or else to cat, and reaches bee by a mailbox only."""

    def __init__(self, ant: Side, bee: Side, cat: Side) -> None:
        self.ant, self.bee, self.cat = ant, bee, cat
        key = PrivateKey.generate()
        peer = Peer(key.id, TRUSTED, "mailbox", key.public_key, fingerprint="e" * 64)
        self.mailbox = Mailbox(PeerState(peer), ant.federation.signer, Led())
        self.mailbox.key, self.mailbox.bee, self.mailbox.kept = key, bee, []
        self.mailbox.say = self.mailbox.passed
        carry = functools.partial(pass_on, self.mailbox, bee.key.id)
        entry = ant.federation.peers.known[bee.key.id]
        self.connection = PeerConnection(entry, ant.federation.signer, Led(carry))

    async def deliver(self, process: Process) -> None:
        """Send what is due for this process, once."""
        outbox = self.ant.federation.outbox
        await outbox.refresh(self.bee.key.id)
        outbox.entries[process.processid].busy = True
        await self.ant.federation.sender._deliver(
            self.connection, outbox.entries[process.processid]
        )

    async def forward(self, process: Process) -> Forward:
        """The forward to bee."""
        found = await self.ant.forward(self.bee, process)
        assert found is not None
        return found

    async def impatient(self, process: Process) -> None:
        """The time that bee was to be waited for, if nothing left, is over."""
        federation = self.ant.federation
        forward = msgspec.structs.replace(await self.forward(process), share=1)
        key = federation.keys.forward(self.bee.key.id, process.processid)
        await self.ant.client.put(key, pack(forward))
        federation.outbox.look_for(process.processid, self.bee.key.id)
        await federation.sender.expire()

    def another(self, body: bytes) -> bytes:
        """The next attempt of the process that a submission was about."""
        submit = load(inspect(body, limit=len(body)).payload, Submit)
        again = msgspec.structs.replace(submit, attempt=submit.attempt + 1)
        return self.ant.federation.signer.seal(Kind.SUBMIT, self.bee.key.id, again)


async def play(client: EtcdClient) -> Scene:
    return Scene(*await three(client, BOTH))


def refusal(status: int, code: str) -> PeerResponse:
    return PeerResponse(status, "5", msgspec.json.encode({"code": code, "clock": int(time.time())}))


async def unsaid(answer: PeerResponse) -> PeerResponse:
    raise Lost("no answer")


LIES: dict[str, tuple[bool, PeerResponse]] = {
    # In its own name. Unsigned, it may be that of anybody who can answer for the mailbox.
    "it was not there": (False, refusal(429, "mailbox_absent")),
    "it has no room": (False, refusal(429, "mailbox_full")),
    "it does not trust us": (False, refusal(403, "untrusted")),
    "it holds no mail": (False, refusal(404, "not_found")),
    "we are too late": (False, refusal(400, "expired")),
    "it has trouble": (False, refusal(503, "busy")),
    # As if the colony behind it had said so.
    "that has no room": (True, refusal(429, "policy_waiting")),
    "that does not trust us": (True, refusal(403, "untrusted")),
    "that has it already": (True, refusal(409, "id_reuse")),
    "that was asked too late": (True, refusal(400, "expired")),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("state", [TRUSTED, PENDING])
async def test_what_was_delivered_and_denied_runs_nowhere_else(
    client: EtcdClient, signed: bool, state: str
) -> None:
    """The message is delivered and bee runs it; the mailbox says otherwise, whatever it can.

    The mailbox may be one that ant does not trust, and knows by bee's card only.
    """
    scene = await play(client)
    mailbox = scene.mailbox.entry
    mailbox.peer = msgspec.structs.replace(mailbox.peer, state=state)
    for number, (lie, (behind, told)) in enumerate(LIES.items(), 1):
        scene.mailbox.say = functools.partial(deny, scene, behind, told, signed)
        process = await scene.ant.submit()
        for copies in (1, 2):
            await scene.deliver(process)
            forward = await scene.forward(process)
            assert (forward.state, forward.sent) == (machine.ForwardState.DOUBT, copies), lie
            await scene.impatient(process)
            assert (await scene.ant.load(process)).peer == scene.bee.key.id, lie
        assert await scene.ant.forward(scene.cat, process) is None, lie
        assert len(scene.bee.processes.queue.entries) == number, lie
        assert len(set(scene.mailbox.kept)) == number, "every copy is the same bytes"
        # Once it tells the truth, the doubt is over.
        scene.mailbox.say = scene.mailbox.passed
        await scene.deliver(process)
        assert (await scene.forward(process)).state == machine.ForwardState.ACCEPTED, lie
        assert (await scene.ant.load(process)).state == State.RUNNING, lie


async def deny(
    scene: Scene, behind: bool, told: PeerResponse, signed: bool, answer: PeerResponse
) -> PeerResponse:
    """bee took it, and said so."""
    assert answer.status == 200
    lie = scene.mailbox.signed(told) if signed else told
    return await scene.mailbox.passed(lie) if behind else lie


async def test_a_refusal_that_the_colony_keeps_to_ends_the_doubt(client: EtcdClient) -> None:
    """bee signs that it takes no copy, ever: so ant may go to cat, and the mailbox come again."""
    scene = await play(client)
    bee, ant = scene.bee, scene.ant
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    scene.mailbox.say = unsaid
    await scene.deliver(process)
    assert (await scene.forward(process)).state == machine.ForwardState.DOUBT
    scene.mailbox.say = scene.mailbox.passed
    await scene.deliver(process)
    assert (await ant.load(process)).peer == scene.cat.key.id
    await bee.federation.peers.set_policy(ant.key.id, Policy())
    (first, body), *_ = scene.mailbox.kept
    for remote in (BROUGHT, "10.0.0.9"):
        scene.mailbox.remote = remote
        again = await scene.mailbox.bring(first, body)
        assert (again.status, b"policy_function" in again.data) == (403, True)
    assert not bee.processes.queue.entries
    # The id as such is free: another attempt would be taken.
    assert (await scene.mailbox.bring(first, scene.another(body))).status == 200
    assert b"id_reuse" in (await scene.mailbox.bring(first, body)).data
    assert len(bee.processes.queue.entries) == 1


@pytest.mark.parametrize("why", ["from elsewhere", "after it was taken"])
async def test_a_signed_refusal_that_lasts_for_no_longer_is_no_way_out(
    client: EtcdClient, why: str
) -> None:
    """bee says no to one of several copies that the mailbox made, or for now only."""
    scene = await play(client)
    bee, ant = scene.bee, scene.ant
    process = await ant.submit()
    if why == "from elsewhere":
        # Brought as by a client of bee, it is refused without being kept.
        scene.mailbox.remote = "10.0.0.9"
        await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    else:

        async def again(answer: PeerResponse) -> PeerResponse:
            assert answer.status == 200
            await bee.federation.peers.block(ant.key.id)
            return await scene.mailbox.passed(await scene.mailbox.bring(*scene.mailbox.kept[0]))

        scene.mailbox.say = again
    await scene.deliver(process)
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.FAILED, bee.key.id)
    assert "in doubt, the peer may still run it" in found.errors[0]
    assert await ant.forward(scene.cat, process) is None


async def test_a_cancel_beats_a_refusal_that_was_kept(client: EtcdClient) -> None:
    """Whatever else comes under the id of a cancel is cancelled, the refused bytes as well."""
    scene = await play(client)
    bee, ant = scene.bee, scene.ant
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    await scene.deliver(process)
    cancel = ant.federation.signer.seal(Kind.CANCEL, bee.key.id, Cancel(process.processid, 1))
    assert (await scene.mailbox.bring("/v2/cancel", cancel)).status == 200
    await bee.federation.peers.set_policy(ant.key.id, Policy())
    path, body = scene.mailbox.kept[0]
    for each in (body, scene.another(body)):
        answer = await scene.mailbox.bring(path, each)
        assert (answer.status, b"cancelled" in answer.data) == (200, True)
    assert not bee.processes.queue.entries


async def test_a_mailbox_can_not_end_a_cancel(client: EtcdClient) -> None:
    """It is sent until bee itself has answered."""
    scene = await play(client)
    ant, bee = scene.ant, scene.bee
    process = await ant.submit()
    await scene.deliver(process)
    await ant.processes.cancel("ant", process.processid)

    told = refusal(403, "untrusted")
    scene.mailbox.say = functools.partial(deny, scene, True, told, False)
    await scene.deliver(process)
    assert (await scene.forward(process)).state == machine.ForwardState.CANCELLING
    assert not (await scene.forward(process)).receipt
    scene.mailbox.say = scene.mailbox.passed
    await scene.deliver(process)
    assert (await scene.forward(process)).receipt
    assert not bee.processes.queue.entries


async def test_nothing_is_handed_to_a_mailbox_for_a_colony_that_is_not_there(
    client: EtcdClient,
) -> None:
    """What has not left is in no doubt: it goes elsewhere when its time is over."""
    scene = await play(client)
    for side in (scene.ant, scene.bee):
        await side.federation.own_card.start(50081, "f" * 64)
    scene.mailbox.carries = False
    process = await scene.ant.submit()
    sender, entry = scene.ant.federation.sender, scene.connection.entry

    async def sent() -> bool:
        return (await scene.forward(process)).state == machine.ForwardState.ACCEPTED

    async def failed() -> bool:
        return "mailbox_absent" in entry.error

    async with trio.open_nursery() as sending:
        sending.start_soon(sender.send_forever, scene.connection)
        await until(50, failed, step=0.02)
        assert (await scene.forward(process)).state == machine.ForwardState.QUEUED
        sending.cancel_scope.cancel()
    await scene.impatient(process)
    assert (await scene.ant.load(process)).peer == scene.cat.key.id
    # There, it gets what the next one asks for.
    scene.mailbox.carries = True
    scene.ant.hear(scene.bee, 2)
    process = await scene.ant.submit()
    scene.ant.federation.outbox.retry_now(scene.bee.key.id)
    async with trio.open_nursery() as sending:
        sending.start_soon(sender.send_forever, scene.connection)
        await until(50, sent, step=0.02)
        sending.cancel_scope.cancel()
    paths = [path for path, _ in scene.mailbox.kept]
    assert paths == ["/v1/hello", "/v2/submit"]
