"""`colony file`: put files under labels, get them back, keep a directory in step, snapshots.

The bytes move in `colonyd.client.files` and `cli.files.s3`; the commands of snapshots are in
`cli.files.snapshot`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.output import print_done, print_json, print_rows, print_table, print_value, when
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_line, print_note
from cli.files.session import FileSession, address, checked_item, file_session
from cli.files.snapshot import snapshot

if TYPE_CHECKING:
    from cli.files.syncplan import DirectoryScan, FileKey, SyncPlan

file = colony_group(
    "file",
    "Files of the colony, by label and name. FILE is LABEL/NAME or an id. The bytes are kept by "
    "the daemon, or on an S3 server when AWS_S3_ENDPOINT, _ACCESSKEY, _SECRETKEY and _BUCKET "
    "are set.",
    "colony file put photo.png --label /pictures",
    "colony file get /pictures/photo.png",
    aliases={"labels": ("label", "ls")},
)


def amount(size: object) -> str:
    """Return a number of bytes for people."""
    number = float(size) if isinstance(size, int | float) else 0.0
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def full_name(row: dict[str, Any]) -> str:
    """Return LABEL/NAME of a version."""
    return f"{str(row.get('label', '')).rstrip('/')}/{row.get('name')}"


@colony_command("put", "colony file put photo.png --label /pictures")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--label", required=True, help="Where to put it, like /pictures/2026.")
@click.option("--name", default=None, help="Name there [the file's].")
def put(session: Session, path: Path, label: str, name: str | None) -> None:
    """Upload PATH as the newest version of a file."""
    from cli.core.progress import meter
    from colonyd.client.files import digest

    item = checked_item(label, name or path.name)
    if not path.is_file():
        if not path.exists():
            raise Failure(f"{path}: no such file", code=NOT_FOUND)
        step = "`colony file sync` takes a whole directory" if path.is_dir() else ""
        raise Failure(f"{path}: no regular file", code=USAGE, next_step=step)

    async def work() -> dict[str, Any]:
        import trio

        async with file_session(session) as ours:
            content = await trio.to_thread.run_sync(digest, path)
            with meter(item.name, content.size) as progress:
                return await ours.put(path, item, content, progress)

    added = session.run(work)
    line = f"{full_name(added)}  version {added['sequencenr']}  {amount(added['size'])}"
    print_done(session, added, line)


@colony_command(
    "get",
    "colony file get /pictures/photo.png",
    "colony file get /pictures/photo.png --to old.png --force",
)
@click.argument("target", metavar="FILE")
@click.option("--to", "to", type=click.Path(path_type=Path), default=Path("."), help="[.]")
@click.option("--force", is_flag=True, help="Replace what is there.")
def get(session: Session, target: str, to: Path, force: bool) -> None:
    """Download a file; it appears only when whole and checked."""
    from cli.core.progress import meter

    async def work() -> tuple[dict[str, Any], Path]:
        async with file_session(session) as ours:
            version = await ours.newest(target)
            item = checked_item(version["label"], version["name"])
            path = _target(to, item.name, force)
            with meter(item.name, version["size"]) as progress:
                await ours.get(version, path, progress, lambda path: force)
            return version, path

    version, path = session.run(work)
    done = {**version, "path": str(path)}
    print_done(session, done, f"{path}  {amount(version['size'])}")


def _target(to: Path, name: str, force: bool) -> Path:
    path = to / name if to.is_dir() else to
    if path.is_dir():
        raise Failure(f"{path} is a directory", next_step="another place with --to")
    if os.path.lexists(path) and not force:
        raise Failure(f"{path} exists", next_step="another place with --to, or --force")
    return path


@colony_command("ls", "colony file ls /pictures")
@click.argument("label", default="/")
def ls(session: Session, label: str) -> None:
    """List the files directly under LABEL, newest versions only."""
    rows = session.call("getfilesmsg", {"colonyname": session.colony(), "label": label}) or []
    print_rows(
        session,
        rows,
        ["NAME", "SIZE", "SHA-256"],
        lambda row: [row["name"], amount(row["size"]), str(row["checksum"])[:12]],
        "no files under this label; `colony file label ls` lists labels",
    )


@colony_command("ls", "colony file label ls", "colony file label ls /pictures")
@click.argument("label", metavar="[LABEL]", default="")
def label_ls(session: Session, label: str) -> None:
    """List labels and how many versions of files they have: all, or those below LABEL."""
    fields = {"colonyname": session.colony(), "name": label, "exact": bool(label)}
    rows = session.call("getfilelabelsmsg", fields) or []
    print_rows(
        session,
        rows,
        ["LABEL", "VERSIONS"],
        lambda row: [row["name"], row["files"]],
        "no labels; put a file with `colony file put`",
    )


label = colony_group(
    "label", "Labels, under which files lie, like directories.", "colony file label ls"
)
label.add_command(label_ls)


@colony_command("show", "colony file show /pictures/photo.png")
@click.argument("target", metavar="FILE")
def show(session: Session, target: str) -> None:
    """Show a file's versions, the newest first."""
    fields = {"colonyname": session.colony(), **address(target), "latest": False}
    versions: list[dict[str, Any]] = session.call("getfilemsg", fields)
    if session.as_json:
        print_json(versions)
        return
    newest = versions[0]
    place = newest["ref"]["s3object"]
    where = f"{newest['ref']['protocol']}://{place['server']}:{place['port']}"
    print_value(
        session,
        newest,
        [
            ("file", full_name(newest)),
            ("sha-256", newest["checksum"]),
            ("kept at", f"{where}/{place['bucket']}/{place['object']}".replace("//" * 2, "//")),
        ],
    )
    print_table(
        ["VERSION", "SIZE", "ADDED", "SHA-256", "ID"],
        [
            [v["sequencenr"], amount(v["size"]), when(v["added"]), v["checksum"][:12], v["fileid"]]
            for v in versions
        ],
        "no versions",
    )


@colony_command("rm", "colony file rm /pictures/photo.png")
@click.argument("target", metavar="FILE")
def rm(session: Session, target: str) -> None:
    """Remove all versions of a file, or the one with an id. Bytes on an S3 server stay there."""
    fields = {"colonyname": session.colony(), **address(target)}

    async def work() -> None:
        async with file_session(session) as ours:
            await ours.newest(target)  # 404 for what is not there: the removal itself is silent
            await ours.call("removefilemsg", fields)

    session.run(work)
    print_done(session, {"removed": target}, f"removed {target}")


@colony_command(
    "sync",
    "colony file sync ./pictures --label /pictures --dry",
    "colony file sync ./pictures --keep-local",
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--label", default=None, help="Label [that of the last sync of this directory].")
@click.option("--keep-local", "keep", flag_value="local", help="On conflict upload.")
@click.option("--keep-remote", "keep", flag_value="remote", help="On conflict download.")
@click.option("--dry", is_flag=True, help="Only show what would be done.")
def sync(session: Session, directory: Path, label: str | None, keep: str | None, dry: bool) -> None:
    """Upload what the colony lacks and download what DIRECTORY lacks. Nothing is deleted.

    A local file is replaced only with --keep-remote, and is then listed as `replace`. A clash is a
    file of the colony that has no place in DIRECTORY: a link or directory is there, or another file
    of the colony. With --keep-local or --keep-remote all but the clashes is done.
    """
    from cli.files.syncplan import plan, read_marker, settle, write_marker

    label = label or read_marker(directory)
    if label is None:
        raise Failure(f"{directory} was not synced before", code=USAGE, next_step="give --label")
    root = checked_item(label, "x").label
    if directory.exists() and not directory.is_dir():
        raise Failure(f"{directory}: not a directory", code=USAGE)

    async def work() -> dict[str, Any]:
        async with file_session(session) as ours:
            local, remote = await _compare(ours, directory, root)
            checksums = {item: content.checksum for item, content in local.files.items()}
            made = plan(checksums, {i: str(row["checksum"]) for i, row in remote.items()}, keep)
            settle(made, local, root)
            if not dry:
                _refuse_conflicts(made, root, keep)
                await _carry_out(ours, directory, root, made, local)
                write_marker(directory, root)
            return {
                "label": root,
                **{
                    name: [item.below(root) for item in getattr(made, name)]
                    for name in ("upload", "download", "replace", "conflicts")
                },
                "clashes": {item.below(root): why for item, why in made.clashes.items()},
                "same": made.same,
                "skipped": local.skipped,
            }

    done = session.run(work)
    for path in done["skipped"]:
        print_note(f"skipped {path}: a link, or a name that no label can hold")
    if session.as_json:
        print_json(done)
    else:
        words = {"upload": "upload", "download": "download", "replace": "replace"}
        for key, word in (words | {"conflicts": "conflict"}).items():
            for path in done[key]:
                print_line(f"{word}  {path}")
        for path, why in done["clashes"].items():
            print_line(f"clash  {path}: {why}")
        print_note(f"{done['same']} files are the same on both sides")
    if done["clashes"] and not dry:
        raise Failure(f"{len(done['clashes'])} files were left alone", next_step=_CLASH)


_CLASH = "move away what is in the way here, or `colony file rm` it in the colony"


def _refuse_conflicts(made: SyncPlan, root: str, keep: str | None) -> None:
    """Raise Failure, with names, for conflicts that the user has to decide first."""
    if made.conflicts:
        listed = ", ".join(item.below(root) for item in made.conflicts[:5])
        raise Failure(
            f"{len(made.conflicts)} files differ on both sides: {listed}",
            next_step="choose with --keep-local or --keep-remote; nothing was changed",
        )
    if made.clashes and keep is None:
        listed = "; ".join(f"{i.below(root)}: {why}" for i, why in list(made.clashes.items())[:5])
        raise Failure(
            f"{len(made.clashes)} files clash: {listed}",
            next_step=f"{_CLASH}; --keep-local does all the rest; nothing was changed",
        )


async def _compare(
    ours: FileSession, directory: Path, root: str
) -> tuple[DirectoryScan, dict[FileKey, dict[str, Any]]]:
    """Return what a directory and the colony have under a label."""
    import trio

    from cli.files.syncplan import scan

    local = await trio.to_thread.run_sync(scan, directory, root)
    return local, await ours.below(root)


async def _carry_out(
    ours: FileSession, directory: Path, root: str, made: SyncPlan, local: DirectoryScan
) -> None:
    from cli.core.progress import meter

    total = sum(local.files[item].size for item in made.upload)
    with meter("upload", total) as progress:
        for item in made.upload:
            await ours.put(directory / item.below(root), item, local.files[item], progress)

    async def newest(item: FileKey) -> dict[str, Any]:
        return await ours.newest(f"{item.label.rstrip('/')}/{item.name}")

    await ours.carry_out(directory, root, made, local, newest)


for _command in (put, get, ls, show, rm, sync, label, snapshot):
    file.add_command(_command)
