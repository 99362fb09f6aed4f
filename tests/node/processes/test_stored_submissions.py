"""What is kept of a signed request beside its process: less, and to the byte what was signed."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from colonyd.rpc import encode
from node.model.codec import pack, unpack, whole_spec
from node.model.types import FunctionSpec, Process
from node.store.work.submissions import grow, shrink
from tests.support.processes import make

KEY = PrivateKey.generate()


def signed(spec: dict[str, Any], **how: Any) -> bytes:
    """A request as a client sends it, and as the table hands it on."""
    if not how:
        envelope = json.loads(encode("submitfuncspecmsg", {"spec": spec}, KEY))
        return f"{envelope['payload']}.{envelope['signature']}".encode()
    text = json.dumps({"msgtype": "submitfuncspecmsg", "spec": spec}, **how)
    return base64.b64encode(text.encode(errors="surrogatepass")) + b"." + b"ab" * 65


WAYS = st.sampled_from([{}, {"ensure_ascii": False}])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(
    st.lists(JSON), st.dictionaries(st.text(), JSON), WAYS,
    st.text(alphabet="<>&aä\u2028\"\\", min_size=600, max_size=700),
)  # fmt: skip
def test_any_request_comes_back_to_the_byte(
    args: list[Any], kwargs: dict[str, Any], how: dict[str, Any], long: str
) -> None:
    spec = {"funcname": "f", "args": [*args, long, long[1:]], "kwargs": kwargs}
    submission = signed(spec, **how)
    stored = shrink(submission, msgspec.convert(spec, FunctionSpec))
    assert grow(stored, msgspec.convert(spec, FunctionSpec)) == submission


@pytest.mark.parametrize("large", [100, 5_000, 100_000, 700_000])
@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_what_the_process_tells_is_not_kept_twice(large: int, how: dict[str, Any]) -> None:
    text = "<ä\u2028>" + random.Random(1).randbytes(large).hex()
    spec = {"funcname": "f", "args": [text], "env": {"COLOUR": "red"}}
    stored = shrink(signed(spec, **how), msgspec.convert(spec, FunctionSpec))
    assert len(stored) < 300


def test_a_request_of_another_form_is_kept_as_it_is() -> None:
    spec = FunctionSpec(funcname="f")
    for other in (b"", b"signed bytes", b"\xd2\x84abc", b"e30=.AB", b"e30.ab", b"e31=.ab", b"."):
        assert shrink(other, spec) == other
        assert grow(other, spec) == other


def test_a_request_beside_another_process_is_an_error() -> None:
    spec = {"funcname": "f", "args": ["x" * 600]}
    stored = shrink(signed(spec), msgspec.convert(spec, FunctionSpec))
    with pytest.raises(ValueError, match="does not fit"):
        grow(stored[:20], FunctionSpec(funcname="f"))


def test_a_process_is_stored_without_its_defaults_and_read_with_them() -> None:
    process = make()
    process.spec.args = [0, "", None, {"gpu": {}, "nodes": 0}]
    process.spec.conditions.gpu.count = 2
    stored = pack(process)
    assert unpack(stored, Process) == process
    assert b"walltime" not in stored
    assert b"nodes" in stored
    # The process of a release that stored everything.
    whole = msgspec.structs.asdict(process) | {"spec": whole_spec(process.spec)}
    older = cbor2.dumps([1, msgspec.to_builtins(whole)], canonical=True)
    assert unpack(older, Process) == process
    assert len(stored) < len(older) // 2
