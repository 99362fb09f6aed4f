"""The index of members: which functions an executor offers, as they come, change and go."""

from __future__ import annotations

from node.model.codec import pack
from node.model.types import Function
from node.store import keys
from node.store.directory import Directory


def offer(directory: Directory, functionid: str, name: str, revision: int) -> None:
    function = Function("ada", "dev", name, functionid=functionid)
    directory.apply(keys.function("dev", functionid), pack(function), revision)


def test_offers_follow_the_functions() -> None:
    directory = Directory()
    offer(directory, "a", "echo", 1)
    offer(directory, "b", "echo", 2)
    offer(directory, "c", "sum", 3)
    offered = directory.roster("dev").offered
    assert offered == {("ada", "echo"): {"a", "b"}, ("ada", "sum"): {"c"}}
    offer(directory, "b", "sum", 4)
    directory.apply(keys.function("dev", "a"), None, 5)
    directory.apply(keys.function("dev", "a"), None, 6)
    assert offered == {("ada", "sum"): {"b", "c"}}
    directory.replace([])
    assert directory.roster("dev").offered == {}
