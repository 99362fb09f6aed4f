"""`colony blueprint`: wanted states that executors make real, their definitions and history.

The search for causes of a state that is not reached is in `cli.automation.blueprint_doctor`.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from cli.automation.blueprint_doctor import doctor, logs
from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.inputs import read_object
from cli.core.output import cell_text, print_done, print_json, print_rows, print_value, short, when
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import json_text
from cli.core.words import spelled

blueprint = colony_group(
    "blueprint",
    "Wanted states that executors make real. FILE is JSON; - reads stdin.",
    "colony blueprint definition add camera.json",
    "colony blueprint set camera-1 --key spec.exposure --value 20",
)
definition = colony_group(
    "definition",
    "Kinds of blueprints: their schema, and who makes them real.",
    "colony blueprint definition ls",
)
blueprint.add_command(definition)


def _with_metadata(session: Session, file: str, key: str) -> dict[str, Any]:
    """Return the object in a file, bound to the session's colony unless it names one."""
    found = read_object(file, key)
    metadata = found.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise Failure(f"{file}: metadata: a JSON object is expected", code=USAGE)
    metadata.setdefault("colonyname", session.colony())
    return found


def _named(session: Session, name: str) -> dict[str, str]:
    return {"namespace": session.colony(), "name": name}


def _get(session: Session, name: str) -> dict[str, Any]:
    found: dict[str, Any] = session.call("getblueprintmsg", _named(session, name))
    return found


# -- definitions -------------------------------------------------------------------------


@colony_command("add", "colony blueprint definition add camera.json")
@click.argument("file")
def definition_add(session: Session, file: str) -> None:
    """Add a kind of blueprints, as the colony's owner."""
    fields = _with_metadata(session, file, "blueprintdefinition")
    added = session.call("addblueprintdefinitionmsg", {"blueprintdefinition": fields}, owner=True)
    print_done(session, added, f"added {added['metadata']['name']}")


@colony_command("ls", "colony blueprint definition ls")
def definition_ls(session: Session) -> None:
    """List the kinds of blueprints."""
    fields = {"colonyname": session.colony()}
    rows: list[dict[str, Any]] = session.call("getblueprintdefinitionsmsg", fields) or []
    print_rows(
        session,
        rows,
        ["NAME", "KIND", "EXECUTOR TYPE", "FUNCTION", "VERSION"],
        lambda row: [
            row["metadata"]["name"],
            row["spec"]["names"]["kind"],
            (row["spec"].get("handler") or {}).get("executorType"),
            (row["spec"].get("handler") or {}).get("functionName"),
            row["spec"].get("version"),
        ],
        "no definitions; add one with `colony blueprint definition add`",
    )


@colony_command("show", "colony blueprint definition show cameras")
@click.argument("name")
def definition_show(session: Session, name: str) -> None:
    """Print a definition as JSON, as `add` reads it."""
    fields = {"colonyname": session.colony(), "name": name}
    print_json(session.call("getblueprintdefinitionmsg", fields))


@colony_command("rm", "colony blueprint definition rm cameras")
@click.argument("name")
def definition_rm(session: Session, name: str) -> None:
    """Remove a kind of which there are no blueprints, as the colony's owner."""
    session.call("removeblueprintdefinitionmsg", _named(session, name), owner=True)
    print_done(session, {"name": name, "removed": True}, f"removed {name}")


for _command in (definition_add, definition_ls, definition_show, definition_rm):
    definition.add_command(_command)


# -- blueprints --------------------------------------------------------------------------


@colony_command("add", "colony blueprint add camera-1.json")
@click.argument("file")
def add(session: Session, file: str) -> None:
    """Add a blueprint."""
    fields = _with_metadata(session, file, "blueprint")
    added: dict[str, Any] = session.call("addblueprintmsg", {"blueprint": fields})
    print_done(session, added, f"added {added['metadata']['name']}")


@colony_command("ls", "colony blueprint ls", "colony blueprint ls --kind Camera")
@click.option("--kind", default="", help="Only of this kind.")
@click.option("--location", default="", help="Only at this location; needs --kind.")
def ls(session: Session, kind: str, location: str) -> None:
    """List the blueprints."""
    if location and not kind:
        raise Failure("--location needs --kind", code=USAGE)
    fields = {"namespace": session.colony(), "kind": kind, "locationname": location}
    rows: list[dict[str, Any]] = session.call("getblueprintsmsg", fields) or []
    print_rows(
        session,
        rows,
        ["NAME", "KIND", "GENERATION", "LOCATION", "RECONCILED", "STATUS"],
        lambda row: [
            row["metadata"]["name"],
            row.get("kind"),
            row["metadata"].get("generation"),
            row["metadata"].get("locationname"),
            when(row["metadata"].get("lastReconciliationTime"))[:19],
            _cut(cell_text(row.get("status") or "")),
        ],
        "no blueprints; add one with `colony blueprint add`",
    )


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@colony_command("show", "colony blueprint show camera-1", "colony blueprint show camera-1 --json")
@click.argument("name")
def show(session: Session, name: str) -> None:
    """Show one blueprint; with --json as `update` reads it."""
    row = _get(session, name)
    metadata = row["metadata"]
    print_value(
        session,
        row,
        [
            ("blueprint", metadata["name"]),
            ("id", row.get("blueprintid")),
            ("kind", row.get("kind")),
            ("generation", metadata.get("generation")),
            ("location", metadata.get("locationname")),
            ("labels", metadata.get("labels")),
            ("created", when(metadata.get("createdAt"))),
            ("updated", when(metadata.get("updatedAt"))),
            ("reconciled", when(metadata.get("lastReconciliationTime"))),
            ("by process", metadata.get("lastReconciliationProcess")),
            ("spec", json_text(row.get("spec"), 2)),
            ("status", json_text(row["status"], 2) if row.get("status") else ""),
        ],
    )


def _update(session: Session, fields: dict[str, Any], force: bool) -> None:
    asked = {"blueprint": fields, "forcegeneration": force}
    updated: dict[str, Any] = session.call("updateblueprintmsg", asked)
    generation = updated["metadata"].get("generation")
    name = updated["metadata"]["name"]
    print_done(session, updated, f"updated {name}: generation {generation}")


@colony_command("update", "colony blueprint update camera-1.json")
@click.argument("file")
@click.option("--force", is_flag=True, help="A new generation even if the spec is the same.")
def update(session: Session, file: str, force: bool) -> None:
    """Replace a blueprint's spec by the one in FILE."""
    _update(session, _with_metadata(session, file, "blueprint"), force)


@colony_command("set", "colony blueprint set camera-1 --key spec.exposure --value 20")
@click.argument("name")
@click.option("--key", "path", required=True, help="Field, with dots: spec.lens.focus")
@click.option("--value", required=True, help="JSON where it is JSON, else text.")
def set_(session: Session, name: str, path: str, value: str) -> None:
    """Set one field of a blueprint."""
    found = _get(session, name)
    set_path(found, path, value)
    _update(session, found, False)


def set_path(target: dict[str, Any], path: str, text: str) -> None:
    """Set the field at a dotted path; objects on the way are made. Raises Failure (usage)."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *way, last = path.split(".")
    if not all([*way, last]):
        raise Failure(f"--key {path!r}: an empty part", code=USAGE)
    place: Any = target
    for done, part in enumerate([*way, last]):
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise Failure(
                f"--key {path!r}: {'.'.join(path.split('.')[:done])} has no field {part!r}",
                code=USAGE,
                next_step="see `colony blueprint show --json`",
            )
        if done == len(way):
            place[key] = value
        elif isinstance(key, int):
            place = place[key]
        else:
            place = place.setdefault(key, {})


@colony_command("set-status", "colony blueprint set-status camera-1 status.json")
@click.argument("name")
@click.argument("file")
def set_status(session: Session, name: str, file: str) -> None:
    """Replace a blueprint's status by the object in FILE, as its reconcilers do."""
    fields = {"colonyname": session.colony(), "blueprintname": name}
    session.call("updateblueprintstatusmsg", fields | {"status": read_object(file, "status")})
    print_done(session, fields, f"set the status of {name}")


@colony_command("rm", "colony blueprint rm camera-1")
@click.argument("name")
def rm(session: Session, name: str) -> None:
    """Remove a blueprint; its executors are asked to clean up."""
    session.call("removeblueprintmsg", _named(session, name))
    print_done(session, {"name": name, "removed": True}, f"removed {name}")


@colony_command("reconcile", "colony blueprint reconcile camera-1 --force")
@click.argument("name")
@click.option("--force", is_flag=True, help="A new generation: make everything anew.")
def reconcile(session: Session, name: str, force: bool) -> None:
    """Make a blueprint real now; prints the id of the process that does it."""
    fields = {**_named(session, name), "force": force}
    process: dict[str, Any] = session.call("reconcileblueprintmsg", fields)
    print_done(session, process, process["processid"])


@colony_command(
    "history", "colony blueprint history camera-1", "colony blueprint history camera-1 -g 3"
)
@click.argument("name")
@click.option("--count", type=click.IntRange(0), default=10, show_default=True, help="0: all.")
@click.option("--generation", "-g", type=int, default=None, help="Show this one in full.")
def history(session: Session, name: str, count: int, generation: int | None) -> None:
    """List what a blueprint was, newest first."""
    blueprintid = _get(session, name)["blueprintid"]
    fields = {"blueprintid": blueprintid, "limit": 0 if generation is not None else count}
    rows: list[dict[str, Any]] = session.call("getblueprinthistorymsg", fields) or []
    if generation is not None:
        found = [row for row in rows if row.get("generation") == generation]
        if not found:
            raise Failure(
                f"{name} has no generation {generation}",
                code=NOT_FOUND,
                next_step=f"`colony blueprint history {shlex.quote(name)}`",
            )
        print_json(found[0])
        return
    print_rows(
        session,
        rows,
        ["GENERATION", "WHEN", "WHAT", "BY", "SPEC"],
        lambda row: [
            row.get("generation"),
            when(row.get("timestamp"))[:19],
            row.get("changetype"),
            short(row.get("changedby")),
            _cut(cell_text(row.get("spec"))),
        ],
        "no history",
    )


spelled(history, {"limit": "count"})
for _command in (
    add, ls, show, update, set_, set_status, rm, reconcile, history, logs, doctor,
):  # fmt: skip
    blueprint.add_command(_command)
