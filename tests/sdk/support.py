"""A colony that is used through the SDK pycolonies."""

from __future__ import annotations

from typing import Any

import crypto  # type: ignore[import-untyped]
from model import Process  # type: ignore[import-untyped]
from pycolonies import Colonies, func_spec

from tests.support.daemons import Daemon

COLONY = "dev"


def field(value: Any, name: str) -> Any:
    """A field of what pycolonies returns: a dictionary from some calls, a model from others."""
    return value[name] if isinstance(value, dict) else getattr(value, name)


def plain(values: Any) -> list[dict[str, Any]]:
    """What pycolonies returns in a list, as dictionaries."""
    return [value if isinstance(value, dict) else value.__dict__ for value in values]


class Party:
    """A client of the node and an approved executor of a type of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self.colonies = Colonies("127.0.0.1", daemon.port)
        self.owner = daemon.key("colony").hex
        self.user = daemon.key("user").hex
        self.server = daemon.key("server").hex
        self.key = crypto.Crypto().prvkey()
        self.id = crypto.Crypto().id(self.key)
        self.name = f"ex-{self.id[:12]}"
        self.type = f"type-{self.id[:12]}"

    def join(self) -> Party:
        executor = {
            "executorname": self.name,
            "executorid": self.id,
            "colonyname": COLONY,
            "executortype": self.type,
        }
        self.colonies.add_executor(executor, self.owner)
        self.colonies.approve_executor(COLONY, self.name, self.owner)
        return self

    def spec(self, **more: Any) -> Any:
        spec = func_spec(
            func="echo", args=["hello"], colonyname=COLONY, executortype=self.type, priority=0
        )
        for key, value in more.items():
            setattr(spec, key, value)
        return spec

    def submit(self, **more: Any) -> Process:
        return self.colonies.submit_func_spec(self.spec(**more), self.user)

    def assign(self, timeout: int = 5) -> Process:
        return self.colonies.assign(COLONY, timeout, self.key)

    def state(self, process: Process) -> int:
        return int(self.colonies.get_process(process.processid, self.user).state)
