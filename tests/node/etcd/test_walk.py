"""Walks: all keys once and in order, and few keys counted for each that is read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.etcd.walk import Walk
from tests.support.daemons import seeded_dice

NAMES = st.text(st.sampled_from("\0/09afz~\x7fé日\ud7ff\ue000\U0010ffff"), max_size=12)


def walked(names: Iterable[str], page: int, *, start: str = "/") -> tuple[list[str], int, int]:
    """What a walk gives in pages: the keys, how many ranges were read, and the keys in them."""
    known = sorted(set(names))
    walk, found, reads, counted = Walk(start), list[str](), 0, 0
    while not walk.done:
        low = bisect_left(known, walk.start)
        high = len(known) if walk.end is None else bisect_left(known, walk.end)
        assert walk.end is None or walk.start < walk.end
        part = known[low : min(high, low + page)]
        assert walk.start.encode(), "etcd takes it"
        assert walk.end is None or walk.end.encode()
        walk.took(part, high - low, more=low + page < high)
        found, reads, counted = found + part, reads + 1, counted + high - low
    return found, reads, counted


@given(st.lists(NAMES, max_size=80), NAMES, st.integers(1, 9))
def test_whatever_the_keys_each_comes_once_and_in_order(
    names: list[str], start: str, page: int
) -> None:
    keys = {f"/{name}" for name in names}
    start = f"/{start}"
    found, reads, _ = walked(keys, page, start=start)
    assert found == sorted(key for key in keys if key >= start)
    assert reads <= 10 + 40 * len(keys)


def by_time(count: int) -> list[str]:
    return [f"/log/dev/{number * 5 * 10**8 + 17 * 10**17:020d}" for number in range(count)]


def by_id(count: int) -> list[str]:
    dice = seeded_dice()
    return [f"/process/dev/{dice.getrandbits(256):064x}" for _ in range(count)]


def in_bunches(count: int) -> list[str]:
    lines = [f"/{number * 10**9 + 17 * 10**17:020d}" for number in range(400)]
    return [name + line for name in by_id(count // 400) for line in lines]


def words(count: int) -> list[str]:
    dice = seeded_dice()
    some = ["alpha", "beta", "Gamma", "über", "z", "日本", "日付"]
    return [
        "/".join(["/file", *dice.choices(some, k=5), str(dice.randrange(10**9))])
        for _ in range(count)
    ]


@pytest.mark.parametrize("layout", [by_time, by_id, in_bunches, words])
def test_the_keys_counted_for_a_key_do_not_grow_with_the_store(
    layout: Callable[[int], list[str]],
) -> None:
    for count in (2_000, 32_000):
        names = layout(count)
        found, reads, counted = walked(names, 50)
        assert found == sorted(names)
        assert counted <= 12 * count, "one range would count 20 times the keys, and then 320 times"
        assert reads <= 3 * count / 50


def test_a_page_that_lost_its_keys_is_read_again() -> None:
    walk = Walk("/a/")
    walk.took([], 7, more=True)
    assert (walk.start, walk.end, walk.done) == ("/a/", None, False)
    walk.took(["/a/1"], 1, more=False)
    assert walk.done
