"""The `colony` command: talks to a daemon through RPC only. Nothing here touches the store."""

import sys

# httpx loads its own command where rich is installed: 5 MB of memory that nothing here uses. An
# import of a module that is None fails (see `sys.modules`), and httpx does without.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
