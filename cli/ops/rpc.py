"""`colony rpc`: the calls that a daemon answers, read from the code itself: no daemon is asked.

`node.daemon.reference` describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import print_json, print_table
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_line

if TYPE_CHECKING:
    from node.rpc.calls import Call

rpc = colony_group("rpc", "The calls that a daemon answers.", "colony rpc ls")


def all_calls() -> list[Call[Any]]:
    """Return every row of the table, federation's and the subscriptions included."""
    from federation.service.rpc import calls as federation_calls
    from node.daemon import pubsub
    from node.daemon.main import HANDLERS

    # No handler is called, so they may be bound to nothing.
    nothing = cast("Any", None)
    rows = [call for module in (*HANDLERS, pubsub) for call in module.calls.of(nothing)]
    return rows + federation_calls(nothing)


@colony_command("ls", "colony rpc ls", "colony rpc ls --markdown > docs/protocol.md")
@click.option("--markdown", "as_markdown", is_flag=True, help="The whole of docs/protocol.md.")
def ls(session: Session, as_markdown: bool) -> None:
    """List every call: its fields, who may make it, and what it is for."""
    from node.daemon.reference import describe, markdown

    calls = all_calls()
    if as_markdown and session.as_json:
        raise Failure("--markdown is no JSON", code=USAGE, next_step="leave out one of both")
    if as_markdown:
        print_line(markdown(calls), nl=False)
        return
    rows = describe(calls)
    if session.as_json:
        print_json(
            [
                {
                    "payloadtype": row.payloadtype,
                    "section": row.section,
                    "fields": {field.name: field.type for field in row.fields},
                    "optional": [field.name for field in row.fields if field.optional],
                    "who": row.who,
                    "reply": row.reply,
                    "about": row.about,
                }
                for row in rows
            ]
        )
        return
    print_table(
        ["CALL", "FIELDS", "WHO", "WHAT FOR"],
        [
            [
                row.payloadtype,
                ", ".join(f"{field.name}: {field.type}" for field in row.fields),
                row.who,
                row.about,
            ]
            for row in rows
        ],
        "no calls",
    )


rpc.add_command(ls)
