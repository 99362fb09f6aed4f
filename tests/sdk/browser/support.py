"""A real Chromium, and static servers for its pages, for tests.

What the pages do is in the tests; how Chromium is driven, in `driver.mjs`.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "browser-worker"
_HERE = Path(__file__).parent
_NODE = 20  # the oldest major version of Node.js that the driver's library takes


def missing() -> str:
    """What a browser test lacks on this machine, or nothing."""
    lacking = [name for name in ("chromium", "node", "npm") if shutil.which(name) is None]
    if "node" not in lacking:
        version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
        if int(version.lstrip("v").partition(".")[0] or 0) < _NODE:
            lacking.append(f"Node.js {_NODE} or later instead of {version.strip()}")
    for directory, package in ((_HERE, "playwright-core"), (EXAMPLE, "@noble/curves")):
        if not (directory / "node_modules" / package / "package.json").exists():
            lacking.append(f"npm package {package}")
    return ", ".join(lacking)


def require() -> None:
    """Skip a test that has no browser here; in CI, that's a failure."""
    if lacking := missing():
        reason = f"no {lacking} here: `scripts/setup --test` installs what is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Browser:
    """A running Chromium with a profile of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pending = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked = 0

    def run(self, code: str, seconds: float = 40, **args: Any) -> Any:
        """Run the body of an async function of `browser`, `pages` and `args`; its JSON value.

        Raises AssertionError with the message of what it throws.
        """
        return self.answer(self.ask(code, **args), seconds)

    def ask(self, code: str, **args: Any) -> int:
        """Start to run it; the number is for `answer`."""
        assert self._process.stdin is not None
        self._asked += 1
        question = {"id": self._asked, "code": code, "args": args}
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._asked

    def answer(self, number: int, seconds: float = 40) -> Any:
        """Wait for what a question gave."""
        until = time.monotonic() + seconds
        while number not in self._answers:
            self._read(until)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["value"]

    def _read(self, until: float) -> None:
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            left = max(until - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise AssertionError("the browser does not answer in time")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise AssertionError(f"the driver ended with code {self._process.wait(10)}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        self._answers[answer["id"]] = answer


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start Chromium for the block's time."""
    chromium = shutil.which("chromium")
    assert chromium is not None
    with subprocess.Popen(
        ["node", str(_HERE / "driver.mjs"), chromium],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_HERE,
    ) as process:
        browser = Browser(process)
        try:
            browser.answer(0)
            yield browser
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextmanager
def serving_files(directory: Path) -> Iterator[str]:
    """Serve a directory as the example's README says; yields the origin."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--directory", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = re.search(r" port (\d+)", process.stdout.readline())
            assert port is not None
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            process.terminate()
