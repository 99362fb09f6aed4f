"""The worker page in a tab of a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from colonyd.keys import PrivateKey
from tests.sdk.browser.support import Browser
from tests.support.daemons import REPOSITORY, Daemon


class Page:
    """The worker page in a tab of its own; `faults` are its uncaught errors."""

    def __init__(self, browser: Browser, daemon: Daemon, name: str) -> None:
        self.browser = browser
        self.daemon = daemon
        self.name = name

    def run(self, code: str, **args: Any) -> Any:
        return self.browser.run(f"const page = pages[args.name]; {code}", name=self.name, **args)

    def open(self, address: str) -> Page:
        self.run(
            """
            const context = await browser.newContext();
            const opened = pages[args.name] = await context.newPage();
            opened.faults = [];
            opened.on("pageerror", (error) => opened.faults.push(String(error)));
            opened.on("dialog", (dialog) => { opened.faults.push("dialog"); dialog.dismiss(); });
            await opened.goto(args.address);
            await opened.locator("html[data-loaded]").waitFor();
            """,
            address=address,
        )
        return self

    def close(self) -> None:
        assert self.run("await page.context().close(); return page.faults") == []

    def state(self, wanted: str) -> None:
        """Wait until the page shows a state."""
        self.run("await page.locator(`#state[data-state=${args.state}]`).waitFor()", state=wanted)

    def logged(self, text: str, times: int = 1) -> str:
        """Wait for the line number `times` of the log that contains a text; the whole line."""
        return str(
            self.run(
                """
                const line = page.locator("#log li", {hasText: args.text}).nth(args.times - 1);
                return await line.textContent();
                """,
                text=text,
                times=times,
            )
        )

    def text(self, selector: str) -> str:
        return str(self.run("return page.locator(args.at).textContent()", at=selector))

    def click(self, selector: str) -> None:
        self.run("await page.click(args.at)", at=selector)

    def key(self) -> PrivateKey:
        """The page's key."""
        return PrivateKey.from_hex(self.run("return page.inputValue('#key')"))


def call(daemon: Daemon, kind: str, fields: dict[str, Any], key: str = "user") -> Any:
    """One call of the CLI's client."""

    async def go() -> Any:
        async with daemon.client() as client:
            return await client.call(kind, fields, daemon.key(key))

    return trio.run(go)


def process(daemon: Daemon, processid: str) -> dict[str, Any]:
    found: dict[str, Any] = call(daemon, "getprocessmsg", {"processid": processid})
    return found


def colony(daemon: Daemon, command: str) -> None:
    """Run a `colony` command as the page shows it, as the colony's owner."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    environ |= {"COLONYD_HOME": str(daemon.home)}
    words = command.split()
    assert words[0] == "colony"
    where = ["--server", f"127.0.0.1:{daemon.port}"]
    subprocess.run(
        [sys.executable, "-m", "cli.main", *words[1:], *where],
        cwd=REPOSITORY,
        env=environ,
        check=True,
        capture_output=True,
        timeout=90,
    )


def address(origin: str, daemon: Daemon, name: str) -> str:
    """The page's address with all but the keys filled in; its type is `type-NAME`."""
    server = f"http://127.0.0.1:{daemon.port}"
    return f"{origin}/?server={server}&colony=dev&name={name}&type=type-{name}"


@contextmanager
def at_work(open_page: Callable[[Daemon, str], Page], daemon: Daemon, name: str) -> Iterator[Page]:
    """A page whose worker was registered by the owner, and is stopped in the end."""
    page = open_page(daemon, name)
    page.click("#new")
    page.click("#start")
    told = page.logged("colony executor add")
    colony(daemon, told[told.index("colony executor") :])
    page.state("ready")
    yield page
    page.click("#stop")
    page.state("stopped")
