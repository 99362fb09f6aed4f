"""What all of one simulated world share: its source of chance, its clock, its trace, its faults.

Who acts in it is in `colony` and `actors`, what must hold in `witness`.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
import trio

from colonyd.keys import PrivateKey
from node.model.types import SECOND

__all__ = ["EPOCH", "Broken", "Faults", "Killed", "World", "key_of"]

EPOCH = 1_800_000_000  # Unix seconds of the beginning of every world
_MOST_STEPS = 20_000  # of store and network, for a short story; a hundredth of it is usual


class Broken(BaseException):
    """An invariant does not hold; no `except Exception` on the way may swallow it."""


class Killed(BaseException):
    """The daemon is dead: code that calls its store from behind a shield must end, too."""


@lru_cache(maxsize=4096)
def key_of(name: str) -> PrivateKey:
    """The key of a colony or person of this name, the same in every world."""
    return PrivateKey.from_hex(hashlib.sha256(f"colonyd simulation {name}".encode()).hexdigest())


class Faults(msgspec.Struct, frozen=True):
    """How often things go wrong, each as a probability; times in seconds of virtual time."""

    slow: float = 0.0  # a message takes up to `slowest`
    slowest: float = 5.0
    drop: float = 0.0  # a request or its answer vanishes
    late: float = 0.0  # a request arrives when nobody waits for the answer any more
    duplicate: float = 0.0  # a request arrives twice
    kill: float = 0.0  # the daemon dies at a write, before or after it
    unavailable: float = 0.0  # the store does not answer a write, which happened or not
    silent: float = 0.0  # the store does not answer a read
    watch: float = 0.0  # the watch breaks and lists again
    vanish: float = 0.0  # an executor forgets what it runs
    fail: float = 0.0  # an executor reports a failure


NONE = Faults()


@dataclass
class World:
    """`faults` is replaced by `NONE` when the world heals; `most_steps` is where it has no end."""

    seed: int
    faults: Faults = NONE
    keep: bool = False  # the trace as text, not only its hash
    most_steps: int = _MOST_STEPS
    dice: random.Random = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    healed: bool = False
    steps: int = 0
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the beginning."""
        return trio.current_time()

    def now(self, skew: float = 0.0) -> int:
        """Unix ns by a clock that is `skew` seconds ahead."""
        return EPOCH * SECOND + int((trio.current_time() + skew) * SECOND)

    def step(self) -> None:
        """Something happens. Raises Broken when things happen without end."""
        self.steps += 1
        if self.steps > self.most_steps:
            raise Broken(f"no end: {self.most_steps} steps, now at {trio.current_time():.0f} s")

    async def pause(self) -> None:
        """Perhaps let others run first; always would only cost time."""
        if self.dice.random() < (0.1 if self.healed else 0.4):
            await trio.lowlevel.checkpoint()

    def chance(self, probability: float) -> bool:
        """Whether something with this probability happens now."""
        return probability > 0 and self.dice.random() < probability

    def note(self, who: str, what: str, *details: object) -> None:
        """Add one event to the trace."""
        text = " ".join(map(str, details))
        line = f"{trio.current_time():10.3f} {who:<6} {what} {text}"
        self._hash.update(line.encode())
        if self.keep:
            self.lines.append(line)

    def fault(self, kind: str, who: str, *details: object) -> None:
        """Count and note a fault."""
        self.counts[kind] += 1
        self.note(who, f"! {kind}", *details)

    def heal(self) -> None:
        """No more faults from now on."""
        self.faults, self.healed = NONE, True
        self.note("world", "healed")

    @property
    def trace_hash(self) -> str:
        """Of every event so far."""
        return self._hash.hexdigest()
