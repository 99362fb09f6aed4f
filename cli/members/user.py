"""`colony user`: the people who may submit work.

The daemon checks rights.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.keyfiles import accepts, check_id, check_member_name, key_path, read_or_make, rotate
from cli.core.output import name_text, print_done, print_rows, print_value, short
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_note

user = colony_group(
    "user",
    "People who may submit work to the colony.",
    "colony user add alice",
    "colony user ls",
)


@colony_command("add", "colony user add alice", "colony user add bob --id 3fa2b1c0…")
@click.argument("name")
@click.option("--id", "identity", default=None, help="Their id, if they have a key [make one].")
@click.option("--email", default="")
@click.option("--phone", default="")
def add(session: Session, name: str, identity: str | None, email: str, phone: str) -> None:
    """Add a user, as the colony's owner.

    Without --id a key is made at keys/user-NAME.key: hand it over on a safe way.
    """
    path = key_path(session, f"user-{check_member_name(name)}")
    known = check_id(identity) if identity else read_or_make(path)[0].id
    fields = {"colonyname": session.colony(), "userid": known, "name": name}
    added: dict[str, Any] = session.call(
        "addusermsg", {"user": fields | {"email": email, "phone": phone}}, owner=True
    )
    if not identity:
        print_note(f"its key: {path}")
    print_done(session, added | ({} if identity else {"keyfile": str(path)}), known)


@colony_command("ls", "colony user ls")
def ls(session: Session) -> None:
    """List the colony's users."""
    rows: list[dict[str, Any]] = session.call("getusersmsg", {"colonyname": session.colony()}) or []
    rows.sort(key=lambda row: str(row.get("name")))
    print_rows(
        session,
        rows,
        ["NAME", "ID", "EMAIL", "PHONE"],
        lambda row: [
            name_text(row.get("name")),
            short(row["userid"]),
            row.get("email"),
            row.get("phone"),
        ],
        "no users; add one with `colony user add`",
    )


@colony_command("show", "colony user show alice", "colony user show 3fa2b1c0…")
@click.argument("name")
def show(session: Session, name: str) -> None:
    """Show one user, by name or by all 64 characters of the id."""
    colony = session.colony()
    if len(name) == 64:
        row = session.call("getuserbyidmsg", {"colonyname": colony, "userid": name})
    else:
        row = session.call("getusermsg", {"colonyname": colony, "name": name})
    fields = ("name", "userid", "colonyname", "email", "phone")
    print_value(session, row, [(field, row.get(field)) for field in fields])


@colony_command("rm", "colony user rm alice")
@click.argument("name")
def rm(session: Session, name: str) -> None:
    """Remove a user, as the colony's owner; what they submitted stays."""
    session.call("removeusermsg", {"colonyname": session.colony(), "name": name}, owner=True)
    print_done(session, {"name": name, "removed": True}, f"removed {name}")


@colony_command("change-id", "colony user change-id", "colony user change-id --id 3fa2b1c0…")
@click.option("--id", "identity", default=None, help="The new id [of a key made here].")
def change_id(session: Session, identity: str | None) -> None:
    """Give yourself another key: the one that signs now loses its rights.

    Without --id a new key is made and put in the place of keys/user.key; the old one is kept
    beside it as user.key.old.
    """
    colony = session.colony()

    def change(key: Any, new: str) -> None:
        session.call("changeuseridmsg", {"colonyname": colony, "userid": new}, key=key)

    if identity:
        change(session.member_key(), check_id(identity))
        new = identity
    else:
        probe = accepts(session, "getusersmsg", {"colonyname": colony})
        new = rotate(session, session.member_key(), key_path(session, "user"), change, probe)
        tell_environment(session, "COLONIES_PRVKEY", str(key_path(session, "user")))
    print_done(session, {"userid": new}, new)


def tell_environment(session: Session, variable: str, path: str) -> None:
    """Say that a key from the environment has been replaced."""
    if session.environ.get(variable):
        print_note(f"{variable} is worth nothing now: the new key is in {path}")


for _command in (add, ls, show, rm, change_id):
    user.add_command(_command)
