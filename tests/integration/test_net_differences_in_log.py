"""Differences that somebody hands over reach the log, readers, copies and JSON lines, while a source is written to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from support.capturing import captured, capturing
from support.database import Database
from support.log_view import log_records, raw_changes
from support.waiting import wait_for
from support.well_formed_log import findings_of
from walbus.capture.difference_file import About, refusals, waiting, write_difference
from walbus.events import Change
from walbus.jsonlines import LineRenderer
from walbus.keys import encode_key
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op, RawChange
from walbus.relay import open_reader
from walbus.schema import TableSchema
from walbus.values import row_encoder, row_texts


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of capture for what is handed over."""
    monkeypatch.setattr("walbus.capture.loop.CHORE_SECONDS", 0.1)


@pytest.fixture
def table(database: Database) -> str:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int, big text)")
    database.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    return "public.t"


def layout(folder: Path) -> TableSchema:
    with closing(open_reader(folder)) as reader:
        return next(schema for schema in reader.schemas.all() if schema.name == "t")


def end_of(folder: Path) -> tuple[str, Position]:
    with closing(open_reader(folder)) as reader:
        bounds = reader.bounds()
        return bounds.log_id, bounds.end


def row(schema: TableSchema, number: int, *texts: str | None) -> RawChange:
    values = [None if text is None else text.encode() for text in (str(number), *texts)]
    key = encode_key([str(number).encode()], [23])
    return RawChange(
        int(Op.INSERT), 0, schema.oid, schema.id, 0, 0, 0, key, None, b"", row_encoder(schema).encode(values), None
    )


def hand_over(folder: Path, number: int, changes: Iterator[RawChange] | list[RawChange], after: Position) -> None:
    schema, (log_id, _) = layout(folder), end_of(folder)
    about = About(
        number=number, log_id=log_id, table=schema.table, oid=schema.oid, schemas=(schema.id,), after=str(after),
        reason="repaired",
    )  # fmt: skip
    write_difference(folder / "differences", about, changes)


def told(folder: Path) -> dict[int, list[str | None]]:
    """The rows that the log tells, by id."""
    rows: dict[int, list[str | None]] = {}
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader, ORIGIN):
            if header.kind != Kind.TRANSACTION:
                continue
            for raw in raw_changes(header, record):
                if not raw.schema_id:
                    continue  # a message, by which tests wait
                change = Change(raw, reader.schemas.get(raw.schema_id), ORIGIN, 0)
                assert change.key is not None
                old = rows.pop((change.old_key or change.key)["id"], None)
                if raw.after is not None and change.schema is not None:
                    texts = row_texts(change.schema, raw.after)
                    if change.unchanged:
                        texts[2] = old[2] if old else None
                    rows[change.key["id"]] = texts
    return rows


def taken(folder: Path) -> bool:
    return not waiting(folder / "differences")


def test_a_difference_that_is_handed_over_is_a_transaction_of_the_log(
    database: Database, table: str, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1, 1, 'x')")
        capture.caught_up()
        _, end = end_of(folder)
        schema = layout(folder)
        hand_over(folder, 5, [row(schema, 1, "7", "y"), row(schema, 2, "8", None)], end)
        wait_for(lambda: taken(folder), what="it is taken")
        database.execute("INSERT INTO t VALUES (3, 1, 'x')")
        capture.caught_up()
        assert told(folder) == {1: ["1", "7", "y"], 2: ["2", "8", None], 3: ["3", "1", "x"]}
    with closing(open_reader(folder)) as reader:
        lines = []
        render = LineRenderer(reader.schemas.get)
        for header, record in log_records(reader, ORIGIN):
            lines += render.lines(header, record)
            assert bool(header.flags & Flag.NET) <= (header.xid == 0)
    net = [line for line in lines if line.get("net")]
    assert [line["op"] for line in net] == ["begin", "insert", "insert"]
    assert findings_of(folder) == []


def test_the_slot_is_confirmed_and_goes_on_as_if_there_were_no_differences(
    database: Database, table: str, tmp_path: Path, oracle: object
) -> None:
    """The oracle sees what the source sends; differences taken out, the log holds exactly that, over restarts too."""
    folder = tmp_path / "log"
    truth = oracle("walbus")
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, 50) i")
        capture.caught_up()
    for life in range(3):
        with capturing(database.dsn, folder) as capture:
            stop = threading.Event()
            writer = threading.Thread(target=_write, args=(database.dsn, stop))
            writer.start()
            try:
                for number in range(5):
                    _, end = end_of(folder)
                    schema = layout(folder)
                    hand_over(folder, 10 * life + number + 1, [row(schema, 1000 + number, "1", None)], end)
                    wait_for(lambda: taken(folder), 60, what="it is taken")
            finally:
                stop.set()
                writer.join()
            capture.caught_up()
    expected = [one for one in truth.transactions() if one.changes]
    found = [one for one in captured(folder) if one.xid]
    moved = {one.xid: one.commit_lsn for one in expected}
    assert [one.xid for one in found] == [one.xid for one in expected]
    assert all(one.commit_lsn - moved[one.xid] in (0, 23) for one in found)
    assert [one.changes for one in found] == [one.changes for one in expected]
    assert len([one for one in captured(folder) if not one.xid]) == 15


def _write(dsn: str, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        number = 0
        while not stop.is_set():
            number += 1
            session.execute("UPDATE t SET n = n + 1 WHERE id = %s", [number % 50 + 1])


def test_a_session_that_commits_where_the_difference_stands_is_moved(
    database: Database, table: str, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    with capturing(database.dsn, folder) as capture, database.connect(autocommit=False) as open_session:
        database.execute("INSERT INTO t VALUES (1, 1, 'x')")
        open_session.execute("INSERT INTO t VALUES (2, 2, 'x')")
        database.execute("CHECKPOINT")  # what is not committed is not flushed otherwise, for many seconds on 14
        lsn = database.insert_lsn()
        wait_for(lambda: capture.log.bounds().end.commit_lsn >= lsn, what="nothing else is on the way")
        _, end = end_of(folder)
        hand_over(folder, 5, [row(layout(folder), 1, "7", "y")], end)
        wait_for(lambda: taken(folder), what="it is taken")
        open_session.commit()
        capture.caught_up()
        assert told(folder) == {1: ["1", "7", "y"], 2: ["2", "2", "x"]}
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (3, 3, 'x')")
        capture.caught_up()
        assert told(folder)[3] == ["3", "3", "x"]


def test_a_damaged_file_is_refused_and_capture_goes_on(database: Database, table: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1, 1, 'x')")
        capture.caught_up()
        _, end = end_of(folder)
        hand_over(folder, 5, [row(layout(folder), 1, "7", "y")], end)
        (folder / "differences" / "00000000000000000006-1.difference").write_bytes(b"nonsense")
        wait_for(lambda: taken(folder), what="both are dealt with")
        wait_for(lambda: refusals(folder / "differences"), what="the note is there")
        ((_, refused),) = refusals(folder / "differences")
        assert (refused.number, refused.oid) == (6, 1)
        database.execute("INSERT INTO t VALUES (2, 2, 'x')")
        capture.caught_up()
        assert told(folder) == {1: ["1", "7", "y"], 2: ["2", "2", "x"]}


@pytest.mark.long
def test_a_million_rows_are_one_transaction_in_flat_memory(database: Database, table: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1, 1, 'x')")
        capture.caught_up()
        _, end = end_of(folder)
        schema = layout(folder)
        hand_over(folder, 5, (row(schema, number, "7", "y") for number in range(1_000_000)), end)
        wait_for(lambda: taken(folder), 110, what="it is taken")
        database.execute("INSERT INTO t VALUES (-1, 1, 'x')")
        capture.caught_up()
    with closing(open_reader(folder)) as reader:
        count = sum(h.count for h, _ in log_records(reader, ORIGIN) if h.flags & Flag.NET)
    assert count == 1_000_000
