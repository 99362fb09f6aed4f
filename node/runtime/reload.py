"""A configuration read again: which settings changed, and which of them are in force at once.

Reading it is in `host.config`; `daemon.main` names who applies which setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from node.host.config import Config

Apply = Callable[[Config], None]


@dataclass
class Reload:
    """`appliers` take a new configuration, by the setting or the table of settings they are for."""

    config: Config
    appliers: Mapping[str, Apply]

    def take(self, config: Config) -> tuple[list[str], list[str]]:
        """Put what can be into force; gives the settings that are now, and those that wait.

        What waits for a restart is told again until then.
        """
        done: list[str] = []
        waiting: list[str] = []
        appliers: list[Apply] = []
        for setting in changes(self.config, config):
            found = [name for name in self.appliers if f"{setting}.".startswith(f"{name}.")]
            (done if found else waiting).append(setting)
            appliers.extend(self.appliers[name] for name in found)
        for apply in dict.fromkeys(appliers):
            apply(config)
        self.config = _in_force(self.config, config, done)
        return done, waiting


def changes(before: Config, after: Config) -> list[str]:
    """The settings that differ, by dotted path."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [name for name in new if new[name] != old[name]]


def _flat(value: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        if isinstance(inner, msgspec.Struct):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def _in_force(before: Config, after: Config, done: list[str]) -> Config:
    """The old configuration with some settings of the new one."""
    for setting in done:
        before = _with(before, after, setting.split("."))
    return before


def _with(before: Any, after: Any, path: list[str]) -> Any:
    name, *rest = path
    inner = getattr(after, name)
    if rest:
        inner = _with(getattr(before, name), inner, rest)
    return msgspec.structs.replace(before, **{name: inner})
