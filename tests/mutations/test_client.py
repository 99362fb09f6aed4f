"""Checks of what others send us, broken one at a time: a named test must notice each.

The checks: content codings, sizes by kind, where cards lead, and what one task may break.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from colonyd import http as http_client
from federation.membership import bootstrap
from federation.network import addresses as leading
from federation.network import mdns as station
from federation.outbox import outcomes as results
from federation.service import sessions as tending
from federation.transport import polling, resolve
from federation.wire import cbor, envelope, sizes
from federation.wire.envelope import Kind
from node.timers import timerqueue
from tests.federation.network import test_addresses as _leading
from tests.federation.wire import test_sizes as _sizes
from tests.node.http import test_lying_servers as _lying
from tests.node.tasks import test_containment as _containment

Patch = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[pytest.MonkeyPatch, Path], Awaitable[None]]


async def _nothing(*arguments: Any, **options: Any) -> None:
    return None


def any_coding(patch: pytest.MonkeyPatch) -> None:
    """An encoded answer is read, decoded or not."""
    patch.setattr(http_client, "_require_identity", _nothing)


def items_without_end(patch: pytest.MonkeyPatch) -> None:
    """A message may have as many items as it has bytes."""
    begin = cbor._Decoder.__init__
    patch.setattr(cbor._Decoder, "__init__", lambda self, data, items: begin(self, data, 2**40))


def one_size_for_all(patch: pytest.MonkeyPatch) -> None:
    """Every answer may be as long as the longest."""
    for path in sizes.ANSWERS:
        patch.setitem(sizes.ANSWERS, path, Kind.OUTCOMES)


def every_signature_explained(patch: pytest.MonkeyPatch) -> None:
    """A wrong signature of a large message is tried as that of each other kind."""
    patch.setattr(envelope, "_EXPLAINED", 2**40)


def outputs_of_any_number(patch: pytest.MonkeyPatch) -> None:
    """An output may be half a million lists."""
    patch.setattr(results, "require_bounded", lambda data: None)


def metadata_is_a_host(patch: pytest.MonkeyPatch) -> None:
    """A data centre's settings are a peer like any other."""
    patch.setattr(leading, "_METADATA", frozenset())


def cards_lead_anywhere(patch: pytest.MonkeyPatch) -> None:
    """What a card names is tried."""
    patch.setattr(resolve, "problem_of", lambda *arguments, **options: "")


def announcements_lead_anywhere(patch: pytest.MonkeyPatch) -> None:
    """What an announcement names is tried."""
    patch.setattr(station, "problem_of", lambda *arguments, **options: "")


def looks_break_us(patch: pytest.MonkeyPatch) -> None:
    """What one address raises ends all looks."""
    patch.setattr(bootstrap, "contained", lambda *a, **o: contextlib.nullcontext())


def messages_break_us(patch: pytest.MonkeyPatch) -> None:
    """What one message raises ends all that came with it."""
    patch.setattr(polling, "contained", lambda *a, **o: contextlib.nullcontext())


def peers_break_us(patch: pytest.MonkeyPatch) -> None:
    """What one peer's task raises ends all."""

    async def once(name: str, task: Callable[[], Awaitable[None]]) -> None:
        await task()

    patch.setattr(tending, "keep_going", once)
    patch.setattr(tending, "contained", lambda *a, **o: contextlib.nullcontext())


def keys_break_us(patch: pytest.MonkeyPatch) -> None:
    """A key of an agenda that failed is tried again and again."""
    patch.setattr(timerqueue, "_AFTER_A_FAULT", 1.0)


async def _coding(patch: pytest.MonkeyPatch, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await _lying.test_no_client_decodes_what_it_did_not_ask_for(nursery, path, _lying._rpc)
        nursery.cancel_scope.cancel()


async def _receipt(patch: pytest.MonkeyPatch, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await _lying.test_a_link_reads_no_more_than_a_kind_has(nursery, path)
        nursery.cancel_scope.cancel()


async def _worst(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _sizes.test_the_worst_of_each_kind_is_cheap(Kind.RECEIPT)


async def _signature(patch: pytest.MonkeyPatch, path: Path) -> None:
    _sizes.test_a_wrong_signature_of_a_large_message_is_not_explained()


async def _output(patch: pytest.MonkeyPatch, path: Path) -> None:
    _sizes.test_an_output_of_many_lists_is_refused_before_it_is_made()


async def _inward(host: str, patch: pytest.MonkeyPatch, path: Path) -> None:
    await _leading.test_what_leads_inward_is_in_no_card_and_no_announcement(host)


async def _name(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _leading.test_a_name_is_checked_by_what_it_leads_to("127.1")


async def _look(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _containment.test_one_address_that_breaks_us_ends_its_own_look(patch, _clock())


async def _message(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _containment.test_one_message_of_a_mailbox_ends_alone(_clock())


async def _peer(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _containment.test_one_peers_trouble_is_its_own("task", _clock())


async def _key(patch: pytest.MonkeyPatch, path: Path) -> None:
    await _containment.test_one_key_of_an_agenda_fails_alone(_clock())


def _clock() -> trio.testing.MockClock:
    """What the tests' fixture gives them; they run by that of `trio.run`."""
    return trio.testing.MockClock()


@pytest.mark.parametrize(
    ("mutation", "check", "virtual"),
    [
        (any_coding, _coding, False),
        (one_size_for_all, _receipt, False),
        (items_without_end, _worst, False),
        (every_signature_explained, _signature, False),
        (outputs_of_any_number, _output, False),
        (metadata_is_a_host, partial(_inward, "168.63.129.16"), False),
        (cards_lead_anywhere, _name, False),
        (cards_lead_anywhere, partial(_inward, "127.0.0.1"), False),
        (announcements_lead_anywhere, partial(_inward, "127.0.0.1"), False),
        (looks_break_us, _look, True),
        (messages_break_us, _message, True),
        (peers_break_us, _peer, True),
        (keys_break_us, _key, True),
    ],
)
def test_a_named_test_notices(
    mutation: Patch,
    check: Check,
    virtual: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each check passes as things are, and fails without what it is about."""

    def run() -> None:
        clock = trio.testing.MockClock(autojump_threshold=0) if virtual else None
        with monkeypatch.context() as patch:
            trio.run(check, patch, tmp_path, clock=clock)

    run()
    mutation(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        run()
