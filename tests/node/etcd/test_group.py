"""Transactions that go together: what each is told is what it had been told alone, in its turn.

First the plan as a value against a store in memory, then requests to a real etcd, whole and broken.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.etcd.client import EtcdClient, TxnResult, open_client
from node.etcd.errors import EtcdError, EtcdNoSpace, EtcdUnavailable, LeaseLost, error_from
from node.etcd.generated import pb
from node.etcd.group import ALONE, MOST, ROOM, Touch, nest, plan, touch
from node.etcd.txn import (
    Absent,
    Below,
    Compare,
    Delete,
    DeletePrefix,
    DeleteRange,
    Get,
    GetFirst,
    ModRevision,
    Op,
    Present,
    Put,
    Txn,
)
from tests.node.etcd.support import Store, start_store
from tests.simulation.store import MemoryStore
from tests.support.cluster import members, serving

KEYS = [f"/k/{number}" for number in range(5)]
SOME = st.sampled_from(KEYS)
FIRST = 2  # the revision of what is there in the beginning
COMPARES: st.SearchStrategy[Compare] = st.one_of(
    st.builds(Absent, SOME),
    st.builds(Present, SOME),
    st.builds(ModRevision, SOME, st.sampled_from([0, FIRST])),
    st.builds(Below, SOME, st.binary(max_size=2)),
)
PLAIN: st.SearchStrategy[Op] = st.one_of(
    st.builds(Put, SOME, st.binary(max_size=2)), st.builds(Delete, SOME), st.builds(Get, SOME)
)
RANGES: st.SearchStrategy[Op] = st.one_of(
    st.builds(DeletePrefix, st.sampled_from(["/k/", "/k/1"])),
    st.builds(DeleteRange, st.just(KEYS[1]), st.just(KEYS[3])),
)


def txns(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Txn]:
    return st.builds(
        Txn, st.lists(COMPARES, max_size=2), st.lists(ops, max_size=3), st.lists(ops, max_size=2)
    )


def told(result: TxnResult) -> object:
    """What must be the same in any order of those that do not meet: not the revisions."""
    return result.succeeded, [[(kv.key, kv.value) for kv in kvs] for kvs in result.responses]


def holding(store: MemoryStore) -> object:
    return [(kv.key, kv.value) for kv in store.items("/")]


def accepted(txn: Txn) -> bool:
    try:
        MemoryStore().commit(txn)
    except EtcdError:
        return False
    return True


# -- the plan ----------------------------------------------------------------------------------


def together(store: MemoryStore, group: Sequence[Txn]) -> list[object]:
    """As etcd does it: all compares, then all that is to be done, at one revision."""
    taken = [store.commit(Txn(txn.compare, [])).succeeded for txn in group]
    done = [txn.success if yes else txn.failure for txn, yes in zip(group, taken, strict=True)]
    found = iter(store.commit(Txn([], [op for ops in done for op in ops])).responses)
    return [
        (yes, [[(kv.key, kv.value) for kv in next(found)] for op in ops if type(op) is Get])
        for yes, ops in zip(taken, done, strict=True)
    ]


def meets(one: Txn, other: Txn) -> bool:
    """Whether either writes a key that the other touches."""

    def keys(txn: Txn, *kinds: type) -> set[str]:
        ops = [op for op in (*txn.success, *txn.failure) if isinstance(op, kinds)]
        return {getattr(op, "key", "") for op in ops}

    def touched(txn: Txn) -> set[str]:
        return keys(txn, Put, Delete, Get) | {compare.key for compare in txn.compare}

    def wrote(txn: Txn) -> set[str]:
        return keys(txn, Put, Delete)

    return bool(wrote(one) & touched(other) or wrote(other) & touched(one))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.one_of(txns(PLAIN), txns(PLAIN | RANGES), st.none()).filter(
        lambda txn: txn is None or accepted(txn)
    ), max_size=25),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.integers(2, 12),
)  # fmt: skip
def test_groups_are_one_serial_order(
    script: list[Txn | None], there: list[bool], most: int
) -> None:
    """`script` are arrivals; at each None, and in the end, a turn is sent."""
    grouped, serial = MemoryStore(), MemoryStore()
    for store in (grouped, serial):
        begin = [Put(key, b"a") for key, yes in zip(KEYS, there, strict=True) if yes]
        assert store.commit(Txn([], begin)).revision == FIRST - (not begin)
    line: list[tuple[Txn, Touch]] = []

    def send() -> None:
        room = 100
        groups = plan((touched for _, touched in line), most, room)
        assert [place for group in groups for place in group] == [*range(len(line))]
        for group in [[line[place] for place in group] for group in groups]:
            if len(group) > 1:
                assert len(group) + max(touched.ops for _, touched in group) <= most
                assert sum(touched.size for _, touched in group) <= room
                assert len({touched.adds for _, touched in group}) == 1
            for at, (txn, _) in enumerate(group):
                assert not any(meets(txn, other) for other, _ in group[:at])
            expected = [told(serial.commit(txn)) for txn, _ in group]
            assert together(grouped, [txn for txn, _ in group]) == expected
            assert holding(grouped) == holding(serial)
        line.clear()

    for at, txn in enumerate(script):
        touched = None if txn is None else touch(txn, 10 * (at % 5))
        if txn is None:
            send()
        elif touched is None:  # alone, at once
            assert told(grouped.commit(txn)) == told(serial.commit(txn))
        else:
            line.append((txn, touched))
    send()


@pytest.mark.parametrize(
    "txn",
    [
        Txn([], [Get("k")], [Get("j")]),
        Txn([Present("k")], []),
        Txn([], [Put("k", b"", lease=7)]),
        Txn([], [Put("k", b"")], [Get("j", revision=3)]),
        Txn([], [Put("k", b""), DeletePrefix("j")]),
        Txn([], [Put("k", b"")], [DeleteRange("a", "b")]),
        Txn([], [Put("k", b""), GetFirst("j")]),
        Txn([], [Put(f"k{number}", b"") for number in range(MOST - 1)]),
        Txn([Absent(f"k{number}") for number in range(MOST - 1)], [Put("k", b"")]),
    ],
)
def test_what_goes_alone(txn: Txn) -> None:
    assert touch(txn, 100) is None


def test_what_is_large_goes_alone() -> None:
    txn = Txn([], [Put("k", b"")])
    assert touch(txn, ALONE) is not None
    assert touch(txn, ALONE + 1) is None


def of(number: int, *, ops: int = 1, size: int = 10, reads: int = 0) -> Touch:
    read = {f"r{number}/{each}" for each in range(reads)}
    return Touch(read, {f"w{number}"}, ops, size, adds=True)


def test_a_request_stays_below_the_limits_of_etcd() -> None:
    many = [of(number, ops=100 if number == 5 else 3) for number in range(300)]
    assert plan(many) == [[*range(28)], [*range(28, 153)], [*range(153, 256)]]
    large = [of(number, size=ALONE - 1) for number in range(5)]
    assert plan(large) == [[0, 1], [2, 3], [4]]
    assert len(plan([of(number, size=2000) for number in range(20)])[0]) == ROOM // 2000
    assert plan([of(number, reads=45) for number in range(5)]) == [[0, 1], [2, 3], [4]]
    # Where etcd takes no groups at all, each goes by itself.
    assert plan(many[:3], most=1) == [[0], [1], [2]]


def test_who_meets_another_goes_in_the_next_request() -> None:
    a, b, ab = {"a"}, {"b"}, {"a", "b"}
    line = [
        Touch(set(), a, 1, 1, True),
        Touch(set(), ab, 1, 1, True),
        Touch(b, {"c"}, 1, 1, True),  # who reads, too
        Touch(set(), {"d"}, 1, 1, True),
        Touch(set(), {"e"}, 1, 1, False),  # a full store must take it
        Touch(set(), {"f"}, 1, 1, False),
    ]
    assert plan(line) == [[0], [1], [2, 3], [4, 5]]
    # Who reads the same keys goes together.
    assert plan([Touch(a, {key}, 1, 1, True) for key in "bcd"]) == [[0, 1, 2]]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_requests_in_a_request(values: list[bytes]) -> None:
    requests = [pb.TxnRequest() for _ in values]
    whole = pb.TxnRequest()
    for request, value in zip(requests, values, strict=True):
        put = request.success.add().request_put
        put.key, put.value = b"k", value
        whole.success.add().request_txn.CopyFrom(request)
    encoded = [request.SerializeToString() for request in requests]
    assert pb.TxnRequest.FromString(nest(encoded)) == whole
    # etcd counts this put for its quota, and never does it: nothing is compared.
    whole.failure.add().request_put.key = b"-"
    assert pb.TxnRequest.FromString(nest(encoded, adds=True)) == whole


# -- against etcd ------------------------------------------------------------------------------


async def at_once(client: EtcdClient, wanted: Sequence[Txn]) -> list[tuple[Txn, object]]:
    """Commit all of these; what each came to, in the order in which they were called."""
    results: list[tuple[Txn, object]] = []

    async def commit(txn: Txn) -> None:
        at = len(results)
        results.append((txn, None))
        try:
            results[at] = (txn, await client.commit(txn))
        except EtcdError as error:
            results[at] = (txn, error)

    async with trio.open_nursery() as nursery:
        for txn in wanted:
            nursery.start_soon(commit, txn)
    return results


def apart(wanted: list[Txn]) -> list[Txn]:
    """Those that do not meet: etcd may have the requests of a turn in any order."""
    kept: list[Txn] = []
    for txn in wanted:
        if not any(meets(txn, other) for other in kept):
            kept.append(txn)
    return kept


def words(result: object) -> object:
    return told(result) if isinstance(result, TxnResult) else type(result).__name__


async def test_etcd_tells_each_what_it_had_told_it_alone(store: Store, client: EtcdClient) -> None:
    """Also those that it refuses, and with them the request that they are in."""
    token = trio.lowlevel.current_trio_token()

    async def play(wanted: list[Txn]) -> tuple[list[tuple[Txn, object]], object]:
        await client.delete_prefix("/")
        first = await client.put(KEYS[0], b"a")
        results = await at_once(client, [since(first, txn) for txn in wanted])
        items, _ = await client.range_all("/")
        return results, [(item.key, item.value) for item in items]

    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        st.lists(txns(PLAIN).filter(lambda txn: touch(txn, 10)), min_size=2, max_size=30).map(apart)
    )
    def compare(wanted: list[Txn]) -> None:
        results, there = trio.from_thread.run(play, wanted, trio_token=token)
        serial = MemoryStore()
        serial.commit(Txn([], [Put(KEYS[0], b"a")]))
        for txn, result in results:
            assert words(result) == words(serially(serial, since(FIRST, txn)))
        assert there == holding(serial)

    await trio.to_thread.run_sync(compare)


def since(first: int, txn: Txn) -> Txn:
    """The same in a store that began at another revision."""
    compare = [
        ModRevision(each.key, first) if type(each) is ModRevision and each.revision else each
        for each in txn.compare
    ]
    return Txn(compare, txn.success, txn.failure)


def serially(store: MemoryStore, txn: Txn) -> TxnResult | EtcdError:
    try:
        return store.commit(txn)
    except EtcdError as error:
        return error


async def test_all_of_a_request_is_at_one_revision(client: EtcdClient) -> None:
    """One entry of the log for all that wait, and each has that revision; who lost as well."""
    await client.put("there", b"")
    entries = await client.applied()
    wanted = [Txn([], [Put(f"k{number}", b"x"), Get(f"k{number}")]) for number in range(10)]
    wanted.append(Txn([Absent("there")], [Put("there", b"y")], [Get("there")]))
    results = [result for _, result in await at_once(client, wanted)]
    assert await client.applied() == entries + 2
    assert all(isinstance(result, TxnResult) for result in results)
    first, *others = [result.revision for result in results if isinstance(result, TxnResult)]
    assert set(others) == {first + 1} or others.count(first) == 1  # the loser was alone
    for result in results:
        assert isinstance(result, TxnResult)
        if result.succeeded:
            assert result.responses[0][0].mod_revision == result.revision


async def test_the_same_key_goes_in_another_request(client: EtcdClient) -> None:
    entries = await client.applied()
    results = await at_once(client, [Txn([], [Put("k", b"%d" % n), Get("k")]) for n in range(5)])
    assert await client.applied() == entries + 5
    revisions = [result.revision for _, result in results if isinstance(result, TxnResult)]
    assert len(set(revisions)) == 5
    for txn, result in results:
        assert isinstance(result, TxnResult)
        assert isinstance(txn.success[0], Put)
        assert result.responses[0][0].value == txn.success[0].value


class Waiting:
    """Transactions that wait, and go in one request once `leave` ended the one before them."""

    def __init__(self, client: EtcdClient, nursery: trio.Nursery) -> None:
        self.client = client
        self.nursery = nursery
        self.results: dict[str, object] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    async def put(self, key: str, client: EtcdClient | None = None) -> None:
        async def commit() -> None:
            with trio.CancelScope() as self.scopes[key]:
                self.results[key] = "cancelled"
                try:
                    txn = Txn([], [Put(key, b"x")])
                    self.results[key] = await (client or self.client).commit(txn)
                except EtcdError as error:
                    self.results[key] = error

        self.nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()

    async def end(self) -> None:
        """All have come back."""
        with trio.fail_after(30):
            while self.nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def keys(client: EtcdClient) -> set[str]:
    return {item.key for item in (await client.range_all(""))[0]}


async def test_who_leaves_before_it_is_sent_has_done_nothing(
    store: Store, client: EtcdClient
) -> None:
    await client.put("there", b"")
    store.signal(signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            waiting = Waiting(client, nursery)
            for key in ("sent", "left", "stays"):
                await waiting.put(key)
            waiting.scopes["left"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2, "it returned at once"
            store.signal(signal.SIGCONT)
            await waiting.end()
    finally:
        store.signal(signal.SIGCONT)
    assert waiting.results["left"] == "cancelled"
    assert await keys(client) == {"there", "sent", "stays"}


async def test_who_leaves_after_it_was_sent_ends_no_other(store: Store, client: EtcdClient) -> None:
    """What waits goes on when the one before it leaves, and nobody's leaving ends a request."""
    await client.put("there", b"")
    store.signal(signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            waiting = Waiting(client, nursery)
            for key in ("first", "left", "stays"):
                await waiting.put(key)
            for key in ("first", "left"):
                waiting.scopes[key].cancel()
                await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            store.signal(signal.SIGCONT)
            await waiting.end()
    finally:
        store.signal(signal.SIGCONT)
    assert isinstance(waiting.results["stays"], TxnResult)
    # One request, so both or none; nobody can know of the first.
    assert await keys(client) - {"first"} == {"there", "left", "stays"}


async def test_a_stall_is_unknown_for_each_and_time_counts_from_the_call(
    store: Store, client: EtcdClient
) -> None:
    """All of one request get errors of their own; who was never sent has done nothing."""
    await client.put("there", b"")
    hasty = EtcdClient(client._channel, 3.0)
    store.signal(signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            waiting = Waiting(hasty, nursery)
            for key in ("first", "a", "b"):
                await waiting.put(key)
            waiting.scopes["first"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            # Its time is over before that of the request under way: after that it would be sent.
            hasty._timeout = 1.0
            await waiting.put("later")
            await waiting.end()
            assert trio.current_time() - began < 6
    finally:
        store.signal(signal.SIGCONT)
    errors = [waiting.results[key] for key in ("a", "b", "later")]
    assert all(type(error) is EtcdUnavailable for error in errors), errors
    assert len({id(error) for error in errors}) == 3
    assert "not sent" in str(errors[2])
    assert await client.put("there", b"again") > 0
    assert "later" not in await keys(client)


async def test_a_kill_is_unknown_for_each_and_who_waits_is_served_by_the_next(
    store: Store, client: EtcdClient
) -> None:
    await client.put("there", b"")
    store.signal(signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        waiting = Waiting(client, nursery)
        for key in ("first", "a", "b"):
            await waiting.put(key)
        waiting.scopes["first"].cancel()
        await trio.testing.wait_all_tasks_blocked()
        await waiting.put("later")
        store.signal(signal.SIGKILL)
        await waiting.end()
    assert isinstance(waiting.results["a"], EtcdUnavailable)
    assert isinstance(waiting.results["b"], EtcdUnavailable)
    assert isinstance(waiting.results["later"], TxnResult)
    assert await keys(client) >= {"there", "later"}


async def test_who_waits_is_told_when_the_client_is_closed(store: Store) -> None:
    async with trio.open_nursery() as nursery:
        async with open_client(store.target, timeout=60) as client:
            await client.put("there", b"")
            store.signal(signal.SIGSTOP)
            waiting = Waiting(client, nursery)
            for key in ("first", "a", "b"):
                await waiting.put(key)
            waiting.scopes["first"].cancel()
            await waiting.put("later")
        await waiting.end()
    store.signal(signal.SIGCONT)
    for key in ("a", "b", "later"):
        with pytest.raises(EtcdUnavailable, match="closed"):
            raise waiting.results[key]  # type: ignore[misc]


async def test_a_refused_request_is_only_refused_to_whom_it_is_due(client: EtcdClient) -> None:
    twice = Txn([], [Put("twice", b""), Put("twice", b"")])
    fine = [Txn([Absent(f"k{number}")], [Put(f"k{number}", b"")]) for number in range(6)]
    for _ in range(3):
        results = await at_once(client, [*fine[:3], twice, *fine[3:]])
        for txn, result in results:
            if txn is twice:
                with pytest.raises(EtcdError, match="duplicate key"):
                    raise result  # type: ignore[misc]
            else:
                assert isinstance(result, TxnResult)
                assert result.succeeded
        assert await client.delete_prefix("k") == 6
    # That was nobody's limit: requests are as large as before.
    entries = await client.applied()
    await at_once(client, fine)
    assert await client.applied() == entries + 2


async def test_a_cluster_with_smaller_limits_gets_smaller_requests(tmp_path: Path) -> None:
    """It does not tell its limits. A few refusals, and from then on requests fit."""
    many = [Txn([Absent(f"k{number}")], [Put(f"k{number}", b"x")]) for number in range(100)]
    large = [Txn([], [Put(f"l{number}", bytes(600))]) for number in range(30)]
    limits = ("--max-txn-ops=20", "--max-request-bytes=2500")
    with members(tmp_path, 1, *limits) as (member,):
        async with open_client(member.endpoint, timeout=60) as client:
            await serving(client)
            for wanted, most in ((many, 12), (large, 20)):
                for _ in range(5):
                    entries = await client.applied()
                    results = await at_once(client, wanted)
                    assert all(isinstance(result, TxnResult) for _, result in results)
                assert await client.applied() - entries < most
            assert await client.count("k") == len(many)


async def test_a_lease_that_is_gone_is_nobody_elses_loss(client: EtcdClient) -> None:
    lost = Txn([], [Put("mine", b"", lease=12345)])
    fine = [Txn([], [Put(f"k{number}", b"")]) for number in range(6)]
    for txn, result in await at_once(client, [*fine[:3], lost, *fine[3:]]):
        assert isinstance(result, LeaseLost if txn is lost else TxnResult)


async def test_a_full_store_takes_what_frees_and_nothing_else(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Also when they come together, and though etcd does not look into groups for what they add."""
    store = await start_store(nursery, tmp_path / "small", quota=8 * 1024 * 1024)
    async with open_client(store.target, timeout=60) as client:

        async def fill() -> None:
            for number in range(2000):
                await client.put(f"f/{number:04}", bytes(200_000))

        with pytest.raises(EtcdNoSpace):
            await fill()
        client.pressure.alarm = False  # as in a daemon that has not heard of it
        adding = [Txn([], [Put(f"k{number}", bytes(1000))]) for number in range(6)]
        freeing = [Txn([], [Delete(f"f/{number:04}")]) for number in range(6)]
        for wanted in (adding, [*adding, *freeing]):
            for txn, result in await at_once(client, wanted):
                assert isinstance(result, EtcdNoSpace if txn in adding else TxnResult), result
            assert client.pressure.alarm
        assert await client.count("k") == 0


async def test_the_quota_holds_for_groups(nursery: trio.Nursery, tmp_path: Path) -> None:
    """etcd has to notice that the store is full, whoever else uses it."""
    store = await start_store(nursery, tmp_path / "small", quota=8 * 1024 * 1024)
    async with open_client(store.target, timeout=60) as client:
        refused = trio.Event()

        async def fill(number: int) -> None:
            turn = 0
            while not refused.is_set():
                txn = Txn([], [Put(f"f/{number}/{turn}", bytes(4000))])
                turn += 1
                try:
                    await client.commit(txn)
                except EtcdNoSpace:
                    refused.set()

        with trio.fail_after(50):
            async with trio.open_nursery() as fillers:
                for number in range(32):
                    fillers.start_soon(fill, number)
        status = await client.status()
        assert status.no_space
        assert status.db_size < 12 * 1024 * 1024, "it goes on by what was under way"


async def test_a_key_that_all_want_stalls_nobody(store: Store, client: EtcdClient) -> None:
    """Each of those that meet gets a request, and they are under way at the same time."""
    await client.put("there", b"")
    async with trio.open_nursery() as nursery:
        waiting = Waiting(client, nursery)
        store.signal(signal.SIGSTOP)
        try:
            await waiting.put("first")
            for _ in range(40):
                nursery.start_soon(client.commit, Txn([], [Put("hot", b"x")]))
            await trio.testing.wait_all_tasks_blocked()
            await waiting.put("other")
            sent: list[int] = []
            call = client._channel.call

            async def counted(path: str, data: bytes, timeout: float) -> bytes:
                sent.append(len(waiting.results))
                return await call(path, data, timeout)

            client._channel.call = counted  # type: ignore[method-assign, assignment]
        finally:
            store.signal(signal.SIGCONT)
        await waiting.end()
    assert len(sent) == 40, "the other key goes along with the last of them, in one turn"


def test_only_what_etcd_itself_refuses_counts_as_refused() -> None:
    """What was answered wrongly may have happened: it must not be sent again."""
    assert error_from("INVALID_ARGUMENT", "etcdserver: duplicate key given").refused
    assert error_from("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded").refused
    for code, text in (
        ("UNAVAILABLE", "etcdserver: leader changed"),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests"),
        ("INTERNAL", "stream terminated"),
        ("UNKNOWN", "context canceled"),
        ("INVALID_ARGUMENT", "etcdserver: invalid auth token"),
    ):
        assert not error_from(code, text).refused
    assert not EtcdError("the answer has no status").refused
