"""The files with the settings of a home, and how one is laid over another.

The settings, and the environment and flags above the files, are in `config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_STATE, _CONFIGURATION = Path("/var/lib"), Path("/etc")


def config_files(home: Path) -> list[Path]:
    """Return the files that may hold settings, the weakest first.

    The home of a service, below /var/lib, has a file at the same place below /etc as well: that of
    /var/lib/colonyd is /etc/colonyd/config.toml. So the daemon and commands find the same files,
    however they were started.
    """
    home = home.absolute()
    own = home / "config.toml"
    if home.is_relative_to(_STATE) and home != _STATE:
        return [_CONFIGURATION / home.relative_to(_STATE) / "config.toml", own]
    return [own]


def lay_over(
    below: dict[str, Any], above: dict[str, Any], origins: dict[str, str], origin: str, at: str = ""
) -> None:
    """Put the settings of `above` over `below`, in place, noting their `origin` by dotted path.

    Tables are merged; anything else, a list of tables too, is replaced as a whole.
    """
    for name, value in above.items():
        path = f"{at}{name}"
        under = below.get(name)
        if isinstance(value, dict):
            inner = under if isinstance(under, dict) else {}
            below[name] = inner
            lay_over(inner, value, origins, origin, f"{path}.")
        else:
            below[name] = value
            origins[path] = origin
