"""`colony card`: a colony's signed card as a link or a QR code, and the opening of such a link.

The daemon checks what a link holds: `federation.membership.opening`.
"""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import print_fields, print_json, short, span
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line, print_note
from cli.peers.invite import drawn
from cli.peers.peers import calls, state

_LARGEST = 4296  # characters that the largest QR code holds


@colony_command(
    "card",
    "colony card",
    "colony card --qr",
    "colony card lab-paris --link",
    "colony card --open COLONY:AEBYFN32TIYN...",
)
@click.argument("peer", default="")
@click.option("--link", is_flag=True, help="Print the link alone.")
@click.option("--qr", is_flag=True, help="Draw the link as a QR code.")
@click.option(
    "--open", "opened", metavar="LINK", default=None,
    help="Check the card in a link (- for stdin), and list its colony as pending.",
)  # fmt: skip
def card(session: Session, peer: str, link: bool, qr: bool, opened: str | None) -> None:
    """Show this colony's card, or that of PEER; as a link, another daemon opens it.

    A card says who a colony is and where: id, key, name, addresses, all signed by the colony. It is
    no secret and gives no right: what is opened is pending, until both owners trust each other.
    """
    if opened is not None:
        if peer or link or qr:
            raise Failure(
                "--open takes a link and nothing else",
                code=USAGE,
                next_step="give --open LINK alone; then `colony card PEER` shows that card",
            )
        _open(session, opened)
        return
    found: dict[str, Any] = session.call("getcardmsg", {"peer": peer}, owner=True)
    text = str(found["link"])
    if session.as_json:
        print_json(found)
        return
    if qr:
        if len(text) > _LARGEST:
            raise Failure(
                f"the link has {len(text)} characters; a QR code holds {_LARGEST}",
                next_step="send the link instead: `colony card --link`",
            )
        code = drawn(text)
        width, there = code.index("\n"), shutil.get_terminal_size().columns
        if sys.stdout.isatty() and width > there:
            print_note(f"the code is {width} columns wide, the terminal {there}: widen it")
        print_line(code)
    if link or qr:
        if link:
            print_line(text)
        print_note(f"{found['name']} ({found['id']})")
        print_note("  next: on the other side, `colony card --open LINK`")
    else:
        print_fields(
            [
                ("colony", found["name"]),
                ("id", found["id"]),
                ("addresses", ", ".join(found["endpoints"])),
                ("polls mailboxes", ", ".join(short(each) for each in found["mailboxes"])),
                ("certificate", found["fingerprint"]),
                ("versions", ", ".join(map(str, found["versions"]))),
                ("expires", _left(found["expires"])),
                ("link", text),
            ]
        )
    if found["expired"]:
        print_note("  this card has expired: no daemon opens it any more")


def _left(expires: int) -> str:
    left = expires - datetime.now(UTC).timestamp()
    moment = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{moment}, in {span(left)}" if left > 0 else f"{moment}: it has expired"


def _open(session: Session, text: str) -> None:
    link = sys.stdin.read() if text == "-" else text
    peer: dict[str, Any] = session.call("opencardmsg", {"link": link}, owner=True)
    if session.as_json:
        print_json(peer)
        return
    known = peer.get("introducedby") or []
    print_fields(
        [
            ("colony", peer["name"]),
            ("id", peer["id"]),
            ("addresses", ", ".join(peer["endpoints"])),
            ("state", state(peer)),
            ("known by", ", ".join(known) or "no peer of this colony"),
            ("so called", calls(peer)),
        ]
    )
    if peer["state"] == "pending":
        print_note(
            "  next: compare the id with its owner; then each trusts the other: here, `colony peer"
            f" trust {short(peer['id'])}`"
        )
