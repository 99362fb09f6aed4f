"""`colony key`: makes private keys and prints their ids.

A key never leaves the home: other colonies get ids. `cli.core.session` decides which key signs a
call.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.inputs import read_text
from cli.core.output import print_fields, print_json, print_rows, short
from cli.core.session import Session, colony_command, colony_group, confirm
from cli.core.terminal import print_line, print_note

key = colony_group(
    "key",
    "Private keys and the ids that follow from them.",
    "colony key ls",
    "colony key add executor.key",
    aliases={"generate": "add"},
)


@colony_command("add", "colony key add executor.key", "COLONIES_PRVKEY=$(colony key add)")
@click.argument("file", required=False)
def add(session: Session, file: str | None) -> None:
    """Make a key: into FILE (only its owner can read it; prints the id), or on stdout.

    On stdout stands the secret itself, and the id on stderr. No daemon is asked.
    """
    from colonyd.keys import PrivateKey, write_key

    made = PrivateKey.generate()
    if file:
        try:
            write_key(Path(file), made)
        except FileExistsError:
            raise Failure(
                f"{file} is there already", code=USAGE, next_step="choose another name"
            ) from None
        except OSError as error:
            raise Failure(f"{file}: {error.strerror}", code=USAGE) from None
    if session.as_json:
        print_json({"id": made.id, **({"file": file} if file else {"prvkey": made.hex})})
    elif file:
        print_line(made.id)
    else:
        print_line(made.hex)
        print_note(f"id {made.id}")


@colony_command("id", "colony key id executor.key", "echo $COLONIES_PRVKEY | colony key id -")
@click.argument("file", required=False)
def id_(session: Session, file: str | None) -> None:
    """Print the id of the key in FILE (- reads stdin), or of the key that signs your calls."""
    from colonyd.keys import IdentityError, PrivateKey

    if file:
        try:
            found = PrivateKey.from_hex(read_text(file))
        except IdentityError as error:
            raise Failure(f"{file}: {error}", code=USAGE) from None
    else:
        found = session.member_key()
    if session.as_json:
        print_json({"id": found.id})
    else:
        print_line(found.id)


@colony_command("ls", "colony key ls")
def ls(session: Session) -> None:
    """List the key files of the home and their ids."""
    from colonyd.keys import IdentityError, read_key
    from node.host.home import Home

    directory = Home(session.home).keys
    if not directory.is_dir():
        raise Failure(f"no keys at {directory}", code=NOT_FOUND, next_step="`colony init`")
    rows: list[dict[str, str]] = []
    for path in sorted(directory.glob("*.key")):
        try:
            found = read_key(path).id
        except (OSError, IdentityError) as error:
            found = f"unreadable: {error}"
        rows.append({"name": path.stem, "id": found})
    print_rows(session, rows, ["NAME", "ID"], lambda row: [row["name"], row["id"]], "no keys")


@colony_command("rotate", "colony key rotate", "colony key rotate --yes")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rotate(session: Session, yes: bool) -> None:
    """Give the home colony a new key, and so a new id; peers that trust it follow.

    The daemon makes the key, signs with both that one follows the other, and keeps the old one
    beside it. For seven days both count, so that what is on its way gets there. Whoever holds
    copies of keys/colony.key must replace them. After a theft: rotate before the thief does.
    """
    old = session.owner_key()
    confirm(yes, f"replace the key of colony {session.colony()} ({short(old.id)})")
    done: dict[str, Any] = session.call("rotatekeymsg", {}, key=old)
    if session.as_json:
        print_json(done)
        return
    until = datetime.fromtimestamp(float(done["until"]), UTC)
    print_fields(
        [
            ("colony", session.colony()),
            ("id", done["id"]),
            ("former id", done["former"]),
            ("both count until", until.isoformat(sep=" ", timespec="seconds")),
            ("old key", done["kept"]),
        ]
    )


for _command in (add, id_, ls, rotate):
    key.add_command(_command)
