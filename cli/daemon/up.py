"""`colony up`: runs the daemon in the foreground.

The parts of the daemon are in `cli.daemon.colonyd` and `node.daemon.main`.
"""

from __future__ import annotations

import click

from cli.core.session import Session, colony_command, finish


@colony_command("up", "colony up", "colony up --port 50090 --federation-port 50091")
@click.option("--name", default=None, help="The colony's name, when the home is made.")
@click.option("--host", default=None, help="Address for RPC [*: all].")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=None, help="RPC port; 0: a free one."
)
@click.option(
    "--federation-port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Port for other colonies.",
)
@click.option(
    "--trust",
    type=click.Choice(["manual", "lan"]),
    default=None,
    help="manual: as told by `colony peer trust`; lan: those found nearby, at first use.",
)
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="INTERFACE",
    help="Find peers on this interface only, by its name or address; may be repeated.",
)
@click.option("--log-level", default=None, metavar="LEVEL", help="debug, info, warning or error.")
def up(
    session: Session,
    name: str | None,
    host: str | None,
    port: int | None,
    federation_port: int | None,
    trust: str | None,
    interfaces: tuple[str, ...],
    log_level: str | None,
) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C stops it in order.

    A home that doesn't exist yet is created as by `colony init`.
    """
    from cli.daemon.colonyd import run_daemon

    given: dict[str, object] = {
        "node.name": name,
        "rpc.host": host,
        "rpc.port": port,
        "federation.port": federation_port,
        "federation.trust": trust,
        "federation.interfaces": list(interfaces) or None,
        "log.level": log_level,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    finish(run_daemon(session.home_to_write, overrides, session.environ))
