"""What a terminal of 80x24 shows: listings of one line a row, and `colony top`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from cli.core.layout import cut, fitted, one_line
from cli.main import main
from cli.ops.top import draw, shared
from tests.cli.terminal import HOSTILE, obeyed, on_screen
from tests.support.daemons import Daemon

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
NOW = "2026-01-01T00:00:00Z"


def process(number: int, **more: Any) -> dict[str, Any]:
    spec = {"funcname": f"fn-{number}", "conditions": {"executortype": "cli"}}
    row = {"processid": f"{number:064x}", "spec": spec, "initiatorname": "user"}
    return row | {"submissiontime": NOW, "starttime": NOW, "endtime": NOW} | more


def busy() -> dict[str, Any]:
    """A colony with more of everything than a screen holds."""
    names = ("waiting", "running", "successful", "failed", "cancelled")
    return {
        "counts": {f"{name}processes": 39 for name in names},
        "running": [process(n, assignedexecutorid=f"{n:064x}") for n in range(39)],
        "waiting": [process(100 + n) for n in range(39)],
        "failed": [process(200 + n, errors=["no space\nleft", "x"]) for n in range(5)],
        "executors": [
            {
                "executorname": f"ex-{n}",
                "executortype": "cli",
                "executorid": f"{n:064x}",
                "state": 0 if n == 7 else 1,
                "lastheardfromtime": NOW,
            }
            for n in range(39)
        ],
        "peers": [
            {"name": f"peer-{n}", "id": "ab" * 32, "state": "trusted", "outstanding": n}
            for n in range(39)
        ],
        "paused": {"ispaused": True},
        "node": {
            "version": "1",
            "uptime": 5.0,
            "etcd": {"dbsize": 1, "level": "soft", "why": "w" * 200, "next": "n"},
            "stuck": [{"count": 3, "why": "no executor of type 'gpu' is registered"}],
        },
    }


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60), (80, 3), (1, 1)])
def test_nothing_is_pushed_off_the_screen(width: int, height: int) -> None:
    lines = [line.plain for line in draw("dev", busy(), width, height)]
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    if height >= 24:
        text = "\n".join(lines)
        for word in ("PAUSED", "RUNNING", "WAITING", "FAILED", "EXECUTOR", "PEER", "nobody takes"):
            assert word in text, text
        assert text.count(" more") == 5
        assert "no space" in text
        assert "ex-7 " in text, "who waits for a decision comes first"


def test_each_list_says_how_much_more_there_is() -> None:
    seen = busy()
    for height in (24, 30, 50):
        shown = draw("dev", seen, 80, height)
        text = "\n".join(line.plain for line in shown)
        listed = len(re.findall(r"^[0-9a-f]{12}  fn-\d ", text, re.M))
        listed += len(re.findall(r"^[0-9a-f]{12}  fn-[123]\d ", text, re.M))
        more = re.search(r"RUNNING.*?^  (\d+) more", text, re.M | re.S)
        assert more is not None
        assert int(more[1]) + listed == 39
    few = {"counts": {"waitingprocesses": 1}, "running": [], "waiting": [process(1)]}
    assert "more" not in "\n".join(line.plain for line in draw("dev", few, 80, 24))


def test_lines_are_shared_in_turns() -> None:
    assert shared([9, 1, 0, 4], 8) == [4, 1, 0, 3]
    assert shared([9, 9, 9], 2) == [1, 1, 0]
    assert shared([2, 2], 100) == [2, 2]
    assert shared([3], 0) == [0]
    assert shared([3], -5) == [0]


@pytest.mark.parametrize(
    "text", [HOSTILE, "a\nb\tc\rd", "日本語" * 40, "e\u0301" * 90, "", "👩‍👩‍👧" * 30]
)
@pytest.mark.parametrize("width", [1, 2, 11, 80])
def test_a_cell_is_one_line_and_as_wide_as_it_may_be(text: str, width: int) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert cell_len(cut(shown, width)) <= width
    for room in (width + 40, None):
        lines = fitted(["ID", "FUNCTION", "STATE"], [["3fa2b1c09d7e", text, "failed"]], room)
        assert len({sum(map(cell_len, line)) for line in lines}) == 1
        assert room is None or sum(map(cell_len, lines[0])) + 4 <= room
    assert text.isprintable() or "…" in cut(shown, 1)


def test_what_takes_little_is_not_cut_for_what_takes_much() -> None:
    columns = ["ID", "FUNCTION", "STATE", "SUBMITTED", "BY", "TYPE", "COLONY"]
    row = ["3fa2b1c09d7e", "f" * 48, "successful", "119 min ago", "user", "cli", "lab-1"]
    (_, cells) = fitted(columns, [row], 80)
    assert [cell.strip() for cell in cells[2:]] == row[2:]
    assert cells[0] == row[0]
    assert cells[1].startswith("fffffffffff")
    assert sum(map(cell_len, cells)) + 2 * 6 == 80


# -- from outside ------------------------------------------------------------------------


Colony = Callable[..., Result]


@pytest.fixture
def colony(lone_daemon: Daemon) -> Colony:
    def run(*args: str) -> Result:
        command = ["--home", str(lone_daemon.home), "--server", f"127.0.0.1:{lone_daemon.port}"]
        result = CliRunner().invoke(main, [*command, *args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return run


HARD = [HOSTILE, "one\ntwo\tthree", "宽" * 60, "x" * 3000, "\u202e" * 9]


@pytest.mark.slow
def test_process_ls_has_one_line_a_row_whatever_an_argument_holds(
    colony: Colony, lone_daemon: Daemon
) -> None:
    for argument in HARD:
        colony("run", "-F", "screen-test-with-a-long-name", "-T", "nobody-" * 4, argument)
    shown = on_screen(lone_daemon, "process", "ls", "-n", str(len(HARD)), NO_COLOR="1")
    lines = ESCAPES.sub(b"", shown).decode().splitlines()
    assert len(lines) == 1 + len(HARD)
    assert not obeyed(ESCAPES.sub(b"", shown))
    assert max(map(cell_len, lines)) <= 80
    for line in lines[1:]:
        assert re.match(r"[0-9a-f]{12}  screen-test", line)
        assert "waiting" in line
    piped = colony("process", "ls", "-n", str(len(HARD))).stdout.splitlines()
    assert len(piped) == 1 + len(HARD)
    assert "nobody-" * 4 in piped[1], "a script gets the whole of it"


@pytest.mark.slow
def test_top_fits_the_screen_and_tells_failures(colony: Colony, lone_daemon: Daemon) -> None:
    colony("executor", "add", "top-1", "-T", "top", "--approve")
    for _ in range(20):
        colony("run", "-F", "fine", "-T", "top-waits")
    colony("run", "-F", "breaks", "-T", "top")
    failed = colony("process", "assign", "-a", "top-1", "-j").stdout
    processid = re.findall(r'"processid": "([0-9a-f]{64})"', failed)[0]
    colony("process", "fail", processid, "-a", "top-1", "the lens\nis dirty")
    for colours, wanted in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = on_screen(lone_daemon, "top", until=b"the lens", **colours)
        frame = shown.split(b"\x1b[H")[-1].split(b"\x1b[?1049l")[0]
        lines = ESCAPES.sub(b"", frame).decode().splitlines()
        assert len(lines) <= 24
        assert max(map(cell_len, lines)) <= 80
        text = "\n".join(lines)
        for word in ("WAITING", "FAILED", "EXECUTOR", " more", "the lens\\nis dirty", "top-1"):
            assert word in text, text
        assert (b"\x1b[33m" in shown) is wanted  # nobody takes what waits: yellow
