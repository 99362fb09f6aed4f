"""The server of `colony ui` over HTTP, with a real daemon: who is answered, and what may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cli.ui.calls import API
from tests.cli.ui.scene import Scene, running_ui
from tests.cli.ui.visitor import Visitor
from tests.support.daemons import REPOSITORY, Daemon

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("server") / "quarry"
    daemon = Daemon(home, "quarry", {"COLONYD_FEDERATION__ENABLED": "false"}).start()
    yield Scene(daemon)
    assert daemon.stop() == 0


@pytest.fixture(scope="module")
def visitor(scene: Scene) -> Iterator[Visitor]:
    """Signed in to a page that only reads."""
    with running_ui(scene.daemon) as command:
        visitor = Visitor(command.address())
        with visitor.http:
            assert visitor.enter().status_code == 200
            yield visitor


def test_an_address_signs_one_browser_in_once(scene: Scene) -> None:
    with ExitStack() as stack, running_ui(scene.daemon) as command:
        first = Visitor(command.address())
        other = Visitor(first.entry)
        stack.callback(first.http.close)
        stack.callback(other.http.close)
        answer = first.enter()
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert first.call("hello").json() == {"colony": "quarry", "write": False, "owner": True}
        # Used, so the same address is none any more; and another browser has no cookie.
        assert other.enter().status_code == 403
        other.base = first.base
        assert other.call("hello").status_code == 403
        assert other.http.get(first.base).status_code == 403
        # The command prints the next one.
        second = Visitor(command.address())
        stack.callback(second.http.close)
        assert second.enter().status_code == 200
        assert second.call("hello").status_code == 200
        assert first.call("hello").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"cookie": "colony-ui=guess"}, 403),
    ],
)
def test_a_call_from_elsewhere_is_refused(
    visitor: Visitor, headers: dict[str, str], status: int
) -> None:
    assert visitor.call("overview", **headers).status_code == status


def test_a_path_that_is_not_known_to_the_browser_tells_nothing(visitor: Visitor) -> None:
    for path in ("/", "/index.html", "/api/hello", "/guess/app.js", "/enter", "/enter?token=x"):
        answer = visitor.http.get(visitor.origin + path)
        assert answer.status_code == 403
        assert "quarry" not in answer.text


def test_the_icon_that_browsers_ask_for_is_no_refusal(visitor: Visitor) -> None:
    """A refusal would be an error in the browser's console."""
    found = visitor.http.get(visitor.origin + "/favicon.ico")
    assert (found.status_code, found.content) == (204, b"")


def test_every_answer_has_the_strict_headers(visitor: Visitor) -> None:
    for answer in (
        visitor.http.get(visitor.base),
        visitor.http.get(f"{visitor.base}app.js"),
        visitor.http.get(f"{visitor.base}nothing"),
        visitor.http.get(f"{visitor.base}../etc/passwd"),
        visitor.http.get(visitor.origin),
        visitor.call("overview"),
        visitor.call("nothing"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


def test_no_file_has_anything_inline_or_from_elsewhere() -> None:
    static = REPOSITORY / "cli" / "ui" / "static"
    page = (static / "index.html").read_text("utf-8")
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src="app.js"></script>') == 1
    for path in static.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/", "")
        assert "://" not in text, path
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, path


CHANGES = [name for name, row in API.rows.items() if row.changes]


@pytest.mark.parametrize("name", CHANGES)
def test_without_write_nothing_is_changed(visitor: Visitor, name: str) -> None:
    answer = visitor.call(name, {"id": "x"})
    assert answer.status_code == 403
    assert answer.json() == {"error": "this page only reads", "next": "`colony ui --write`"}


def test_each_call_that_makes_a_change_is_known_as_one() -> None:
    assert set(CHANGES) == {
        "approve",
        "reject",
        "remove-executor",
        "pause",
        "resume",
        "cancel",
        "remove",
        "cancel-workflow",
        "remove-workflow",
        "run-cron",
        "remove-cron",
        "remove-generator",
        "submit",
        "trust",
        "block",
        "invite",
        "revoke",
        "join",
    }


def test_what_is_wrong_with_a_call_is_told(visitor: Visitor) -> None:
    unknown = visitor.call("process", {"id": "0" * 64})
    assert unknown.status_code in (400, 404)
    assert "no process" in unknown.json()["error"]
    extra = visitor.call("processes", {"state": "waiting", "more": 1})
    assert extra.status_code == 400
    assert "more" in extra.json()["error"]
    assert visitor.call("nothing").status_code == 400
    assert visitor.http.get(f"{visitor.base}api/overview").status_code == 404
    assert visitor.http.put(visitor.base, content=b"").status_code == 405
    large = visitor.http.post(
        f"{visitor.base}api/hello",
        content=b"x" * 3_000_000,
        headers={"content-type": "application/json", "origin": visitor.origin},
    )
    assert large.status_code == 413


def test_what_the_page_has_is_not_sent_again(visitor: Visitor) -> None:
    first = visitor.call("workflows")
    again = visitor.call("workflows", **{"x-seen": first.headers["x-seen"]})
    assert (again.status_code, again.content) == (204, b"")


def test_a_key_never_reaches_the_browser(scene: Scene, visitor: Visitor) -> None:
    secrets = [scene.daemon.key(name).hex for name in ("user", "colony", "server")]
    for name, row in API.rows.items():
        if not row.changes:
            text = visitor.call(name, {"id": "0" * 64} if name == "process" else {}).text
            assert not any(secret in text for secret in secrets), name


def test_a_daemon_that_is_away_is_told_and_found_again(scene: Scene, visitor: Visitor) -> None:
    scene.daemon.stop()
    gone = visitor.call("overview")
    assert gone.status_code == 503
    assert "does not answer" in gone.json()["error"]
    scene.daemon.start()
    # The first call finds its address, where that has changed.
    answers = [visitor.call("overview") for _ in range(2)]
    assert 200 in [each.status_code for each in answers], [each.text for each in answers]


def test_the_wheel_has_the_files_of_the_page() -> None:
    """Package data names them by a pattern; each file must fit it."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert "ui/static/*" in project["tool"]["setuptools"]["package-data"]["cli"]
    static = REPOSITORY / "cli" / "ui" / "static"
    assert all(path.is_file() for path in static.iterdir())
