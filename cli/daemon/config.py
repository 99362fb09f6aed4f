"""`colony config` and `colony version`: the settings in force here, without secrets.

The settings are explained in `node.host.config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cli.core.output import cell_text, print_fields, print_json, print_value
from cli.core.session import Session, colony_command
from colonyd.rpc import RpcError, Unreachable

_SECRET = re.compile(r"secret|password|passwd|prvkey|private|accesskey|access_key|token", re.I)
_HIDDEN = "(set, not shown)"


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a setting fit to be shown: a value whose name says that it is secret is hidden, at any
    depth.
    """
    if isinstance(value, dict):
        return {key: without_secrets(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, name) for inner in value]
    if _SECRET.search(name) and value:
        return _HIDDEN
    return re.sub(r"://[^/@\s]+@", "://", value) if isinstance(value, str) else value


def flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Return settings by dotted path."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, cell_text(inner)


def _with_origin(text: object, origin: str | None) -> str:
    return f"{text}  ({origin})" if origin else str(text)


@colony_command("config", "colony config", "colony config --json")
def config(session: Session) -> None:
    """Show the settings in force, where each was set, and the address that is called.

    Files come first, the environment over them. What has no origin is a default.
    """
    import msgspec

    from node.host.config import Keep
    from node.host.configfiles import config_files

    def plain(value: int) -> object:
        return "auto" if isinstance(value, Keep) and value.auto else int(value)

    origins: dict[str, str] = {}
    settings = without_secrets(msgspec.to_builtins(session.config(origins), enc_hook=plain))
    files = config_files(session.home)
    variables = {
        name: _HIDDEN if _SECRET.search(name) else value
        for name, value in sorted(session.environ.items())
        if name.startswith(("COLONIES_", "COLONYD_"))
    }
    if session.as_json:
        print_json(
            {
                "home": str(session.home),
                "server": session.url(),
                "files": [str(path) for path in files if path.exists()],
                "settings": settings,
                "origins": origins,
                "environment": variables,
            }
        )
        return
    print_fields(
        [
            ("home", str(session.home)),
            *(("file", str(path) if path.exists() else f"{path} (not there)") for path in files),
            ("server", session.url()),
            *((name, _with_origin(text, origins.get(name))) for name, text in flat(settings)),
            *variables.items(),
        ]
    )


@colony_command("version", "colony version")
def version(session: Session) -> None:
    """Show the versions of this command and of the daemon, if one answers."""
    from node.version import VERSION

    async def work() -> str:
        async with session.client() as client:
            try:
                reply = await client.call("versionmsg", {}, None, timeout=5.0)
            except (RpcError, Unreachable):
                return ""
            return str(reply.get("buildversion") or "")

    found = session.run(work)
    value = {"colony": VERSION, "daemon": found or None, "server": session.url()}
    fields = [("colony", VERSION), ("daemon", found or f"none answers at {session.url()}")]
    print_value(session, value, fields)
