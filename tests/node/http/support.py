"""Connections to the HTTP edge of a daemon, and what its metrics and its reference say."""

from __future__ import annotations

import http.client
import re
from collections import Counter

import httpx

from tests.support.daemons import Daemon


class Edge:
    """A connection that is opened again when the daemon, rightly, closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses: Counter[int] = Counter()
        self._http: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Post a body: status and answer."""
        for attempt in (1, 2):
            if self._http is None:
                self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                self._http.request("POST", "/api", body)
                answer = self._http.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                self._http.close()
                self._http = None
                if attempt == 2:
                    raise
                continue
            self.statuses[answer.status] += 1
            return answer.status, data
        raise AssertionError("unreachable")


SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (-?[0-9.e+-]+)\Z')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"')
ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of the text format, every line of which must be right."""
    samples = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith(("# HELP ", "# TYPE ")):
            continue
        match = SAMPLE.match(line)
        assert match, line
        labels = frozenset(
            (name, re.sub(r"\\.", lambda found: ESCAPES[found[0]], told))
            for name, told in LABEL.findall(match[2] or "")
        )
        assert (match[1], labels) not in samples, line
        samples[match[1], labels] = float(match[3])
    return samples


def scrape(daemon: Daemon, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{daemon.port}/metrics", headers=headers, timeout=10)


OVER_SOCKET = frozenset({"subscribeprocessmsg", "subscribeprocessesmsg", "subscribechannelmsg"})
