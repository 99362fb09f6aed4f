"""Processes as they are before anybody submits them."""

from __future__ import annotations

import time
from pathlib import Path

from node.archive.retention import Retention
from node.host.config import HistoryConfig
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, Process
from node.processes.spec import build_process
from node.runtime.node import Node


def make(*, origin: str = "", location: str = "", executortype: str = "cli") -> Process:
    """One of the colony `dev`, perhaps from another colony or for one place."""
    conditions = Conditions("dev", executortype=executortype, locationname=location)
    process = build_process(
        FunctionSpec(funcname="f", conditions=conditions),
        processid=new_id(),
        initiatorid="b" * 64,
        initiatorname="ann",
        colonyname="dev",
        now=time.time_ns(),
    )
    process.origin = origin
    return process


def retention(node: Node, home: Path, config: HistoryConfig) -> Retention:
    """What moves closed things of a node to the history files below `home`."""
    return Retention(node.workflows, node.directory, node.leader, node.past, home, config)
