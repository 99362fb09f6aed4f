"""`colony peer invite` and `join`: a token on one side, mutual trust on both.

The secret is proven in `federation.membership.invitations` and `federation.membership.join`.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Any

import click

from cli.core.errors import EXIT_CODES
from cli.core.output import ago, print_done, print_json, print_rows, span
from cli.core.policy import policy_fields, policy_options, wish
from cli.core.session import Session, colony_command, shared_options
from cli.core.terminal import print_line, print_note
from cli.core.words import WordGroup, furnish

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_JOIN_TIMEOUT = 90.0  # seconds: several addresses may have to be tried


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> int:
    parts = re.fullmatch(r"(\d{1,6})([smhd]?)", value)
    if parts is None:
        raise click.BadParameter("a duration such as 90s, 30m, 1h or 2d")
    return int(parts[1]) * _UNITS[parts[2] or "s"]


@click.group(
    "invite",
    cls=WordGroup,
    invoke_without_command=True,
    epilog=(
        "\b\nExamples:\n  colony peer invite --expires 10m --function 'render*'\n"
        f"  colony peer invite ls\n  colony peer invite rm 3fa2\n\nExit codes: {EXIT_CODES}"
    ),
)
@shared_options
@click.option(
    "--expires", "seconds", default="1h", show_default=True, callback=_seconds, metavar="TIME",
    help="How long the token is good for: 90s, 30m, 1h, 2d.",
)  # fmt: skip
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Where the other side reaches this colony, instead of the addresses of its interfaces.",
)  # fmt: skip
@click.option("--qr/--no-qr", default=None, help="Draw a QR code; the default on a terminal.")
@policy_options
@click.make_pass_decorator(Session, ensure=True)
@click.pass_context
def invite(
    context: click.Context,
    session: Session,
    seconds: int,
    addresses: tuple[str, ...],
    qr: bool | None,
    asked: dict[str, Any],
) -> None:
    """Print a token, good for one colony, that makes trust mutual: `colony peer join TOKEN`.

    Who has the token is trusted: send it where only the one who is meant can read it.
    """
    if context.invoked_subcommand is not None:
        return
    fields = {"expires": seconds, "addresses": list(addresses), **wish(asked)}
    reply: dict[str, Any] = session.call("invitepeermsg", fields, owner=True)
    if session.as_json:
        print_json(reply)
        return
    token = str(reply["token"])
    print_line(token)
    if qr or (qr is None and sys.stdout.isatty()):
        print_note(drawn(token))
    places = ", ".join(reply["addresses"])
    print_note(
        f"invitation {reply['invitation']}: good for one colony and {span(seconds)}, "
        + (f"at {places}" if places else "without an address: this colony is found by its id")
    )
    print_note("  next: on the other side, `colony peer join TOKEN`")


def drawn(text: str) -> str:
    """Return a QR code in half blocks, two rows a line, light where the terminal writes."""
    import segno

    rows = [list(row) for row in segno.make(text, error="l", micro=False).matrix_iter(border=4)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    blocks = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}
    return "\n".join(
        "".join(blocks[bool(upper), bool(lower)] for upper, lower in zip(*pair, strict=True))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    )


def _left(row: dict[str, Any]) -> str:
    left = int(row["expires"]) - datetime.now(UTC).timestamp()
    return span(left) if left > 0 else "expired"


@colony_command("ls", "colony peer invite ls")
def ls(session: Session) -> None:
    """List the invitations that nobody has used."""
    rows: list[dict[str, Any]] = session.call("getinvitationsmsg", {}, owner=True) or []
    print_rows(
        session,
        rows,
        ["INVITATION", "MADE", "LEFT", "POLICY"],
        lambda row: [
            row["invitation"],
            ago(datetime.fromtimestamp(row["created"], UTC)),
            _left(row),
            "; ".join(f"{name} {value}" for name, value in policy_fields(row["policy"])),
        ],
        "no open invitations; `colony peer invite` makes one",
    )


@colony_command("rm", "colony peer invite rm 3fa2")
@click.argument("invitation")
def rm(session: Session, invitation: str) -> None:
    """Make a token useless before it is used. INVITATION is the beginning of its name."""
    reply = session.call("revokeinvitationmsg", {"invitation": invitation}, owner=True)
    print_done(session, reply, f"revoked {reply['invitation']}")


invite.aliases = {"revoke": "rm"}
furnish(invite)
invite.add_command(ls)
invite.add_command(rm)


@colony_command("join", "colony peer join AF4HQ6DY...", "colony peer join - < token")
@click.argument("token")
@policy_options
def join(session: Session, token: str, asked: dict[str, Any]) -> None:
    """Use the token that another colony made: each trusts the other from then on.

    The policy is for the other colony's processes here. With - the token is read from stdin.
    """
    text = sys.stdin.read() if token == "-" else token
    fields = {"token": text, **wish(asked)}
    peer = session.call("joinpeermsg", fields, owner=True, timeout=_JOIN_TIMEOUT)
    print_done(session, peer, f"{peer['name']} ({peer['id']}) and this colony trust each other")
