"""`colony location`: named places where executors stand.

The daemon matches processes to places.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.output import name_text, print_done, print_rows, print_value
from cli.core.session import Session, colony_command, colony_group

location = colony_group(
    "location",
    "Named places where executors stand; work can be bound to one.",
    "colony location add hall-3 --lat 65.61 --long 22.14",
    "colony location ls",
)


@colony_command("add", "colony location add hall-3 --lat 65.61 --long 22.14")
@click.argument("name")
@click.option("--description", default="")
@click.option("--long", type=click.FloatRange(-180, 180), default=0.0, help="Degrees east.")
@click.option("--lat", type=click.FloatRange(-90, 90), default=0.0, help="Degrees north.")
def add(session: Session, name: str, description: str, long: float, lat: float) -> None:
    """Name a place, as the colony's owner."""
    fields: dict[str, Any] = {"colonyname": session.colony(), "name": name}
    fields |= {"description": description, "long": long, "lat": lat}
    added = session.call("addlocationmsg", {"location": fields}, owner=True)
    print_done(session, added, f"added {name}")


@colony_command("ls", "colony location ls")
def ls(session: Session) -> None:
    """List the colony's places."""
    rows: list[dict[str, Any]] = (
        session.call("getlocationsmsg", {"colonyname": session.colony()}) or []
    )
    rows.sort(key=lambda row: str(row.get("name")))
    print_rows(
        session,
        rows,
        ["NAME", "LAT", "LONG", "DESCRIPTION"],
        lambda row: [
            name_text(row.get("name")),
            row.get("lat"),
            row.get("long"),
            row.get("description"),
        ],
        "no locations; add one with `colony location add`",
    )


@colony_command("show", "colony location show hall-3")
@click.argument("name")
def show(session: Session, name: str) -> None:
    """Show one place."""
    row = session.call("getlocationmsg", {"colonyname": session.colony(), "name": name})
    fields = ("name", "locationid", "lat", "long", "description")
    print_value(session, row, [(field, row.get(field)) for field in fields])


@colony_command("rm", "colony location rm hall-3")
@click.argument("name")
def rm(session: Session, name: str) -> None:
    """Forget a place, as the colony's owner."""
    session.call("removelocationmsg", {"colonyname": session.colony(), "name": name}, owner=True)
    print_done(session, {"name": name, "removed": True}, f"removed {name}")


for _command in (add, ls, show, rm):
    location.add_command(_command)
