"""`colony cluster`: the daemons that serve one store together.

Peers, which are other colonies, are in `cli.peers.peers`.
"""

from __future__ import annotations

from typing import Any

from cli.core.output import print_json, print_table
from cli.core.session import Session, colony_command, colony_group

cluster = colony_group(
    "cluster", "The daemons that serve one store together.", "colony cluster show"
)


@colony_command("show", "colony cluster show")
def show(session: Session) -> None:
    """List the daemons of this cluster and which one leads, as the server's owner."""
    reply: dict[str, Any] = session.call("getclustermsg", {}, key=session.server_key())
    if session.as_json:
        print_json(reply)
        return
    leader = (reply.get("leader") or {}).get("name")
    print_table(
        ["NAME", "HOST", "API PORT", "LEADS"],
        [
            [row.get("name"), row.get("host"), row.get("apiport"), row.get("name") == leader]
            for row in reply.get("nodes") or []
        ],
        "no daemons",
    )


cluster.add_command(show)
