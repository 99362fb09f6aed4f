"""The memory that processes take which were read or written last."""

from __future__ import annotations

from node.store.work.cache import ProcessCache
from tests.support.processes import make


def test_large_processes_do_not_fill_the_memory() -> None:
    cache = ProcessCache(room=100_000)
    made = [make() for _ in range(20)]
    for number, process in enumerate(made):
        process.spec.args = ["x" * 30_000]
        cache.put(process, number)
        assert cache.held <= 100_000
    assert len(cache) == 3
    assert cache.get("dev", made[-1].processid) == (made[-1], 19)
    assert cache.get("lab", made[-1].processid) is None
    # One that is larger than all the room is not kept, and keeps nothing else out.
    made[0].spec.args = ["x" * 200_000]
    cache.put(made[0], 20)
    assert len(cache) == 3
    cache.put(made[1], 21)
    cache.put(made[1], 22)
    assert cache.get("dev", made[1].processid) == (made[1], 22)
    for process in made:
        cache.drop(process.processid)
    assert (len(cache), cache.held) == (0, 0)
