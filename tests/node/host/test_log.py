"""Log lines: their form, what is kept out of them, and the journal's priorities."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from colonyd.keys import PrivateKey
from node.host.log import configure_logging, get_logger, under_journal


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Put the process-wide logging back as pytest had set it up."""
    root, ours = logging.getLogger(), logging.getLogger("colonyd")
    before = list(root.handlers), root.level, ours.level
    # Configuring closes the handlers it replaces; pytest's own must survive.
    for handler in before[0]:
        root.removeHandler(handler)
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def lines_of(level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(level, stream=stream, environ={})
    return stream


def test_a_line_has_time_level_name_event_and_fields() -> None:
    out = lines_of()
    get_logger("rpc").info("ready", port=50080, name="a b", ok=True, ratio=0.25, none=None)
    line = out.getvalue()
    stamp, rest = line.split(" ", 1)
    assert stamp.startswith("ts=2")
    assert stamp.endswith("Z")
    assert (
        rest
        == 'level=info name=rpc event=ready port=50080 name="a b" ok=true ratio=0.25 none=null\n'
    )


def test_levels_below_the_chosen_one_are_silent() -> None:
    out = lines_of("warning")
    log = get_logger("x")
    log.info("quiet")
    log.debug("quiet")
    log.warning("loud")
    log.error("loud")
    assert out.getvalue().count("event=loud") == 2
    assert "quiet" not in out.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two\nlines", r'"two\nlines"'),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("c1\x9bdel\x7f", r'"c1\u009bdel\u007f"'),
        ("rtl\u202e", r'"rtl\u202e"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("", '""'),
        ("grün", "grün"),
        ("100%s", "100%s"),
        (b"\x00\x01", '"[2 bytes]"'),
    ],
)
def test_values_can_not_forge_lines_or_drive_terminals(value: object, shown: str) -> None:
    out = lines_of()
    get_logger("x").info("event", value=value)
    assert out.getvalue().rstrip("\n").split("value=")[1].strip('"') == shown.strip('"')
    assert out.getvalue().count("\n") == 1


def test_an_event_text_is_no_format_string() -> None:
    out = lines_of()
    get_logger("x").info("50% done %s")
    assert 'event="50% done %s"' in out.getvalue()


def test_secrets_are_not_written() -> None:
    out = lines_of()
    key = PrivateKey.generate()
    get_logger("x").info("e", key=key, prvkey=key.hex, invite_secret="s3", Token="t0", raw=b"kk")
    assert key.hex not in out.getvalue()
    assert key.id in out.getvalue()
    for secret in ("s3", "t0", "kk"):
        assert secret not in out.getvalue()


def test_long_values_are_cut() -> None:
    out = lines_of()
    get_logger("x").info("e", value="x" * 100_000)
    assert len(out.getvalue()) < 3000


def test_exceptions_bring_their_traceback() -> None:
    out = lines_of()
    try:
        raise ValueError("why \x1b[0m")
    except ValueError:
        get_logger("x").exception("failed", where="here")
    first, *trace = out.getvalue().splitlines()
    assert "event=failed where=here" in first
    assert trace[-1] == r"  ValueError: why \x1b[0m"


def test_libraries_only_warn() -> None:
    out = lines_of()
    logging.getLogger("zeroconf").info("chatter")
    logging.getLogger("zeroconf").warning("trouble with %s", "eth0")
    assert out.getvalue().count("\n") == 1
    assert 'level=warning name=zeroconf event="trouble with eth0"' in out.getvalue()


def test_the_journal_gets_priorities_on_each_line_and_no_time(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        configure_logging("debug", stream=stream, environ=environ)
        log = get_logger("x")
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
        try:
            raise ValueError("e")
        except ValueError:
            log.exception("f")
        stream.flush()
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line.split(" ")[0] for line in lines[:4]] == [
        "<7>name=x",
        "<6>name=x",
        "<4>name=x",
        "<3>name=x",
    ]
    assert all(line.startswith("<3>") for line in lines[4:])
    assert "ts=" not in "".join(lines)


@pytest.mark.parametrize("value", ["", "1:2", "x:y", "1"])
def test_another_streams_journal_is_not_ours(tmp_path: Path, value: str) -> None:
    with (tmp_path / "out").open("w") as stream:
        assert not under_journal(stream, {"JOURNAL_STREAM": value})
    assert not under_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
