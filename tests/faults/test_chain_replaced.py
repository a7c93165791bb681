"""An upstream that is not what it was: another history at its address, numbers that nobody knew, a term that ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from support.chained_relay import ChainedRelay, records_of
from support.relay_log import SOURCE, FileEngine, piece, schema_piece, table_schema, transaction
from support.relay_server import Relay, fill
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.errors import LogDiverged, RelayUnavailable
from walbus.position import Position
from walbus.records import Flag, RecordHeader, read_header
from walbus.relay.chain import Chain
from walbus.relay.engine import open_writer
from walbus.relay.layout_numbers import NUMBERS_A_TERM
from walbus.relay.overlap import LastRecords, just_before
from walbus.relay.promotion import promote
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "a").mkdir()
    running = Relay(tmp_path / "a")
    yield fill(running)
    running.close()


@pytest.fixture
def closing_all() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def writer_of(log: Path) -> FileLogWriter:
    return open_writer(log, SOURCE, segment_bytes=64 << 10, retention_hours=1e6, retention_bytes=None)


def served(closing_all: ExitStack, folder: Path, log: Path) -> Relay:
    """A server over a log that is there already."""
    relay = Relay(folder, log)
    closing_all.callback(relay.close)
    wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server finds the log")
    return relay


def large(writer: FileLogWriter, lsn: int, size: int) -> None:
    """A transaction in pieces, each change with so many bytes."""
    writer.append(piece(lsn, 1, 10, Flag.BEGIN, size=size))
    for i in range(1, 29):
        writer.append(piece(lsn, 1 + 10 * i, 10, 0, size=size))
    writer.append(piece(lsn, 291, 10, Flag.END, size=size))
    writer.sync()


def test_a_part_of_a_transaction_is_never_gone_on_with_from_an_upstream_that_has_it_otherwise(
    relay: Relay, tmp_path: Path, closing_all: ExitStack
) -> None:
    """As behind an address at which a restored volume was started: what both hold whole is the same."""
    with TcpProxy(relay.port) as proxy:
        proxy.starts = b"GET /v1/chain/stream"
        proxy.stalls = True
        copy = ChainedRelay(tmp_path / "b", [proxy.port])
        copy.has(relay.writer.bounds().end)
        shutil.copytree(relay.engine.folder, tmp_path / "restored", ignore=shutil.ignore_patterns("*.sock"))
        with closing(writer_of(tmp_path / "restored")) as other:
            large(other, 0x10000, 7999)
            port = served(closing_all, tmp_path / "c", tmp_path / "restored").port
            proxy.reset(1_600_000)
            large(relay.writer, 0x10000, 8000)
            wait_for(lambda: proxy.cuts == 1, what="a part comes")
            proxy.target = port  # before the copy gives up the stream, and asks anew
            wait_for(lambda: log_size(copy.log) > 1_000_000, what="the part is in the copy's file")
            proxy.reset()
            copy.has(other.bounds().end)
            assert copy.records() == records_of(tmp_path / "restored")
            copy.stop()


def log_size(log: Path) -> int:
    return sum(path.stat().st_size for path in (log / "segments").glob("*.seg"))


def test_what_is_asked_for_again_is_what_a_stream_gives_that_begins_before_the_last_record(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path)
    with closing(engine.open_writer()) as writer:
        layouts = [writer.schemas.register(table_schema("t", 3, ("id", f"c{n}")))[0] for n in range(4)]
        pieces = [
            schema_piece(0x100, 0, layouts[0]),
            replace(piece(0x100, 0, 1, Flag.BEGIN), count=0, body=b""),
            piece(0x100, 1, 3, 0),
            schema_piece(0x100, 3, layouts[1]),
            schema_piece(0x100, 3, layouts[2]),
            piece(0x100, 4, 1, 0),
            piece(0x100, 5, 7, 0),
            schema_piece(0x100, 11, layouts[3]),
            piece(0x100, 12, 2, Flag.END),
            transaction(0x200, 2),
        ]
        for one in pieces:
            writer.append(one)
        writer.sync()
        last = LastRecords()
        headers = list(records_in(writer))
        for number, (header, record) in enumerate(headers):
            last.note(header, record)
            after = just_before(header.last)
            given = [one for _, one in records_in(writer, after)][: len(last.behind(after))]
            assert last.behind(after) == given
            assert given[-1] == headers[number][1]
            assert len(given) <= 4


def records_in(writer: FileLogWriter, after: Position | None = None) -> Iterator[tuple[RecordHeader, bytes]]:
    for record in writer.records_after(writer.bounds().trimmed if after is None else after):
        yield read_header(record), record


def test_a_number_of_a_layout_that_only_another_copy_found_is_given_to_no_other_by_who_takes_over(
    relay: Relay, tmp_path: Path, closing_all: ExitStack
) -> None:
    """The layout was registered, and the machine lost before a record told of it; rows of a snapshot may have it."""
    second = ChainedRelay(tmp_path / "b", [relay.port])
    second.has(relay.writer.bounds().end)
    second.stop()
    lost, _ = relay.writer.schemas.register(table_schema("lost", 8))
    third = ChainedRelay(tmp_path / "c", [relay.port])
    third.has(relay.writer.bounds().end)
    wait_for(lambda: listed(third) == ["orders", "items", "lost"], what="it serves its log")
    promote(second.log)
    with closing(writer_of(second.log)) as writer:
        found, new = writer.schemas.register(table_schema("found", 9))
        assert (found.id, new) == (NUMBERS_A_TERM + 1, True)
        writer.append(schema_piece(0x10000, 0, found))
        writer.append(transaction(0x10000, 2, table=9, schema_id=found.id))
        writer.sync()
        promoted = served(closing_all, tmp_path / "b2", second.log)
        port = third.port
        third.stop()
        third = ChainedRelay(tmp_path / "c", [promoted.port], listen=f"127.0.0.1:{port}")
        third.has(writer.bounds().end)
        wait_for(lambda: listed(third) == ["orders", "items", "lost", "found"], what="it serves its log")
        assert third.json(f"/v1/schemas/{found.id}")["schema"]["name"] == "found"
        assert third.json(f"/v1/schemas/{lost.id}")["schema"]["name"] == "lost"
        assert third.records() == records_of(second.log)
        third.stop()


def listed(copy: ChainedRelay) -> list[str]:
    """Tables of the layouts that its server tells of; none while it has no log."""
    return [one["schema"]["name"] for one in copy.json("/v1/schemas").get("schemas", [])]


def test_a_server_that_listed_a_layout_shows_what_took_its_number(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path)
    lost, found, again = (replace(table_schema(name, 8), id=1) for name in ("lost", "found", "again"))
    with closing(engine.open_writer()) as writer, closing(engine.open_reader()) as reader:
        writer.adopt(lost)
        assert [schema.name for schema in reader.schemas.all()] == ["lost"]
        writer.adopt(found)
        assert [schema.name for schema in reader.schemas.all()] == ["found"]
        assert reader.schemas.get(1).name == "found"
        writer.append(schema_piece(0x10, 0, reader.schemas.get(1)))
        writer.sync()
        with pytest.raises(LogDiverged, match="layout 1 is that of"):
            writer.adopt(again)


@pytest.mark.parametrize("predecessor", ["answers", "is gone"])
def test_a_copy_that_went_past_the_place_of_the_take_over_ends_whatever_its_predecessor_does(
    relay: Relay, tmp_path: Path, closing_all: ExitStack, predecessor: str
) -> None:
    second = ChainedRelay(tmp_path / "b", [relay.port])
    second.has(relay.writer.bounds().end)
    second.stop()
    promote(second.log)
    third = ChainedRelay(tmp_path / "c", [relay.port])
    relay.writer.append(transaction(0x10000, 2))  # what the one that takes over does not have
    relay.writer.sync()
    third.has(relay.writer.bounds().end)
    third.stop()
    promoted = served(closing_all, tmp_path / "b2", second.log)
    if predecessor == "is gone":
        relay.stop.set()
        relay.thread.join(60)
    error = ChainedRelay(tmp_path / "c", [relay.port, promoted.port]).ended()
    assert isinstance(error, LogDiverged)
    assert "term 2 of the log began at" in str(error)


def test_an_upstream_that_refuses_is_not_the_end_while_another_of_its_term_may_come_back(
    relay: Relay, tmp_path: Path, closing_all: ExitStack
) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(relay.writer.bounds().end)
    copy.stop()
    shutil.copytree(relay.engine.folder, tmp_path / "restored", ignore=shutil.ignore_patterns("*.sock"))
    relay.writer.append(transaction(0x10000, 2, size=10))
    relay.writer.sync()
    again = ChainedRelay(tmp_path / "b", [relay.port])
    again.has(relay.writer.bounds().end)
    again.stop()
    with closing(writer_of(tmp_path / "restored")) as other, TcpProxy(relay.port) as proxy:
        other.append(transaction(0x10000, 2, size=11))
        other.sync()
        restored = served(closing_all, tmp_path / "c", tmp_path / "restored")
        proxy.swallow = True
        third = ChainedRelay(tmp_path / "b", [restored.port, proxy.port])
        wait_for(lambda: "not the one that is here" in str(third.status().get("error")), what="the other one refuses")
        proxy.swallow = False
        proxy.reset()
        relay.writer.append(transaction(0x10100, 2))
        relay.writer.sync()
        third.has(relay.writer.bounds().end)
        third.stop()


def test_the_refusal_of_an_upstream_is_final_where_all_others_are_of_earlier_terms() -> None:
    """The rule by itself."""
    chain = object.__new__(Chain)

    class At:
        def __init__(self, url: str) -> None:
            self.url = url

    chain._upstreams = (At("a"), At("b"), At("c"))  # type: ignore[assignment]
    chain._refused = {"b": RelayUnavailable("")}
    for terms, final in [
        ({}, False),
        ({"b": 2}, False),
        ({"a": 1, "b": 2}, False),  # c never said what it has
        ({"a": 1, "b": 2, "c": 1}, True),
        ({"a": 2, "b": 2, "c": 1}, False),
        ({"a": 1, "b": 2, "c": 3}, False),
    ]:
        chain._terms = terms
        assert chain._nobody_is_left() is final, terms
