"""Worlds of several colonies over a faulty network: what must hold does, seeds replay exactly.

The rules themselves are in `tests.simulation.witness`; that they bite, `test_mutations` shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.forward.path import local_id
from federation.inbox import accept as inbox
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.record import Peer
from federation.peers.registry import TRUSTED, Peers
from federation.service.server import Server
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, inspect
from federation.wire.messages import Outcomes, Poll, Submit, load
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, KeyValue, Range, TxnResult, open_client
from node.etcd.errors import EtcdError, EtcdTooManyOps
from node.etcd.txn import (
    Absent,
    Compare,
    Delete,
    DeletePrefix,
    DeleteRange,
    Get,
    ModRevision,
    Op,
    Present,
    Put,
    Txn,
)
from node.host.clock import Clock
from node.http.server import Request
from node.model.codec import pack
from node.model.types import SECOND
from node.processes.service import Processes
from tests.node.etcd.support import start_store
from tests.simulation.client import MemoryClient
from tests.simulation.runner import main, run_seeds
from tests.simulation.scenario import play
from tests.simulation.store import MAX_OPS, MemoryStore
from tests.simulation.world import World, key_of
from tests.support.parts import inbox_of

ROOT = Path(__file__).parents[2]
CORES = os.cpu_count() or 1
KEYS = st.sampled_from(["/a/1", "/a/2", "/a/2/x", "/b/1", "/b/é"])
COMPARES: st.SearchStrategy[Compare] = st.one_of(
    st.builds(Absent, KEYS), st.builds(Present, KEYS), st.builds(ModRevision, KEYS, st.just(0))
)
OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=3)),
    st.builds(Delete, KEYS),
    st.builds(DeletePrefix, st.sampled_from(["/a/", "/b/"])),
    st.builds(DeleteRange, st.just("/a/1"), st.just("/a/2/")),
    st.builds(Get, KEYS),
)
TXNS = st.builds(
    Txn, st.lists(COMPARES, max_size=2), st.lists(OPS, max_size=4), st.lists(OPS, max_size=2)
)


def test_two_hundred_seeds() -> None:
    summary = run_seeds(range(200), processes=CORES)
    assert not summary.broken, [(each.seed, each.problem) for each in summary.broken]
    assert summary.outcomes["successful"] > 50, "worlds in which nothing works show nothing"
    for fault in ("drop", "late", "duplicate", "kill", "unavailable", "split", "foe replay"):
        assert summary.faults[fault] > 5, f"hardly any {fault}"


@pytest.mark.parametrize("seed", [3, 11, 42])
def test_a_seed_replays_exactly(seed: int) -> None:
    first, again = play(seed, keep=True), play(seed, keep=True)
    assert first.trace == again.trace
    assert first.trace_hash == again.trace_hash
    assert play(seed + 1).trace_hash != first.trace_hash


def test_a_seed_replays_in_another_process_with_other_hashes() -> None:
    """The order of a set must not be anybody's source of chance."""
    seen = set()
    for hashes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "12"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_broken_seed_is_shown_with_its_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        inbox, "Put", lambda key, value: Delete(key) if "/marker/" in key else Put(key, value)
    )
    assert main(["--seeds", "12", "--processes", "1"]) == 1
    out, err = capsys.readouterr()
    assert "12 seeds" in out
    assert "accepted without a marker" in err
    assert "/v2/submit" in err, "the trace tells the way to it"
    assert "scripts/simulate --seed" in err


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--colonies", "3", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 seeds" in out
    assert "a second" in out
    assert "outcomes: " in out


async def test_a_clock_that_was_ahead_leaves_nothing_that_peers_must_refuse() -> None:
    """What was signed in a future that is none any more is signed again."""
    time = [1_800_000_000 + 5000]
    home, origin, client = key_of("lab"), key_of("field"), _memory()
    clock = SigningClock(lambda: time[0] * SECOND)
    signer = Signer(home, clock)
    keys = Keys("lab")
    peers = Peers(client, keys, signer)
    peer = Peer(origin.id, TRUSTED, "field", origin.public_key)
    await client.put(keys.peer(origin.id), pack(peer))
    await peers.load()
    processes = Processes(client, Clock(clock.now))
    queue = inbox_of(Context("lab", signer, client, processes, peers, keys))
    server = Server(signer, peers, queue.peer_quotas, lambda: b"", queue.endpoints())
    spec = b'{"funcname":"f","conditions":{"colonyname":"lab","executortype":"t"}}'
    there = Signer(origin, SigningClock(lambda: (time[0] - 1) * SECOND))
    body = there.seal(Kind.SUBMIT, home.id, Submit("1" * 64, 1, spec, "me", 1, []))

    async def submitted() -> int:
        answer = await server.handle(Request("POST", "/v2/submit", "", {}, body, "10.0.0.2"))
        assert answer.status == 200, answer.body
        return inspect(answer.body, limit=10_000).issued

    assert await submitted() == time[0]
    localpid = local_id(origin.id, "1" * 64, 1)
    await processes.cancel("lab", localpid)
    time[0] -= 4000
    clock.remember(time[0] + 4000)
    assert await submitted() <= time[0]
    poll = there.seal(Kind.POLL, home.id, Poll(0, []))
    answer = await server.handle(Request("POST", "/v2/outcomes", "", {}, poll, "10.0.0.2"))
    told = load(inspect(answer.body, limit=100_000).payload, Outcomes)
    assert [inspect(each, limit=10_000).issued <= time[0] for each in told.outcomes] == [True]


# -- the store in memory is an etcd --------------------------------------------------------


def _keys(items: list[KeyValue], zero: int) -> list[object]:
    return [(i.key, i.value, i.mod_revision - zero, i.create_revision - zero) for i in items]


def _plain(result: TxnResult | Range | EtcdError, zero: int) -> object:
    """What two stores must agree on: revisions count from where the comparison began."""
    if isinstance(result, EtcdError):
        return type(result).__name__
    if isinstance(result, Range):
        items = [
            (i.key, i.value, i.mod_revision - zero, i.create_revision - zero) for i in result.items
        ]
        return (items, result.more, result.count, result.revision - zero)
    answers = [
        [(i.key, i.value, i.mod_revision - zero, i.create_revision - zero) for i in items]
        for items in result.responses
    ]
    return (result.succeeded, result.revision - zero, answers)


async def _play(client: EtcdClient, txns: list[Txn], wipe: bool) -> list[object]:
    if wipe:
        await client.delete_prefix("/a/")
        await client.delete_prefix("/b/")
    zero = (await client.range("/a/")).revision
    told: list[object] = []
    for txn in txns:
        try:
            told.append(_plain(await client.commit(txn), zero))
        except EtcdError as error:
            told.append(_plain(error, zero))
        for descending in (False, True):
            part = await client.range("/a/", limit=2, start="/a/2", descending=descending)
            told.append(_plain(part, zero))
        everything, revision = await client.range_all("/", page=2)
        told.append(([(item.key, item.value) for item in everything], revision - zero))
        past = await client.range("/", revision=zero + (revision - zero) // 2, keys_only=True)
        told.append([item.key for item in past.items])
    told.append(await client.count("/b/"))
    return told


def _memory() -> MemoryClient:
    world = World(0)
    return MemoryClient(MemoryStore(), world, "c0", lambda: None, lambda: False)


async def test_the_memory_store_answers_as_etcd_does(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        running = await start_store(nursery, tmp_path)
        async with open_client(running.target) as real:
            token = trio.lowlevel.current_trio_token()

            @settings(
                max_examples=60,
                deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture],
            )
            @given(st.lists(TXNS, min_size=1, max_size=6))
            def compare(txns: list[Txn]) -> None:
                there = trio.from_thread.run(_play, real, txns, True, trio_token=token)
                here = trio.from_thread.run(_play, _memory(), txns, False, trio_token=token)
                assert here == there

            await trio.to_thread.run_sync(compare)
        nursery.cancel_scope.cancel()


async def test_the_memory_store_has_the_limits_of_etcd() -> None:
    client = _memory()
    puts: list[Op] = [Put(f"/a/{number}", b"") for number in range(MAX_OPS)]
    assert (await client.commit(Txn([], puts))).revision == 2
    with pytest.raises(EtcdTooManyOps):
        await client.commit(Txn([], [*puts, Put("/b/", b"")]))
