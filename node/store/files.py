"""Files in the store: versions, labels, snapshots and the holders of bytes, with keys and
transactions.

Each change of a colony's files rewrites the colony's sequence key and compares it, so the indexes
(newest version of a name, count of a label, references to bytes) can't drift apart. Reading and
retrying is in `node.files.catalog`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from node.etcd.txn import Absent, Compare, Delete, ModRevision, Op, Present, Put, Txn
from node.model.codec import pack
from node.model.types import Int64
from node.store import keys

# The classes of keys that go when a colony is removed.
CLASSES = (
    "file",
    "fileid",
    "filename",
    "filelabel",
    "fileseq",
    "filebytes",
    "snapshot",
    "snapshotname",
)
BYTES = keys.ROOT + "filebytes/"
_TOP = (1 << 63) - 1


class S3Object(msgspec.Struct):
    """The place of bytes on an S3 server. Secrets are never stored: no member can read
    another's.
    """

    server: str = ""
    port: Int64 = 0
    tls: bool = False
    accesskey: str = ""
    secretkey: str = ""
    region: str = ""
    encryptionkey: str = ""
    encryptionalg: str = ""
    object: str = ""
    bucket: str = ""


class Reference(msgspec.Struct):
    """A reference to bytes: "s3" on an S3 server, "colonyd" in a daemon's own directory."""

    protocol: str = "s3"
    s3object: S3Object = msgspec.field(default_factory=S3Object)


class File(msgspec.Struct):
    """One immutable version of a file; `added` in Unix ns, `size` in bytes."""

    fileid: str
    colonyname: str
    label: str
    name: str
    size: int
    checksum: str
    checksumalg: str
    ref: Reference
    sequencenr: int = 0
    added: int = 0


class Newest(msgspec.Struct, frozen=True, array_like=True):
    """The value of a file name's key: all that listings and snapshots need."""

    fileid: str
    sequencenr: int
    checksum: str
    size: int
    object: str


class Place(msgspec.Struct, frozen=True, array_like=True):
    """The place of the version with an id."""

    label: str
    name: str
    sequencenr: int


class Holding(msgspec.Struct, frozen=True):
    """Bytes that a daemon keeps for a colony; `since` (Unix ns) is when `refs` became 0, or newer.

    `holder` is the id of the daemon's directory; `server` and `port` are the daemon's address.
    """

    size: int
    holder: str
    server: str
    port: int
    refs: int = 0
    since: int = 0


class Snapshot(msgspec.Struct):
    """The newest versions under a label at one moment: `fileids` are 32 bytes each, in a row."""

    snapshotid: str
    colonyname: str
    label: str
    name: str
    fileids: bytes
    added: int


def _stem(label: str) -> str:
    return "" if label == "/" else label


def sequence(colony: str) -> str:
    """Return the key of a colony's last sequence number, which every change of its files writes."""
    return f"{keys.ROOT}fileseq/{colony}/last"


def versions(colony: str, label: str, name: str) -> str:
    """Return the prefix of the versions of one file, newest first. "//" ends the label: none
    contains it.
    """
    return f"{keys.ROOT}file/{colony}{_stem(label)}//{name}/"


def version(colony: str, place: Place) -> str:
    """Return the key of a version."""
    prefix = versions(colony, place.label, place.name)
    return f"{prefix}{_TOP - place.sequencenr:020d}"


def numbers(sequencenr: int) -> tuple[int, int]:
    """Return the number in the key of a version, and one that is behind those of all older ones."""
    return _TOP - sequencenr, _TOP + 1


def by_id(colony: str, fileid: str) -> str:
    """Return the key of the place of a version."""
    return f"{keys.ROOT}fileid/{colony}/{fileid}"


def names(colony: str, label: str) -> str:
    """Return the prefix of the names directly under a label."""
    return f"{keys.ROOT}filename/{colony}{_stem(label)}//"


def tree(colony: str, label: str) -> str:
    """Return the prefix of the names under a label and all labels below it."""
    return f"{keys.ROOT}filename/{colony}{_stem(label)}/"


def label_key(colony: str, label: str) -> str:
    """Return the key of the number of versions of a label, also the prefix of all labels that start
    so.
    """
    return f"{keys.ROOT}filelabel/{colony}{label}"


def label_of(colony: str, key: str) -> str:
    """Return the label in a label key."""
    return key[len(f"{keys.ROOT}filelabel/{colony}") :]


def holding(colony: str, checksum: str) -> str:
    """Return the key of the bytes with a SHA-256 (hex) that are kept for a colony."""
    return f"{BYTES}{colony}/{checksum}"


def parse_holding(key: str) -> tuple[str, str]:
    """Return colony and checksum of a holding's key."""
    colony, checksum = key[len(BYTES) :].split("/")
    return colony, checksum


def snapshots(colony: str) -> str:
    """Return the prefix of a colony's snapshots."""
    return f"{keys.ROOT}snapshot/{colony}/"


def snapshot(colony: str, snapshotid: str) -> str:
    """Return the key of a snapshot."""
    return snapshots(colony) + snapshotid


def snapshot_names(colony: str) -> str:
    """Return the prefix of the names of snapshots."""
    return f"{keys.ROOT}snapshotname/{colony}/"


def snapshot_name(colony: str, name: str) -> str:
    """Return the key of the id of the snapshot with a name."""
    return snapshot_names(colony) + name


class FileState(msgspec.Struct, frozen=True):
    """The values read before a change: sequence, versions under the label, newest of the name."""

    last: int = 0
    revision: int = 0
    count: int = 0
    newest: Newest | None = None


class Held(msgspec.Struct, frozen=True):
    """A holding as read, and its revision."""

    value: Holding
    revision: int


def place_of(file: File) -> Place:
    """Return the place of a version."""
    return Place(file.label, file.name, file.sequencenr)


def newest_of(file: File) -> Newest:
    """Return the value of the name's key while this version is the newest."""
    return Newest(file.fileid, file.sequencenr, file.checksum, file.size, file.ref.s3object.object)


def add(file: File, known: FileState, held: Held | None) -> Txn:
    """Add a version, whose sequence number is set. `held` is the bytes that it refers to."""
    colony = file.colonyname
    compare: list[Compare] = [
        Present(keys.colony(colony)),
        ModRevision(sequence(colony), known.revision),
        Absent(by_id(colony, file.fileid)),
    ]
    ops: list[Op] = [
        Put(sequence(colony), pack(file.sequencenr)),
        Put(version(colony, place_of(file)), pack(file)),
        Put(by_id(colony, file.fileid), pack(place_of(file))),
        Put(names(colony, file.label) + file.name, pack(newest_of(file))),
        Put(label_key(colony, file.label), pack(known.count + 1)),
    ]
    if held is not None:
        key = holding(colony, file.checksum)
        compare.append(ModRevision(key, held.revision))
        refs = held.value.refs + 1
        ops.append(Put(key, pack(msgspec.structs.replace(held.value, refs=refs))))
    return Txn(compare, ops)


def remove(
    victims: Sequence[File],
    known: FileState,
    newest: Newest | None,
    held: dict[str, Held],
    now: int,
) -> Txn:
    """Remove versions of one file; `newest` is the version that is left, `held` the bytes they
    refer to.
    """
    first = victims[0]
    colony, label = first.colonyname, first.label
    compare: list[Compare] = [ModRevision(sequence(colony), known.revision)]
    ops: list[Op] = [Put(sequence(colony), pack(known.last))]
    lost: dict[str, int] = {}
    for victim in victims:
        ops.append(Delete(version(colony, place_of(victim))))
        ops.append(Delete(by_id(colony, victim.fileid)))
        if victim.ref.protocol == "colonyd":
            lost[victim.checksum] = lost.get(victim.checksum, 0) + 1
    name_key = names(colony, label) + first.name
    ops.append(Delete(name_key) if newest is None else Put(name_key, pack(newest)))
    left = known.count - len(victims)
    key = label_key(colony, label)
    ops.append(Put(key, pack(left)) if left > 0 else Delete(key))
    for checksum, count in lost.items():
        if checksum not in held:
            continue
        key = holding(colony, checksum)
        compare.append(ModRevision(key, held[checksum].revision))
        refs = max(0, held[checksum].value.refs - count)
        ops.append(
            Put(key, pack(msgspec.structs.replace(held[checksum].value, refs=refs, since=now)))
        )
    return Txn(compare, ops)


def add_snapshot(value: Snapshot) -> Txn:
    """Add a snapshot under a name that is free."""
    colony = value.colonyname
    name_key = snapshot_name(colony, value.name)
    return Txn(
        [Present(keys.colony(colony)), Absent(name_key)],
        [
            Put(name_key, value.snapshotid.encode()),
            Put(snapshot(colony, value.snapshotid), pack(value)),
        ],
    )
