"""Texts cut to what a page takes: others may have written megabytes into any of them."""

from __future__ import annotations

from typing import Any

LONGEST_TEXT = 200_000  # characters of an output or a log line on a page


def clip(text: str, most: int = LONGEST_TEXT) -> str:
    """Return a text, cut with a mark where it is too long for a page."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def clip_all(value: Any, most: int) -> Any:
    """Return a value of JSON with each text in it cut to `most` characters, names included."""
    if isinstance(value, str):
        return clip(value, most)
    if isinstance(value, list | tuple):
        return [clip_all(each, most) for each in value]
    if isinstance(value, dict):
        return {clip(str(name), most): clip_all(each, most) for name, each in value.items()}
    return value
