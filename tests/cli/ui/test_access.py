"""Who may see the page: one-time addresses, cookies, and the headers of a request."""

from __future__ import annotations

import itertools

import pytest

from cli.ui.access import COOKIE, ENTRY, Access, Refused

JSON = {"content-type": "application/json"}


def _access() -> Access:
    numbers = itertools.count()
    return Access(lambda: f"secret-{next(numbers):032}")


def _enter(access: Access) -> str:
    """Sign in; return the Cookie header of that browser."""
    return access.enter(access.entry().partition("?")[2]).partition(";")[0]


def test_an_address_works_once() -> None:
    access = _access()
    query = access.entry().partition("?")[2]
    cookie = access.enter(query)
    assert cookie.startswith(f"{COOKIE}=secret-")
    assert cookie.endswith(f"; Path={access.base}; HttpOnly; SameSite=Strict")
    with pytest.raises(Refused):
        access.enter(query)
    assert access.entry().partition("?")[2] != query


@pytest.mark.parametrize("query", ["", "token=", "token=x", "token=%00", "token=ü", "other=1"])
def test_a_wrong_token_is_refused(query: str) -> None:
    with pytest.raises(Refused, match="used before"):
        _access().enter(query)


def test_a_browser_needs_the_cookie() -> None:
    access = _access()
    cookie = _enter(access)
    access.require_cookie({"cookie": cookie})
    access.require_cookie({"cookie": f"a=b; {cookie}; c"})
    for wrong in ("", "a=b", f"{COOKIE}=", cookie[:-1], cookie.replace(COOKIE, "other")):
        with pytest.raises(Refused, match="not signed in"):
            access.require_cookie({"cookie": wrong})


def test_the_ninth_browser_signs_the_first_out() -> None:
    access = _access()
    cookies = [_enter(access) for _ in range(9)]
    for cookie in cookies[1:]:
        access.require_cookie({"cookie": cookie})
    with pytest.raises(Refused):
        access.require_cookie({"cookie": cookies[0]})


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8042", "localhost:1", "LOCALHOST:80", "[::1]:8042", "127.0.0.1"]
)
def test_the_names_of_this_machine_are_answered_at_any_port(host: str) -> None:
    """`ssh -L` gives the page another port."""
    _access().check("GET", {"host": host})
    _access().check("POST", {"host": host, "origin": f"http://{host}", **JSON})


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example:80",
        "localhost.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.0.0.1:80/x",
        "127.0.0.1:80x",
        "[::1",
        "0.0.0.0:80",
    ],
)
def test_another_name_is_refused(host: str) -> None:
    """As of a page whose name an attacker lets point to 127.0.0.1 (DNS rebinding)."""
    with pytest.raises(Refused):
        _access().check("GET", {"host": host})


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9"},  # another server of this machine
        {"origin": "https://127.0.0.1:8042"},
        {"origin": "null"},
        {},
        {"origin": "http://127.0.0.1:8042", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:8042", "sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8042", "content-type": "text/plain"},
        {"origin": "http://127.0.0.1:8042", "content-type": ""},
    ],
)
def test_a_call_of_another_page_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Refused):
        _access().check("POST", {"host": "127.0.0.1:8042", **JSON, **headers})


def test_a_one_time_address_may_be_a_link_on_any_page() -> None:
    _access().check("GET", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site"}, ENTRY)


def test_a_page_of_another_site_gets_no_file_either() -> None:
    with pytest.raises(Refused):
        _access().check("GET", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site"})
