"""Parts of values that are too large for one request: they lie beside their key.

The key holds a *stub* that names them, so that the whole value appears and goes with one
transaction. This module is values in, values out; `client` reads and writes, `etcdserver.sweep`
removes parts that no stub names.

A larger limit of etcd's (`--max-request-bytes`) is no way out: a log entry of 10 MiB or more is
written, and then keeps etcd 3.4, and the first releases of 3.5, from ever starting again. Parts
also need no setting of a cluster that is not ours.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from node.etcd.errors import EtcdTooLarge
from node.etcd.txn import Delete, DeletePrefix, Op, Put

PLACE = "/colonyd/part/"
MOST = 64 * 1024 * 1024  # bytes of one value
WHOLE = 256 * 1024  # bytes of a value that is never divided because of its own size
# Bytes of one part. Small: etcd keeps its last 5,000 log entries and more in memory, of any size.
PART = 64 * 1024
# Bytes of one request, of the 1.5 MiB that etcd takes: keys and framing need some, too.
ROOM = 1_200_000
# No other value begins so: in CBOR it would be the number 0 with something behind it.
_MARK = b"\0parts\1"
_MOST_OPS = 120  # of one branch, with the additions made here
_REMEMBERED = 4096  # stubs


class PartsRef(msgspec.Struct, frozen=True):
    """The stub of a value: its size in bytes, and where its parts are."""

    size: int
    name: str

    @property
    def prefix(self) -> str:
        """Return the prefix of the keys of the parts."""
        return f"{PLACE}{self.name}/"

    def pack(self) -> bytes:
        """Return the value of the key."""
        return _MARK + f"{self.size} {self.name}".encode()


def ref_of(value: bytes) -> PartsRef | None:
    """Return the stub that a key holds, or None when it holds its value."""
    if not value.startswith(_MARK):
        return None
    size, _, name = value[len(_MARK) :].decode().partition(" ")
    return PartsRef(int(size), name)


def owner_of(part: str) -> tuple[str, str]:
    """Return the name in the stub of a part's key, and the key of the stub."""
    name, _, rest = part[len(PLACE) :].partition("/")
    return name, rest[5:]


def divide(ops: Sequence[Op], most: int = ROOM) -> tuple[list[Op], list[tuple[PartsRef, Put]]]:
    """Return the operations with stubs for large values, and the puts that the stubs stand for.

    Raises EtcdTooLarge for a value of more than MOST bytes.
    """
    left = sum(len(op.key) + len(op.value) for op in ops if type(op) is Put)
    if left <= min(most, WHOLE):
        return list(ops), []
    apart: dict[int, PartsRef] = {}
    sized = [
        (len(op.value), at)
        for at, op in enumerate(ops)
        # Parts from a backup stay as they are; a value with a lease must go whole.
        if type(op) is Put and not op.lease and not op.key.startswith(PLACE)
    ]
    for size, at in sorted(sized, reverse=True):
        if size <= WHOLE and (left <= most or size <= 1024):
            break
        if size > MOST:
            raise EtcdTooLarge(f"a value of {size} bytes; the store takes {MOST} for one")
        apart[at] = PartsRef(size, secrets.token_hex(16))
        left -= size
    stubbed = [
        Put(op.key, apart[at].pack()) if at in apart and type(op) is Put else op
        for at, op in enumerate(ops)
    ]
    return stubbed, [(ref, op) for at, ref in apart.items() if type(op := ops[at]) is Put]


def parts_of(ref: PartsRef, put: Put) -> Iterator[Put]:
    """Return the puts of the parts of a value, one by one."""
    for number, start in enumerate(range(0, ref.size, PART)):
        yield Put(f"{ref.prefix}{number:05d}{put.key}", put.value[start : start + PART])


def joined(ref: PartsRef, parts: Sequence[bytes]) -> bytes | None:
    """Return the value of a stub; None when not all of its parts are there."""
    value = b"".join(parts)
    return value if len(value) == ref.size else None


class StubCache:
    """The stubs that were last seen, so that their parts are removed together with them."""

    def __init__(self) -> None:
        self._refs: OrderedDict[str, PartsRef] = OrderedDict()

    def see(self, key: str, ref: PartsRef | None) -> None:
        """Note the stub that a key holds, or None."""
        if ref is None:
            self._refs.pop(key, None)
            return
        self._refs[key] = ref
        self._refs.move_to_end(key)
        if len(self._refs) > _REMEMBERED:
            self._refs.popitem(last=False)

    def has(self, key: str) -> bool:
        """Return whether the value of a key, as last seen, is in parts."""
        return key in self._refs

    def left(self, ops: Sequence[Op]) -> list[Op]:
        """Return the deletes of the parts of known values that these operations replace or remove.

        A stub stands at one key only: the parts are of no use then, whatever the key holds
        meanwhile.
        """
        if not self._refs:
            return []
        gone: list[Op] = []
        for op in ops:
            if isinstance(op, Put | Delete):
                names = [op.key] if op.key in self._refs else []
            else:
                names = self.under(op.prefix) if type(op) is DeletePrefix else []
            gone += [DeletePrefix(self._refs[key].prefix) for key in names]
        return gone[: max(0, _MOST_OPS - len(ops))]

    def under(self, prefix: str) -> list[str]:
        """Return the keys with a prefix whose values are in parts, as last seen."""
        return [key for key in self._refs if key.startswith(prefix)]

    def wrote(self, ops: Sequence[Op]) -> None:
        """Note that these operations happened."""
        for op in ops:
            if type(op) is Put:
                ref = ref_of(op.value)
                if ref is not None or self._refs:
                    self.see(op.key, ref)
            elif type(op) is Delete and self._refs:
                self._refs.pop(op.key, None)
            elif type(op) is DeletePrefix and self._refs:
                for key in self.under(op.prefix):
                    del self._refs[key]
