"""Channels in the store: entries by index, the size of each channel, and digests of its messages.

Values in, transactions out; the caller checks rights and rates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import quote

import cbor2
import msgspec

from node.etcd.txn import Absent, Compare, DeletePrefix, Get, ModRevision, Op, Present, Put, Txn
from node.model.codec import pack
from node.model.types import Process
from node.store import keys

# Below `keys.ROOT`; all three are removed with the process, and with the colony.
CLASSES = ("channel", "channelhead", "channelmark")
# Rewritten by every append: a cheap watch of one key tells a daemon what others appended, whatever
# the number and the size of the channels.
PULSE = keys.ROOT + "channelpulse"


class ChannelEntry(msgspec.Struct, array_like=True):
    """One message. `timestamp` is Unix ns, `sequence` the sender's own number."""

    senderid: str
    sequence: int
    inreplyto: int
    timestamp: int
    type: str
    payload: bytes


class ChannelHead(msgspec.Struct, array_like=True):
    """How much a channel holds: entries, and bytes of payload."""

    count: int = 0
    size: int = 0


class Pulse(msgspec.Struct, array_like=True):
    """Where the latest message is."""

    processid: str
    name: str


def _of(kind: str, colony: str, processid: str, name: str) -> str:
    # Names are the submitter's free choice: a "/" in one must not end up in a key.
    return f"{keys.ROOT}{kind}/{colony}/{processid}/{quote(name, safe='')}"


def entries(colony: str, processid: str, name: str) -> str:
    """Return the prefix of the entries of a channel, in order."""
    return _of("channel", colony, processid, name) + "/"


def entry(colony: str, processid: str, name: str, index: int) -> str:
    """Return the key of an entry; `index` is how many came before it."""
    return entries(colony, processid, name) + f"{index:08d}"


def head(colony: str, processid: str, name: str) -> str:
    """Return the key of the size of a channel."""
    return _of("channelhead", colony, processid, name)


def mark(colony: str, processid: str, name: str, digest: str) -> str:
    """Return the key that is present when a message with this digest is in the channel."""
    return _of("channelmark", colony, processid, name) + "/" + digest


def digest(said: ChannelEntry, *, attempt: int, nonce: str) -> str:
    """Return the digest that a message and its repeats have in common; "" for a message that is
    never a repeat.

    With a sequence of 0 the sender keeps no numbers: then only a `nonce` identifies the message.
    `attempt` keeps the messages of two attempts of an executor apart.
    """
    if said.sequence == 0 and not nonce:
        return ""
    parts = [
        said.senderid,
        said.sequence,
        said.inreplyto,
        said.type,
        attempt,
        "" if said.sequence else nonce,
        said.payload,
    ]
    return hashlib.sha256(cbor2.dumps(parts, canonical=True)).hexdigest()


def append(
    process: Process,
    revision: int,
    name: str,
    said: ChannelEntry,
    known: ChannelHead,
    at: int,
    digest: str,
) -> Txn:
    """Append an entry. `at` is the revision of the head, 0 when there is none yet.

    Holds only while the process is as it was at `revision`: no message comes after its end. The
    failure branch returns the process, the head and the mark as they are.
    """
    colony, pid = process.colonyname, process.processid
    place = head(colony, pid, name)
    holds = ChannelHead(known.count + 1, known.size + len(said.payload))
    ops: list[Op] = [
        Put(entry(colony, pid, name, known.count), pack(said)),
        Put(place, pack(holds)),
        Put(PULSE, pack(Pulse(pid, name))),
    ]
    compare: list[ModRevision | Absent] = [
        ModRevision(keys.process(colony, pid), revision),
        ModRevision(place, at),
    ]
    reads: list[Op] = [Get(keys.process(colony, pid)), Get(place)]
    if digest:
        told = mark(colony, pid, name, digest)
        ops.append(Put(told, b""))
        compare.append(Absent(told))
        reads.append(Get(told))
    return Txn(compare, ops, reads)


def extend(
    colony: str, pid: str, name: str, said: Sequence[ChannelEntry], known: ChannelHead, at: int
) -> tuple[list[Compare], list[Op]]:
    """Append entries of another colony, as part of a transaction.

    `at` is the revision of the head, 0 when there is none yet. Holds while the process exists.
    """
    place = head(colony, pid, name)
    holds = ChannelHead(
        known.count + len(said), known.size + sum(len(each.payload) for each in said)
    )
    compare: list[Compare] = [Present(keys.process(colony, pid)), ModRevision(place, at)]
    ops: list[Op] = [
        Put(entry(colony, pid, name, index), pack(each))
        for index, each in enumerate(said, known.count)
    ]
    return compare, [*ops, Put(place, pack(holds)), Put(PULSE, pack(Pulse(pid, name)))]


def removal(process: Process) -> Sequence[Op]:
    """Return the operations that remove the channels of a process."""
    if not process.spec.channels:
        return ()
    place = f"{process.colonyname}/{process.processid}/"
    return [DeletePrefix(f"{keys.ROOT}{kind}/{place}") for kind in CLASSES]
