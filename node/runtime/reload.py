"""Reload of the configuration: the settings that changed, and those that are in force at once.

The file is read in `host.config`; `daemon.main` names the applier of each setting.
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
    """The configuration in force, and `appliers` by the setting or table of settings that they
    apply.
    """

    config: Config
    appliers: Mapping[str, Apply]

    def take(self, config: Config) -> tuple[list[str], list[str]]:
        """Apply each changed setting that has an applier.

        Returns the settings that are now in force, and those that wait for a restart. A setting
        that waits is returned again by each later call.
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
    """Return the settings that differ, as dotted paths."""
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
    """Return the old configuration with the settings `done` of the new one."""
    for setting in done:
        before = _with(before, after, setting.split("."))
    return before


def _with(before: Any, after: Any, path: list[str]) -> Any:
    name, *rest = path
    inner = getattr(after, name)
    if rest:
        inner = _with(getattr(before, name), inner, rest)
    return msgspec.structs.replace(before, **{name: inner})
