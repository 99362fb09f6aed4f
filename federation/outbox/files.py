"""Files of a forward: the origin lists and serves them, the executor's colony fetches them.

The origin lists the files in the submission. Before the executor's colony accepts, it fetches the
bytes over the authenticated connection, checks them, and stores them in its own blob store: so an
executor finds them at its own colony. Until then only bytes are stored, and a repeat of the
submission goes on where the last fetch stopped. A fetch is valid for the bytes that the submission
names, for its receiver, and until there is an outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, RpcError
from federation.forward import attachments as manifest
from federation.forward.machine import Forward
from federation.limits.accounts import Pages, PeerQuotas
from federation.limits.decoding import load_large
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.transport.connection import PeerConnection
from federation.transport.endpoint import Endpoint
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.envelope import Kind, VerifiedMessage, inspect
from federation.wire.messages import Carried, Chunk, Fetch, Submit, load
from federation.wire.refusals import Refusal
from node.etcd.pages import whole
from node.files.blobs import BlobStore
from node.files.catalog import Files
from node.files.tickets import Scope
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.types import SECOND, Process
from node.store import files as store
from node.store.files import File, Newest, Reference

_CHUNK = 2**20
_PATIENCE = 8.0  # seconds that the sender of a submission waits for an answer
_STALE = 3600 * SECOND  # after which files without their process are removed

log = get_logger("depot")


@dataclass
class FileTransfer:
    """Carries files of forwards. Without `files`, those of the home colony, it carries none.

    `connections` lead to trusted peers. `counters` count bytes `fetched` and `served`, and refusals
    (`refused`).
    """

    context: Context
    outbox: Outbox
    peer_quotas: PeerQuotas
    connections: Mapping[str, PeerConnection]
    files: Files | None = None
    counters: Counter[str] = field(default_factory=Counter)

    # -- at the origin ---------------------------------------------------------------------

    async def gather(self, process: Process) -> list[Carried] | None:
        """Return the files that a process of ours needs, as they are now; None without mounts.

        Raises Invalid for too many.
        """
        fs = process.spec.fs
        if self.files is None or not manifest.needs_files(fs):
            return None
        found: list[Carried] = []
        for label in dict.fromkeys(manifest.dirs(fs)):
            items, _ = await self.context.client.range_all(store.tree(self.context.home, label))
            ids = [unpack(item.value, Newest).fileid for item in items]
            found += await self._carry("d", ids)
        for place, snapshotid in manifest.snapshots(fs).items():
            snapshot = await self.files.snapshot(self.context.home, snapshotid)
            if snapshot is None:
                raise Invalid(f"spec.fs.snapshots[{place}].snapshotid: no such snapshot")
            data = snapshot.fileids
            ids = [data[at : at + 32].hex() for at in range(0, len(data), 32)]
            found += await self._carry(str(place), ids)
        unique = {(each.mount, each.label, each.name): each for each in found}
        files = list(unique.values())
        if manifest.check(files) > manifest.MAX_BYTES:
            raise Invalid(f"spec.fs: at most {manifest.MAX_BYTES} bytes of files are forwarded")
        return files

    async def _carry(self, mount: str, ids: Sequence[str]) -> list[Carried]:
        assert self.files is not None
        found: list[Carried] = []
        for fileid in ids:
            file = await self.files.get(self.context.home, fileid)
            if file is None:
                continue  # removed meanwhile
            ref = b"" if file.ref.protocol == "colonyd" else msgspec.json.encode(file.ref)
            found.append(Carried(mount, file.label, file.name, file.size, file.checksum, ref))
        return found

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which peers fetch bytes of files."""
        return [Endpoint("/v1/files", Kind.FETCH, self.serve)]

    async def serve(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Return bytes of a file to the peer that a process of ours was sent to.

        Refused: unknown_process, unknown_file, file_gone.
        """
        fetch = load(opened.payload, Fetch)
        forward = await self._sent(opened.issuer, fetch)
        if forward is None:
            raise Refusal(404, "unknown_process", "no such process was sent to your colony")
        payload = inspect(forward.envelope, limit=len(forward.envelope)).payload
        submit = await load_large(payload, Submit)
        before: Submit | None = None
        while submit.inner:
            payload = inspect(submit.inner, limit=len(submit.inner)).payload
            submit = await load_large(payload, Submit)
            before = before or submit
        if not any(each.checksum == fetch.checksum and not each.ref for each in submit.files or ()):
            raise Refusal(404, "unknown_file", "the process came without a file with this checksum")
        if before is not None:
            chunk = await self._pass_on(fetch, before)
        else:
            chunk = await self._read(fetch)
        self.counters["served"] += len(chunk)
        answer = Chunk(fetch.checksum, fetch.offset, chunk)
        return self.context.signer.seal(Kind.CHUNK, opened.issuer, answer)

    async def _sent(self, peerid: str, fetch: Fetch) -> Forward | None:
        """Return the forward of a fetch, which another daemon of this colony may have sent."""
        entry = self.outbox.entries.get(fetch.pid)
        if entry is not None and _is_for(entry.forward, peerid, fetch):
            return entry.forward
        found = await self.context.client.get(self.context.keys.forward(peerid, fetch.pid))
        forward = unpack(found.value, Forward) if found is not None else None
        return forward if forward is not None and _is_for(forward, peerid, fetch) else None

    async def _read(self, fetch: Fetch) -> bytes:
        blobs = self.files.blobs if self.files is not None else None
        held = self.files and await self.files.holding(self.context.home, fetch.checksum)
        if blobs is None or not held or blobs.size_of(fetch.checksum) is None:
            raise Refusal(404, "file_gone", "the bytes are not here, or not any more")
        return await trio.to_thread.run_sync(_part, blobs.file(fetch.checksum), fetch.offset)

    async def _pass_on(self, fetch: Fetch, before: Submit) -> bytes:
        """Return bytes fetched from the colony that sent us the process: a relay stores none."""
        known = await self.context.processes.recall(self.context.home, fetch.pid)
        connection = self.connections.get(known[0].origin) if known is not None else None
        if connection is None:
            raise Refusal(404, "file_gone", "the colony that has the bytes is not known here")
        try:
            return await _ask(connection, before.pid, before.attempt, fetch.checksum, fetch.offset)
        except TransportError as error:
            if isinstance(error, RemoteRefusal) and error.final:
                raise Refusal(404, "file_gone", error.message) from None
            raise Refusal(503, "busy", str(error)[:200], again=2) from None

    # -- at the executor's colony ------------------------------------------------------------

    async def bring(
        self, opened: VerifiedMessage, submit: Submit, first: Submit, process: Process
    ) -> None:
        """Fetch and store all files of a submission, under labels where its process finds them.

        Refused: no_files, bad_files, files_too_large, files_quota, file_checksum, file_gone; and
        for now, files_pending.
        """
        if self.files is None or self.files.blobs is None:
            raise Refusal(409, "no_files", "this colony keeps no files")
        files = first.files or []
        try:
            total = manifest.check(files)
            pid = process.processid
            snapshots = list(manifest.snapshots(process.spec.fs))
            fs = manifest.rewritten(process.spec.fs, pid)
        except RpcError as error:
            raise Refusal(400, "bad_files", error.message) from None
        if total > manifest.MAX_BYTES:
            message = f"{total} bytes of files; at most {manifest.MAX_BYTES} here"
            raise Refusal(413, "files_too_large", message)
        missing = [each for each in files if not each.ref]
        with trio.move_on_after(_PATIENCE) as patience:
            for each in {each.checksum: each for each in missing}.values():
                await self._have(opened.issuer, submit, each, self.files, self.files.blobs)
        if patience.cancelled_caught:
            message = f"{total} bytes of files are on their way"
            raise Refusal(429, "files_pending", message, again=1)
        try:
            await self._place(files, process, snapshots, self.files)
        except RpcError as error:
            raise Refusal(409, "bad_files", error.message) from None
        process.spec.fs = fs

    async def _have(
        self, issuer: str, submit: Submit, each: Carried, files: Files, blobs: BlobStore
    ) -> None:
        """Store the bytes of one file, fetched from the sender of the submission itself.

        A colony that only knows the checksum has no right to bytes that another colony gave us.
        """
        key = self.context.keys.fetched(issuer, each.checksum)
        known = await self.context.client.get(key)
        if known is None and (full := self.peer_quotas.leave(issuer, len(key))) is not None:
            raise full
        if known is None or blobs.size_of(each.checksum) != each.size:
            await self._fetch(issuer, submit, each, blobs)
            await self.context.client.put(key, b"")
        await files.hold(self.context.home, each.checksum, each.size)

    async def _fetch(self, issuer: str, submit: Submit, each: Carried, blobs: BlobStore) -> None:
        connection = self.connections.get(issuer)
        if connection is None:
            raise Refusal(429, "files_pending", "no way to your colony yet", again=2)
        scope = Scope("PUT", self.context.home, each.checksum, each.size, 0, f"colony/{issuer}")
        try:
            while True:
                offset = blobs.offset(scope)
                data = b""
                if offset < each.size:
                    data = await _ask(connection, submit.pid, submit.attempt, each.checksum, offset)
                    if not data:
                        raise Refusal(409, "file_checksum", f"{each.name}: fewer bytes than told")
                try:
                    reached = await blobs.write(scope, offset, data)
                except Invalid as error:
                    message = f"{each.name}: {error.message}"
                    raise Refusal(409, "file_checksum", message) from None
                except RpcError as error:
                    if blobs.offset(scope) != offset:
                        continue  # the same file came for another process meanwhile
                    if isinstance(error, Conflict):
                        raise Refusal(413, "files_quota", error.message) from None
                    raise
                self.counters["fetched"] += len(data)
                if reached.complete:
                    return
        except TransportError as error:
            if error.final:
                raise Refusal(409, "file_gone", f"{each.name}: {error}") from None
            message = f"your colony can't be asked for {each.name}: {error}"
            raise Refusal(429, "files_pending", message[:300], again=2) from None

    async def _place(
        self, carried: Sequence[Carried], process: Process, snapshots: Sequence[int], files: Files
    ) -> None:
        """Store versions and snapshots under the process's own label. A repeat changes nothing."""
        pid, home = process.processid, self.context.home
        for each in carried:
            ref = Reference("colonyd")
            if each.ref:
                try:
                    ref = msgspec.json.decode(each.ref, type=Reference)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    raise Invalid(f"files: the reference of {each.name[:80]!r}") from None
                if ref.protocol == "colonyd":
                    raise Invalid(f"files: the reference of {each.name[:80]!r}")
            label = manifest.label_here(pid, each.mount, each.label)
            fileid = manifest.file_id(pid, each)
            if await files.get(home, fileid) is not None:
                continue
            await files.add(
                File(fileid, home, label, each.name, each.size, each.checksum, "SHA256", ref)
            )
        for place in snapshots:
            label = manifest.label_here(pid, str(place), "/")
            name = f"forwarded-{pid[:16]}-{place}"
            await files.create_snapshot(home, label, name, manifest.snapshot_id(pid, place))

    async def sweep(self) -> None:
        """Remove the files of processes that no longer exist here."""
        files = self.files
        if files is None:
            return
        home, gone = self.context.home, dict[str, bool]()
        await self._forget_fetched(files)
        for label in await whole(files.labels(home, f"{manifest.ROOT}/")):
            pid = label.name.split("/")[2]
            if pid not in gone:
                gone[pid] = await self.context.processes.load(home, pid) is None
            if not gone[pid]:
                continue
            for listed in await whole(files.listing(home, label.name)):
                newest = await files.newest(home, label.name, listed.name)
                if newest and newest[0].added + _STALE < files.now():
                    await files.remove_all(home, label.name, listed.name)
        async with aclosing(files.snapshots(home)) as pages:
            async for page in pages:
                for snapshot in page:
                    own = snapshot.label.startswith(manifest.ROOT)
                    pid = snapshot.label.split("/")[2] if own else ""
                    if pid and gone.get(pid) and snapshot.added + _STALE < files.now():
                        await files.remove_snapshot(snapshot)

    async def _forget_fetched(self, files: Files) -> None:
        """Forget which colony gave us bytes that are no longer here."""
        if files.blobs is None:
            return
        async for items in Pages(self.context.client, self.context.keys.fetched_all):
            for item in items:
                if files.blobs.size_of(item.key.rpartition("/")[2]) is None:
                    await self.context.client.delete(item.key)


def _is_for(forward: Forward, peerid: str, fetch: Fetch) -> bool:
    sent = bool(forward.envelope) and forward.attempt == fetch.attempt
    return sent and forward.peer == peerid


async def _ask(
    connection: PeerConnection, pid: str, attempt: int, checksum: str, offset: int
) -> bytes:
    """Return some bytes of a file from the other end. Raises TransportError."""
    body = connection.seal(Kind.FETCH, Fetch(pid, attempt, checksum, offset))
    opened, _ = await connection.post("/v1/files", body, Kind.CHUNK)
    chunk = load(opened.payload, Chunk)
    if (chunk.checksum, chunk.offset) != (checksum, offset):
        return b""
    return chunk.data


def _part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_CHUNK)
