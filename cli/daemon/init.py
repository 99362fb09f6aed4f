"""`colony init`: makes a home directory with its keys.

What a home holds and how it is made is in `node.host.home`.
"""

from __future__ import annotations

from pathlib import Path

import click

from cli.core.errors import UNREACHABLE, Failure
from cli.core.keyfiles import own_home
from cli.core.output import print_fields, print_json
from cli.core.session import Session, colony_command
from cli.core.terminal import print_note


@colony_command("init", "colony init", "colony init --name lab-42 --home /srv/colonyd")
@click.option("--name", default=None, help="The colony's name [the host's name].")
@click.option("--new-store", is_flag=True, help="Give up the store: it is lost, or broken.")
def init(session: Session, name: str | None, new_store: bool) -> None:
    """Create what is missing in the home directory; nothing there is overwritten.

    A daemon whose store is gone or broken does not start. With --new-store the next start makes an
    empty one: the keys stay, so peers know the colony, but members, trust, processes, files' names
    and what was taken from peers are forgotten; work that they send again may run again. What is
    left of the store is moved aside.
    """
    from colonyd.keys import IdentityError
    from node.host.home import HomeError, init_home

    home = session.home_to_write
    own_home(session, home)
    try:
        # The name that the configuration has, or the daemon would refuse another one.
        wanted = name or session.config(home=home).node.name
        info = init_home(home, wanted or None, session.environ)
    except HomeError as error:
        raise Failure(str(error), next_step="choose another --home or --name") from None
    except IdentityError as error:
        raise Failure(
            str(error),
            next_step="put its backup there; without one remove it: a new key is made",
        ) from None
    aside = _give_up(home) if new_store else None
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
                **({"aside": str(aside) if aside else None} if new_store else {}),
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
    if new_store:
        told = f"; what was there is in {aside}" if aside else ""
        print_note(f"the next start begins with a new store{told}")
    print_note("next: `colony up`")


def _give_up(home: Path) -> Path | None:
    """Have the next start make a store; return where the old one is, if there was any."""
    from node.etcd.errors import StoreRefused
    from node.etcdserver.identity import begin_anew
    from node.host.home import Home

    try:
        return begin_anew(Home(home))
    except StoreRefused as error:
        raise Failure(str(error), code=UNREACHABLE) from None
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}", next_step="unmount it first") from None
