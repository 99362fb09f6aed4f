"""`colony ui`: serves the web page of the colony on this machine's loopback interface.

The daemon's ports get nothing new: this command calls it as all others do, with keys that it keeps.
"""

from __future__ import annotations

import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from cli.core.errors import Failure
from cli.core.session import Session, colony_command
from cli.core.terminal import json_text, print_line, print_note

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey

_GRACE = 1.0  # seconds for answers that are under way when the command ends


@colony_command("ui", "colony ui", "colony ui --write", "colony ui --port 8042 --no-open")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default="a free one",
    help="TCP port on 127.0.0.1.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Let the page change things, too.")
@click.option(
    "--open/--no-open", "open_", default=None,
    help="Start the browser here; the default where there is a desktop.",
)  # fmt: skip
def ui(session: Session, port: int, write: bool, open_: bool | None) -> None:
    """Show the colony as a web page; Ctrl-C ends it.

    Each printed address signs one browser in and works once; the next is printed then. The page
    only reads unless --write is given. From another machine:
    `ssh -L 8042:127.0.0.1:8042 HOST colony ui --port 8042 --no-open`.
    """
    key, colony = session.member_key(), session.colony()
    owner: PrivateKey | None = None
    with suppress(Failure):
        owner = session.owner_key()
    opened = _has_desktop(session) if open_ is None else open_
    # The directory is this user's only, and goes with the command.
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="colony-ui-") as place:
        page = Path(place) / "colony.html" if opened else None
        session.run(lambda: _serve(session, colony, key, owner, port, write, page))


async def _serve(
    session: Session,
    colony: str,
    key: PrivateKey,
    owner: PrivateKey | None,
    port: int,
    write: bool,
    page: Path | None,
) -> None:
    """Serve until cancelled; start a browser with the file `page`, if there is one."""
    from cli.ui.access import Access
    from cli.ui.calls import API
    from cli.ui.context import Context
    from cli.ui.server import ENTERED, LIMITS, Site, failed
    from node.http.listeners import ListenError, bound_port, open_listeners
    from node.http.server import serve_http

    try:
        listeners = await open_listeners("127.0.0.1", port)
    except ListenError as error:
        message = str(error).partition(": stop that")[0].replace("rpc.port", "--port")
        message = message.replace("rpc.host", "--port")
        raise Failure(message, next_step="another --port, or none for a free one") from None
    access, address = Access(), f"http://127.0.0.1:{bound_port(listeners)}"
    async with session.client() as client, trio.open_nursery() as nursery:
        context = Context(session, client, colony, key, owner, write)
        site = Site(context, API, access)
        await nursery.start(
            lambda task_status: serve_http(
                site,
                listeners,
                limits=LIMITS,
                drain=trio.Event(),
                grace=_GRACE,
                error=failed,
                task_status=task_status,
            )
        )
        nursery.start_soon(context.watch)
        _tell(session, address + access.entry())
        if not write:
            print_note("the page only reads; `colony ui --write` may change things")
        if page is not None:
            html = ENTERED.format(base=address + access.entry())
            await trio.to_thread.run_sync(
                lambda: _start_browser(page, html), abandon_on_cancel=True
            )
        while True:
            await site.entered.wait()
            print_note("a browser signed in; for another one:")
            _tell(session, address + access.entry())


def _start_browser(page: Path, html: str) -> None:
    # Other users see the words of every command that runs: the address is not one of them.
    page.write_text(html, "utf-8")
    webbrowser.open(page.as_uri())


def _tell(session: Session, address: str) -> None:
    print_line(json_text({"url": address}) if session.as_json else address)


def _has_desktop(session: Session) -> bool:
    """Return whether a browser started here is seen by the person who runs the command."""
    environ = session.environ
    remote = any(environ.get(each) for each in ("SSH_CONNECTION", "SSH_TTY"))
    return not remote and any(environ.get(each) for each in ("DISPLAY", "WAYLAND_DISPLAY"))
