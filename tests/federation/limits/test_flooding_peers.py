"""What strangers, a blocked colony and a trusted peer can cost by sending much, at the gate.

A real store is behind it. Floods of real daemons are in `federation.limits.test_floods_live`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, verify_es256k
from federation.forward.receipt import ReceiptRecord
from federation.inbox.channels import ChannelReceiver
from federation.peers import successions
from federation.peers.policy import Policy
from federation.peers.registry import BLOCKED, TRUSTED, Peer, Peers, PeerState
from federation.transport.connection import PeerConnection
from federation.transport.mailbox import Mailbox
from federation.transport.polling import MailboxPoller
from federation.wire import envelope, succession
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.messages import (
    Cancel,
    Collect,
    Follow,
    Hello,
    Parcel,
    Parcels,
    Poll,
    Reply,
    Said,
    Say,
    Successor,
    dump,
)
from federation.wire.refusals import BROUGHT
from federation.wire.signer import Signer
from federation.wire.succession import declare
from node.etcd.client import open_client
from node.http.server import Response
from node.model.codec import pack, unpack
from node.model.types import State
from tests.federation.inbox.support import SPEC, Lab, befriended, code, submission, take, write
from tests.node.etcd.support import start_store
from tests.support.colonies import world
from tests.support.daemons import until
from tests.support.parts import Led, inbox_of

HOME = "10.0.0.2"


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        lab = Lab(client)
        # Time stands still, so that a slow machine lets no more through.
        lab.clock.steady = lambda: 1000.0
        yield lab


def greeting(key: PrivateKey, to: str, *successors: Successor, sequence: int = 1) -> bytes:
    """A hello of whoever has a key."""
    now = int(time.time())
    card = Card(key.id, key.public_key, "stranger", sequence, "e" * 64, [], [1], now + 3600)
    hello = Hello(sign_card(key, card, issued=now), successors=list(successors))
    return Signer(key, SigningClock()).seal(Kind.HELLO, to, hello)


async def stored(lab: Lab) -> int:
    """Bytes of all that federation has in the store."""
    items, _ = await lab.client.range_all(lab.keys.root)
    return sum(len(item.key) + len(item.value) for item in items)


async def revision(lab: Lab) -> int:
    """How often anything was written."""
    return (await lab.client.range(lab.keys.root, limit=1)).revision


# -- a blocked colony ------------------------------------------------------------------------


def chain(key: PrivateKey, count: int) -> tuple[list[Successor], PrivateKey]:
    """A colony changes its key many times; and its last one."""
    made: list[Successor] = []
    for _ in range(count):
        following = PrivateKey.generate()
        made.append(declare(key, following, int(time.time())))
        key = following
    return made, key


async def test_a_chain_of_successions_of_a_blocked_colony_writes_next_to_nothing(lab: Lab) -> None:
    """Any stranger can bring it; the colony stays blocked, under the keys that it showed first."""
    await lab.befriend()
    await lab.peers.block(lab.other.id)
    before, began = await stored(lab), await revision(lab)
    last = lab.other
    codes: set[str] = set()
    for _ in range(20):
        made, last = chain(last, 8)
        bearer = PrivateKey.generate()
        body = greeting(bearer, lab.key.id, *made)
        codes.add(code(await lab.raw("hello", body, "10.0.0.66")))
        if len(codes) == 1:
            assert codes == {"untrusted"}, "the bearer itself is a stranger"
    assert codes <= {"untrusted", "blocked"}
    assert await stored(lab) - before < 4096
    assert await revision(lab) - began <= 8
    entry = lab.peers.get(lab.other.id)
    assert entry is not None
    assert (entry.peer.state, len(entry.peer.former)) == (BLOCKED, 8)
    assert lab.peers.state(entry.peer.wire) == BLOCKED
    again = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
    await again.load()
    assert again.state(entry.peer.wire) == BLOCKED, "and so it is after a restart"


async def test_a_blocked_colony_stays_blocked_under_its_next_keys(lab: Lab) -> None:
    await lab.befriend()
    await lab.peers.block(lab.other.id)
    made, last = chain(lab.other, 3)
    assert code(await lab.raw("hello", greeting(last, lab.key.id, *made))) == "blocked"
    # One more than is kept: refused as well, and nothing is written for it.
    more, beyond = chain(last, 6)
    assert code(await lab.raw("hello", greeting(beyond, lab.key.id, *more))) == "blocked"
    began = await revision(lab)
    assert code(await lab.raw("hello", greeting(beyond, lab.key.id, *more))) == "blocked"
    assert await revision(lab) == began


async def test_a_trusted_colony_changes_its_key_so_often_a_day_and_keeps_so_many(lab: Lab) -> None:
    """Its record stays small, and a key that was let go is worth nothing."""
    await lab.befriend()
    last, told = lab.other, list[Any]()
    for number in range(30):
        following = PrivateKey.generate()
        told = [*told, declare(last, following, int(time.time()))][-8:]
        last = following
        answer = await lab.raw("hello", greeting(last, lab.key.id, *told), "10.0.0.3")
        if number < 8:
            assert answer.status == 200
            continue
        if number == 8:
            assert code(answer) == "succession_rate"
            assert int(dict(answer.headers)["retry-after"]) > 3600
        entry = lab.peers.get(lab.other.id)
        assert entry is not None
        entry.changes.level = None  # another day
        lab.inbox.peer_quotas._cards.clear()
        answer = await lab.raw("hello", greeting(last, lab.key.id, *told), "10.0.0.3")
        assert answer.status == 200
    entry = lab.peers.get(lab.other.id)
    assert entry is not None
    assert (entry.peer.wire, len(entry.peer.former)) == (last.id, successions.MOST_FORMER)
    found = await lab.client.get(lab.keys.peer(lab.other.id))
    assert found is not None
    assert len(found.value) < 8192
    thief = greeting(lab.other, lab.key.id, sequence=2**40)
    assert code(await lab.raw("hello", thief)) == "superseded", "its first key, long let go"


async def test_successions_that_concern_nobody_are_not_checked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost a stranger's hello no signature check, and known ones a peer's none again."""
    calls = 0

    def counted(*arguments: bytes) -> bool:
        nonlocal calls
        calls += 1
        return verify_es256k(*arguments)

    for module in (envelope, succession):
        monkeypatch.setattr(module, "verify_es256k", counted)
    made, last = chain(PrivateKey.generate(), 8)
    assert code(await lab.raw("hello", greeting(last, lab.key.id, *made))) == "untrusted"
    assert calls == 2, "the hello, and its card"
    await lab.befriend()
    made, last = chain(lab.other, 3)
    body = greeting(last, lab.key.id, *made)
    assert (await lab.raw("hello", body)).status == 200
    calls = 0
    assert (await lab.raw("hello", body)).status == 200
    assert calls == 2


# -- strangers -------------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count signature checks."""
    calls = [0]

    def counted(*arguments: bytes) -> bool:
        calls[0] += 1
        return verify_es256k(*arguments)

    monkeypatch.setattr(envelope, "verify_es256k", counted)
    return calls


async def test_a_flood_of_hellos_is_checked_and_logged_within_bounds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From one address, from a whole /64, from everywhere; a peer is heard all the same."""
    await lab.befriend()
    calls = counting(monkeypatch)
    caplog.set_level("INFO", logger="colonyd")
    keys = [PrivateKey.generate() for _ in range(100)]
    bodies = [greeting(key, lab.key.id) for key in keys]

    async def flood(count: int, remote: str) -> list[str]:
        return [
            code(await lab.raw("hello", bodies[n % 100], remote.format(n=n, high=n // 250)))
            for n in range(count)
        ]

    codes = await flood(200, "10.0.0.66")
    # One went to the hello with which the peer introduced itself.
    assert codes == ["untrusted"] * 60 + ["stranger_rate"] * 140
    assert calls[0] == 2 * 60, "the hello, and its card"
    codes = await flood(200, "2001:db8::{n:x}")
    assert codes == ["untrusted"] * 60 + ["stranger_rate"] * 140, "a /64 is one address"
    codes = await flood(1000, "10.1.{high}.{n}")
    assert codes == ["untrusted"] * 479 + ["stranger_rate"] * 521
    refused = await lab.raw("hello", bodies[0], "10.2.0.1")
    assert (refused.status, code(refused)) == (429, "stranger_rate")
    assert int(dict(refused.headers)["retry-after"]) > 0
    assert "signed" not in msgspec.json.decode(refused.body), "nor does a refusal cost a signature"
    lines = [record for record in caplog.records if "proved itself" in record.getMessage()]
    assert len(lines) < 40
    assert (await lab.introduce()).status == 200, "a peer does not wait for strangers"
    assert (await lab.raw("submit", lab.seal(Kind.SUBMIT, submission()), "10.0.0.66")).status == 200


async def test_false_signatures_in_the_name_of_a_peer_are_checked_within_bounds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are known to all: an address that makes them up is heard no more, a peer there is."""
    await lab.befriend()
    assert (await lab.introduce()).status == 200
    calls = counting(monkeypatch)
    sealed = lab.seal(Kind.CANCEL, Cancel("2" * 64, 1))
    false = sealed[:-1] + bytes([sealed[-1] ^ 1])
    kinds = len(Kind)
    codes = [code(await lab.raw("cancel", false, "10.0.0.66")) for _ in range(200)]
    assert codes == ["bad_signature"] * 60 + ["stranger_rate"] * 140
    assert calls[0] == 60 * kinds
    # From where the peer itself is heard, it goes on being heard.
    for _ in range(100):
        assert code(await lab.raw("cancel", false, HOME)) == "bad_signature"
    assert (await lab.raw("cancel", sealed, HOME)).status == 200
    # From everywhere: one check each, and no more.
    for number in range(700):
        await lab.raw("cancel", false, f"10.3.{number // 250}.{number % 250}")
    calls[0] = 0
    for number in range(50):
        await lab.raw("cancel", false, f"10.4.0.{number}")
    assert calls[0] == 50
    assert (await lab.raw("cancel", sealed, "10.5.0.1")).status == 200, "a peer that moved"


class Bringing(PeerConnection):
    """A mailbox of ours: what it brings next, and what we answered."""

    parcels: list[Parcel]
    answers: list[int]
    more: trio.Event

    def seal(self, kind: Kind, message: msgspec.Struct, **claims: Any) -> bytes:
        assert isinstance(message, Collect)
        self.answers += [each.status for each in message.answers]
        return b"answers" if message.answers else b""

    async def post(
        self, path: str, body: bytes, kind: Kind, wait: float = 0
    ) -> tuple[VerifiedMessage, bytes]:
        await trio.lowlevel.checkpoint()
        now: list[Parcel] = []
        if not body:
            now, self.parcels = self.parcels[:64], self.parcels[64:]
            if not now:
                await self.more.wait()
        return VerifiedMessage(self.id, "", b"c", 0, 9, dump(Parcels(now)), b""), b""


async def brought(lab: Lab, nursery: trio.Nursery) -> Callable[..., Awaitable[list[int]]]:
    """Poll two mailboxes. Return what has one bring messages to us; it returns our answers."""
    boxes: list[Bringing] = []
    for number in range(2):
        entry = PeerState(Peer(f"{number:064x}", TRUSTED, "box", b"k", 1))
        box = Bringing(entry, lab.context.signer, Led())
        box.parcels, box.answers, box.more = [], [], trio.Event()
        boxes.append(box)
        poller = MailboxPoller(lab.server.handle, random.Random(1))
        nursery.start_soon(poller.collect_forever, box)

    async def bring(number: int, path: str, *bodies: bytes) -> list[int]:
        box = boxes[number]
        box.answers.clear()
        box.parcels += [Parcel(b"%d" % each, path, body, 0) for each, body in enumerate(bodies, 1)]
        box.more.set()
        box.more = trio.Event()

        async def answered() -> bool:
            return len(box.answers) == len(bodies)

        await until(60, answered)
        return list(box.answers)

    return bring


async def test_what_one_mailbox_brings_keeps_nobody_out_who_comes_by_another(
    lab: Lab, nursery: trio.Nursery
) -> None:
    """Messages with false signatures, in the names of peers; they have no address."""
    await lab.befriend()
    sealed = lab.seal(Kind.CANCEL, Cancel("2" * 64, 1))
    false = [sealed[:-2] + bytes(end) for end in itertools.product(range(1, 16), repeat=2)]
    bring = await brought(lab, nursery)
    assert 429 in await bring(0, "/v2/cancel", *false)
    assert await bring(1, "/v2/cancel", sealed) == [200]
    # And by the same one, the others.
    other = Lab(lab.client)
    friend = Peer(other.other.id, TRUSTED, "friend", other.other.public_key, 1)
    lab.peers.known[friend.id] = PeerState(friend)
    message = other.seal(Kind.CANCEL, Cancel("3" * 64, 1), audience=lab.key.id)
    assert await bring(0, "/v2/cancel", message) == [200]
    nursery.cancel_scope.cancel()


async def test_a_mailbox_that_brings_a_message_again_uses_up_no_quota_of_its_sender(
    lab: Lab, nursery: trio.Nursery
) -> None:
    await lab.befriend()
    bring = await brought(lab, nursery)
    hello = lab.seal(Kind.HELLO, Hello(lab.card_bytes()))
    assert (await bring(0, "/v1/hello", *[hello] * 200)).count(200) == 120
    follow = [Follow(f"{number:064x}", 1) for number in range(128)]
    poll = lab.seal(Kind.POLL, Poll(0, [], follow))
    assert 429 in await bring(0, "/v2/outcomes", *[poll] * 1300)
    for answer in (await lab.introduce(), await lab.post("outcomes", Kind.POLL, Poll(0, []))):
        assert answer.status == 200
    assert await bring(1, "/v1/hello", hello) == [200]
    assert await bring(1, "/v2/outcomes", poll) == [200]
    nursery.cancel_scope.cancel()


# -- a peer that is trusted a little -----------------------------------------------------------

TIGHT = Policy(
    functions=["nothing"], max_waiting=1, max_running=1, rate=1, max_body=1000, messages=600
)


async def cancel(lab: Lab, number: int) -> Response:
    """Cancel a process that never was."""
    return await lab.post("cancel", Kind.CANCEL, Cancel(f"{number:064x}", 1))


async def send(lab: Lab, number: int, spec: bytes = SPEC) -> Response:
    message = msgspec.structs.replace(submission(spec=spec), pid=f"{number:064x}")
    return await lab.raw("submit", lab.seal(Kind.SUBMIT, message))


async def test_cancels_of_what_never_was_leave_no_more_than_submissions(lab: Lab) -> None:
    """Under the tightest policy, one mark a minute; what is known is cancelled all the same."""
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, TIGHT)
    before = await stored(lab)
    codes = [(await cancel(lab, number)).status for number in range(300)]
    assert codes == [200] + [429] * 299
    refused = await cancel(lab, 999)
    assert code(refused) == "policy_rate"
    assert b"policy.rate" in refused.body
    assert int(dict(refused.headers)["retry-after"]) > 0
    assert await stored(lab) - before < 5000
    assert (await cancel(lab, 0)).status == 200, "a repeat leaves nothing more"
    await lab.peers.set_policy(lab.other.id, msgspec.structs.replace(TIGHT, functions=[]))
    assert (await send(lab, 1000)).status == 200
    assert (await cancel(lab, 1000)).status == 200, "what it has here, it can end"
    loaded = await lab.poll()
    assert [outcome.state for outcome in loaded] == [State.CANCELLED]


async def test_what_a_peer_may_leave_in_all_has_a_bound(lab: Lab) -> None:
    """In entries and in bytes; a restart comes to the same sum, and it goes when its time is up."""
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, Policy(max_entries=20))
    for number in range(10):
        assert (await cancel(lab, number)).status == 200
    for number in range(10, 20):
        assert (await send(lab, number)).status == 200
    refused = await cancel(lab, 20)
    assert (refused.status, code(refused)) == (429, "policy_entries")
    assert b"20 (policy.max_entries)" in refused.body
    assert code(await send(lab, 21)) == "policy_entries"
    assert (await send(lab, 10)).status == 409, "an id that was used, as before"
    assert (await cancel(lab, 10)).status == 200, "what is there can be ended"
    again = inbox_of(lab.context)
    await again.sweep()
    assert again.peer_quotas.stock(lab.other.id).entries == 20
    known, counted = (each.peer_quotas.stock(lab.other.id).size for each in (lab.inbox, again))
    assert abs(known - counted) < counted / 2
    # Their time is over: there is room again.
    items, _ = await lab.client.range_all(lab.keys.markers)
    for item in items:
        old = msgspec.structs.replace(unpack(item.value, ReceiptRecord), expires=1)
        await lab.client.put(item.key, pack(old))
    await lab.inbox.sweep()
    left = lab.inbox.peer_quotas.stock(lab.other.id).entries
    assert left == 10, "those with an open process, or with an end that was not fetched"
    assert (await cancel(lab, 30)).status == 200


async def test_bytes_that_a_peer_leaves_have_a_bound(lab: Lab) -> None:
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, Policy(max_kept=300_000))
    lab.serve(*ChannelReceiver(lab.context, lab.inbox.peer_quotas).endpoints())
    spec = msgspec.json.decode(SPEC)
    spec["args"], spec["channels"] = ["x" * 30_000], ["talk"]
    large = msgspec.json.encode(spec)
    codes = [(await send(lab, number, large)).status for number in range(20)]
    assert codes.count(200) == 4
    refused = await send(lab, 50, large)
    assert (refused.status, code(refused)) == (429, "policy_kept")
    assert b"300000 (policy.max_kept)" in refused.body
    assert await stored(lab) < 400_000
    # What is said in a channel is kept as well.
    said = [Said("talk", 0, b"y" * 60_000)]
    say = Say(f"{0:064x}", 1, "talk", 0, 1, said)
    assert code(await lab.post("say", Kind.SAY, say)) == "policy_kept"
    said = [Said("talk", 0, b"y" * 20_000)]
    say = Say(f"{0:064x}", 1, "talk", 0, 1, said)
    assert (await lab.post("say", Kind.SAY, say)).status == 200
    before = lab.inbox.peer_quotas.stock(lab.other.id).size
    await lab.inbox.sweep()
    counted = lab.inbox.peer_quotas.stock(lab.other.id).size
    assert abs(counted - before) < 5000, "what was said is counted again"
    # A process that left the store weighs no more.
    processes, _ = await lab.client.range_all("/colonyd/process/lab/")
    for item in processes:
        await lab.client.delete(item.key)
    await lab.inbox.sweep()
    assert lab.inbox.peer_quotas.stock(lab.other.id).size < 40_000
    await lab.peers.set_policy(lab.other.id, Policy(max_kept=2**40))
    assert (await send(lab, 51, large)).status == 200


async def test_what_a_mailbox_brought_in_vain_is_kept_within_bounds(lab: Lab) -> None:
    """Each refusal that is kept to leaves a mark, like a cancel."""
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, TIGHT)
    before = await stored(lab)
    for number in range(60):
        message = msgspec.structs.replace(submission(), pid=f"{number:064x}")
        answer = await lab.raw("submit", lab.seal(Kind.SUBMIT, message), BROUGHT)
        assert code(answer) == "policy_function"
    assert await stored(lab) - before < 5000


async def test_messages_of_every_kind_are_counted(lab: Lab) -> None:
    await lab.befriend()
    lab.serve(*Mailbox(lab.context.signer, lab.peers, lambda peerid: None).endpoints())
    await lab.peers.set_policy(lab.other.id, Policy(messages=30))
    statuses = [(await lab.post("outcomes", Kind.POLL, Poll(0, []))).status for _ in range(20)]
    assert statuses == [200] * 20
    statuses = [(await cancel(lab, number % 3)).status for number in range(30)]
    assert statuses[:8] == [200] * 8
    assert statuses[-1] == 429
    for answer in (
        await lab.introduce(),
        await send(lab, 5),
        await lab.post("mail", Kind.COLLECT, Collect(0, [])),
    ):
        assert code(answer) == "policy_messages"
        assert b"policy.messages" in answer.body


async def test_what_a_poll_asks_about_and_hellos_are_counted_as_well(lab: Lab) -> None:
    """A poll about many processes costs as much as many messages; a hello wakes much."""
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, Policy(messages=200))
    poll = Poll(0, [], [Follow(f"{number:064x}", 1) for number in range(128)])
    codes = [
        code(answer)
        for _ in range(30)
        if (answer := await lab.post("outcomes", Kind.POLL, poll)).status != 200
    ]
    assert codes == ["policy_messages"] * 19, "17 each, for the message and 128 processes"
    await lab.peers.set_policy(lab.other.id, Policy(messages=0))
    answers = [await lab.introduce() for _ in range(130)]
    codes = [code(answer) for answer in answers if answer.status != 200]
    assert codes == ["peer_rate"] * 10


async def test_polls_that_wait_are_bounded_and_others_go_on(lab: Lab) -> None:
    """Each holds a connection: one colony can not take those of all."""
    await lab.befriend()
    codes: list[str] = []

    async def poll() -> None:
        answer = await lab.post("outcomes", Kind.POLL, Poll(30, []))
        codes.append("" if answer.status == 200 else code(answer))

    async def refused() -> bool:
        return len(codes) == 24

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(poll)
        await until(20, refused)
        assert codes == ["peer_at_once"] * 24
        assert (await send(lab, 1)).status == 200
        lab.inbox.outcome_queue.drain()
    assert codes[24:] == [""] * 16
    assert not lab.inbox.peer_quotas._under_way


async def test_newer_cards_are_written_so_often_a_minute(lab: Lab) -> None:
    await lab.befriend()
    began = await revision(lab)
    codes = [
        code(answer)
        for number in range(40)
        if (
            answer := await lab.raw("hello", greeting(lab.other, lab.key.id, sequence=2 + number))
        ).status
        != 200
    ]
    assert set(codes) == {"card_rate"}
    assert await revision(lab) - began <= 15
    assert lab.peers.state(lab.other.id) == TRUSTED


async def test_news_that_a_peer_tells_have_a_bound_a_day(tmp_path: Path) -> None:
    """What it makes up of our processes stays with them; its end is taken in all the same."""
    with trio.fail_after(100):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            await ant.fed.peers.set_policy(bee.key.id, Policy(max_kept=60_000))
            pid = await ant.submit("bee")
            far = await take(bee)
            # The lines of one transaction fit the bound: a full bucket gives more than it holds.
            for number in range(120):
                await write(bee, far, f"{number} " + "x" * 1000)
            update_consumer = ant.fed.outcome_poller.update_consumer
            while not update_consumer.counters["unfit"]:
                await ant.changed.wait()
            assert bee.node is not None
            await bee.node.processes.close(
                "bee", far.processid, bee.worker.executorid, State.SUCCESSFUL, output=["done"]
            )
            assert (await ant.closed(pid)).output == ["done"]
            items, _ = await ant.client.range_all(f"/colonyd/log/ant/{pid}/")
            assert sum(len(item.value) for item in items) < 60_000
            assert ant.fed.inbox.peer_quotas.told(bee.key.id) > 0


# -- a mailbox -----------------------------------------------------------------------------------


async def test_a_mailbox_is_bounded_over_all_colonies_and_in_what_answers_bring(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair of colonies that sends and answers without end fills no memory."""
    await lab.befriend()
    mailbox = Mailbox(lab.context.signer, lab.peers, lambda peerid: None)
    lab.serve(*mailbox.endpoints())
    outcome_poller: list[str] = []

    async def carry() -> None:
        try:
            await mailbox.carry(lab.other.id, "me", "/v1/hello", b"x", 5)
            outcome_poller.append("")
        except Exception as error:
            outcome_poller.append(type(error).__name__)

    assert (await lab.post("mail", Kind.COLLECT, Collect(0, []))).status == 200
    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(carry)
        await trio.testing.wait_all_tasks_blocked()
        held = dict(mailbox._queues[lab.other.id].held)
        part = b"y" * 1_000_000
        for name in held:
            for _ in range(5):
                reply = Reply(name, 200, "", part, True)
                assert (await lab.post("mail", Kind.COLLECT, Collect(0, [reply]))).status == 200
        assert mailbox._bytes <= 17_000_000
        await trio.testing.wait_all_tasks_blocked()
        assert "Unsent" in outcome_poller, "of some, the answer is too much"
        nursery.cancel_scope.cancel()
    assert (mailbox._bytes, mailbox._queues[lab.other.id].parts) == (0, 0)
    outcome_poller.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry)
        await trio.testing.wait_all_tasks_blocked()
        (name,) = mailbox._queues[lab.other.id].held
        answer = Reply(name, 200, "", b"end")
        assert (await lab.post("mail", Kind.COLLECT, Collect(0, [answer]))).status == 200
    assert outcome_poller == [""], "and then it goes on"
