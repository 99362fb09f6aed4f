"""The whole table of the page's calls, put together from the modules of its pages."""

from __future__ import annotations

from cli.ui import (
    actions,
    archive,
    federation,
    files,
    overview,
    processes,
    submitting,
    timers,
    workflows,
)
from cli.ui.api import Api

API = Api()
for _module in (
    overview,
    processes,
    workflows,
    timers,
    files,
    federation,
    archive,
    submitting,
    actions,
):
    API.include(_module.api)
