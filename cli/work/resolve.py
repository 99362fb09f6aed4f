"""`colony process resolve`: a person decides about a process whose peer fell silent.

The decisions are carried out in `federation.outbox.resolve`; the other commands are in
`cli.work.process`.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.lookup import full_id
from cli.core.output import print_done, state_name
from cli.core.session import Session, colony_command, confirm


@colony_command(
    "resolve",
    "colony process resolve 3fa2b1c09d7e --failed",
    "colony process resolve 3fa2b1c09d7e --requeue --yes",
)
@click.argument("processid")
@click.option("--failed", is_flag=True, help="Nobody waits for it any more: it has failed.")
@click.option("--requeue", is_flag=True, help="Let an executor of this colony run it.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def resolve(session: Session, processid: str, failed: bool, requeue: bool, yes: bool) -> None:
    """Decide about a process in doubt, as the colony's owner: a peer has it and says nothing.

    The peer is told to stop as soon as it is reached, but it may have run the process, or run it
    still: with --requeue it may run twice.
    """
    if failed == requeue:
        raise Failure("--failed or --requeue: one of the two", code=USAGE)
    if requeue:
        confirm(yes, f"run process {processid} here, although the peer may run it, too")
    member, owner = session.member_key(), session.owner_key()

    async def work() -> dict[str, Any]:
        async with session.signed(member) as client:
            full = await full_id(session, client, processid)
            fields = {"processid": full, "decision": "requeue" if requeue else "failed"}
            found: dict[str, Any] = await client.client.call("resolveprocessmsg", fields, owner)
            return found

    found = session.run(work)
    print_done(session, found, f"{found['processid']} is {state_name(found['state'])} now")
