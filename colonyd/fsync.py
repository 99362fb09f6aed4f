"""Durable directories: new names in them that must outlast a crash.

The content of the files is written by the callers.
"""

from __future__ import annotations

import os
from pathlib import Path


def publish(complete: Path, target: Path) -> None:
    """Give a complete file the name `target`, in the same directory; replace nothing.

    Raises FileExistsError when `target` exists, another OSError otherwise. Where the file system
    has links, as most do, `complete` stays beside it.
    """
    try:
        os.link(complete, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links, such as FAT: first an empty file takes the name.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        complete.replace(target)


def sync_directory(directory: Path) -> None:
    """Return when all names made, changed or removed in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
