"""Hooks of the documentation site's build."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Leave out of the navigation what does not exist; sections without a page go, too."""
    config["nav"] = _existing(config["nav"], Path(config["docs_dir"]))
    return config


def _existing(entries: list[dict[str, Any]], docs: Path) -> list[dict[str, Any]]:
    found = []
    for entry in entries:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            target = _existing(target, docs)
        elif not (docs / target).exists():
            continue
        if target:
            found.append({title: target})
    return found
