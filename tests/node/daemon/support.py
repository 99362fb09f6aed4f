"""A daemon by itself, and what `colony doctor` finds."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from cli.main import main
from tests.support.daemons import Daemon


def doctor(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The findings of `colony doctor`, by name."""
    where = ["--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}"]
    result = CliRunner().invoke(main, [*where, "doctor", "--json"])
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


ALONE = {"COLONYD_FEDERATION__ENABLED": "false"}
SPEC = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
