"""The session of commands about files: calls, the places of bytes, and the spelling of names.

The commands are in `cli.files.file` and `cli.files.snapshot`, the transfers in
`colonyd.client.files` and `cli.files.s3`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.core.errors import USAGE, Failure
from cli.core.session import Session

if TYPE_CHECKING:
    from cli.core.progress import Meter
    from cli.files.syncplan import DirectoryScan, FileKey, SyncPlan
    from colonyd.client.files import FileDigest, Store
    from colonyd.keys import PrivateKey
    from colonyd.rpc import RpcClient

_ID = 64


@dataclass
class FileSession:
    """Calls about files and the places of their bytes, for one run of a command."""

    session: Session
    client: RpcClient
    colony: str
    key: PrivateKey
    daemon: Store
    s3: Store | None

    async def call(self, payloadtype: str, fields: dict[str, Any], attempts: int = 3) -> Any:
        """Make one call in the colony."""
        fields = {"colonyname": self.colony, **fields}
        return await self.client.call(payloadtype, fields, self.key, 30.0, attempts=attempts)

    async def newest(self, target: str) -> dict[str, Any]:
        """Return the newest version of LABEL/NAME, or the version with an id. Raises NotFound."""
        found = await self.call("getfilemsg", {**address(target), "latest": True})
        return dict(found[0])

    async def below(self, root: str) -> dict[FileKey, dict[str, Any]]:
        """Return the newest versions of all files under a label and those below it, as listed."""
        found: dict[FileKey, dict[str, Any]] = {}
        for label in await self.call("getfilelabelsmsg", {"name": root, "exact": True}) or []:
            for row in await self.call("getfilesmsg", {"label": label["name"]}):
                # Names of the server become paths here.
                found[checked_item(label["name"], row["name"])] = row
        return found

    async def snapshot(
        self, fields: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[FileKey, dict[str, Any]], list[str]]:
        """Return a snapshot, the versions of its files, and the ids of files that are gone."""
        from colonyd.errors import NotFound

        versions: dict[FileKey, dict[str, Any]] = {}
        lost = []
        found = dict(await self.call("getsnapshotmsg", fields))
        for fileid in found["fileids"]:
            try:
                version = await self.newest(fileid)
            except NotFound:
                lost.append(fileid)
                continue
            versions[checked_item(version["label"], version["name"])] = version
        return found, versions, lost

    def keeper(self, version: dict[str, Any]) -> Store:
        """Return the place of the bytes of a version. Raises Failure without keys for it."""
        if version["ref"]["protocol"] == "colonyd":
            return self.daemon
        if self.s3 is None:
            place = version["ref"]["s3object"]
            raise Failure(
                f"{version['name']} is on the S3 server {place['server']}",
                code=USAGE,
                next_step="set AWS_S3_ENDPOINT, AWS_S3_ACCESSKEY, AWS_S3_SECRETKEY, AWS_S3_BUCKET",
            )
        return self.s3

    async def put(
        self, path: Path, item: FileKey, content: FileDigest, progress: Meter
    ) -> dict[str, Any]:
        """Upload a file and add it as the newest version."""
        store = self.s3 or self.daemon
        if content.size or store is self.daemon:
            ref = await store.put(path, content, progress)
        else:
            # As upstream: no bytes are stored for an empty file.
            ref = {"protocol": "s3", "s3object": {}}
        new = {
            "colonyname": self.colony,
            "label": item.label,
            "name": item.name,
            "size": content.size,
            "checksum": content.checksum,
            "checksumalg": "SHA256",
            "ref": ref,
        }
        return dict(await self.call("addfilemsg", {"file": new}))

    async def get(
        self,
        version: dict[str, Any],
        target: Path,
        progress: Meter,
        may_replace: Callable[[Path], bool] = lambda path: False,
    ) -> None:
        """Download a version to a path; an existing file stays unless `may_replace` allows it."""
        from colonyd.client.files import fetch

        await fetch(self.keeper(version), version, target, progress, may_replace)

    async def carry_out(
        self,
        directory: Path,
        root: str,
        made: SyncPlan,
        local: DirectoryScan,
        version: Callable[[FileKey], Awaitable[dict[str, Any]]],
    ) -> None:
        """Do the downloads of a plan; a file that loses its place meanwhile joins the clashes."""
        from cli.core.progress import meter
        from colonyd.client.files import TargetExists, digest

        def unchanged(path: Path) -> bool:
            # Changed since it was compared: the plan does not cover it.
            return not path.is_symlink() and path.is_file() and digest(path) == before

        for item in sorted([*made.download, *made.replace]):
            found = await version(item)
            before = local.files.get(item)
            path = directory / item.below(root)
            try:
                prepare(directory, path)
                with meter(item.name, int(found["size"])) as progress:
                    await self.get(found, path, progress, unchanged)
            except (TargetExists, FileExistsError, NotADirectoryError) as error:
                made.clashes[item] = str(error)


@asynccontextmanager
async def file_session(
    session: Session, key: PrivateKey | None = None
) -> AsyncIterator[FileSession]:
    """Give a file session, signed with `key` or the member's. Raises Failure when the S3 settings
    are incomplete.
    """
    from contextlib import AsyncExitStack

    from cli.files.s3 import S3Settings, S3Store
    from colonyd.client.files import DaemonStore

    colony, key = session.colony(), key or session.member_key()
    settings = S3Settings.from_environ(session.environ)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(session.client())
        daemon = await stack.enter_async_context(DaemonStore(client, colony, key))
        s3 = await stack.enter_async_context(S3Store(settings)) if settings else None
        yield FileSession(session, client, colony, key, daemon, s3)


def address(target: str) -> dict[str, str]:
    """Return the fields of a call that name a file: an id, or LABEL/NAME."""
    if len(target) == _ID and "/" not in target:
        return {"fileid": target}
    label, _, name = target.rpartition("/")
    if not name:
        raise Failure(f"{target!r}: write it as LABEL/NAME", code=USAGE)
    return {"label": label or "/", "name": name}


def checked_item(label: str, name: str) -> FileKey:
    """Return label and name in their one spelling. Raises Failure (usage)."""
    from cli.files.syncplan import FileKey
    from colonyd.errors import RpcError
    from node.files.labels import check_name, normalise_label

    try:
        return FileKey(normalise_label(label, "--label"), check_name(name, "--name"))
    except RpcError as error:
        raise Failure(error.message, code=USAGE) from None


def require_inside(directory: Path, path: Path) -> None:
    """Raise Failure when a link on the way leads a download out of its directory."""
    if not path.parent.resolve().is_relative_to(directory.resolve()):
        raise Failure(f"{path}: a link leads out of {directory}")


def prepare(directory: Path, path: Path) -> None:
    """Make the directories on the way to `path`. Raises Failure when they are not inside."""
    # The nearest existing directory may be a link; new ones below it would lie there, too.
    nearest = next(each for each in path.parents if each.exists() or each == directory)
    require_inside(directory, nearest / "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    require_inside(directory, path)
