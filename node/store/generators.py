"""Generators in the store: a small value with the ends of a queue, and the queue's arguments.

Values in, transactions out. A pack writes its arguments at the queue's end. A firing writes its
range before its workflow is submitted; one transaction removes both after that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from node.etcd.txn import (
    Absent,
    Compare,
    Delete,
    DeletePrefix,
    DeleteRange,
    Get,
    ModRevision,
    Op,
    Present,
    Put,
    Txn,
)
from node.model.codec import pack
from node.store import keys

GENERATORS = keys.ROOT + "timed/generator/"
PACKED = keys.ROOT + "packed/"
# Classes of keys that go with a colony.
CLASSES = ("timed/generator", "generatorspec", "generatorname", "generatorarg", "packed")


class GeneratorFiring(msgspec.Struct, frozen=True):
    """A workflow that is to be submitted with the arguments from the queue's head to `upto`.

    `at` is when this was decided, in Unix ns.
    """

    graphid: str
    upto: int
    at: int


class Generator(msgspec.Struct, frozen=True):
    """A generator. Times are Unix nanoseconds, 0 for unset; `timeout` is seconds, 0 for none.

    The queue is the arguments numbered from `head` to before `tail`; `oldest` is when the argument
    at the head came, `queuebytes` is the size of all. `roots` is how many nodes of the workflow get
    them.
    """

    generatorid: str
    colonyname: str
    name: str
    initiatorid: str
    initiatorname: str
    trigger: int
    timeout: int = 0
    firstpack: int = 0
    lastrun: int = 0
    head: int = 0
    tail: int = 0
    oldest: int = 0
    firing: GeneratorFiring | None = None
    queuebytes: int = 0
    roots: int = 1

    @property
    def queuesize(self) -> int:
        """Return how many arguments wait."""
        return self.tail - self.head


class Arg(msgspec.Struct, frozen=True, array_like=True):
    """One argument, and when it came in Unix ns."""

    arg: str
    at: int


class Packing(msgspec.Struct, frozen=True):
    """An argument to be queued; `token` identifies the request, "" if nothing in it is unique."""

    arg: str
    token: str


def prefix(colony: str) -> str:
    """Return the prefix of the generators of a colony."""
    return f"{GENERATORS}{colony}/"


def key(colony: str, generatorid: str) -> str:
    """Return the key of a generator."""
    return prefix(colony) + generatorid


def spec_key(colony: str, generatorid: str) -> str:
    """Return the key of the workflow of a generator, as it was sent."""
    return f"{keys.ROOT}generatorspec/{colony}/{generatorid}"


def name_key(colony: str, name: str) -> str:
    """Return the key that names the generator with this name; hashed, since names are free text."""
    digest = hashlib.sha3_256(name.encode()).hexdigest()
    return f"{keys.ROOT}generatorname/{colony}/{digest}"


def args_prefix(colony: str, generatorid: str) -> str:
    """Return the prefix of the arguments of a generator."""
    return f"{keys.ROOT}generatorarg/{colony}/{generatorid}/"


def arg_key(colony: str, generatorid: str, number: int) -> str:
    """Return the key of one argument; keys sort in the order of arrival."""
    return f"{args_prefix(colony, generatorid)}{number:020d}"


def packed_prefix(colony: str, generatorid: str) -> str:
    """Return the prefix of the tokens of a generator."""
    return f"{PACKED}{colony}/{generatorid}/"


def packed_key(colony: str, generatorid: str, token: str) -> str:
    """Return the key that is present once the request of a token was served; it holds when, in Unix
    ns.
    """
    return packed_prefix(colony, generatorid) + token


def graph_id(generatorid: str, head: int) -> str:
    """Return the id of the graph that takes the arguments from `head` on."""
    return hashlib.sha3_256(f"generator/{generatorid}/{head}".encode()).hexdigest()


def add(generator: Generator, workflowspec: str) -> Txn:
    """Add a generator, if its name is free and its colony exists; otherwise the reads tell."""
    g = generator
    mine, name = key(g.colonyname, g.generatorid), name_key(g.colonyname, g.name)
    return Txn(
        [Absent(mine), Absent(name), Present(keys.colony(g.colonyname))],
        [
            Put(mine, pack(g)),
            Put(spec_key(g.colonyname, g.generatorid), workflowspec.encode()),
            Put(name, g.generatorid.encode()),
        ],
        [Get(mine), Get(name)],
    )


def enqueue(
    generator: Generator, revision: int, packings: Sequence[Packing], now: int
) -> tuple[Generator, Txn]:
    """Append arguments to the queue; none if a token was used before: the reads tell which."""
    g = generator
    mine = key(g.colonyname, g.generatorid)
    after = msgspec.structs.replace(
        g,
        tail=g.tail + len(packings),
        firstpack=g.firstpack or now,
        oldest=g.oldest if g.queuesize else now,
        queuebytes=g.queuebytes + sum(len(packing.arg.encode()) for packing in packings),
    )
    ops: list[Op] = [Put(mine, pack(after))]
    compare: list[Compare] = [ModRevision(mine, revision)]
    reads: list[Op] = [Get(mine)]
    for number, packing in enumerate(packings, g.tail):
        place = arg_key(g.colonyname, g.generatorid, number)
        ops.append(Put(place, pack(Arg(packing.arg, now))))
        if packing.token:
            token = packed_key(g.colonyname, g.generatorid, packing.token)
            ops.append(Put(token, str(now).encode()))
            compare.append(Absent(token))
            reads.append(Get(token))
    return after, Txn(compare, ops, reads)


def fire(
    generator: Generator, revision: int, firing: GeneratorFiring, compare: Sequence[Compare]
) -> tuple[Generator, Txn]:
    """Write down which firing is to be submitted."""
    mine = key(generator.colonyname, generator.generatorid)
    after = msgspec.structs.replace(generator, firing=firing)
    return after, Txn([ModRevision(mine, revision), *compare], [Put(mine, pack(after))])


def fired(
    generator: Generator, revision: int, oldest: int, compare: Sequence[Compare], size: int = 0
) -> tuple[Generator, Txn]:
    """Remove the arguments of a firing, of `size` bytes, after its workflow is in the store.

    `oldest` is when the next argument came, or 0.
    """
    g = generator
    assert g.firing is not None
    mine = key(g.colonyname, g.generatorid)
    after = msgspec.structs.replace(
        g,
        firing=None,
        head=g.firing.upto,
        lastrun=g.firing.at,
        oldest=oldest,
        # Older releases did not count bytes.
        queuebytes=max(0, g.queuebytes - size) if g.firing.upto < g.tail else 0,
    )
    gone = DeleteRange(
        arg_key(g.colonyname, g.generatorid, g.head),
        arg_key(g.colonyname, g.generatorid, g.firing.upto),
    )
    return after, Txn([ModRevision(mine, revision), *compare], [Put(mine, pack(after)), gone])


def remove(generator: Generator) -> Txn:
    """Remove a generator with its queued arguments; its graphs stay."""
    colony, generatorid = generator.colonyname, generator.generatorid
    ops: list[Op] = [
        Delete(key(colony, generatorid)),
        Delete(spec_key(colony, generatorid)),
        Delete(name_key(colony, generator.name)),
        DeletePrefix(args_prefix(colony, generatorid)),
        DeletePrefix(packed_prefix(colony, generatorid)),
    ]
    return Txn([Present(key(colony, generatorid))], ops)
