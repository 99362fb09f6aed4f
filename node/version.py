"""The version of colonyd, as its package says; nothing else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("colonyd")
except PackageNotFoundError:
    VERSION = "0.1.0"
