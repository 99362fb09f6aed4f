"""Key files of a home: made, listed, and replaced when an id changes, so that no crash loses a key.

The calls that change an id at a daemon are in the command groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.core.errors import USAGE, Failure
from cli.core.session import Session

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey


def check_id(text: str) -> str:
    """Return an id of the command line. Raises Failure (usage) if it is none."""
    if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
        raise Failure(
            f"{text!r} is no id", code=USAGE, next_step="an id has 64 hex characters; `colony key`"
        )
    return text


def check_name(text: str) -> str:
    """Return a name of the command line. Raises Failure (usage) if it is not valid."""
    from node.model.ids import valid_name

    if not valid_name(text):
        raise Failure(f"{text!r}: use letters, digits, '_', '-' and '.'", code=USAGE)
    return text


def check_member_name(text: str) -> str:
    """Return the name of a user or an executor. Raises Failure (usage) if it is not valid."""
    from colonyd.errors import RpcError
    from node.model.names import check_name

    try:
        check_name(text, "name")
    except RpcError as error:
        raise Failure(error.message, code=USAGE) from None
    return text


def own_home(session: Session, home: Path | None = None) -> None:
    """Raise Failure when the home belongs to another user, before anything is written there."""
    from node.host.home import HomeError, require_owner

    try:
        require_owner(home or session.home)
    except HomeError as error:
        raise Failure(str(error), code=USAGE) from None


def key_path(session: Session, name: str) -> Path:
    """Return the path of the key file called `name`.

    Raises Failure when the home is another user's.
    """
    from node.host.home import Home

    own_home(session)
    return Home(session.home).key(name)


def read_or_make(path: Path) -> tuple[PrivateKey, bool]:
    """Return the key in a file, made if there is none, and whether it was made. Raises Failure."""
    from colonyd.keys import IdentityError, PrivateKey, read_key, write_key

    try:
        try:
            return read_key(path), False
        except FileNotFoundError:
            key = PrivateKey.generate()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_key(path, key)
            return key, True
    except (OSError, IdentityError) as error:
        raise Failure(f"{path}: {error}", next_step="choose another name or --home") from None


def rotate(
    session: Session,
    old: PrivateKey,
    path: Path,
    change: Callable[[PrivateKey, str], None],
    accepted: Callable[[PrivateKey], bool],
) -> str:
    """Replace the key of `path` by a new one, at the daemon first; returns the new id.

    The new key is on disk before the daemon hears of it, and an interrupted change is finished by
    the next try: `accepted` tells whether the daemon knows a key already. `change` makes the call,
    signed by the old key. The old key stays beside the new one as `.old`.
    """
    from node.host.home import share_like

    fresh = path.with_name(path.name + ".new")
    new, made = read_or_make(fresh)
    if made or not accepted(new):
        change(old, new.id)
    if path.exists():
        share_like(path, fresh)
        os.replace(path, path.with_name(path.name + ".old"))
    os.replace(fresh, path)
    return new.id


def accepts(session: Session, payloadtype: str, fields: dict[str, Any]) -> Callable[..., bool]:
    """Return a probe for `rotate`: whether a call signed by a key is accepted."""
    from cli.core.errors import DENIED

    def probe(key: PrivateKey) -> bool:
        try:
            session.call(payloadtype, fields, key=key)
        except Failure as failure:
            if vars(failure).get("exit_code") == DENIED:
                return False
            raise
        return True

    return probe
