"""Look-ups that find nobody: the answer says why."""

from __future__ import annotations

from pathlib import Path

from colonyd.keys import PrivateKey
from federation.dht.lookups import MOST_ASKED
from federation.dht.wide import WideLookup
from tests.support.colonies import world


async def test_a_vain_look_up_says_whether_the_dht_was_asked(tmp_path: Path) -> None:
    async with world(tmp_path, ["ant"]) as colonies:
        fed, nobody = colonies["ant"].fed, PrivateKey.generate().id
        finder = fed.finder
        finder.wide = WideLookup(fed.monitor, tmp_path, "127.0.0.1", 1, ["127.0.0.1:1"])
        assert await finder.locate(nobody, 0.01) is None
        assert finder.why_not_found(nobody) == (
            "it could not be looked up: no other node of the DHT answers yet"
        )
        finder.wide.problem = "libtorrent can't be used"
        assert finder.why_not_found(nobody) == "it could not be looked up: libtorrent can't be used"
        finder.wide.problem, finder.wide.lookups.nodes = "", 3
        assert "nobody there is the colony" in finder.why_not_found(nobody)
        for _ in range(MOST_ASKED):
            await finder.locate(PrivateKey.generate().id, 0)
        late = PrivateKey.generate().id
        assert await finder.locate(late, 0) is None
        assert "16 colonies are looked up at a time: try again" in finder.why_not_found(late)


async def test_our_own_id_is_told_as_such(tmp_path: Path) -> None:
    async with world(tmp_path, ["ant"]) as colonies:
        ant = colonies["ant"]
        for text in (ant.key.id, ant.key.id[:8]):
            assert "the id of this colony itself" in await ant.fed.finder.stranger(text)
        assert await ant.fed.finder.stranger(ant.key.id[:7]) == ""
