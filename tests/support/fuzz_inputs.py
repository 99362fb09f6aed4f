"""Inputs for the `/api` edge: requests of every call, right, nearly right, and wrong in all ways.

How many are sent, to what, and what must hold afterwards is in `node.http.test_fuzz`.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from colonyd.keys import PrivateKey, sign_payload
from tests.support.poison import HOW, POISON, dosed, dumps
from tests.support.upstream import MESSAGES, example

# Values that break readers of JSON, keys and numbers.
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5,
    1e308, -1e-308, "", "/", "..", "a/b", "\0", "\ud7ff", "ä" * 40, "x" * 5000, "%00", "-1",
    "64Mi", "500m", "1e999", [], {}, [[]], [None], {"": ""}, {"a": None}, [1] * 300,
    "0" * 64, "f" * 63, "2024-01-01T00:00:00Z",
]  # fmt: skip
_TEXT = st.one_of(
    st.sampled_from(
        ["dev", "cli", "ada", "f", "a", "b", "", "500m", "1Gi", "* * * * * *", "@hourly"]
    ),
    st.text(max_size=12),
)


def deep(levels: int, kind: str) -> str:
    """JSON nested `levels` deep, as text: most encoders refuse to make it."""
    opening, closing = ("[", "]") if kind == "list" else ('{"a":', "}")
    return opening * levels + "1" + closing * levels


class Known:
    """Names and ids that exist, so that requests get past the first checks."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = list(ids)
        self._first = len(self.ids)

    def pick(self, number: int) -> str:
        """One of the ids."""
        return self.ids[number % len(self.ids)]

    def learn(self, answer: Any) -> None:
        """Keep the ids of what a request made: the last few."""
        try:
            value = json.loads(base64.b64decode(answer["payload"]))
        except ValueError:
            return
        for name, found in value.items() if isinstance(value, dict) else ():
            if name.endswith("id") and isinstance(found, str) and len(found) == 64:
                self.ids.append(found)
        del self.ids[self._first : -30]


def values(kind: inspect.Type, name: str, known: Known) -> st.SearchStrategy[Any]:
    """Values of a field, mostly of its type."""
    right = _right(kind, name, known)
    return st.one_of(*[right] * 12, st.sampled_from(NASTY))


def _right(kind: inspect.Type, name: str, known: Known) -> st.SearchStrategy[Any]:
    if name == "colonyname":
        return st.sampled_from(["dev", "dev", "dev", "dev", "other", ""])
    if name.endswith("id") and known.ids:
        some = st.builds(known.pick, st.integers(0, 60))
        return st.one_of(some, some, _TEXT)
    if isinstance(kind, inspect.StructType):
        fields = {f.encode_name: f for f in kind.fields}
        made = {name: values(f.type, name, known) for name, f in fields.items()}
        return st.fixed_dictionaries(
            {name: value for name, value in made.items() if fields[name].required},
            optional={name: value for name, value in made.items() if not fields[name].required},
        )
    if isinstance(kind, inspect.ListType):
        return st.lists(values(kind.item_type, name, known), max_size=3)
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(_TEXT, values(kind.value_type, "", known), max_size=3)
    if isinstance(kind, inspect.UnionType):
        parts = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        return _right(parts[0], name, known) if parts else st.none()
    if isinstance(kind, inspect.BoolType):
        return st.booleans()
    if isinstance(kind, inspect.IntType):
        # A negative timeout does not wait; a fuzz run has no time to.
        return st.integers(-5, -1) if name == "timeout" else st.integers(-2, 120)
    if isinstance(kind, inspect.FloatType):
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(kind, inspect.StrType):
        return _TEXT
    return st.one_of(_TEXT, st.integers(), st.lists(st.integers(), max_size=2))


def requests(calls: Mapping[str, type], known: Known) -> st.SearchStrategy[tuple[str, Any]]:
    """A payload type, and fields that more or less fit it."""

    def of(payloadtype: str) -> st.SearchStrategy[tuple[str, Any]]:
        info = inspect.type_info(calls[payloadtype])
        return st.tuples(st.just(payloadtype), _right(info, "", known))

    return st.sampled_from(sorted(calls)).flatmap(of)


def signed(payloadtype: str, payload: str | bytes, key: PrivateKey) -> bytes:
    """The envelope of a payload's text, whatever that is."""
    data = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
    text = base64.b64encode(data).decode()
    envelope = {
        "payloadtype": payloadtype,
        "payload": text,
        "signature": sign_payload(key, text),
    }
    return json.dumps(envelope).encode()


def bodies(
    calls: Mapping[str, type], keys: Sequence[PrivateKey], known: Known
) -> st.SearchStrategy[bytes]:
    """What is posted: from requests that may succeed to plain noise."""

    def envelope(request: tuple[str, Any], key: PrivateKey) -> bytes:
        payloadtype, fields = request
        return signed(payloadtype, json.dumps({"msgtype": payloadtype, **fields}), key)

    some = requests(calls, known)
    plausible = st.builds(envelope, some, st.sampled_from(keys))
    nested = st.builds(
        lambda kind, levels, name, key: signed(
            name, '{"msgtype":"' + name + '","spec":' + deep(levels, kind) + "}", key
        ),
        st.sampled_from(["list", "object"]),
        st.sampled_from([60, 64, 65, 500, 5_000, 100_000]),
        st.sampled_from(sorted(calls)),
        st.sampled_from(keys),
    )
    numbers = st.builds(
        lambda text, name, key: signed(
            name, '{"msgtype":"' + name + '","count":' + text + "}", key
        ),
        st.sampled_from(["NaN", "Infinity", "-Infinity", "1e400", "9" * 400, "-0", "0x1", "01"]),
        st.sampled_from(sorted(calls)),
        st.sampled_from(keys),
    )
    payloads = st.builds(
        signed,
        st.one_of(st.sampled_from(sorted(calls)), st.text(max_size=20)),
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [b"null", b"[]", b"1", b'""', b"{}", b"{", b'{"msgtype":', b"\xff\xfe"]
            ),
        ),
        st.sampled_from(keys),
    )
    outside = st.builds(
        lambda fields: json.dumps(fields).encode(),
        st.dictionaries(
            st.sampled_from(["payloadtype", "payload", "signature", "error", "x"]),
            st.one_of(st.sampled_from(NASTY), st.text(max_size=200)),
        ),
    )
    flipped = st.builds(_flip, plausible, st.integers(0, 10**6), st.integers(1, 255))
    cut = st.builds(lambda body, at: body[: at % (len(body) + 1)], plausible, st.integers(0, 10**6))
    noise = st.binary(max_size=300)
    return st.one_of(
        *[plausible] * 10, flipped, cut, nested, numbers, payloads, outside, noise
    )  # fmt: skip


# What makes a full request one that may succeed, by the names of its fields.
_FITTING: dict[str, Any] = {
    "colonyname": "dev", "namespace": "dev", "executortype": "cli", "executornames": [],
    "dependencies": [], "locationname": "", "cpu": "500m", "mem": "1Gi", "availablecpu": "",
    "availablemem": "", "timeout": -1, "count": 10, "days": 1, "limit": 10, "state": 0,
    "interval": 3600, "cronexpression": "", "trigger": 5, "kind": "Kind", "label": "/data",
    "funcname": "f", "channels": ["chat"], "type": "string", "enum": [], "default": "x",
    "workflowspec": '{"functionspecs":[{"nodename":"a","conditions":{"executortype":"cli"}}]}',
}  # fmt: skip


def _fitted(value: Any, name: str, dice: random.Random, known: Known) -> Any:
    if name in _FITTING:
        return _FITTING[name]
    if isinstance(value, dict):
        return {key: _fitted(inner, key, dice, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fitted(inner, "", dice, known) for inner in value]
    if name.endswith("id"):
        return known.pick(dice.randrange(60))
    return value


def poisonous(
    calls: Mapping[str, type], keys: Sequence[PrivateKey], known: Known, dice: random.Random
) -> bytes:
    """A request of upstream's with every field filled, and poison in up to two places.

    Made without hypothesis, which takes longer for one than a daemon for the answer.
    """
    payloadtype = dice.choice(sorted(calls.keys() & MESSAGES.keys()))
    fields = _fitted(example(payloadtype), "", dice, known)
    dose = [
        (dice.randrange(10**6), dice.choice(HOW), dice.choice(POISON))
        for _ in range(dice.choice([0, 1, 1, 1, 2]))
    ]
    text = dumps({"msgtype": payloadtype, **dosed(fields, dose)})
    return signed(payloadtype, text, dice.choice(keys))


def _flip(body: bytes, place: int, mask: int) -> bytes:
    spoilt = bytearray(body)
    spoilt[place % len(spoilt)] ^= mask
    return bytes(spoilt)
