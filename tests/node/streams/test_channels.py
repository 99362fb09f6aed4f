"""Channels on a real node: pycolonies talks, a raw client listens, and the log outlives a kill."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import crypto  # type: ignore[import-untyped]
import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError as RpcRefusal
from colonyd.rpc import RpcError, decode, encode
from node.etcd.client import EtcdClient, TxnResult, open_client
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.model.codec import pack, unpack
from node.model.types import SECOND, Colony, Conditions, FunctionSpec, Process, User
from node.runtime.node import Node
from node.store.work import channels as store
from node.store.work.channels import ChannelEntry, ChannelHead
from node.streams.channels import FRAME, RATE, Channels, RateLimiter, _refusal, frames
from tests.node.etcd.support import start_store
from tests.sdk.support import COLONY, Party
from tests.support.daemons import Daemon
from tests.support.pairs import store_target, two_daemons
from tests.support.raw import Raw


class Talk(Party):
    """A party with a process that has channels, assigned to its executor."""

    def begin(self, *names: str) -> str:
        submitted = self.submit(channels=list(names or ("chat",)))
        assert self.assign().processid == submitted.processid
        self.processid: str = submitted.processid
        return self.processid

    def say(self, sequence: int, payload: Any, key: str = "", **more: Any) -> Any:
        return self.colonies.channel_append(
            self.processid, more.pop("name", "chat"), sequence, payload, key or self.key, **more
        )

    def heard(self, after: int = 0, limit: int = 0, key: str = "", name: str = "chat") -> list[Any]:
        found = self.colonies.channel_read(self.processid, name, after, limit, key or self.user)
        return [entry["payload"] for entry in found]


@pytest.fixture
def talk(lone_daemon: Daemon) -> Talk:
    talk = Talk(lone_daemon)
    talk.join()
    talk.begin()
    return talk


def test_both_sides_write_and_read_in_order_of_arrival(talk: Talk) -> None:
    talk.say(1, "what is 2+2?", talk.user)
    for number, word in enumerate(("the", "answer", "is 4"), 1):
        talk.say(number, word, in_reply_to=1)
    talk.say(9, b"\x00\xff", talk.user)
    talk.say(2, "after 9", talk.user)
    talk.say(4, "", payload_type="end")
    found = talk.colonies.channel_read(talk.processid, "chat", 0, 0, talk.key)
    user = crypto.Crypto().id(talk.user)
    assert [(e["sequence"], e["senderid"], e["payload"], e["type"]) for e in found] == [
        (1, user, b"what is 2+2?", "data"),
        (1, talk.id, b"the", "data"),
        (2, talk.id, b"answer", "data"),
        (3, talk.id, b"is 4", "data"),
        (9, user, b"\x00\xff", "data"),
        (2, user, b"after 9", "data"),
        (4, talk.id, "", "end"),
    ]
    assert [e.get("inreplyto") for e in found] == [None, 1, 1, 1, None, None, None]
    assert found[0]["timestamp"].startswith("20")
    assert found == sorted(found, key=lambda e: e["timestamp"])
    # afterseq is how many were read, whatever the sequences are.
    assert talk.heard(4) == [b"\x00\xff", b"after 9", ""]
    assert talk.heard(1, 2) == [b"the", b"answer"]
    assert talk.heard(-5, 1) == [b"what is 2+2?"]
    assert talk.heard(7) == talk.heard(2**63 - 1) == []


def test_a_repeat_is_stored_once_and_what_differs_is_news(talk: Talk) -> None:
    for payload in ("a", "a", "b", "a"):
        talk.say(1, payload)
    talk.say(1, "a", in_reply_to=7)
    talk.say(1, "a", payload_type="end")
    talk.say(1, "a", talk.user)
    # Sequence 0 is what a sender sends that keeps none.
    talk.say(0, "z")
    talk.say(0, "z")
    assert talk.heard() == [b"a", b"b", b"a", b"a", b"a", b"z", b"z"]


async def test_a_nonce_tells_a_repeat_without_a_sequence(talk: Talk, lone_daemon: Daemon) -> None:
    fields = {
        "processid": talk.processid,
        "name": "chat",
        "payload": base64.b64encode(b"once").decode(),
    }
    key = lone_daemon.key("user")
    body = encode("channelappendmsg", fields, key)
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(2):
            answer = await http.post(f"http://127.0.0.1:{lone_daemon.port}/api", content=body)
            assert decode("channelappendmsg", answer.status_code, answer.content) == {}
    assert await trio.to_thread.run_sync(talk.heard) == [b"once"]


def test_an_executor_that_begins_again_is_not_taken_for_a_repeat(lone_daemon: Daemon) -> None:
    talk = Talk(lone_daemon)
    talk.join()
    submitted = talk.submit(channels=["chat"], maxexectime=5, maxretries=3)
    talk.processid = submitted.processid
    for _ in range(2):
        talk.assign(60)
        talk.say(1, "begin")
        talk.say(1, "begin")
    assert talk.heard() == [b"begin", b"begin"]


def test_only_the_two_parties_and_only_named_channels(talk: Talk, lone_daemon: Daemon) -> None:
    other = Talk(lone_daemon)
    other.join()
    other.processid = talk.processid
    stranger = crypto.Crypto().prvkey()
    for key, text in ((other.key, "initiator"), (stranger, "member"), (talk.owner, "member")):
        with pytest.raises(Exception, match=text):
            talk.say(1, "x", key)
        with pytest.raises(Exception, match=text):
            talk.heard(key=key)
    with pytest.raises(Exception, match="no channel 'other'"):
        talk.say(1, "x", name="other")
    with pytest.raises(Exception, match="no channel"):
        talk.heard(name="chat/..")
    for missing in ("f" * 64, f"{talk.processid}/x", "../x"):
        other.processid = missing
        with pytest.raises(Exception, match="no process"):
            other.heard()
    assert talk.heard() == []


def test_before_the_assignment_only_the_initiator_speaks(lone_daemon: Daemon) -> None:
    talk = Talk(lone_daemon)
    talk.join()
    talk.processid = talk.submit(channels=["chat"]).processid
    talk.say(1, "early", talk.user)
    with pytest.raises(Exception, match="initiator"):
        talk.say(1, "x")
    talk.assign()
    assert talk.heard(key=talk.key) == [b"early"]


@pytest.mark.parametrize("how", ["close", "fail", "cancel"])
async def test_the_end_of_the_process_ends_the_stream(
    how: str, talk: Talk, lone_daemon: Daemon
) -> None:
    in_thread = trio.to_thread.run_sync
    await in_thread(talk.say, 1, "first")
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        await raw.ask(talk.user, msgtype="subscribechannelmsg", timeout=60, **chat(talk))
        kind, told = await raw.reply()
        assert (kind, payloads(told)) == ("subscribechannelmsg", [b"first"])
        await in_thread(talk.say, 2, "second")
        assert payloads((await raw.reply())[1]) == [b"second"]
        if how == "cancel":
            async with lone_daemon.client() as client:
                key = lone_daemon.key("user")
                await client.call("cancelprocessmsg", {"processid": talk.processid}, key)
        else:
            end = getattr(talk.colonies, how)
            await in_thread(end, talk.processid, ["done"], talk.key)
        with trio.fail_after(8):  # not at the next look, ten seconds later
            assert await raw.reply() == ("subscribechannelmsg", [])
        # The socket stays open: a later subscription gets what is there, and the end at once.
        await raw.ask(talk.user, msgtype="subscribechannelmsg", afterseq=1, **chat(talk))
        assert payloads((await raw.reply())[1]) == [b"second"]
        assert (await raw.reply())[1] == []
    with pytest.raises(Exception, match="take no more messages"):
        await in_thread(talk.say, 3, "late")
    await in_thread(talk.say, 2, "second")  # a retry, whose reply was lost
    assert await in_thread(talk.heard) == [b"first", b"second"]


def chat(talk: Talk) -> dict[str, Any]:
    return {"processid": talk.processid, "name": "chat"}


def payloads(entries: list[dict[str, Any]]) -> list[bytes]:
    return [base64.b64decode(entry["payload"]) for entry in entries]


async def test_subscriptions_end_in_time_and_refuse_in_the_socket(
    talk: Talk, lone_daemon: Daemon
) -> None:
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        ask = {"msgtype": "subscribechannelmsg", **chat(talk)}
        began = trio.current_time()
        await raw.ask(talk.user, timeout=1, **ask)
        assert await raw.reply() == ("subscribechannelmsg", [])
        assert 0.9 < trio.current_time() - began < 30
        await raw.ask(talk.key, timeout=-1, **ask)
        assert (await raw.reply())[1] == []
        await raw.ask(crypto.Crypto().prvkey(), **ask)
        assert (await raw.reply())[1]["status"] == 403
        await raw.ask(talk.owner, **ask)
        assert (await raw.reply())[1]["status"] == 403
        await raw.ask(talk.user, **(ask | {"name": "nope"}))
        assert (await raw.reply())[1]["status"] == 404
        await raw.ask(talk.user, **(ask | {"processid": "f" * 64}))
        assert (await raw.reply())[1]["status"] == 404
        await raw.ask(talk.user, **(ask | {"afterseq": "1"}))
        assert (await raw.reply())[1]["status"] == 400


async def test_a_slow_reader_misses_nothing_and_an_executor_that_lost_the_work_is_told(
    talk: Talk, lone_daemon: Daemon
) -> None:
    in_thread = trio.to_thread.run_sync
    raw = await Raw.connect(lone_daemon.port)
    async with raw.stream:
        await raw.ask(talk.key, msgtype="subscribechannelmsg", timeout=60, **chat(talk))
        wanted = [f"{number}".encode() * 100_000 for number in range(10, 40)]
        async with lone_daemon.client() as client:
            for payload in wanted:
                fields = {**chat(talk), "payload": base64.b64encode(payload).decode()}
                await client.call("channelappendmsg", fields, lone_daemon.key("user"))
        got: list[bytes] = []
        while len(got) < len(wanted):
            got += payloads((await raw.reply())[1])
        assert got == wanted
        await in_thread(talk.colonies.remove_executor, COLONY, talk.name, talk.owner)
        assert (await raw.reply())[1]["status"] == 403


def test_pycolonies_subscribes(talk: Talk) -> None:
    got: list[Any] = []

    def take(entries: list[Any]) -> bool:
        got.extend(entry["payload"] for entry in entries)
        return len(got) < 3

    listener = threading.Thread(
        target=talk.colonies.subscribe_channel,
        args=[talk.processid, "chat", talk.user],
        kwargs={"timeout": 20, "callback": take},
    )
    listener.start()
    for number in range(3):
        talk.say(number, f"message {number}")
    listener.join(10)
    assert not listener.is_alive()
    assert got == [b"message 0", b"message 1", b"message 2"]
    talk.colonies.close(talk.processid, [], talk.key)
    # Without a callback it returns at the end of the stream, which is the process's.
    all_of_it = talk.colonies.subscribe_channel(talk.processid, "chat", talk.user, timeout=20)
    assert [entry["payload"] for entry in all_of_it] == got


async def test_many_at_once_keep_one_order(talk: Talk, lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    async with lone_daemon.client() as client, trio.open_nursery() as nursery:

        async def say(number: int) -> None:
            payload = base64.b64encode(b"%d" % number).decode()
            fields = {**chat(talk), "sequence": number, "payload": payload}
            await client.call("channelappendmsg", fields, key)

        for number in range(1, 33):
            nursery.start_soon(say, number)
    found = await trio.to_thread.run_sync(talk.heard)
    assert sorted(found) == sorted(b"%d" % number for number in range(1, 33))


async def test_what_makes_no_sense_is_refused(talk: Talk, lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    async with lone_daemon.client() as client:
        for wrong, text in (
            ({"payload": [1, 256]}, r"payload\[1\]"),
            ({"payload": [1.5]}, r"payload\[0\]"),
            ({"payload": "not base64!"}, "payload: neither"),
            ({"payload": {"a": 1}}, "payload"),
            ({"sequence": 2**63}, "sequence"),
            ({"sequence": "1"}, "sequence"),
            ({"payloadtype": "x" * 65}, "payloadtype: at most"),
        ):
            with pytest.raises(RpcError, match=text) as caught:
                await client.call("channelappendmsg", {**chat(talk), **wrong}, key)
            assert caught.value.status == 400, wrong
        largest = {**chat(talk), "payload": base64.b64encode(bytes(2**21)).decode()}
        await client.call("channelappendmsg", largest, key)
        found = await client.call("channelreadmsg", chat(talk), key)
        assert payloads(found) == [bytes(2**21)]
        for names, text in (
            (["a", "a"], "same name twice"),
            ([""], r"channels\[0\]: a name"),
            ([str(number) for number in range(101)], "at most 100"),
        ):
            with pytest.raises(Exception, match=text):
                await trio.to_thread.run_sync(partial(talk.submit, channels=names))


def test_any_name_will_do_for_a_channel(talk: Talk) -> None:
    names = ["a/b", "a", "..", "ä ☃", "%2F"]
    talk.begin(*names)
    for name in names:
        talk.say(1, name, name=name)
    assert [talk.heard(name=name) for name in names] == [[name.encode()] for name in names]


async def test_messages_have_a_rate_and_an_end(
    nursery: trio.Nursery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    running = await start_store(nursery, tmp_path_factory.mktemp("s") / "etcd")
    async with open_client(running.target) as client:
        clock = [10 * SECOND]
        node = Node.build(client, COLONY, Clock(lambda: clock[0]))
        channels = Channels(
            client, node.directory, node.processes, node.clock.now, RateLimiter(RATE, 3)
        )
        await node.members.add_colony(Colony("0" * 64, COLONY))
        await node.members.add_user(User(COLONY, "1" * 64, "ann"))
        spec = FunctionSpec(channels=["a", "b"], conditions=Conditions(executortype="t"))
        process = Process("p", "1" * 64, "ann", COLONY, spec, 0, 0)
        await node.processes.submit(process, b"")

        async def say(name: str, sequence: int = 0) -> None:
            await channels.append("p", name, entry(b"", sequence, "1" * 64))

        for name in "aba":
            await say(name)
        with pytest.raises(RpcRefusal, match="100 messages a second") as caught:
            await say("b")  # the limit is the process's
        assert caught.value.status == 400
        clock[0] += SECOND // RATE
        await say("b")
        with pytest.raises(RpcRefusal):
            await say("a")

        # The process ends between the look at it and the transaction: nobody speaks after.
        clock[0] += SECOND
        commit = client.commit

        async def late(txn: Txn) -> TxnResult:
            client.commit = commit  # type: ignore[method-assign]
            await node.processes.cancel(COLONY, "p")
            return await commit(txn)

        client.commit = late  # type: ignore[method-assign]
        with pytest.raises(RpcRefusal, match="cancelled; its channels take no more") as caught:
            await say("a")
        assert caught.value.status == 409
        assert len(await node.channels.read(process, "a", 0)) == 2
        assert len(await node.channels.read(process, "b", 0)) == 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    with two_daemons(tmp_path_factory.mktemp("p"), COLONY) as pair:
        yield pair


async def test_two_daemons_of_one_store_serve_one_log(pair: tuple[Daemon, Daemon]) -> None:
    in_thread = trio.to_thread.run_sync
    talk, there = Talk(pair[0]), Talk(pair[1])
    await in_thread(talk.join)
    there.processid = await in_thread(talk.begin)
    raw = await Raw.connect(pair[1].port)
    async with raw.stream:
        await raw.ask(talk.user, msgtype="subscribechannelmsg", timeout=60, **chat(talk))
        for number in range(1, 7):
            side = (talk, there)[number % 2]
            await in_thread(side.say, number, f"m{number}", talk.key)
            with trio.fail_after(8):
                assert payloads((await raw.reply())[1]) == [f"m{number}".encode()]
        await in_thread(there.say, 6, "m6", talk.key)
        wanted = [f"m{number}".encode() for number in range(1, 7)]
        assert await in_thread(talk.heard) == await in_thread(there.heard) == wanted
        await in_thread(talk.colonies.close, talk.processid, [], talk.key)
        with trio.fail_after(8):
            assert (await raw.reply())[1] == []


async def test_the_log_outlives_a_kill_and_goes_with_the_process(
    pair: tuple[Daemon, Daemon],
) -> None:
    in_thread = trio.to_thread.run_sync
    daemon = pair[1]
    talk = Talk(daemon)
    await in_thread(talk.join)
    await in_thread(talk.begin, "chat", "a/b")
    for number in range(1, 4):
        await in_thread(talk.say, number, f"m{number}")
    daemon.kill()
    await in_thread(daemon.start)
    talk.colonies = Talk(daemon).colonies
    assert await in_thread(talk.heard) == [b"m1", b"m2", b"m3"]
    await in_thread(talk.say, 3, "m3")
    await in_thread(talk.say, 4, "m4")
    await in_thread(lambda: talk.say(1, "x", name="a/b"))
    assert await in_thread(talk.heard, 2) == [b"m3", b"m4"]
    async with open_client(store_target(pair[0])) as client:
        assert len(await keys_of(client, talk.processid)) == (4 + 1 + 4) + (1 + 1 + 1)
        await in_thread(talk.colonies.close, talk.processid, [], talk.key)
        await in_thread(talk.colonies.remove_process, talk.processid, talk.user)
        assert await keys_of(client, talk.processid) == []


async def keys_of(client: EtcdClient, processid: str) -> list[str]:
    found = [await client.range_all(f"/colonyd/{kind}/") for kind in store.CLASSES]
    return [kv.key for kvs, _ in found for kv in kvs if processid in kv.key]


# -- the core ------------------------------------------------------------------------------


def entry(payload: bytes = b"", sequence: int = 1, sender: str = "s", **more: Any) -> ChannelEntry:
    return ChannelEntry(
        sender, sequence, more.get("inreplyto", 0), 0, more.get("type", "data"), payload
    )


@given(st.lists(st.integers(0, FRAME * 2), max_size=12))
def test_frames_keep_everything_and_stay_small(sizes: list[int]) -> None:
    entries = [entry(bytes(size)) for size in sizes]
    cut = list(frames(entries))
    assert [each for part in cut for each in part] == entries
    for part in cut:
        assert part
        assert len(part) == 1 or sum(len(each.payload) for each in part) <= FRAME


@given(st.lists(st.integers(0, 3 * SECOND), max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_rates_never_give_more_than_they_may(gaps: list[int], rate: int, burst: int) -> None:
    rates, now, given_at = RateLimiter(rate, burst), 0, []
    for gap in gaps:
        now += gap
        if rates.allow("p", now):
            given_at.append(now)
        else:
            # Refused only when the tokens are used up.
            assert sum(1 for then in given_at if then > now - burst * SECOND // rate - 1) >= 1
    for first, start in enumerate(given_at):
        for last in range(first, len(given_at)):
            allowed = burst + (given_at[last] - start) / SECOND * rate
            assert last - first + 1 <= allowed + 1e-6


def test_rates_forget_the_longest_unused() -> None:
    rates = RateLimiter(1, 1, kept=2)
    assert [rates.allow(key, 0) for key in "aabacbbb"] == [
        True, False, True, False, True, True, False, False,
    ]  # fmt: skip


ENTRIES = st.builds(
    ChannelEntry,
    senderid=st.text(max_size=5),
    sequence=st.integers(-(2**63), 2**63 - 1),
    inreplyto=st.integers(0, 3),
    timestamp=st.integers(0, 3),
    type=st.sampled_from(["data", "end"]),
    payload=st.binary(max_size=20),
)


@given(ENTRIES, ENTRIES, st.integers(0, 2), st.integers(0, 2))
def test_a_digest_is_the_same_for_the_same_message_only(
    one: ChannelEntry, other: ChannelEntry, attempt: int, again: int
) -> None:
    assert unpack(pack(one), ChannelEntry) == one
    same = one == other or msgspec.structs.replace(one, timestamp=0) == msgspec.structs.replace(
        other, timestamp=0
    )
    digests = [
        store.digest(one, attempt=attempt, nonce="n"),
        store.digest(other, attempt=again, nonce="n"),
    ]
    assert (digests[0] == digests[1]) == (same and attempt == again)
    assert (store.digest(one, attempt=attempt, nonce="") == "") == (one.sequence == 0)


def test_a_full_channel_says_so() -> None:
    process = Process("p", "i", "", "c", FunctionSpec(), 0, 0)
    assert _refusal(process, ChannelHead(9_999, 0), 2**20) is None
    for head in (ChannelHead(10_000, 0), ChannelHead(5, 32 * 2**20)):
        refusal = _refusal(process, head, 1)
        assert refusal is not None
        assert (refusal.status, "full" in refusal.message) == (409, True)
    process.peer = "other"
    assert _refusal(process, ChannelHead(), 1) is None, "what is said crosses the hop"
