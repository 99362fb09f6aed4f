"""`colony backup` and `colony restore`: everything of a colony in one file, and back.

The content of the file is decided in `node.archive.backup`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cli.core.errors import NOT_FOUND, UNREACHABLE, USAGE, Failure, failure_of_system
from cli.core.output import print_json
from cli.core.progress import Meter, meter
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line, print_note

if TYPE_CHECKING:
    from node.archive.bundle import Manifest

T = TypeVar("T")


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` to its end; turn known errors into a Failure."""
    import trio

    from node.archive.bundle import BackupError
    from node.etcd.errors import EtcdError, StoreRefused
    from node.host.config import ConfigError
    from node.host.home import HomeError

    try:
        return trio.run(work)
    except BaseException as error:
        leaf = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        if isinstance(leaf, BackupError | HomeError | ConfigError):
            raise Failure(str(leaf), code=USAGE) from None
        if isinstance(leaf, StoreRefused):
            raise Failure(str(leaf), code=UNREACHABLE) from None
        if isinstance(leaf, EtcdError):
            raise Failure(f"the store: {leaf}", code=UNREACHABLE) from None
        if isinstance(leaf, FileNotFoundError):
            where = str(leaf.filename).removesuffix(".partial")
            raise Failure(f"{where}: {leaf.strerror}", code=NOT_FOUND) from None
        if isinstance(leaf, OSError):
            raise failure_of_system(leaf) from None
        raise


def _told(session: Session, manifest: Manifest, path: Path, **more: object) -> None:
    made = datetime.fromtimestamp(manifest.made, UTC).isoformat(sep=" ")
    value = {
        "file": str(path),
        "colony": manifest.colony,
        "made": manifest.made,
        "keys": manifest.keys,
        "files": len(manifest.items) - 1,
        "bytes": manifest.size,
        **more,
    }
    if session.as_json:
        print_json(value)
        return
    print_line(
        f"{path}: colony {manifest.colony} of {made}, {manifest.keys} keys,"
        f" {len(manifest.items) - 1} files, {manifest.size} bytes"
    )


@colony_command("backup", "colony backup /mnt/usb/lab-1.tar", "colony backup --check lab-1.tar")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Only check a FILE that is there.")
def backup(session: Session, path: Path, check: bool) -> None:
    """Save the colony to the new file FILE: keys, configuration, store, files, history.

    Works while the daemon runs: the store is saved as it is at one moment. Run it as the daemon's
    user, on its machine. Who has FILE (mode 0600) has the colony's private keys: encrypt it before
    it leaves the machine.
    """
    from node.archive.backup import backup as save
    from node.archive.bundle import inspect

    path = path.absolute()
    if not check and not session.home.exists():
        raise Failure(
            f"no colony at {session.home}", code=NOT_FOUND, next_step="`colony init`, or --home"
        )

    def work(progress: Meter) -> Callable[[], Awaitable[Manifest]]:
        async def run() -> Manifest:
            if check:
                return inspect(path, progress)
            return await save(session.home, path, session.environ, progress)

        return run

    size = path.stat().st_size if check and path.is_file() else None
    with meter("check" if check else "backup", size) as progress:
        manifest = _run(work(progress))
    _told(session, manifest, path)


@colony_command("restore", "colony restore --home /srv/colonyd lab-1.tar")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Move aside what is in the home directory.")
def restore(session: Session, path: Path, force: bool) -> None:
    """Put the colony of FILE into the home directory, which no daemon may use.

    FILE is checked as a whole before anything is touched. What was done after the backup is lost:
    work that was accepted from other colonies since then may be run again if they send it again.
    Never start the same colony in two places.
    """
    from node.archive.backup import restore as put_back

    path, home = path.absolute(), session.home_to_write
    # It is read twice: checked as a whole, then unpacked.
    with meter("restore", 2 * path.stat().st_size if path.is_file() else 0) as progress:
        manifest, aside = _run(
            lambda: put_back(path, home, session.environ, force=force, advance=progress)
        )
    _told(session, manifest, path, home=str(home), aside=str(aside) if aside else None)
    if aside is not None:
        print_note(f"what was there before is in {aside}")
    print_note("next: `colony up`")
