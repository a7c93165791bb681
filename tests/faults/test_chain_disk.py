"""The disk of a copy is full: it serves on what it has, says so, and goes on by itself when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import plain_http
from support.chained_relay import ChainedRelay, records_of
from support.relay_log import transaction
from support.relay_server import Relay, fill, parsed
from support.small_disk import small_disk
from support.waiting import wait_for
from walbus.position import parse_position

pytestmark = pytest.mark.one_version


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "a").mkdir()
    running = Relay(tmp_path / "a", required_standbys=("b",))
    yield fill(running)
    running.close()


def test_a_copy_on_a_full_disk_serves_on_holds_confirming_up_and_goes_on_when_there_is_room(
    relay: Relay, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        copy = ChainedRelay(tmp_path / "b", [relay.port], name="b", log=disk / "log")
        copy.has(relay.writer.bounds().end)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        for i in range(1, 61):
            relay.writer.append(transaction(0x10000 + 16 * i, 1, size=30_000))
            relay.writer.sync()
        wait_for(lambda: copy.status()["state"] == "disk full", 60, what="it says that its disk is full")
        assert "no room" in copy.status()["error"]
        held = copy.end()
        assert held < relay.writer.bounds().end
        url = f"http://127.0.0.1:{copy.port}/v1/stream?from=earliest&until=latest"

        def served() -> bytes:
            response = plain_http.get(url, headers={"Accept-Encoding": "identity"})
            return response.content if response.is_success else b""

        body = wait_for(served, 60, what="the copy's server has opened its log")
        assert [record for _, record in parsed(body)] == copy.records()
        assert copy.served_end() == held
        assert parse_position(relay.json("/v1/info")[1]["end"]) <= held  # nobody is served what it does not hold
        ballast.unlink()
        copy.has(relay.writer.bounds().end)
        assert copy.records() == records_of(relay.engine.folder)
        end = str(relay.writer.bounds().end)
        wait_for(lambda: relay.json("/v1/info")[1]["end"] == end, what="everything is served again")
        wait_for(lambda: copy.status()["state"] == "copying", what="it says that it goes on")
        copy.stop()
