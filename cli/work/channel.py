"""`colony channel`: messages between the submitter of a process and its executor, while it runs.

Programs subscribe over WebSocket; for people, who read more slowly, this polls.
"""

from __future__ import annotations

import base64
import binascii
import sys
import time
from typing import Any

import click
import trio

from cli.core.errors import FAILED, Failure
from cli.core.output import print_done, print_json
from cli.core.session import Session, as_executor, colony_command, colony_group
from cli.core.terminal import print_note, print_result

_POLL = 0.5  # seconds
_CLOSED = 2
_PAGE = 500  # messages asked for at a time

channel = colony_group(
    "channel",
    "Messages between who submitted a process and who runs it. Channels are named in the spec: "
    "`colony run --channel NAME`.",
    "colony channel send 3fa2b1c09d7e chat 'a little to the left'",
    "colony channel read 3fa2b1c09d7e chat --follow",
    aliases={"follow": ("read", "--follow")},
)


def _payload(entry: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(entry.get("payload") or "")
    except (binascii.Error, ValueError):
        return str(entry.get("payload")).encode()


def _print(entry: dict[str, Any]) -> None:
    if entry.get("type") == "error":
        print_note(f"error: {_payload(entry).decode(errors='replace')}")
        return
    print_result(_payload(entry))


@colony_command("send", "colony channel send 3fa2b1c09d7e chat 'a little to the left'")
@click.argument("processid")
@click.argument("name")
@click.argument("message", required=False)
@as_executor
@click.option("--end", "kind", flag_value="end", help="Say that no more will come.")
@click.option("--error", "kind", flag_value="error", help="Say that something is wrong.")
@click.option("--sequence", type=int, default=None, help="Own number of the message [the time].")
@click.option("--reply-to", type=int, default=0, help="Number of the message it answers.")
def send(
    session: Session,
    processid: str,
    name: str,
    message: str | None,
    executor: str | None,
    kind: str | None,
    sequence: int | None,
    reply_to: int,
) -> None:
    """Send MESSAGE (or stdin) into a channel of a process."""
    from cli.core.lookup import call_about

    if message is None:
        data = b"" if kind == "end" else sys.stdin.buffer.read()
    else:
        data = message.encode()
    key = session.signer(executor)
    # Microseconds: they grow with each message, and every JSON reader can hold them.
    number = time.time_ns() // 1000 if sequence is None else sequence
    fields: dict[str, Any] = {"name": name, "sequence": number, "inreplyto": reply_to}
    fields |= {"payload": base64.b64encode(data).decode(), "payloadtype": kind or ""}

    full = call_about(session, key, processid, "channelappendmsg", fields)
    print_done(session, {"processid": full, "name": name, "sequence": number}, str(number))


@colony_command(
    "read",
    "colony channel read 3fa2b1c09d7e chat --after 10",
    "colony channel read 3fa2b1c09d7e chat --follow",
)
@click.argument("processid")
@click.argument("name")
@as_executor
@click.option("--after", type=click.IntRange(0), default=0, help="Skip so many messages.")
@click.option("--follow", is_flag=True, help="Go on until one side ends or the process does.")
def read(
    session: Session, processid: str, name: str, executor: str | None, after: int, follow: bool
) -> None:
    """Print the messages of a channel, one per line; with --json their numbers and senders."""
    from cli.core.lookup import full_id

    key = session.signer(executor)
    kept: list[dict[str, Any]] = []
    ended: list[str] = []

    async def work() -> None:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            seen = after
            while True:
                # Asked before reading: then all messages before the end are read.
                closed = False
                if follow:
                    found = await client.call("getprocessmsg", {"processid": full})
                    closed = found["state"] >= _CLOSED
                fields = {"processid": full, "name": name, "afterseq": seen, "limit": _PAGE}
                entries = await client.call("channelreadmsg", fields) or []
                for entry in entries:
                    if session.as_json:
                        kept.append(entry)
                    elif entry.get("type") != "end":
                        _print(entry)
                    if entry.get("type") in ("end", "error"):
                        ended.append(str(entry["type"]))
                seen += len(entries)
                if len(entries) == _PAGE:
                    continue
                if not follow or ended or closed:
                    return
                await trio.sleep(_POLL)

    session.run(work)
    if session.as_json:
        print_json(kept)
    if follow and "error" in ended:
        raise Failure("the other side reports an error", code=FAILED)


for _command in (send, read):
    channel.add_command(_command)
