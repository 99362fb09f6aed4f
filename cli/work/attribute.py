"""`colony attribute`: keys and values that belong to a process.

Submitter and executor agree on their meaning.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.output import print_done, print_value
from cli.core.session import Session, as_executor, colony_command, colony_group

_TYPES = ("in", "out", "err", "env")

attribute = colony_group(
    "attribute",
    "Keys and values that belong to a process.",
    "colony attribute add 3fa2b1c09d7e frames 24 --as camera-1",
    "colony attribute show 9c0f…",
)


@colony_command("add", "colony attribute add 3fa2b1c09d7e frames 24 --as camera-1")
@click.argument("processid")
@click.argument("key")
@click.argument("value")
@click.option("--type", "kind", type=click.Choice(_TYPES), default="out", show_default=True)
@as_executor
def add(
    session: Session, processid: str, key: str, value: str, kind: str, executor: str | None
) -> None:
    """Add an attribute to a running process, as the executor that runs it; prints its id."""
    from cli.core.lookup import full_id

    signer = session.signer(executor)

    async def work() -> dict[str, Any]:
        async with session.signed(signer) as client:
            fields = {
                "targetid": await full_id(session, client, processid),
                "key": key,
                "value": value,
                "attributetype": _TYPES.index(kind),
            }
            added: dict[str, Any] = await client.call("addattributemsg", {"attribute": fields})
            return added

    added = session.run(work)
    print_done(session, added, added["attributeid"])


@colony_command("show", "colony attribute show 9c0f…")
@click.argument("attributeid")
def show(session: Session, attributeid: str) -> None:
    """Show one attribute by its full id; `colony process show --json` lists a process's."""
    row: dict[str, Any] = session.call("getattributemsg", {"attributeid": attributeid})
    kind = row.get("attributetype")
    print_value(
        session,
        row,
        [
            ("attribute", row["attributeid"]),
            ("process", row.get("targetid")),
            ("type", _TYPES[kind] if isinstance(kind, int) and 0 <= kind < 4 else kind),
            ("key", row.get("key")),
            ("value", row.get("value")),
        ],
    )


for _command in (add, show):
    attribute.add_command(_command)
