"""The index of history: every record is found by its id, whatever became of the index."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from node.archive.chain import Chain, ChainHead, files
from node.archive.index import PLACE, HistoryIndex
from tests.node.archive.support import JANUARY, MONTH

BATCH = 7


def write(directory: Path, ids: list[str], now: int = JANUARY, note: str = "") -> None:
    """Records of processes, some at once, among others."""
    chain = Chain.open(directory, ChainHead())
    for at in range(0, len(ids), BATCH):
        some = [
            {"kind": "process", "id": each, "process": {"processid": each, "note": note}}
            for each in ids[at : at + BATCH]
        ]
        logs = {"kind": "logs", "id": ids[at], "part": 0, "logs": []}
        chain.append([logs, *some, {"kind": "log", "id": "w/1", "log": {}}], now)


def ids(count: int, seed: int = 1) -> list[str]:
    dice = random.Random(seed)
    return [dice.randbytes(32).hex() for _ in range(count)]


def found(index: HistoryIndex, wanted: list[str]) -> list[str]:
    return [record["id"] for each in wanted if (record := index.find(each))]


def runs(directory: Path) -> list[Path]:
    return sorted((directory / PLACE).glob("*"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred records are many."""
    monkeypatch.setattr("node.archive.index._TAIL", 20)
    monkeypatch.setattr("node.archive.index._FAN", 3)
    monkeypatch.setattr("node.archive.index._PART", 16)


def test_each_is_found_over_months_runs_and_restarts(tmp_path: Path) -> None:
    first, second, third = ids(300, 1), ids(300, 2), ids(50, 3)
    index = HistoryIndex(tmp_path)
    assert index.find(first[0]) is None
    write(tmp_path, first)
    index.catch_up()
    assert found(index, first) == first
    write(tmp_path, second, JANUARY + MONTH)
    write(tmp_path, third, JANUARY + MONTH)
    index.catch_up()
    assert found(index, first + second + third) == first + second + third
    assert found(index, ids(20, 9)) == []
    # A month that is over has one run, the other one few, and all has its bounds.
    names = [path.name for path in runs(tmp_path)]
    assert len([name for name in names if name.startswith("2026-01")]) == 1
    assert len(names) <= 8
    again = HistoryIndex(tmp_path)
    again.catch_up()
    assert found(again, first + second + third) == first + second + third
    assert runs(tmp_path) == [tmp_path / PLACE / name for name in names]


def test_of_two_records_the_later_one_is_given(tmp_path: Path) -> None:
    some = ids(60)
    for number, note in enumerate(("old", "new")):
        write(tmp_path, some, JANUARY + number * MONTH, note)
    write(tmp_path, some[:30], JANUARY + MONTH, "newest")
    index = HistoryIndex(tmp_path)
    index.catch_up()
    for number, each in enumerate(some):
        record = index.find(each)
        assert record is not None
        assert record["process"]["note"] == ("newest" if number < 30 else "new")


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    some = ids(250)
    write(tmp_path, some)
    HistoryIndex(tmp_path).catch_up()
    whole = {path: path.read_bytes() for path in runs(tmp_path)}
    assert len(whole) > 2
    for path in whole:
        for damage in (b"", whole[path][:-5], whole[path][:-24], whole[path] + b"more", None):
            for each, data in whole.items():
                each.write_bytes(data)
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            index = HistoryIndex(tmp_path)
            index.catch_up()
            assert found(index, some) == some, (path, damage)
    # An entry that leads to another record is noticed when it is followed.
    for path, data in whole.items():
        path.write_bytes(b"".join(data[at : at + 16] + bytes(8) for at in range(0, len(data), 24)))
    index = HistoryIndex(tmp_path)
    index.catch_up()
    found(index, some)
    index.catch_up()
    assert found(index, some) == some


def test_a_file_that_was_cut_off_or_exchanged(tmp_path: Path) -> None:
    some = ids(100)
    write(tmp_path, some)
    index = HistoryIndex(tmp_path)
    index.catch_up()
    (path,) = files(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    index.catch_up()
    left = found(index, some)
    assert 20 < len(left) < 80
    assert left == some[: len(left)]
    path.write_bytes(gzip.compress(gzip.decompress(data)) + bytes(len(data)))
    found(index, some)
    index.catch_up()
    assert found(index, some) == some
    path.unlink()
    index.catch_up()
    assert found(index, some) == []
