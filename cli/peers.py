"""`colony peers`: other colonies, as this one sees them, and trust in them.

How peers are found and what trust allows is decided in `federation`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from cli.output import ago, print_fields, print_json, print_table, short
from cli.session import Failure, Session, colony_command, colony_group

peers = colony_group(
    "peers",
    "Other colonies: list, show, trust, block and ping them. PEER is a name, an id, or the "
    "first characters of an id.",
    "colony peers ls",
    "colony peers trust 3fa2b1c0",
)


def _seen(peer: dict[str, Any]) -> str:
    moment = float(peer.get("lastseen") or 0)
    return ago(datetime.fromtimestamp(moment, UTC)) if moment else "never"


@colony_command("ls", "colony peers ls")
def ls(session: Session) -> None:
    """List the colonies this one knows of."""
    rows: list[dict[str, Any]] = session.call("getpeersmsg", {}, owner=True) or []
    if session.as_json:
        print_json(rows)
        return
    print_table(
        ["ID", "NAME", "STATE", "SEEN", "OUTSTANDING", "ENDPOINTS", "ERROR"],
        [
            [
                short(row.get("id")),
                row.get("name"),
                row.get("state"),
                _seen(row),
                row.get("outstanding"),
                ", ".join(row.get("endpoints") or []),
                row.get("error"),
            ]
            for row in rows
        ],
        "no peers known; colonies on the same network appear here on their own",
    )


@colony_command("show", "colony peers show lab-42")
@click.argument("peer")
def show(session: Session, peer: str) -> None:
    """Show one colony."""
    _print(session, session.call("getpeermsg", {"peer": peer}, owner=True))


@colony_command("trust", "colony peers trust 3fa2b1c0")
@click.argument("peer")
def trust(session: Session, peer: str) -> None:
    """Let a colony send work here and take work from here. Compare its id first."""
    _print(session, session.call("trustpeermsg", {"peer": peer}, owner=True))


@colony_command("block", "colony peers block lab-42")
@click.argument("peer")
def block(session: Session, peer: str) -> None:
    """Refuse a colony from now on, whoever introduces it."""
    _print(session, session.call("blockpeermsg", {"peer": peer}, owner=True))


@colony_command("ping", "colony peers ping lab-42")
@click.argument("peer")
def ping(session: Session, peer: str) -> None:
    """Ask a colony for a signed answer; exit 1 without one."""
    reply: dict[str, Any] = session.call("pingpeermsg", {"peer": peer}, owner=True)
    if session.as_json:
        print_json(reply)
    if not reply.get("ok"):
        raise Failure(
            f"{peer} does not answer: {reply.get('error') or 'no reason given'}",
            next_step=f"`colony peers show {peer}`; is its daemon up, its federation port open?",
        )
    if not session.as_json:
        click.echo(f"{peer} answers in {float(reply.get('rtt') or 0) * 1000:.1f} ms")


def _print(session: Session, peer: dict[str, Any]) -> None:
    if session.as_json:
        print_json(peer)
        return
    print_fields(
        [
            ("peer", peer.get("name")),
            ("id", peer.get("id")),
            ("state", peer.get("state")),
            ("seen", _seen(peer)),
            ("endpoints", ", ".join(peer.get("endpoints") or [])),
            ("outstanding", peer.get("outstanding")),
            ("error", peer.get("error")),
        ]
    )


for _command in (ls, show, trust, block, ping):
    peers.add_command(_command)
