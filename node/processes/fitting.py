"""Ordered items, and the first that fits: that takes no more CPU and memory than are given.

Values in, values out. The queue keeps waiting processes in it, the assignment waiting polls.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

# More than any process can want.
UNLIMITED = 1 << 80

_MOST = 512  # items of a block; two neighbours that have a quarter of it together become one


class Item(Protocol):
    """An item: it takes `cpu` and `mem`, and comes before those that are greater.

    Two items of a track are never equal.
    """

    @property
    def cpu(self) -> int: ...
    @property
    def mem(self) -> int: ...
    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=Item)


class _Block(Generic[T]):
    """Items in order; none takes less than `cpu` and `mem`, which may be too low."""

    __slots__ = ("cpu", "items", "mem")

    def __init__(self, items: list[T]) -> None:
        self.items = items
        self.cpu = self.mem = -UNLIMITED


class Track(Generic[T]):
    """Items in order."""

    __slots__ = ("_blocks", "_size")

    def __init__(self) -> None:
        self._blocks: list[_Block[T]] = []
        self._size = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Return the items in order; the track must not change meanwhile."""
        for block in self._blocks:
            yield from block.items

    def _find(self, item: T) -> int:
        """Return which block an item is in, or belongs into."""
        blocks = self._blocks
        low, high = 0, len(blocks) - 1
        # Most come at the end, and leave at the beginning.
        if not blocks[0].items[-1] < item:
            return 0
        if not item < blocks[high].items[0]:
            return high
        while low < high:
            middle = (low + high) // 2
            if blocks[middle].items[-1] < item:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, item: T) -> None:
        """Add an item."""
        self._size += 1
        blocks = self._blocks
        if not blocks:
            blocks.append(_Block([item]))
            return
        number = self._find(item)
        block = blocks[number]
        items = block.items
        if len(items) >= _MOST:
            # What comes at the end, as most does, leaves full blocks behind.
            cut = _MOST if items[-1] < item else _MOST // 2
            later = _Block(items[cut:])
            later.cpu, later.mem = block.cpu, block.mem
            del items[cut:]
            if not later.items:
                blocks.insert(number + 1, _Block([item]))
                return
            blocks.insert(number + 1, later)
            if items[-1] < item:
                block, items = later, later.items
        insort(items, item)
        block.cpu, block.mem = min(block.cpu, item.cpu), min(block.mem, item.mem)

    def discard(self, item: T) -> None:
        """Remove an item, if it is there."""
        if not self._blocks:
            return
        number = self._find(item)
        items = self._blocks[number].items
        place = bisect_left(items, item)
        if place == len(items) or items[place] != item:
            return
        del items[place]
        self._size -= 1
        if not items:
            del self._blocks[number]
        elif number and len(items) + len(self._blocks[number - 1].items) < _MOST // 4:
            before = self._blocks[number - 1]
            before.items += items
            before.cpu = before.mem = -UNLIMITED
            del self._blocks[number]

    def head(self) -> T:
        """Return the first item; there must be one."""
        return self._blocks[0].items[0]

    def first(self, cpu: int, mem: int, before: T | None = None) -> T | None:
        """Return the first item that fits, if it comes before another one."""
        for block in self._blocks:
            if before is not None and before < block.items[0]:
                return None
            if block.cpu > cpu or block.mem > mem:
                continue
            for item in block.items:
                if item.cpu <= cpu and item.mem <= mem:
                    return item
            # Nobody looks at these again for as little.
            block.cpu = min(item.cpu for item in block.items)
            block.mem = min(item.mem for item in block.items)
        return None

    def rank(self, item: T) -> int:
        """Return how many items come before one, which may be here or not."""
        if not self._blocks:
            return 0
        number = self._find(item)
        ahead = sum(len(block.items) for block in self._blocks[:number])
        return ahead + bisect_left(self._blocks[number].items, item)

    def behind(self, item: T) -> Iterator[T]:
        """Return the items from one on, which may be here or not, as `__iter__` does."""
        if not self._blocks:
            return
        number = self._find(item)
        items = self._blocks[number].items
        for place in range(bisect_left(items, item), len(items)):
            yield items[place]
        for block in self._blocks[number + 1 :]:
            yield from block.items


def _size(amount: int) -> int:
    """Return the class of an amount: one of a lower class is less."""
    return amount.bit_length() if amount >= 0 else -amount.bit_length()


@dataclass(slots=True)
class Shelf(Generic[T]):
    """Items in tracks: one for each group, and in it for the sizes of CPU and memory to a factor of
    two.

    So a search looks at the heads of tracks, and into those alone that the given amounts may cut.
    """

    _tracks: dict[tuple[str, int, int], Track[T]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return whether there are items."""
        return bool(self._tracks)

    def add(self, item: T, group: str = "") -> None:
        """Add an item."""
        place = (group, _size(item.cpu), _size(item.mem))
        track = self._tracks.get(place)
        if track is None:
            track = self._tracks[place] = Track()
        track.add(item)

    def discard(self, item: T, group: str = "") -> None:
        """Remove an item, if it is there."""
        place = (group, _size(item.cpu), _size(item.mem))
        track = self._tracks.get(place)
        if track is not None:
            track.discard(item)
            if not track:
                del self._tracks[place]

    def first(
        self,
        cpu: int,
        mem: int,
        before: T | None = None,
        may: Callable[[str], bool] | None = None,
    ) -> T | None:
        """Return the first item that fits and whose group `may`, if it comes before another one;
        else that one.
        """
        best, cpus, mems = before, _size(cpu), _size(mem)
        for (group, low, small), track in self._tracks.items():
            if low > cpus or small > mems or (best is not None and best < track.head()):
                continue
            if may is not None and not may(group):
                continue
            found = track.head() if low < cpus and small < mems else track.first(cpu, mem, best)
            if found is not None and (best is None or found < best):
                best = found
        return best

    def __len__(self) -> int:
        """Return the number of items."""
        return sum(map(len, self._tracks.values()))

    def tracks(self) -> list[Track[T]]:
        """Return the tracks, none of which is empty."""
        return list(self._tracks.values())
