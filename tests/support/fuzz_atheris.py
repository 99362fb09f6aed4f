"""A coverage-guided fuzzer of all that happens to a posted body before its handler runs.

Run by `scripts/fuzz --atheris`, which installs atheris; it is no test of the suite.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["node", "msgspec"]):
    from cli.ops.rpc import all_calls
    from colonyd.errors import RpcError
    from colonyd.keys import PrivateKey
    from federation.service.rpc import calls as federation_calls
    from node.model.codec import pack
    from node.model.types import Colony, User
    from node.rpc.dispatch import Envelope, Table, decode_envelope
    from node.store import keys
    from node.store.directory import Directory
    from tests.support.fuzz_inputs import signed

KEY = PrivateKey.generate()


def _table() -> Table:
    directory = Directory()
    colony, user = Colony(KEY.id, "dev"), User("dev", KEY.id, "ann")
    directory.apply(keys.colony("dev"), pack(colony), 1)
    directory.apply(keys.user("dev", "ann"), pack(user), 2)
    directory.serverid = KEY.id
    return Table(directory, time.time_ns)


TABLE = _table()
# Federation's rows belong to a federation, and there is none here.
_FEDERATION = {call.payloadtype for call in federation_calls(None)}  # type: ignore[arg-type]
CALLS: list[Any] = [call for call in all_calls() if call.payloadtype not in _FEDERATION]


def once(data: bytes) -> None:
    """One input: as a body, and as the payload of a signed request."""
    if not data:
        return
    with contextlib.suppress(RpcError):
        decode_envelope(data)
    call = CALLS[data[0] % len(CALLS)]
    body = data[1:]
    if data[0] & 1:
        # The type is right more often than chance would have it.
        body = b'{"msgtype":"' + call.payloadtype.encode() + b'",' + body
    try:
        envelope: Envelope = decode_envelope(signed(call.payloadtype, body, KEY))
        TABLE.admit(call, envelope)
    except RpcError as error:
        if not 400 <= error.status < 500:
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
