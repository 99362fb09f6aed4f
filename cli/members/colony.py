"""`colony colony`: the colonies that a server hosts: added, shown, counted, removed.

The home colony is made by `cli.daemon.init`; members are in `cli.members.user` and
`cli.members.executor`.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.keyfiles import accepts, check_id, check_name, key_path, read_or_make, rotate
from cli.core.output import STATES, print_done, print_fields, print_json, print_rows, print_value
from cli.core.session import Session, colony_command, colony_group, confirm
from cli.core.terminal import print_note
from cli.members.user import tell_environment

colony = colony_group(
    "colony",
    "The colonies that a server hosts. Other commands speak of the home colony; "
    "COLONIES_COLONY_NAME and the keys' variables name another.",
    "colony colony ls",
    "colony colony add annex",
)


@colony_command("add", "colony colony add annex", "colony colony add annex --id 3fa2b1c0…")
@click.argument("name")
@click.option("--id", "identity", default=None, help="Its id, if it has a key [make one].")
def add(session: Session, name: str, identity: str | None) -> None:
    """Host another colony, as the server's owner, and print its id.

    Without --id its owner's key is made at keys/colony-NAME.key.
    """
    path = key_path(session, f"colony-{check_name(name)}")
    known = check_id(identity) if identity else read_or_make(path)[0].id
    fields = {"colonyid": known, "name": name}
    added: dict[str, Any] = session.call(
        "addcolonymsg", {"colony": fields}, key=session.server_key()
    )
    if not identity:
        added["keyfile"] = str(path)
        print_note(f"its owner's key: {path}")
    print_done(session, added, known)


@colony_command("ls", "colony colony ls")
def ls(session: Session) -> None:
    """List the colonies here, as the server's owner."""
    rows: list[dict[str, Any]] = session.call("getcoloniesmsg", {}, key=session.server_key()) or []
    rows.sort(key=lambda row: str(row["name"]))
    print_rows(
        session,
        rows,
        ["NAME", "ID"],
        lambda row: [row["name"], row["colonyid"]],
        "no colonies",
    )


@colony_command("show", "colony colony show", "colony colony show annex")
@click.argument("name", required=False)
def show(session: Session, name: str | None) -> None:
    """Show a colony, as one of its members; exit 4 if it isn't there or you are no member."""
    row = session.call("getcolonymsg", {"colonyname": name or session.colony()})
    paused = session.call("getpausestatusmsg", {"colonyname": row["name"]}).get("ispaused")
    fields = [("colony", row["name"]), ("id", row["colonyid"])]
    fields.append(("assignment", "paused" if paused else "running"))
    print_value(session, {**row, "ispaused": paused}, fields)


@colony_command("stats", "colony colony stats")
@click.argument("name", required=False)
def stats(session: Session, name: str | None) -> None:
    """Count a colony's executors, processes and workflows, as one of its members."""
    print_statistics(
        session, session.call("getcolonystatsmsg", {"colonyname": name or session.colony()})
    )


def print_statistics(session: Session, counts: dict[str, int]) -> None:
    """Print upstream's counters as a small table."""
    if session.as_json:
        print_json(counts)
        return
    print_fields(
        [
            ("colonies", counts.get("colonies")),
            ("executors", counts.get("executors")),
            *(
                (kind, ", ".join(f"{counts.get(state + kind, 0)} {state}" for state in STATES))
                for kind in ("processes", "workflows")
            ),
        ]
    )


@colony_command("rm", "colony colony rm annex --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask.")
def rm(session: Session, name: str, yes: bool) -> None:
    """Remove a colony and all that is in it, as the server's owner."""
    confirm(yes, f"remove colony {name} with its members, processes, logs and files")
    session.call("removecolonymsg", {"colonyname": name}, key=session.server_key(), timeout=120.0)
    print_done(session, {"name": name, "removed": True}, f"removed {name}")


@colony_command("change-id", "colony colony change-id", "colony colony change-id --id 3fa2b1c0…")
@click.option("--id", "identity", default=None, help="The new id [of a key made here].")
@click.option("--yes", is_flag=True, help="Don't ask.")
def change_id(session: Session, identity: str | None, yes: bool) -> None:
    """Give the colony's owner another key: the one it has loses its rights.

    Other colonies know this one by its id: they must trust it anew, and the daemon must be
    started again.
    """
    name = session.colony()
    confirm(yes, f"change the id of colony {name}, by which other colonies know it")

    def change(key: Any, new: str) -> None:
        session.call("changecolonyidmsg", {"colonyname": name, "colonyid": new}, key=key)

    if identity:
        change(session.owner_key(), check_id(identity))
        new = identity
    else:
        probe = accepts(session, "getblueprintdefinitionsmsg", {"colonyname": name})
        path = key_path(session, "colony")
        new = rotate(session, session.owner_key(), path, change, probe)
        tell_environment(session, "COLONIES_COLONY_PRVKEY", str(path))
    print_note("next: restart the daemon; peers must trust the new id")
    print_done(session, {"name": name, "colonyid": new}, new)


for _command in (add, ls, show, stats, rm, change_id):
    colony.add_command(_command)
