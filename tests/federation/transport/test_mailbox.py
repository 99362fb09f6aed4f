"""Colonies that nobody can connect to get work by polling a peer, and bring its outcome back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from colonyd.keys import PrivateKey
from federation.peers.registry import TRUSTED, Peer
from federation.transport.connection import PeerResponse
from federation.transport.errors import Lost, Unsent
from federation.transport.mailbox import Mailbox
from federation.wire.card import open_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.messages import Collect, Parcel, Parcels, Pass, Reply, load
from federation.wire.signer import Signer
from node.host.config import ConfigError, load_config
from node.http.server import Request
from node.model.types import State
from tests.federation.peers.support import registry
from tests.support.colonies import Colony, world
from tests.support.daemons import until

HELLO = "/v1/hello"


class Post:
    """An office, one colony that polls it and others that send to that."""

    def __init__(self) -> None:
        self.me, self.away = PrivateKey.generate(), PrivateKey.generate()
        self.mailbox = Mailbox(
            Signer(self.me, SigningClock(lambda: 1_700_000_000 * 10**9)),
            registry(Peer(self.away.id, TRUSTED, "away", b"key", 1)),
            lambda peerid: self.arrived.append(peerid),
        )
        self.arrived: list[str] = []

    async def collect(self, wait: int, *answers: Reply) -> list[Parcel]:
        from federation.wire.envelope import VerifiedMessage, inspect
        from federation.wire.messages import dump

        wish = Collect(wait, list(answers))
        opened = VerifiedMessage(self.away.id, self.me.id, b"c", 0, 9, dump(wish), b"")
        sealed = await self.mailbox.collect(opened, b"")
        return load(inspect(sealed, limit=len(sealed)).payload, Parcels).parcels

    async def send(self, body: bytes = b"x", sender: str = "me", wait: float = 0) -> PeerResponse:
        return await self.mailbox.carry(self.away.id, sender, HELLO, body, wait)


async def test_a_message_is_handed_out_once_and_its_answer_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    post = Post()
    with pytest.raises(Unsent, match="does not poll"):
        await post.send()
    assert await post.collect(1) == []
    assert post.arrived == [post.away.id]
    answers: list[PeerResponse] = []

    async def send() -> None:
        answers.append(await post.send(b"question"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        (parcel,) = await post.collect(20)
        assert (parcel.path, parcel.body) == (HELLO, b"question")
        assert await post.collect(1) == [], "nobody gets it twice"
        stranger = Reply(b"other", 200, "", b"lie")
        await post.collect(0, stranger, Reply(parcel.id, 200, "5", b"ans", True))
        assert answers == []
        await post.collect(0, Reply(parcel.id, 200, "5", b"wer"))
    assert answers == [PeerResponse(200, "5", b"answer")]
    await trio.sleep(11)
    assert not post.mailbox.open(post.away.id), "it has not polled for a while"


async def test_what_was_not_fetched_did_not_leave_and_the_rest_is_in_doubt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    post = Post()
    await post.collect(1)
    with pytest.raises(Unsent, match="not fetched"):
        await post.send()
    await post.collect(1)

    async def lose() -> None:
        with pytest.raises(Lost):
            await post.send()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        (parcel,) = await post.collect(5)
    await post.collect(0, Reply(parcel.id, 200, "", b"too late"))


async def test_a_mailbox_is_bounded_in_all_and_by_sender(
    autojump_clock: trio.testing.MockClock,
) -> None:
    post = Post()
    await post.collect(1)

    async def send(sender: str, size: int = 1) -> None:
        with pytest.raises(Unsent, match="not fetched"):
            await post.send(b"x" * size, sender)

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(send, "one")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unsent, match="full"):
            await post.send(b"", "one")
        for _ in range(3):
            nursery.start_soon(send, "two", 300_000)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unsent, match="too much of one sender"):
            await post.send(b"x" * 300_000, "two")
        for sender in range(3, 48):
            nursery.start_soon(send, str(sender))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unsent, match="full"):
            await post.send(b"", "another")
        nursery.cancel_scope.cancel()


async def test_a_colony_that_polls_runs_our_work(tmp_path: Path) -> None:
    async with world(tmp_path) as colonies:
        bee = await colonies.add("bee")
        ant = await colonies.add("ant", mailbox=bee)
        await bee.trust(ant)
        await ant.trust(bee)
        with trio.fail_after(50):
            done = []
            for number in range(3):
                processid = await bee.submit("ant")
                await ant.work(f"{number}" * 1_200_000 if number == 1 else f"{number}")
                process = await bee.closed(processid)
                assert process.state == State.SUCCESSFUL, process.errors
                done.append(str(process.output[0])[:1])
            assert done == ["0", "1", "2"], "a large outcome comes back in parts"
            # A cancel gets there as well.
            processid = await bee.submit("ant")
            await ant.until(lambda: bool(ant.waiting()))
            assert bee.node is not None
            await bee.node.processes.cancel("bee", processid)
            await ant.until(lambda: not ant.waiting())


async def test_a_third_colony_gets_there_by_way_of_the_mailbox(tmp_path: Path) -> None:
    async with world(tmp_path) as colonies:
        bee = await colonies.add("bee")
        ant = await colonies.add("ant", mailbox=bee)
        cat = await colonies.add("cat")
        for one, other in ((ant, bee), (bee, ant), (cat, bee), (bee, cat)):
            await one.trust(other)
        # The card that says where the mailbox is, is signed anew once the mailbox is trusted.
        await until(50, lambda: _polls(ant, bee))
        await cat.trust(ant)
        await ant.trust(cat)
        with trio.fail_after(50):
            processid = await cat.submit("ant")
            done = await ant.work("X")
            process = await cat.closed(processid)
        assert (process.state, process.output) == (State.SUCCESSFUL, ["X"])
        assert done.origin == cat.key.id, "the mailbox carries, it does not ask"
        body = cat.fed.signer.seal(Kind.PASS, bee.key.id, Pass("9" * 64, HELLO, b"", 0))
        refused = await bee.fed.server.handle(Request("POST", "/v1/pass", "", {}, body, "x"))
        assert refused.status == 429
        assert bee.fed.server.counters["mailbox_absent"] == 1


async def test_the_card_names_a_mailbox_by_its_new_key(tmp_path: Path) -> None:
    """A stranger who looks the mailbox up finds the present id, and knows of no former one."""
    async with world(tmp_path) as colonies:
        bee = await colonies.add("bee")
        ant = await colonies.add("ant", mailbox=bee)
        for one, other in ((ant, bee), (bee, ant)):
            await one.trust(other)
        await until(50, lambda: _polls(ant, bee))
        first = bee.key.id
        await bee.rotate()

        async def told() -> bool:
            return ant.fed.peers.present(first) == bee.key.id

        await until(50, told)
        await ant.fed._keep_clock()
        card = open_card(ant.fed.own_card.card(), time.time())
        assert card.mailboxes == [bee.key.id] != [first]


async def _polls(ant: Colony, bee: Colony) -> bool:
    return ant.fed.own_card.mailboxes == [bee.key.id]


def test_a_mailbox_in_the_configuration_is_named_by_id(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[peers]]\nurl = "https://bee:1"\nmailbox = true\n')
    with pytest.raises(ConfigError, match="needs the id"):
        load_config(tmp_path, {}, environ={})
