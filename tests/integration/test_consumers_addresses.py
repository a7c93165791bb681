"""A client with several relays reads from one that has its log, and passes the others over by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import structlog

import walbus as library
from support.chained_relay import ChainedRelay
from support.relay_log import SOURCE, transaction
from support.relay_server import Relay, fill
from support.waiting import wait_for
from walbus.consumers.addresses import Relays, listed
from walbus.consumers.transport import BootstrapPeer, HttpPeer, RelayPeer
from walbus.demo.postgres import free_port
from walbus.errors import RelayUnavailable, RequestRefused, UsageError
from walbus.position import ORIGIN, Position
from walbus.relay.engine import open_writer
from walbus.relay.promotion import promote

pytestmark = pytest.mark.one_version
Make = Callable[..., Relays]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    running = fill(Relay(tmp_path / "a"))
    yield running
    running.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Relay]:
    running = fill(Relay(tmp_path / "stranger"))
    yield running
    running.close()


@pytest.fixture
def relays() -> Iterator[Make]:
    """Makes the relays of a client, by their ports."""
    made: list[RelayPeer] = []

    def make(*ports: int) -> Relays:
        peers = [RelayPeer(HttpPeer(url(port))) for port in ports]
        made.extend(peers)
        return Relays(peers)

    yield make
    for peer in made:
        peer.close()


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def reasons(entries: list) -> list[str]:
    return [entry["why"] for entry in entries if entry["event"] == "consumer.relay_passed_over"]


def test_a_relay_of_another_log_is_passed_over_while_one_has_ours(relays: Make, relay: Relay, stranger: Relay) -> None:
    bounds = relay.writer.bounds()
    several = relays(stranger.port, relay.port)
    with structlog.testing.capture_logs() as said:
        assert several.info(bounds.log_id, bounds.end).log.log_id == bounds.log_id
        assert several.info(bounds.log_id, bounds.end).log.log_id == bounds.log_id  # and kept, without a word
    assert several.url == url(relay.port)
    assert len(reasons(said)) == 1
    assert "another log" in reasons(said)[0]


def test_no_snapshot_is_taken_of_another_log_while_a_relay_does_not_answer(relays: Make, stranger: Relay) -> None:
    several = relays(free_port(), stranger.port)
    with pytest.raises(RelayUnavailable, match="some do not answer"):
        several.info("0" * 32, ORIGIN)
    alone = relays(stranger.port)  # but where all have answered, the log was replaced
    assert alone.info("0" * 32, ORIGIN).log.log_id == stranger.writer.bounds().log_id


def test_an_address_of_another_server_is_told_as_such(relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    site = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site")))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    told = r"this is no relay \(at .*/v1/info\); write the address of the relay"
    with closing(RelayPeer(HttpPeer(url(site.server_port)))) as peer, pytest.raises(RequestRefused, match=told):
        peer.info()
    site.shutdown()
    site.server_close()
    told = "this is no bootstrap server"
    with closing(BootstrapPeer(HttpPeer(url(relay.port)))) as peer, pytest.raises(RequestRefused, match=told):
        peer.tables()


def test_a_relay_that_lags_is_read_only_if_none_that_is_further_answers(
    relays: Make, relay: Relay, tmp_path: Path
) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(relay.writer.bounds().end)
    copy.stop()
    behind = Relay(tmp_path / "b2", copy.log)
    wait_for(lambda: behind.get("/readyz")[0] == 200, what="the server finds the log")
    relay.writer.append(transaction(0x10000))
    bounds = relay.writer.sync()
    several = relays(behind.port, relay.port)
    several.info(bounds.log_id, bounds.end)
    assert several.url == url(relay.port)
    several = relays(behind.port, free_port())
    several.info(bounds.log_id, bounds.end)
    assert several.url == url(behind.port)
    behind.close()


def test_an_earlier_term_is_never_read_once_a_later_one_was_seen(relays: Make, relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(relay.writer.bounds().end)
    copy.stop()
    promote(copy.log)
    later = Relay(tmp_path / "b2", copy.log)
    wait_for(lambda: later.get("/readyz")[0] == 200, what="the server finds the log")
    bounds = relay.writer.bounds()
    several = relays(later.port, relay.port)
    several.info(bounds.log_id, bounds.end)
    several.failed(RelayUnavailable("the stream broke", where=f"{url(later.port)}/v1/stream"))
    with structlog.testing.capture_logs() as said:
        several.info(bounds.log_id, bounds.end)
    assert several.url == url(later.port)
    assert "term 1" in reasons(said)[0]
    later.close()


def test_a_client_that_starts_reads_the_latest_term_though_an_earlier_one_is_named_first(
    relays: Make, relay: Relay, tmp_path: Path
) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    bounds = relay.writer.bounds()
    copy.has(bounds.end)
    copy.stop()
    promote(copy.log)
    later = Relay(tmp_path / "b2", copy.log)
    wait_for(lambda: later.get("/readyz")[0] == 200, what="the server finds the log")
    several = relays(relay.port, later.port)
    assert several.info(bounds.log_id, bounds.end).term == 2
    assert several.url == url(later.port)
    later.close()


def test_only_a_failure_of_the_relay_that_is_read_leads_to_the_next(
    relays: Make, relay: Relay, stranger: Relay
) -> None:
    several = relays(relay.port, stranger.port)
    several.info("", ORIGIN)
    several.failed(RelayUnavailable("the bootstrap is away", where="http://127.0.0.1:1/v1/tables"))
    assert several.url == url(relay.port)
    several.failed(RelayUnavailable("the stream broke", where=f"{url(relay.port)}/v1/stream"))
    assert several.url == url(stranger.port)


def test_a_follower_goes_over_when_its_relay_stops_and_stays_there(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(relay.writer.bounds().end)
    seen: list[Position] = []
    with library.connect(f"{url(copy.port)},{url(relay.port)}", folder=tmp_path / "checkpoints") as bus:
        subscription = bus.subscribe(name="f", start="latest")

        def read() -> int:
            delivery = subscription.next(0.05)
            if delivery is not None:
                seen.append(delivery.last)
                delivery.commit()
            return len(seen)

        wait_for(lambda: read() == 0 and subscription.phase == "online", what="it follows")
        lsns = iter(range(0x10000, 0x20000, 16))
        for wanted in range(1, 7):
            if wanted == 3:
                copy.stop()
            if wanted == 5:
                copy = ChainedRelay(tmp_path / "b", [relay.port])  # its return moves nobody
            extra = next(lsns)
            relay.writer.append(transaction(extra, schema_id=1, table=1))
            relay.writer.sync()
            wait_for(lambda wanted=wanted: read() == wanted, 60, what=f"change {wanted}")
    assert seen == [Position(1, lsn, 1) for lsn in range(0x10000, 0x10000 + 6 * 16, 16)]
    copy.stop()


def test_addresses_come_as_a_list_or_with_commas() -> None:
    assert listed("http://a, http://b") == listed(["http://a", "http://b"]) == ["http://a", "http://b"]
    with pytest.raises(UsageError, match="no address"):
        library.connect([])


def test_a_log_that_capture_of_two_terms_wrote_keeps_its_seqs_rising(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(relay.writer.bounds().end)
    copy.stop()
    before = promote(copy.log).began
    with closing(open_writer(copy.log, SOURCE, segment_bytes=1 << 20, retention_hours=1, retention_bytes=None)) as log:
        assert log.bounds().end == before
        last = log.bounds().last_seq
        log.append(transaction(0x10000))
        assert log.sync().last_seq > last
