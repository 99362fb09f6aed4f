"""Walks through a long listing: where each range that is read ends, so that few keys are counted.

etcd counts all keys of a range for each page that it reads from it. A walk therefore reads short
ranges, whose ends it guesses from the keys that it has seen. It only chooses; others read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MANY = 4  # pages of a range; one that has more is cut
_WINDOW = 8  # characters after a stem that are taken for a number
_ASCII, _ANY = 7, 21  # bits of each character
_TOP = "\U0010ffff"  # after each key


@dataclass(slots=True)
class _Level:
    """Keys up to `end` that begin with `stem`, and how far the next range of them goes.

    `step` is a distance between the numbers after the stem, 0 if it is not known. They have `bits`
    for each character.
    """

    end: str
    stem: str
    step: int = 0
    bits: int = _ASCII

    def number(self, key: str) -> int:
        """Return what a key has after the stem, as a number that grows with the key."""
        number, most = 0, (1 << self.bits) - 1
        for character in key[len(self.stem) :][:_WINDOW].ljust(_WINDOW, "\0"):
            number = number << self.bits | min(ord(character), most)
        return number

    def cut(self, start: str) -> str:
        """Return where a range that begins at `start` should end."""
        number = self.number(start) + self.step
        if not self.step or number >> (self.bits * _WINDOW):
            return self.end
        mask = (1 << self.bits) - 1
        places = range(self.bits * (_WINDOW - 1), -1, -self.bits)
        cut = self.stem + "".join(_character(number >> place & mask) for place in places)
        # Characters that have too few bits do not lead back.
        return min(self.end, cut) if cut > start else self.end


class Walk:
    """A walk through all keys with a prefix, from `start` on.

    `start` and `end` are those of the range to read next, as `EtcdClient.range` takes them. With
    `done` there is none.
    """

    done = False

    def __init__(self, start: str) -> None:
        """Begin with everything from `start` on."""
        self.start = start
        # The last one is the deepest; none ends after the one before it.
        self._levels = [_Level(_TOP, "")]
        self._end = _TOP
        self._before = ""  # the last key that was read
        self._seen = 0  # keys of the present range that were read
        self._page = 0  # keys of the last page that did not end its range

    @property
    def end(self) -> str | None:
        """Return the end of the range to read next, or None for all keys with the prefix."""
        return None if self._end == _TOP else self._end

    def took(self, keys: Sequence[str], count: int, *, more: bool) -> None:
        """Go on after a page: the first keys of a range with `count` keys."""
        self._seen += len(keys)
        if not more:
            self._finish()
        elif keys:
            self.start, self._page = keys[-1] + "\0", len(keys)
            if count > _MANY * len(keys):
                self._approach(keys)
                self._end, self._seen = self._levels[-1].cut(self.start), len(keys)
        if keys:
            self._before = keys[-1]

    def _finish(self) -> None:
        """Go on to the next range."""
        level = self._levels[-1]
        if level.end > self._end and self._seen < self._page:
            level.step *= 2 if 4 * self._seen > self._page else 16
        while self._levels and self._levels[-1].end <= self._end:
            self._levels.pop()
        if not self._levels:
            self.done = True
            return
        self.start, self._seen = self._end, 0
        self._end = self._levels[-1].cut(self.start)

    def _approach(self, keys: Sequence[str]) -> None:
        """Choose a step by how close these keys are, which have many behind them."""
        first, last = keys[0], keys[-1]
        stem = _shared(first, last)
        if self._before and len(around := _shared(self._before, first)) < len(stem):
            # Keys in bunches: the next bunch may be as far away as this one was.
            self._enter(around, self._before, first, 1)
        if len(keys) > 1:
            self._enter(stem, first, last, _MANY // 2)

    def _enter(self, stem: str, first: str, last: str, times: int) -> None:
        """Step by so many times the distance of two keys with a stem, unless it is left already."""
        level = self._levels[-1]
        if len(stem) < len(level.stem):
            return
        if len(stem) > len(level.stem):
            end = stem + _TOP
            level = _Level(end if self.start < end < level.end else level.end, stem)
            self._levels.append(level)
        level.bits = _ASCII if (first + last).isascii() else _ANY
        level.step = max(1, (level.number(last) - level.number(first)) * times)


def _shared(low: str, high: str) -> str:
    """Return what both begin with."""
    return low[
        : next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    ]


def _character(code: int) -> str:
    """Return the first character from a code on: some codes are of none."""
    return chr(0xE000 if 0xD800 <= code < 0xE000 else min(code, 0x10FFFF))
