"""`colony init`: makes a home directory with its keys.

What a home holds and how it is made is in `node.home`.
"""

from __future__ import annotations

import click

from cli.keyfiles import own_home
from cli.output import print_fields, print_json
from cli.session import Failure, Session, colony_command
from cli.terminal import print_note


@colony_command("init", "colony init", "colony init --name lab-42 --home /srv/colonyd")
@click.option("--name", default=None, help="The colony's name [the host's name].")
def init(session: Session, name: str | None) -> None:
    """Create what is missing in the home directory; nothing there is overwritten."""
    from node.home import HomeError, init_home

    own_home(session)
    home = session.home
    try:
        info = init_home(home, name, session.environ)
    except HomeError as error:
        raise Failure(str(error), next_step="choose another --home or --name") from None
    if session.as_json:
        print_json(
            {
                "home": str(home),
                "colony": info.name,
                "colonyid": info.colony.id,
                "serverid": info.server.id,
                "userid": info.user.id,
                "username": info.username,
                "created": info.created,
            }
        )
        return
    print_fields(
        [
            ("home", str(home)),
            ("colony", info.name),
            ("colony id", info.colony.id),
            ("user", info.username),
            ("user id", info.user.id),
        ]
    )
    done = "created" if info.created else "was there already; nothing changed"
    print_note(f"{done}; back up {home / 'keys'}: the keys are the colony")
    print_note("next: `colony up`")
