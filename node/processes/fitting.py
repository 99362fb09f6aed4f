"""Ordered items, and the first that fits: that takes no more CPU and memory than are given.

Values in, values out. The queue keeps waiting processes in it, the assignment waiting polls.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
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
    """Items in order, and the least of what they take: the pairs of `cpus` and `mems`.

    No item takes less CPU and memory than such a pair, and each pair is that of an item. As `cpus`
    rise, `mems` fall: of the pairs with no more than some CPU, the last has the least memory.
    """

    __slots__ = ("cpus", "items", "mems")

    def __init__(self, items: list[T]) -> None:
        self.items = items
        self.cpus: list[int] = []
        self.mems: list[int] = []

    def measure(self) -> None:
        """Find the pairs anew."""
        self.cpus, self.mems = [], []
        for cpu, mem in sorted({(item.cpu, item.mem) for item in self.items}):
            if not self.mems or mem < self.mems[-1]:
                self.cpus.append(cpu)
                self.mems.append(mem)

    def has(self, cpu: int, mem: int) -> bool:
        """Return whether an item fits."""
        place = bisect_right(self.cpus, cpu)
        return place > 0 and self.mems[place - 1] <= mem

    def count(self, cpu: int, mem: int) -> None:
        """Let the pairs include what a new item takes."""
        if self.has(cpu, mem):
            return
        begin = end = bisect_left(self.cpus, cpu)
        while end < len(self.mems) and self.mems[end] >= mem:
            end += 1
        self.cpus[begin:end], self.mems[begin:end] = [cpu], [mem]

    def discount(self, cpu: int, mem: int) -> None:
        """Let the pairs forget what an item took that is gone, unless another one takes the same.

        Most take what a neighbour takes: so it is found in few steps.
        """
        cpus, mems = self.cpus, self.mems
        place = bisect_left(cpus, cpu)
        if place == len(cpus) or cpus[place] != cpu or mems[place] != mem:
            return
        if any(item.cpu == cpu and item.mem == mem for item in self.items):
            return
        del cpus[place], mems[place]
        # Only this pair was no more than what these take.
        less = cpus[place] if place < len(cpus) else None
        below = mems[place - 1] if place else None
        for item in self.items:
            if (less is None or item.cpu < less) and (below is None or item.mem < below):
                self.count(item.cpu, item.mem)


class Track(Generic[T]):
    """Items in order; `first` is for a track that `finds`, which costs more to keep."""

    __slots__ = ("_blocks", "_finds", "_size")

    def __init__(self, finds: bool = True) -> None:
        self._blocks: list[_Block[T]] = []
        self._finds = finds
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
        if len(blocks) == 1 or not blocks[0].items[-1] < item:
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
            blocks.append(_Block([]))
        number = self._find(item)
        block = blocks[number]
        items = block.items
        if len(items) >= _MOST:
            # What comes at the end, as most does, leaves full blocks behind.
            cut = _MOST if items[-1] < item else _MOST // 2
            later = _Block(items[cut:])
            blocks.insert(number + 1, later)
            if later.items:
                del items[cut:]
                self._measure(block, later)
            if items[-1] < item:
                block = later
        insort(block.items, item)
        if self._finds:
            block.count(item.cpu, item.mem)

    def discard(self, item: T) -> None:
        """Remove an item, if it is there."""
        if not self._blocks:
            return
        number = self._find(item)
        block = self._blocks[number]
        items = block.items
        place = bisect_left(items, item)
        if place == len(items) or items[place] != item:
            return
        del items[place]
        self._size -= 1
        if not items:
            del self._blocks[number]
            return
        if self._finds:
            block.discount(item.cpu, item.mem)
        if number and len(items) + len(self._blocks[number - 1].items) < _MOST // 4:
            before = self._blocks[number - 1]
            before.items += items
            self._measure(before)
            del self._blocks[number]

    def _measure(self, *blocks: _Block[T]) -> None:
        for block in blocks if self._finds else ():
            block.measure()

    def head(self) -> T:
        """Return the first item; there must be one."""
        return self._blocks[0].items[0]

    def first(self, cpu: int, mem: int, before: T | None = None) -> T | None:
        """Return the first item that fits, if it comes before another one."""
        for block in self._blocks:
            if before is not None and before < block.items[0]:
                return None
            if block.has(cpu, mem):
                return next(item for item in block.items if item.cpu <= cpu and item.mem <= mem)
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
