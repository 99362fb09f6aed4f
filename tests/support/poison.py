"""Values that break clients with upstream's types, and what puts them into a request.

What must become of such a request is in the tests.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

_RAW = re.compile(r'"@raw:((?:[^"\\]|\\.)*)"')


def raw(text: str) -> str:
    """What `dumps` writes as this very text: numbers and keys that Python would not write."""
    return f"@raw:{text}"


def dumps(value: Any) -> str:
    """JSON with the raw parts in it."""
    return _RAW.sub(lambda found: str(json.loads(f'"{found[1]}"')), json.dumps(value))


# One of these in the place of any value, and of any key.
POISON: list[Any] = [
    None, True, 0, -1, 5, 1.5, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30,
    "", "x", "\0", "5", [], [None], ["x"], [["x"]], {}, {"a": None}, {"mount": 7}, {"dirs": ["a"]},
    {"type": ["string", "null"]}, ["string", "null"], {"hardware": {}}, {"usedcpu": 1.5},
    raw("1e999"), raw("NaN"), raw("1e2"), raw("1.0"), raw("-0"), raw("9" * 400),
    raw("-1" + "0" * 309), raw("1e308"), raw('"\\ud800"'), raw('{"a":1,"a":"x"}'),
    "2030-01-31T12:00:00Z", "10000-01-01T00:00:00Z",
]  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    items: Iterable[Any] = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += _places(inner, (*at, key))
    return found


def _changed(value: Any, place: tuple[Any, ...], how: str, poison: Any) -> Any:
    """A copy of `value` that is another at one place."""
    changed = copy.deepcopy(value)
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    last = place[-1]
    if how == "replace" or isinstance(inside, list):
        inside[last] = poison
    elif how == "drop":
        del inside[last]
    elif how == "respell":
        inside[last.upper()] = inside.pop(last)
    elif how == "other case":
        inside[last.capitalize()] = poison
    elif how == "long s":
        inside[last.replace("s", "ſ").replace("k", "\u212a")] = poison
    else:
        inside["more"] = poison
    return changed


HOW = ["replace"] * 6 + ["drop", "respell", "other case", "other case", "long s", "add"]
_STEP = st.tuples(st.integers(0, 10**6), st.sampled_from(HOW), st.sampled_from(POISON))

# What is done to a value: mostly one step, sometimes none or two.
DOSE = st.one_of(*[st.lists(_STEP, min_size=n, max_size=n) for n in (1, 0, 1, 1, 1, 2)])


def dosed(value: Any, dose: list[tuple[int, str, Any]]) -> Any:
    """The value, changed in the places that a dose says."""
    for number, how, poison in dose:
        places = _places(value)
        if places:
            value = _changed(value, places[number % len(places)], how, poison)
    return value


def poisoned(value: Any) -> st.SearchStrategy[Any]:
    """The value, mostly with one or two places changed."""
    return DOSE.map(lambda dose: dosed(value, dose))
