"""`colony status`: the state of the daemon, at a glance.

`cli.ops.doctor` looks for causes of trouble.
"""

from __future__ import annotations

from typing import Any

from cli.core.output import print_fields, print_json, span
from cli.core.session import Session, colony_command


@colony_command("status", "colony status", "colony status --json")
def status(session: Session) -> None:
    """Show version, identity, store, peers and processes of the daemon."""
    reply: dict[str, Any] = session.call("getnodestatusmsg", {})
    if session.as_json:
        print_json(reply)
        return
    etcd = reply.get("etcd") or {}
    print_fields(
        [
            ("colony", reply.get("colonyname")),
            ("colony id", reply.get("colonyid")),
            ("version", reply.get("version")),
            ("up for", span(float(reply.get("uptime") or 0))),
            ("RPC port", reply.get("rpcport")),
            ("port for peers", reply.get("federationport") or "off"),
            ("DHT", dht(reply.get("dht"))),
            ("mailboxes", mailboxes(reply.get("mailboxes"))),
            ("mailbox for", clients(reply.get("mailboxes"))),
            ("router", router(reply.get("routers"))),
            ("reach", reach(reply.get("reach"))),
            (
                "store",
                f"etcd {etcd.get('version')}, {int(etcd.get('dbsize') or 0) / 2**20:.1f} MiB, "
                f"revision {etcd.get('revision')}",
            ),
            *(
                [(f"store is {etcd.get('level')}", f"{etcd['why']}; {etcd.get('next')}")]
                if etcd.get("why")
                else []
            ),
            ("peers", counts(reply.get("peers"))),
            ("processes", counts(reply.get("processes"))),
            ("counted so far", reply.get("reading")),
            (
                "paused",
                "no work is handed out; `colony resume`" if reply.get("paused") else "",
            ),
            *(
                ("nobody takes", f"{vain(each)}; {each['next']}")
                for each in reply.get("stuck") or []
            ),
        ]
    )


def dht(told: dict[str, Any] | None) -> str:
    """Return the state of the look-up in the DHT; "" if that is off."""
    if not told:
        return ""
    nodes = f"port {told.get('port')}, {told.get('nodes')} nodes, {told.get('asked')} look-ups"
    return f"{nodes}; {told['problem']}" if told.get("problem") else nodes


def router(told: dict[str, Any] | None) -> str:
    """Return which port a router forwards to this machine; "" if none was asked to."""
    if not told:
        return ""
    if told.get("port"):
        return f"forwards its TCP port {told['port']} ({told['by']})"
    return str(told.get("problem") or "forwards nothing")


def reach(told: dict[str, Any] | None) -> str:
    """Return whether others can connect to this colony; "" if that is not found out."""
    if not told:
        return ""
    by = ", ".join(map(str, told.get("by") or []))
    text = " at ".join(filter(None, [str(told.get("verdict")), str(told.get("address") or "")]))
    return f"{text}, by the word of {by}" if by else text


def mailboxes(told: dict[str, Any] | None) -> str:
    """Return the peers whose mailboxes this colony polls; "" if it polls none."""
    return ", ".join(str(each.get("name")) for each in (told or {}).get("ours") or [])


def clients(told: dict[str, Any] | None) -> str:
    """Return the colonies for which this one is a mailbox, with the messages held; or ""."""
    held = (told or {}).get("held") or []
    return ", ".join(f"{each.get('name')} ({each.get('messages')} messages)" for each in held)


def vain(each: dict[str, Any]) -> str:
    """Return which processes can't be taken, such as '3 processes: no executor of type "x" ...'."""
    count = int(each.get("count") or 0)
    least = "at least " if each.get("more") else ""
    return f"{least}{count} process{'es' * (count != 1)}: {each.get('why')}"


def counts(numbers: dict[str, int] | None) -> str:
    """Return a text such as '2 trusted, 1 pending'; zeros are left out."""
    shown = [f"{number} {name}" for name, number in (numbers or {}).items() if number]
    return ", ".join(shown) or "none"
