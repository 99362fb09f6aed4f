"""`colony file snapshot`: the files below a label as they were at one moment.

Single files are in `cli.files.file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.output import print_done, print_rows, print_value, short, when
from cli.core.session import Session, colony_command, colony_group, confirm

snapshot = colony_group(
    "snapshot",
    "The files below a label as they were at one moment. SNAPSHOT is a name or an id.",
    "colony file snapshot add monday --label /pictures",
    "colony file snapshot get monday --to ./monday",
    aliases={"download": "get", "removeall": ("rm", "--all")},
)


def _fields(session: Session, text: str) -> dict[str, Any]:
    which = "snapshotid" if len(text) == 64 else "name"
    return {"colonyname": session.colony(), which: text}


@colony_command("add", "colony file snapshot add monday --label /pictures")
@click.argument("name")
@click.option("--label", required=True, help="Label whose files, and those below, to keep.")
def add(session: Session, name: str, label: str) -> None:
    """Remember which versions are the newest now."""
    fields = {"colonyname": session.colony(), "label": label, "name": name}
    made = session.call("createsnapshotmsg", fields, timeout=60.0)
    print_done(session, made, f"{made['name']}  {len(made['fileids'])} files of {made['label']}")


@colony_command("ls", "colony file snapshot ls")
def ls(session: Session) -> None:
    """List snapshots, the newest first."""
    fields = {"colonyname": session.colony()}
    print_rows(
        session,
        session.call("getsnapshotsmsg", fields, timeout=60.0) or [],
        ["NAME", "LABEL", "FILES", "ADDED", "ID"],
        lambda row: [
            row["name"],
            row["label"],
            len(row["fileids"]),
            when(row["added"]),
            short(row["snapshotid"]),
        ],
        "no snapshots; make one with `colony file snapshot add`",
    )


@colony_command("show", "colony file snapshot show monday")
@click.argument("name", metavar="SNAPSHOT")
def show(session: Session, name: str) -> None:
    """Show a snapshot; with --json also the ids of its files."""
    found = session.call("getsnapshotmsg", _fields(session, name), timeout=60.0)
    print_value(
        session,
        found,
        [
            ("snapshot", found["name"]),
            ("label", found["label"]),
            ("files", len(found["fileids"])),
            ("added", when(found["added"])),
            ("id", found["snapshotid"]),
        ],
    )


@colony_command("get", "colony file snapshot get monday --to ./monday")
@click.argument("name", metavar="SNAPSHOT")
@click.option("--to", "to", type=click.Path(path_type=Path), required=True, help="A directory.")
@click.option("--force", is_flag=True, help="Replace files there that differ.")
def get(session: Session, name: str, to: Path, force: bool) -> None:
    """Write the files of a snapshot to a directory; what is there with the same bytes stays."""
    from cli.files.session import file_session
    from cli.files.syncplan import FileKey, plan, scan, settle

    if to.exists() and not to.is_dir():
        raise Failure(f"{to}: not a directory", code=USAGE)
    fields = _fields(session, name)

    async def work() -> dict[str, Any]:
        import trio

        async with file_session(session) as ours:
            found, versions, lost = await ours.snapshot(fields)
            label = found["label"]
            local = await trio.to_thread.run_sync(scan, to, label)
            here = {item: kept.checksum for item, kept in local.files.items() if item in versions}
            there = {item: str(version["checksum"]) for item, version in versions.items()}
            made = plan(here, there, "remote" if force else None)
            settle(made, local, label)
            in_the_way = [item.below(label) for item in made.conflicts] + [
                f"{item.below(label)} ({why})" for item, why in made.clashes.items()
            ]
            if in_the_way:
                raise Failure(
                    f"{len(in_the_way)} files of {to} are in the way: {', '.join(in_the_way[:5])}",
                    next_step="an empty directory, or --force to replace files that differ;"
                    " nothing was changed",
                )

            async def version_of(item: FileKey) -> dict[str, Any]:
                return versions[item]

            await ours.carry_out(to, label, made, local, version_of)
            written = len(made.download) + len(made.replace) - len(made.clashes)
            return {"written": written, "files": len(found["fileids"]), "lost": lost}

    done = session.run(work)
    print_done(session, done, f"{to}  {done['written']} of {done['files']} files written")
    if done["lost"]:
        raise Failure(
            f"{len(done['lost'])} versions of the snapshot were removed since",
            code=NOT_FOUND,
            next_step="a snapshot keeps no version alive; take them from another copy",
        )


@colony_command("rm", "colony file snapshot rm monday", "colony file snapshot rm --all --yes")
@click.argument("name", metavar="SNAPSHOT", required=False)
@click.option("--all", "everything", is_flag=True, help="All snapshots of the colony.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def rm(session: Session, name: str | None, everything: bool, yes: bool) -> None:
    """Remove a snapshot; the files stay."""
    if bool(name) == everything:
        raise Failure("give a snapshot or --all, one of them", code=USAGE)
    if name is None:
        confirm(yes, "remove all snapshots")
        session.call("removeallsnapshotmsg", {"colonyname": session.colony()})
        print_done(session, {"removed": "all"}, "removed all snapshots")
        return
    fields = _fields(session, name)
    session.call("getsnapshotmsg", fields, timeout=60.0)  # 404: the removal itself is silent
    session.call("removesnapshotmsg", fields)
    print_done(session, {"removed": name}, f"removed {name}")


for _command in (add, ls, show, get, rm):
    snapshot.add_command(_command)
