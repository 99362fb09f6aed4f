"""`colony server`: the server behind the colonies: its version, counters and health.

`cli.daemon.up` runs one; the home colony's state is in `cli.ops.status`.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.errors import FAILED, Failure
from cli.core.keyfiles import accepts, check_id, key_path, rotate
from cli.core.output import print_done, print_json, print_value
from cli.core.session import Session, colony_command, colony_group, confirm
from cli.core.terminal import print_line
from cli.members.colony import print_statistics
from cli.members.user import tell_environment

server = colony_group(
    "server",
    "The server behind the colonies; `colony up` runs one.",
    "colony server alive",
    "colony server stats",
)


@colony_command("show", "colony server show")
def show(session: Session) -> None:
    """Show the server's id, version and doors; needs no key."""

    async def work() -> dict[str, Any]:
        async with session.client() as client:
            found: dict[str, Any] = await client.call("getserverinfomsg", {}, None)
            return found

    reply = session.run(work)
    doors = [f"{each.get('type')} on port {each.get('port')}" for each in reply.get("backends", [])]
    print_value(
        session,
        reply,
        [
            ("server", session.url()),
            ("id", reply.get("serverid")),
            ("version", reply.get("buildversion")),
            ("built", reply.get("buildtime")),
            ("doors", ", ".join(doors)),
        ],
    )


@colony_command("stats", "colony server stats")
def stats(session: Session) -> None:
    """Count executors, processes and workflows of all colonies, as the server's owner."""
    print_statistics(session, session.call("getstatisticsmsg", {}, key=session.server_key()))


@colony_command("alive", "colony server alive && echo yes")
def alive(session: Session) -> None:
    """Exit 0 if the server and its store answer, 1 if the store doesn't, 69 if nobody does."""

    async def work() -> int:
        async with session.client() as client:
            return await client.health()

    status = session.run(work)
    if session.as_json:
        print_json({"server": session.url(), "alive": status == 200, "status": status})
    if status != 200:
        raise Failure(
            f"the server at {session.url()} can't serve (status {status})",
            code=FAILED,
            next_step="`colony doctor`; is its store up?",
        )
    if not session.as_json:
        print_line(f"{session.url()} is alive")


@colony_command("change-id", "colony server change-id --yes")
@click.option("--id", "identity", default=None, help="The new id [of a key made here].")
@click.option("--yes", is_flag=True, help="Don't ask.")
def change_id(session: Session, identity: str | None, yes: bool) -> None:
    """Give the server's owner another key: the one it has loses its rights."""
    confirm(yes, "change the id of the server's owner")

    def change(key: Any, new: str) -> None:
        session.call("changeserveridmsg", {"serverid": new}, key=key)

    if identity:
        change(session.server_key(), check_id(identity))
        new = identity
    else:
        path = key_path(session, "server")
        probe = accepts(session, "getcoloniesmsg", {})
        new = rotate(session, session.server_key(), path, change, probe)
        tell_environment(session, "COLONIES_SERVER_PRVKEY", str(path))
    print_done(session, {"serverid": new}, new)


for _command in (show, stats, alive, change_id):
    server.add_command(_command)
