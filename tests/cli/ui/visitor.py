"""Requests to `colony ui` as a browser makes them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import httpx


class Visitor:
    """A browser's requests, by hand."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.entry = address
        self.http = httpx.Client(trust_env=False, timeout=120)
        self.base = ""

    def enter(self) -> httpx.Response:
        answer = self.http.get(self.entry)
        if answer.status_code == 200:
            self.base = self.origin + answer.text.partition("url=")[2].partition('"')[0]
        return answer

    def call(self, name: str, params: Any = None, **headers: str) -> httpx.Response:
        sent = {"content-type": "application/json", "origin": self.origin} | headers
        content = json.dumps(params or {}).encode()
        return self.http.post(f"{self.base}api/{name}", content=content, headers=sent)
