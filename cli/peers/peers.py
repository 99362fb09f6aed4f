"""`colony peers`: other colonies, as this one sees them, and trust in them.

`federation` finds peers and decides what trust allows.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import ago, print_fields, print_json, print_table, short, span
from cli.core.policy import policy_fields, policy_options, wish
from cli.core.session import Session, colony_command, colony_group, confirm
from cli.core.terminal import print_line, print_note
from cli.peers.invite import invite, join

SAME_CLOCK = 10  # seconds between clocks that do not matter

peers = colony_group(
    "peers",
    "Other colonies: list, show, invite, join, trust, block and ping them. PEER is a name, an id, "
    "or the first characters of an id.",
    "colony peers ls",
    "colony peers trust 3fa2b1c0",
    "colony peers invite --expires 10m",
)


def _state(peer: dict[str, Any]) -> str:
    """Return a peer's state, and for an undecided one the peer that introduced it."""
    state, by = str(peer.get("state") or ""), peer.get("introducedby") or []
    if by and (state == "pending" or peer.get("distance")):
        return f"{state}, introduced by {', '.join(by)}"
    return state


def _name(peer: dict[str, Any]) -> str:
    """Return the name under which a peer was trusted, and its present name if that differs."""
    name, said = str(peer.get("name") or ""), peer.get("said")
    return f"{name} (now calls itself {said})" if said else name


def _renamed(peer: dict[str, Any]) -> str:
    """Return what the owner of a renamed peer should decide."""
    said = peer.get("said")
    if not said:
        return ""
    return f"{said}; work still goes to it as {peer.get('name')}. " + (
        f"To take the new name: colony peers trust {short(peer.get('id'))}"
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
                _name(row),
                _state(row),
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


@colony_command(
    "trust",
    "colony peers trust 3fa2b1c0",
    "colony peers trust 3fa2b1c0 --function 'render*' --max-waiting 100 --rate 60",
    "colony peers trust 3fa2b1c0 --policy lab.toml",
)
@click.argument("peer")
@policy_options
def trust(session: Session, peer: str, asked: dict[str, Any]) -> None:
    """Let a colony send work here and take work from here. Compare its id first.

    What it may do here is the policy's: the default is [federation.policy] of the configuration.
    A blocked colony is trusted again this way.
    """
    _print(session, session.call("trustpeermsg", {"peer": peer, **wish(asked)}, owner=True))


@colony_command(
    "policy",
    "colony peers policy lab-42",
    "colony peers policy lab-42 --max-running 4 --no-forward",
    "colony peers policy lab-42 --default",
)
@click.argument("peer")
@click.option("--default", "default", is_flag=True, help="Give up its own policy.")
@policy_options
def policy(session: Session, peer: str, default: bool, asked: dict[str, Any]) -> None:
    """Show what a colony may do here, or change it: what is not named stays."""
    change = wish(asked)
    if default and change:
        raise Failure(
            "--default gives up the colony's own policy; nothing can be laid over it",
            code=USAGE,
            next_step="give either --default or what is to change",
        )
    if default or change:
        fields = {"peer": peer, "default": default, **change}
        shown = session.call("setpeerpolicymsg", fields, owner=True)
    else:
        shown = session.call("getpeermsg", {"peer": peer}, owner=True)
    if session.as_json:
        print_json(shown["policy"])
        return
    print_fields(
        [
            ("peer", shown.get("name")),
            ("policy", "its own" if shown.get("ownpolicy") else "the default"),
            *policy_fields(shown["policy"]),
            ("waiting now", shown.get("waiting")),
            ("running now", shown.get("running")),
            ("left here now", left(shown)),
        ]
    )
    if asked["forward"]:
        print_note(
            "a colony beyond takes it only if its owner allows two hops: there, `colony peers"
            f" policy {session.colony()} --max-hops 2`"
        )


@colony_command("block", "colony peers block lab-42")
@click.argument("peer")
def block(session: Session, peer: str) -> None:
    """Refuse a colony from now on, whoever introduces it, and end all that is under way.

    What waits for it here fails, what it may be running is in doubt and fails with that word,
    and its processes here are cancelled. `colony peers trust` takes it back.
    """
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
            next_step=f"`colony peers show {shlex.quote(peer)}`; is its daemon up, its federation"
            " port open?",
        )
    if not session.as_json:
        print_line(f"{peer} answers in {float(reply.get('rtt') or 0) * 1000:.1f} ms")


@colony_command("clock", "colony peers clock", "colony peers clock --reset")
@click.option("--reset", is_flag=True, help="Forget a later time than the clock's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clock_(session: Session, reset: bool, yes: bool) -> None:
    """Show the daemon's clock, and the latest time that it remembers.

    Messages of peers are judged by the later of the two, so that a host that boots in the past
    takes nothing again that it saw expire. But a clock that was far ahead once leaves a time
    behind by which all that peers send has expired, until the clock has come that far.

    --reset makes the clock's time the one that is remembered. The clock must be right: if it is
    in the past, what had expired since counts again. If it is right, the colony takes what any
    other would, and what it took before not a second time: the marker of a process stands until 7
    days after its message expired, and the process itself as long as the history keeps it. Only a
    clock that was more than 7 days ahead can have ended both early; then a copy of a message of
    the last 7 days, kept by its sender or by a colony on its way, may run once more.
    """
    told: dict[str, Any] = session.call("getclockmsg", {}, owner=True)
    if reset and int(told["behind"]) > 0:
        confirm(yes, f"forget {moment(told['latest'])}: the clock says {moment(told['clock'])}")
        told = session.call("resetclockmsg", {}, owner=True)
    if session.as_json:
        print_json(told)
        return
    behind = int(told["behind"])
    print_fields(
        [
            ("clock", moment(told["clock"])),
            ("latest", moment(told["latest"])),
            ("behind", span(behind) if behind else ""),
            ("forgotten", moment(told["before"]) if "before" in told else ""),
        ]
    )


def moment(seconds: Any) -> str:
    """Return a time (Unix s) for people, such as "2026-05-01 12:00:00 UTC"."""
    return f"{datetime.fromtimestamp(float(seconds or 0), UTC):%Y-%m-%d %H:%M:%S} UTC"


def _offers(said: dict[str, Any] | None) -> str:
    """Return a line for each executor type, such as 'cli (2 executors, 1 free, 0 waiting): *'."""
    if not said:
        return ""
    lines = [
        f"{name} ({offer['executors']} executors, {offer['free']} free, {offer['waiting']} waiting)"
        f": {', '.join(offer['functions'])}"
        for name, offer in sorted(said["types"].items())
    ]
    return "\n".join([*lines, f"as it said {said['age']:.0f} s ago"])


def _print(session: Session, peer: dict[str, Any]) -> None:
    if session.as_json:
        print_json(peer)
        return
    print_fields(
        [
            ("peer", peer.get("name")),
            ("id", peer.get("id")),
            ("calls itself", _renamed(peer)),
            ("ambiguous", peer.get("ambiguous")),
            ("state", _state(peer)),
            ("seen", _seen(peer)),
            ("endpoints", ", ".join(peer.get("endpoints") or [])),
            ("outstanding", peer.get("outstanding")),
            ("offers us", _offers(peer.get("capabilities"))),
            ("waiting here", peer.get("waiting")),
            ("running here", peer.get("running")),
            ("left here", left(peer)),
            ("policy", "its own" if peer.get("ownpolicy") else ""),
            ("ending", "not all of it has ended yet" if peer.get("ending") else ""),
            ("clock", clock(peer.get("clock"))),
            ("error", peer.get("error")),
        ]
    )


def left(peer: dict[str, Any]) -> str:
    """Return what a peer left in the store here, of what it may, such as "12 entries of 500000,
    ...".
    """
    found, policy = peer.get("left") or {}, peer.get("policy") or {}
    if not any(found.values()):
        return ""

    def part(count: Any, unit: str, field: str) -> str:
        limit = policy.get(field)
        return f"{count} {unit} of {limit} ({field})" if limit else f"{count} {unit}"

    parts = [
        part(found.get("entries", 0), "entries", "max_entries"),
        part(found.get("bytes", 0), "bytes", "max_kept"),
    ]
    if found.get("news"):
        parts.append(part(found["news"], "bytes of news today", "max_kept"))
    return ", ".join(parts)


def clock(reading: dict[str, Any] | None) -> str:
    """Return how a peer's clock differs from ours; "" while it was not measured."""
    if not reading:
        return ""
    ahead = int(reading.get("ahead") or 0)
    if abs(ahead) <= SAME_CLOCK:
        return "as here"
    return f"{span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} ours"


for _command in (ls, show, trust, policy, block, ping, invite, join, clock_):
    peers.add_command(_command)
