"""Files of the colonies hosted here: versions, labels, snapshots, and the holders of bytes.

The shell around `store.files`: it reads, commits and tries again. The bytes are in `files.blobs`;
the caller checks rights.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, TooMany
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdError
from node.etcd.pages import Pages, below, by_number, each, values, whole
from node.etcd.txn import Delete, DeletePrefix, Get, ModRevision, Present, Put, Txn
from node.files.blobs import BlobStore
from node.files.tickets import Tickets
from node.host.listening import Serving
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.processes.quotas import Quotas
from node.store import files as store
from node.store import keys
from node.store.files import File, FileState, Held, Holding, Newest, Place, Snapshot
from node.store.update import Unmet, update

log = get_logger("files")

_TRIES = 8
# Versions removed or read in one transaction: each takes up to three operations.
_AT_ONCE = 30
# Ids are kept as 32 bytes, and a value must stay below etcd's 1.5 MiB.
MAX_SNAPSHOT = 30_000
# Seconds between two sweeps of the bytes, at most.
_SWEEP = 3600.0


class Label(msgspec.Struct):
    """A label and how many versions of files it has."""

    name: str
    files: int


class FileData(msgspec.Struct):
    """The newest version of a file, as listings return it."""

    name: str
    checksum: str
    size: int
    s3filename: str


@dataclass
class Files:
    """The files of a node. `now` gives Unix nanoseconds. Without a blob store, bytes are kept
    elsewhere only.

    `grace` is in seconds, `max_body` in bytes.
    """

    client: EtcdClient
    now: Callable[[], int]
    blobs: BlobStore | None = None
    tickets: Tickets | None = None
    grace: float = 86_400.0
    serving: Serving = field(default_factory=Serving)
    quotas: Quotas = field(default_factory=Quotas)
    max_body: int = 2 << 20
    _quiet: float = 0.0  # trio's time until which nothing is swept
    _locks: defaultdict[str, trio.Lock] = field(default_factory=lambda: defaultdict(trio.Lock))
    # How many versions of each colony were removed, when they were counted last.
    _gone: dict[str, int] = field(default_factory=dict)

    # -- reading -------------------------------------------------------------------------

    async def get(self, colony: str, fileid: str) -> File | None:
        """Return the version with this id, or None."""
        if "/" in fileid:
            return None
        found = await self.client.get(store.by_id(colony, fileid))
        if found is None:
            return None
        place = unpack(found.value, Place)
        version = await self.client.get(store.version(colony, place))
        return unpack(version.value, File) if version else None

    def versions(self, colony: str, label: str, name: str) -> Pages[File]:
        """Return the versions of one file, newest first, in pages."""
        found = below(self.client, store.versions(colony, label, name))
        return each(found, lambda kv: unpack(kv.value, File))

    async def newest(self, colony: str, label: str, name: str, count: int = 1) -> list[File]:
        """Return the newest versions of one file, at most `count`, newest first."""
        known = await self.client.get(store.names(colony, label) + name)
        if known is None:
            return []
        low, high = store.numbers(unpack(known.value, Newest).sequencenr)
        prefix, files = store.versions(colony, label, name), list[File]()
        found = by_number(self.client, prefix, low, high, span=count, limit=count)
        async with aclosing(found) as pages:
            async for page in pages:
                files += [unpack(kv.value, File) for kv in page]
                if len(files) >= count:
                    break
        return files[:count]

    def listing(self, colony: str, label: str) -> Pages[FileData]:
        """Return the newest version of each file directly under a label, by name, in pages."""
        prefix = store.names(colony, label)

        def data(kv: KeyValue) -> FileData:
            n = unpack(kv.value, Newest)
            return FileData(kv.key[len(prefix) :], n.checksum, n.size, n.object)

        return each(below(self.client, prefix), data)

    def labels(self, colony: str, prefix: str) -> Pages[Label]:
        """Return the labels that start with the text `prefix`, which is rooted, in pages."""
        found = below(self.client, store.label_key(colony, prefix))
        return each(found, lambda kv: _label(colony, kv))

    async def labels_below(self, colony: str, label: str) -> Pages[Label]:
        """Return a label itself, if it has files, and all labels below it, in pages."""
        if label != "/" and (own := await self.client.get(store.label_key(colony, label))):
            yield [_label(colony, own)]
        async with aclosing(self.labels(colony, label.removesuffix("/") + "/")) as pages:
            async for page in pages:
                yield page

    async def _read(
        self, colony: str, label: str, name: str, checksums: Sequence[str]
    ) -> tuple[FileState, dict[str, Held]]:
        """Return the values that a change compares and counts on, at one revision."""
        wanted = [
            store.sequence(colony),
            store.label_key(colony, label),
            store.names(colony, label) + name,
            *(store.holding(colony, checksum) for checksum in checksums),
        ]
        answer = (await self.client.commit(Txn([], [Get(key) for key in wanted]))).responses
        last, count, newest = (found[0] if found else None for found in answer[:3])
        known = FileState(
            last=unpack(last.value, int) if last else 0,
            revision=last.mod_revision if last else 0,
            count=unpack(count.value, int) if count else 0,
            newest=unpack(newest.value, Newest) if newest else None,
        )
        held = {
            checksum: Held(unpack(found[0].value, Holding), found[0].mod_revision)
            for checksum, found in zip(checksums, answer[3:], strict=True)
            if found
        }
        return known, held

    # -- changing ------------------------------------------------------------------------

    async def add(self, file: File) -> File:
        """Add a version; its sequence number and time are set here.

        If the id exists already, the stored version is returned, unless it differs. Raises Conflict
        when its bytes should be here and are not.
        """
        colony = file.colonyname
        ours = [file.checksum] if file.ref.protocol == "colonyd" else []
        async with self._locks[colony]:
            for _ in range(_TRIES):
                known, held = await self._read(colony, file.label, file.name, ours)
                await self._require_room(file, known.last)
                if ours and not self._kept(file, held.get(file.checksum)):
                    raise Conflict("file.ref: upload the bytes first (fileticketmsg)")
                new = msgspec.structs.replace(file, sequencenr=known.last + 1, added=self.now())
                if ours:
                    where = held[file.checksum].value
                    new.ref.s3object.server, new.ref.s3object.port = where.server, where.port
                txn = store.add(new, known, held.get(file.checksum))
                if (await self.client.commit(txn)).succeeded:
                    return new
                await self._require_colony(colony)
                there = await self.get(colony, file.fileid)
                if there is not None:
                    return there
        raise Conflict("file: others change the files of this colony too fast; try again")

    async def _require_room(self, file: File, added: int) -> None:
        """Raise TooMany unless a colony that ever `added` so many versions may have one more.

        Counting is slow: it is done only if there were too many without those that were removed
        since the last count. The sequence number counts the additions by all daemons.
        """
        colony, limit = file.colonyname, self.quotas.limits.colony_files
        gone = self._gone.get(colony, 0)
        if gone > added:
            del self._gone[colony]  # it is another colony of that name
            gone = 0
        if not 0 < limit <= added - gone:
            return
        count = await self.client.count(store.by_id(colony, ""))
        if await self.get(colony, file.fileid) is None:
            self.quotas.require("colony_files", f"colony {colony!r}", count, "versions of files")
        self._gone[colony] = added - count

    def _kept(self, file: File, held: Held | None) -> bool:
        """Return whether the bytes of a file are kept; if they are here, begin their grace anew."""
        if held is None or held.value.size != file.size:
            return False
        if self.blobs is None or held.value.holder != self.blobs.holder:
            return True
        return self.blobs.touch(file.checksum)

    async def _require_colony(self, colony: str) -> None:
        if await self.client.get(keys.colony(colony)) is None:
            raise NotFound(f"colony {colony} is not hosted here")

    async def remove(self, colony: str, fileid: str) -> None:
        """Remove one version, if it exists."""
        async with self._locks[colony]:
            for _ in range(_TRIES):
                file = await self.get(colony, fileid)
                if file is None or await self._remove(colony, [file]):
                    return
        raise Conflict("fileid: others change the files of this colony too fast; try again")

    async def remove_all(self, colony: str, label: str, name: str) -> None:
        """Remove all versions of one file, the oldest first: the newest is shown to the end."""
        async with self._locks[colony]:
            for _ in range(_TRIES):
                prefix, numbers = store.versions(colony, label, name), list[str]()
                async with aclosing(below(self.client, prefix, keys_only=True)) as pages:
                    async for page in pages:
                        numbers += [kv.key[len(prefix) :] for kv in page]
                if await self._remove_versions(colony, prefix, numbers):
                    return
        raise Conflict("name: others change the files of this colony too fast; try again")

    async def _remove_versions(self, colony: str, prefix: str, numbers: list[str]) -> bool:
        """Remove the versions with these numbers in their keys, the last ones first; return False
        after a lost race.
        """
        while some := [prefix + number for number in numbers[-_AT_ONCE:]]:
            victims = [unpack(kv.value, File) for kv in await whole(values(self.client, some))]
            if not victims or not await self._remove(colony, victims):
                return False
            del numbers[-_AT_ONCE:]
        return True

    async def _remove(self, colony: str, victims: Sequence[File]) -> bool:
        """Remove versions of one file in one transaction; return False after a lost race."""
        first = victims[0]
        ours = sorted({v.checksum for v in victims if v.ref.protocol == "colonyd"})
        known, held = await self._read(colony, first.label, first.name, ours)
        # Read after the sequence: a later change fails the comparison with it.
        pointers = [Get(store.by_id(colony, victim.fileid)) for victim in victims]
        if not all((await self.client.commit(Txn([], pointers))).responses):
            return False
        newest = known.newest
        gone = {victim.fileid for victim in victims}
        if newest is not None and newest.fileid in gone:
            # One more than leave: if any version stays, the newest of those is among them.
            top = await self.newest(colony, first.label, first.name, len(victims) + 1)
            left = next((file for file in top if file.fileid not in gone), None)
            newest = store.newest_of(left) if left else None
        txn = store.remove(victims, known, newest, held, self.now())
        return (await self.client.commit(txn)).succeeded

    async def hold(self, colony: str, checksum: str, size: int) -> None:
        """Note that complete bytes are here for a colony, or renew their grace."""
        assert self.blobs is not None
        key = store.holding(colony, checksum)
        holder, where = self.blobs.holder, (socket.gethostname(), self.serving.port)
        self.blobs.touch(checksum)

        def held(there: Holding | None) -> Holding:
            return Holding(size, holder, *where, there.refs if there else 0, self.now())

        hosted = [Present(keys.colony(colony))]
        try:
            await update(
                self.client,
                key,
                Holding,
                held,
                what="checksum: the record of its bytes",
                compare=hosted,
            )
        except Unmet:
            raise NotFound(f"colony {colony} is not hosted here") from None

    async def holding(self, colony: str, checksum: str) -> Holding | None:
        """Return the holding of these bytes for a colony, or None."""
        found = await self.client.get(store.holding(colony, checksum))
        return unpack(found.value, Holding) if found else None

    # -- snapshots -----------------------------------------------------------------------

    async def create_snapshot(
        self, colony: str, label: str, name: str, snapshotid: str = ""
    ) -> Snapshot:
        """Store the newest versions below a label as they are at one revision of the store.

        Raises Conflict when the name is taken, Invalid for too many files.
        """
        tree = store.tree(colony, label)
        if (many := await self.client.count(tree)) > MAX_SNAPSHOT:
            raise Invalid(f"label: {many} files; a snapshot holds at most {MAX_SNAPSHOT}")
        found, _ = await self.client.range_all(tree, page=5000)
        ids = b"".join(bytes.fromhex(unpack(kv.value, Newest).fileid) for kv in found)
        new = Snapshot(snapshotid or new_id(), colony, label, name, ids, self.now())
        count = await self.client.count(store.snapshots(colony))
        try:
            self.quotas.require("colony_snapshots", f"colony {colony!r}", count, "snapshots")
        except TooMany:
            # A repeat of a request that was served is answered all the same.
            if (there := await self.snapshot(colony, new.snapshotid)) is None:
                raise
            return there
        if (await self.client.commit(store.add_snapshot(new))).succeeded:
            return new
        await self._require_colony(colony)
        there = await self.snapshot_named(colony, name)
        if there is not None and there.snapshotid == snapshotid:
            return there
        raise Conflict(f"name: there is a snapshot called {name[:80]!r}; remove it first")

    async def snapshot(self, colony: str, snapshotid: str) -> Snapshot | None:
        """Return the snapshot with this id, or None."""
        if "/" in snapshotid:
            return None
        found = await self.client.get(store.snapshot(colony, snapshotid))
        return unpack(found.value, Snapshot) if found else None

    async def snapshot_named(self, colony: str, name: str) -> Snapshot | None:
        """Return the snapshot with this name, or None."""
        if "/" in name:
            return None
        found = await self.client.get(store.snapshot_name(colony, name))
        return await self.snapshot(colony, found.value.decode()) if found else None

    async def snapshots(self, colony: str) -> Pages[Snapshot]:
        """Return all snapshots, newest first, in pages: each may have many ids."""
        added: list[tuple[int, str]] = []
        async for page in below(self.client, store.snapshots(colony)):
            added += [(-unpack(kv.value, Snapshot).added, kv.key) for kv in page]
        found = values(self.client, [key for _, key in sorted(added)], first=1)
        async with aclosing(found) as pages:
            async for page in pages:
                yield [unpack(kv.value, Snapshot) for kv in page]

    async def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove one snapshot; the files stay."""
        colony = snapshot.colonyname
        name = Delete(store.snapshot_name(colony, snapshot.name))
        await self.client.commit(
            Txn([], [name, Delete(store.snapshot(colony, snapshot.snapshotid))])
        )

    async def remove_snapshots(self, colony: str) -> None:
        """Remove all snapshots of a colony."""
        prefixes = store.snapshots(colony), store.snapshot_names(colony)
        await self.client.commit(Txn([], [DeletePrefix(prefix) for prefix in prefixes]))

    # -- bytes that nobody needs ---------------------------------------------------------

    async def sweep(self) -> tuple[int, int]:
        """Remove bytes to which no version has referred for the grace period; return files and
        bytes removed.

        The holding goes first, in a transaction that fails after a new reference. A crash after it
        leaves bytes without a holding, which the next sweep removes.
        """
        if self.blobs is None or trio.current_time() < self._quiet:
            return 0, 0
        now = self.now()
        before = now - int(self.grace * 1e9)
        needed: set[str] = set()
        async with aclosing(below(self.client, store.BYTES)) as pages:
            async for page in pages:
                for kv in page:
                    _, checksum = store.parse_holding(kv.key)
                    value = unpack(kv.value, Holding)
                    if value.holder != self.blobs.holder:
                        continue
                    unchanged = ModRevision(kv.key, kv.mod_revision)
                    if not value.refs and value.since > now:
                        # The last reference went by a clock that was ahead: the grace begins now.
                        fresh = msgspec.structs.replace(value, since=now)
                        await self.client.commit(Txn([unchanged], [Put(kv.key, pack(fresh))]))
                    elif not value.refs and value.since < before:
                        txn = Txn([unchanged], [Delete(kv.key)])
                        if (await self.client.commit(txn)).succeeded:
                            continue
                    needed.add(checksum)
        return await self.blobs.sweep(needed, self.grace)

    async def clock_set(self, by: int, before: int) -> None:
        """Begin every grace anew: a step of the clock must not make young bytes old."""
        self._quiet = trio.current_time() + self.grace

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep now and then, until cancelled. Each daemon sweeps its own directory."""
        task_status.started()
        while True:
            try:
                files, size = await self.sweep()
                if files:
                    log.info("files swept", files=files, bytes=size)
            except (EtcdError, OSError) as error:
                log.warning("sweep waits", error=error)
            await trio.sleep(max(0.5, min(_SWEEP, self.grace / 2)))


def _label(colony: str, kv: KeyValue) -> Label:
    return Label(store.label_of(colony, kv.key), unpack(kv.value, int))


def snapshot_ids(snapshot: Snapshot) -> list[str]:
    """Return the ids of the versions in a snapshot."""
    ids = snapshot.fileids.hex()
    return [ids[at : at + 64] for at in range(0, len(ids), 64)]
