"""etcd's messages, which python3-etcd3 carries as generated modules; nothing else of that package.

`import etcd3` would load its client and with it grpcio, 10 MB of memory that nobody here calls. The
folder of the messages counts as a package of ours instead (`__path__`): Python's own import finds
`rpc_pb2` there, and `etcd3` is left as it is for whoever imports it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etcd3.etcdrpc import rpc_pb2 as pb  # type: ignore[import-untyped,unused-ignore]
else:
    # Finding a top-level package does not import it; its parts would.
    __path__ = [f"{place}/etcdrpc" for place in find_spec("etcd3").submodule_search_locations]
    pb = import_module(f"{__name__}.rpc_pb2")

__all__ = ["pb"]
