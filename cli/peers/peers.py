"""`colony peer`: other colonies, as this one sees them, and trust in them.

`federation` finds peers and decides what trust allows.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import (
    ago,
    print_done,
    print_fields,
    print_json,
    print_lines,
    print_rows,
    short,
    span,
)
from cli.core.policy import policy_fields, policy_options, wish
from cli.core.session import Session, colony_command, colony_group, confirm
from cli.core.terminal import print_line, print_note
from cli.peers.invite import invite, join

SAME_CLOCK = 10  # seconds between clocks that do not matter

peer = colony_group(
    "peer",
    "Other colonies: list, show, invite, join, trust, name, block and ping them. PEER is your name "
    "for it (`colony peer name`), its own name, its id, or the first characters of its id.",
    "colony peer ls",
    "colony peer trust 3fa2b1c0",
    "colony peer invite --expires 10m",
    aliases={"rm": "forget", "remove": "forget", "delete": "forget"},
)


def state(peer: dict[str, Any]) -> str:
    """Return a peer's state, and for an undecided one the peer that introduced it."""
    word, by = str(peer.get("state") or ""), peer.get("introducedby") or []
    if by and (word == "pending" or peer.get("distance")):
        called = {each["by"]: f" as {each['name']}" for each in peer.get("calledby") or []}
        return f"{word}, introduced by {', '.join(each + called.get(each, '') for each in by)}"
    return word


def calls(peer: dict[str, Any]) -> str:
    """Return what peers call a colony, such as "lab-paris, so called by factory-1"."""
    return "; ".join(
        f"{each['name']}, so called by {each['by']}" for each in peer.get("calledby") or []
    )


def _name(peer: dict[str, Any]) -> str:
    """Return our name for a peer, or that under which it was trusted; and what it calls itself."""
    name, mine, said = str(peer.get("name") or ""), peer.get("petname"), peer.get("said")
    if mine and name not in ("", mine):
        return f"{mine} (calls itself {f'{said}, trusted as {name}' if said else name})"
    name = str(mine or name)
    return f"{name} (now calls itself {said})" if said else name


def _renamed(peer: dict[str, Any]) -> str:
    """Return what the owner of a renamed peer should decide."""
    said = peer.get("said")
    if not said:
        return ""
    return f"{said}; work still goes to it as {peer.get('name')}. " + (
        f"To take the new name: colony peer trust {short(peer.get('id'))}"
    )


def _seen(peer: dict[str, Any]) -> str:
    moment = float(peer.get("lastseen") or 0)
    return ago(datetime.fromtimestamp(moment, UTC)) if moment else "never"


@colony_command("ls", "colony peer ls")
def ls(session: Session) -> None:
    """List the colonies this one knows of."""
    rows: list[dict[str, Any]] = session.call("getpeersmsg", {}, owner=True) or []
    if session.as_json:
        print_json(rows)
        return
    print_lines(
        ["ID", "NAME", "STATE", "SEEN", "OUTSTANDING", "ENDPOINTS", "ERROR"],
        [
            [
                short(row.get("id")),
                _name(row),
                state(row),
                _seen(row),
                row.get("outstanding"),
                ", ".join(row.get("endpoints") or []),
                row.get("error"),
            ]
            for row in rows
        ],
        "no peers known; colonies on the same network appear here on their own",
    )


@colony_command("show", "colony peer show lab-42")
@click.argument("peer")
def show(session: Session, peer: str) -> None:
    """Show one colony."""
    _print(session, session.call("getpeermsg", {"peer": peer}, owner=True))


@colony_command(
    "trust",
    "colony peer trust 3fa2b1c0",
    "colony peer trust 3fa2b1c0 --function 'render*' --max-waiting 100 --rate 60",
    "colony peer trust 3fa2b1c0 --policy lab.toml",
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
    "colony peer policy lab-42",
    "colony peer policy lab-42 --max-running 4 --no-forward",
    "colony peer policy lab-42 --default",
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
            "a colony beyond takes it only if its owner allows two hops: there, `colony peer"
            f" policy {session.colony()} --max-hops 2`"
        )


@colony_command(
    "name",
    "colony peer name 3fa2b1c0 lab-paris",
    "colony peer name lab-paris --remove",
    "colony peer name",
)
@click.argument("peer", default="")
@click.argument("name", default="")
@click.option("--remove", is_flag=True, help="Take the name back.")
def name_(session: Session, peer: str, name: str, remove: bool) -> None:
    """Give a colony a short NAME of your own, a petname, which stands for its id from then on.

    Without PEER, list the names that you gave, also those of colonies that are not known now.
    It goes before the names that colonies give themselves, and holds for PEER alone. An id of 64
    characters is named before the colony was ever seen. Peers that this colony introduces it to are
    told the name, unless federation.share_names is off.
    """
    if not peer and not remove:
        print_rows(
            session,
            session.call("getpetnamesmsg", {}, owner=True) or [],
            ["NAME", "ID"],
            lambda row: [row["petname"], row["id"]],
            "no names given; `colony peer name PEER NAME` gives one",
        )
        return
    if not peer or bool(name) == remove:
        raise Failure(
            "a name, or --remove: one of them",
            code=USAGE,
            next_step="`colony peer name PEER NAME`, or `colony peer name PEER --remove`",
        )
    told: dict[str, Any] = session.call("namepeermsg", {"peer": peer, "name": name}, owner=True)
    if remove:
        print_done(session, told, f"{short(told['id'])} has no name of yours any more")
    else:
        print_done(session, told, f"{told['petname']} is {told['id']}")


@colony_command("block", "colony peer block lab-42")
@click.argument("peer")
def block(session: Session, peer: str) -> None:
    """Refuse a colony from now on, whoever introduces it, and end all that is under way.

    What waits for it here fails, what it may be running is in doubt and fails with that word,
    and its processes here are cancelled. `colony peer trust` takes it back.
    """
    _print(session, session.call("blockpeermsg", {"peer": peer}, owner=True))


@colony_command("forget", "colony peer forget lab-42", "colony peer forget 3fa2b1c0")
@click.argument("peer")
def forget(session: Session, peer: str) -> None:
    """Remove a colony that is not trusted from the list; a blocked one is a stranger again.

    One that is still there appears again. To keep one away, block it. Colonies that nobody hears of
    any more leave the list on their own after five minutes.
    """
    found: dict[str, Any] = session.call("forgetpeermsg", {"peer": peer}, owner=True)
    print_done(session, found, f"forgot {found['name'] or short(found['id'])}")


@colony_command("ping", "colony peer ping lab-42")
@click.argument("peer")
def ping(session: Session, peer: str) -> None:
    """Ask a colony for a signed answer; exit 1 without one."""
    reply: dict[str, Any] = session.call("pingpeermsg", {"peer": peer}, owner=True)
    if session.as_json:
        print_json(reply)
    if not reply.get("ok"):
        raise Failure(
            f"{peer} does not answer: {reply.get('error') or 'no reason given'}",
            next_step=f"`colony peer show {shlex.quote(peer)}`; is its daemon up, its federation"
            " port open?",
        )
    if not session.as_json:
        print_line(f"{peer} answers in {float(reply.get('rtt') or 0) * 1000:.1f} ms")


@colony_command("clock", "colony peer clock", "colony peer clock --reset")
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
            ("petname", peer.get("petname")),
            ("so called", calls(peer)),
            ("id", peer.get("id")),
            ("calls itself", _renamed(peer)),
            ("ambiguous", peer.get("ambiguous")),
            ("state", state(peer)),
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


for _command in (ls, show, trust, name_, policy, block, forget, ping, invite, join, clock_):
    peer.add_command(_command)
