"""The quota of history: what came first is dropped, and what stays is still proven."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from node.archive.chain import Chain, ChainHead, drop, dropped, files, place, records, verify
from node.archive.index import PLACE, HistoryIndex
from node.archive.space import largest, make_room
from tests.node.archive.support import JANUARY, MONTH, colony
from tests.support.daemons import Daemon, until


def write(directory: Path, names: list[str], now: int, most: int) -> None:
    """Write a record of each in a batch of its own, of about 10 kB that can't be compressed."""
    chain = Chain.open(directory, ChainHead())
    chain.largest = most
    for name in names:
        noise = random.Random(name).randbytes(5000).hex()
        entry = {"kind": "process", "id": name, "process": {"processid": name, "noise": noise}}
        chain.append([entry], now)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:063d}" for number in range(count)]


def size(histories: Path) -> int:
    return sum(path.stat().st_size for history in histories.iterdir() for path in files(history))


def test_a_full_file_is_followed_by_the_next_of_its_month(tmp_path: Path) -> None:
    some = names("a", 24)
    write(tmp_path, some[:22], JANUARY, 10_000)
    write(tmp_path, some[22:], JANUARY + MONTH, 10_000)
    there = [path.name for path in files(tmp_path)]
    # By number, not by letter: 10 comes after 9.
    january = ["2026-01.jsonl.gz", *(f"2026-01.{number}.jsonl.gz" for number in range(2, 12))]
    assert there == [*january, "2026-02.jsonl.gz"]
    assert [record["id"] for record in records(tmp_path)] == some
    assert verify(tmp_path).problems == []


def test_the_oldest_files_of_all_colonies_are_dropped(tmp_path: Path) -> None:
    quota = 160_000
    write(tmp_path / "ant", names("a", 20), JANUARY, largest(quota))
    write(tmp_path / "bee", names("b", 20), JANUARY + MONTH, largest(quota))
    done = make_room(tmp_path, quota)
    assert size(tmp_path) <= quota
    # Those of bee are of a later month, and all of them stay.
    assert set(done) == {"ant"}
    assert done["ant"] == dropped(tmp_path / "ant")
    assert [record["id"] for record in records(tmp_path / "bee")] == names("b", 20)
    left = [record["id"] for record in records(tmp_path / "ant")]
    assert left
    assert left == names("a", 20)[done["ant"].number :]
    report = verify(tmp_path / "ant")
    assert (report.problems, report.records) == ([], len(left))
    assert report.dropped == done["ant"]
    # Nothing more to do, and without a quota nothing ever.
    assert make_room(tmp_path, quota) == {}
    assert make_room(tmp_path, 0) == {}
    # The last file of each stays, whatever the quota.
    make_room(tmp_path, 1)
    assert [len(files(tmp_path / name)) for name in ("ant", "bee")] == [1, 1]


def test_the_chain_goes_on_behind_what_was_dropped(tmp_path: Path) -> None:
    write(tmp_path / "c", names("a", 10), JANUARY, 20_000)
    head = verify(tmp_path / "c").head
    first = verify(tmp_path / "c", "").head.digest
    drop(tmp_path / "c")
    chain = Chain.open(tmp_path / "c", head)
    assert (chain.head, chain.trouble) == (head, "")
    chain.append([{"kind": "process", "id": "later"}], JANUARY)
    report = verify(tmp_path / "c", first)
    assert (report.problems, report.contains) == ([], True)


def test_a_kill_between_both_steps_leaves_a_history_that_holds(tmp_path: Path) -> None:
    """What is said to be dropped, and is still there, is verified all the same."""
    write(tmp_path / "c", names("a", 10), JANUARY, 20_000)
    oldest = files(tmp_path / "c")[0]
    kept = oldest.read_bytes()
    drop(tmp_path / "c")
    oldest.write_bytes(kept)
    assert verify(tmp_path / "c").problems == []
    # The next one that is dropped is this one, and it says the same.
    said = dropped(tmp_path / "c")
    assert drop(tmp_path / "c") == said
    assert files(tmp_path / "c")[0] != oldest


def test_more_than_was_dropped_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "c", names("a", 10), JANUARY, 20_000)
    drop(tmp_path / "c")
    files(tmp_path / "c")[0].unlink()
    assert "follows record" in verify(tmp_path / "c").problems[0]


def test_what_says_what_was_dropped_is_no_way_around_the_chain(tmp_path: Path) -> None:
    write(tmp_path / "c", names("a", 10), JANUARY, 20_000)
    drop(tmp_path / "c")
    path = tmp_path / "c" / "dropped.json"
    said = json.loads(path.read_bytes())
    path.write_text(json.dumps(said | {"digest": "0" * 64}))
    assert "does not follow" in verify(tmp_path / "c").problems[0]
    path.write_text("{")
    assert "dropped.json" in verify(tmp_path / "c").problems[0]
    path.unlink()
    assert "follows record 0" in verify(tmp_path / "c").problems[0]


def test_the_index_follows(tmp_path: Path) -> None:
    some = names("a", 40)
    write(tmp_path / "c", some[:20], JANUARY, 30_000)
    index = HistoryIndex(tmp_path / "c")
    index.catch_up()
    assert [record["id"] for it in some[:20] if (record := index.find(it))] == some[:20]
    # A file that is over keeps none of its entries in memory.
    runs = os.listdir(tmp_path / "c" / PLACE)
    assert len(runs) == len(files(tmp_path / "c")) - 1
    make_room(tmp_path, 100_000)
    write(tmp_path / "c", some[20:], JANUARY, 30_000)
    make_room(tmp_path, 100_000)
    # Before the index knows: what is gone is not found, and nothing breaks.
    assert index.find(some[0]) is None
    index.catch_up()
    left = [record["id"] for record in records(tmp_path / "c")]
    assert [it for it in some if index.find(it)] == left
    # So does one that was away meanwhile.
    make_room(tmp_path, 40_000)
    again = HistoryIndex(tmp_path / "c")
    again.catch_up()
    left = [record["id"] for record in records(tmp_path / "c")]
    assert [it for it in some if again.find(it)] == left
    covered = {
        name.rpartition(".")[0].rpartition(".")[0] for name in os.listdir(tmp_path / "c" / PLACE)
    }
    assert covered <= {path.name.removesuffix(".jsonl.gz") for path in files(tmp_path / "c")}


def test_names_that_are_no_history_are_left_alone(tmp_path: Path) -> None:
    for name in ("2026-01.jsonl.gz.damaged-5", "notes.txt", "2026-01.x.jsonl.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert files(tmp_path) == []
    with pytest.raises(ValueError, match="no file of a history"):
        place(tmp_path / "notes.txt")


@pytest.mark.slow
async def test_a_daemon_keeps_to_the_quota(make_daemon: Callable[..., Daemon]) -> None:
    """Far more ends than history has room for: the disk keeps its room, and all else is proven."""
    quota = 200_000
    environ = {
        "COLONYD_FEDERATION__ENABLED": "false",
        "COLONYD_HISTORY__KEEP": "1",
        "COLONYD_HISTORY__QUOTA": str(quota),
    }
    daemon = await trio.to_thread.run_sync(lambda: make_daemon("dev", **environ).start())
    user = daemon.key("user")
    ids = []
    mark = len(daemon.events)
    async with daemon.client() as client:
        conditions = {"colonyname": "dev", "executortype": "cli"}
        fields = {"colonyname": "dev", "count": 100, "state": 4}

        async def gone() -> bool:
            return await client.call("getprocessesmsg", fields, user) == []

        for number in range(60):
            noise = random.Random(number).randbytes(5000).hex()
            spec = {"funcname": "f", "args": [noise], "conditions": conditions}
            process = await client.call("submitfuncspecmsg", {"spec": spec}, user)
            await client.call("cancelprocessmsg", {"processid": process["processid"]}, user)
            ids.append(process["processid"])
            # What leaves at once is written at once, whatever the quota.
            if number % 10 == 9:
                await until(30, gone)
    said = partial(daemon.await_event, "history.quota", after=mark)
    assert "colony=dev" in await trio.to_thread.run_sync(said)
    history = daemon.home / "history"
    assert size(history) <= quota
    told = json.loads(colony(daemon, "history", "verify", "--json").stdout)
    assert told["problems"] == []
    assert told["dropped"] > 0
    assert told["dropped"] + told["records"] >= 60
    shown = colony(daemon, "history", "verify").stdout
    assert f"records 1 to {told['dropped']}" in shown
    left = {record["id"] for record in records(history / "dev")}
    missing = next(it for it in ids if it not in left)
    refused = colony(daemon, "history", "show", missing, code=3)
    assert "history.quota" in refused.stderr
    colony(daemon, "history", "show", next(it for it in reversed(ids) if it in left))
    assert daemon.stop() == 0
