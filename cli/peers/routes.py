"""`colony route`: where processes go that name no colony, and why.

Routes are settings of the daemon; `federation` interprets them.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.inputs import read_object
from cli.core.output import print_json, print_rows, print_table, short
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_line

route = colony_group(
    "route",
    "Routes: where processes go that name no colony. They are settings ([[routes]]).",
    "colony route ls",
    "colony route why convert.json",
    aliases={"explain": "why"},
)


@colony_command("ls", "colony route ls")
def ls(session: Session) -> None:
    """List the routes, in the order in which they are asked."""
    rows: list[dict[str, Any]] = session.call("getroutesmsg", {}, owner=True) or []
    print_rows(
        session,
        rows,
        ["#", "FUNCTION", "TYPE", "LABEL", "WHEN", "TO", "WEIGHTS", "RETRY", "SENT"],
        lambda row: [
            row["number"],
            row["func"],
            row["executortype"],
            row["label"],
            row["when"],
            ", ".join(row["to"]),
            ", ".join(f"{name} {weight:g}" for name, weight in row["weights"].items()),
            row["retry"],
            row["sent"],
        ],
        "no routes; processes that name no colony stay here",
    )


@colony_command(
    "why",
    "colony route why convert.json",
    "colony route why - --age 60 < convert.json",
)
@click.argument("spec")
@click.option("--age", type=Seconds(), default=0.0, help="As if it had waited so many seconds [0].")
def why(session: Session, spec: str, age: float) -> None:
    """Tell where the function spec in the file SPEC (- for stdin) would go now, and why."""
    value = read_object(spec, "spec")
    conditions = value.setdefault("conditions", {})
    if isinstance(conditions, dict):
        conditions.setdefault("executortype", "cli")
    reply: dict[str, Any] = session.call("explainroutemsg", {"spec": value, "age": age}, owner=True)
    if session.as_json:
        print_json(reply)
        return
    for route in reply["routes"]:
        _print_route(route)
    print_line(_outcome(reply))
    for need in reply.get("needs") or []:
        print_line(f"at {need['at']} its owner must have allowed it: {need['command']}")


def _print_route(route: dict[str, Any]) -> None:
    if not route["matches"]:
        print_line(f"{route['text']}: does not match: {route['why']}\n")
        return
    word = "its time has come" if route["holds"] else "its time has not come"
    print_line(f"{route['text']}: matches, {word}: {route['why']}")
    print_table(
        ["  PEER", "ID", "ELIGIBLE", "LOAD", "WEIGHT", "CHANCE", "WHY"],
        [
            [
                f"  {peer.get('petname') or peer['name']}",
                short(peer["id"]),
                peer["eligible"],
                f"{peer['load']:.2f}" if peer["eligible"] else "",
                f"{peer['weight']:g}",
                f"{peer['probability']:.0%}" if peer["eligible"] else "",
                peer["why"],
            ]
            for peer in route["peers"]
        ],
        "  no trusted peers",
    )
    print_line()


def _outcome(reply: dict[str, Any]) -> str:
    if reply["stays"]:
        return f"stays here: {reply['why']}"
    chances = ", ".join(
        f"{choice['name']} ({choice['probability']:.0%})" for choice in reply["choices"]
    )
    return f"goes to {chances or 'nobody'}: {reply['why']}"


for _command in (ls, why):
    route.add_command(_command)
