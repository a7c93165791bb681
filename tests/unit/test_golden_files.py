"""Fault 40: what was written once is read for ever, and what is written today is what was written then."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from support.golden import FOLDER, RECORDS, as_written_today, golden_log, golden_record
from support.relay_log import BASE_TIME, FileEngine, commits, read_all, read_records, transaction
from support.well_formed_log import findings_of
from walbus.compressed_records import plain
from walbus.position import Position
from walbus.records import ChangeFlag, Flag, Kind, Op, body_of, check_record, iter_changes, origin_of
from walbus.relay import open_reader


def test_every_kind_flag_and_op_has_a_golden_record():
    assert {path.stem for path in FOLDER.glob("*.hex")} == set(RECORDS)
    headers = [check_record(golden_record(name)) for name in RECORDS]
    assert {header.kind for header in headers} == set(Kind)
    changes = [
        c for name, h in zip(RECORDS, headers, strict=True) for c in iter_changes(body_of(golden_record(name), h))
    ]
    assert {change.op for change in changes} == set(Op)
    for flags, given in ((Flag, [h.flags for h in headers]), (ChangeFlag, [c.flags for c in changes])):
        assert {flag for flag in flags if any(one & flag for one in given)} == set(flags)


@pytest.mark.parametrize("name", RECORDS)
def test_the_bytes_of_a_record_are_those_that_were_written_once(name):
    assert plain(golden_record(name)) == plain(as_written_today(name))


def test_a_golden_record_says_what_it_said():
    record = golden_record("changes")
    header = check_record(record)
    assert (header.first, header.last) == (Position(2, 0x16B374D848, 1), Position(2, 0x16B374D848, 6))
    assert (header.end_lsn, header.xid, header.commit_time) == (0x16B374D878, (1 << 32) + 742, BASE_TIME)
    _, update, delete, truncate, message, _ = iter_changes(body_of(record, header))
    assert (update.old_key[-1], update.key[-1], update.unchanged, update.before) == (6, 7, b"\x05", b"\x02\x0c")
    assert (delete.key, delete.before, delete.after) == (b"", b"", None)
    assert truncate.flags == ChangeFlag.CASCADE | ChangeFlag.RESTART_IDENTITY
    assert (message.key, message.after, message.flags & ChangeFlag.TRANSACTIONAL) == (b"outbox", b"{}", 64)
    begin = golden_record("transaction-begin-origin")
    assert origin_of(begin, check_record(begin)).decode() == "ferne ✓"


def test_a_golden_log_is_whole_and_is_read(tmp_path: Path):
    folder = golden_log(tmp_path / "log")
    assert findings_of(folder) == []
    with closing(open_reader(folder)) as reader:
        headers = read_all(reader)
        assert commits(headers) == [16, 32, 48, 64, 80, 96, 112, 144]
        assert [header.kind for header in headers if header.kind != Kind.TRANSACTION] == [
            Kind.SCHEMA, Kind.SCHEMA, Kind.PROGRESS, Kind.EPOCH
        ]  # fmt: skip
        assert {bool(check_record(record).flags & Flag.ZSTD) for record in read_records(reader)} == {True, False}
        assert reader.bounds().end == Position(2, 144, 40)
        assert reader.position_at((BASE_TIME + 64) / 1e6) == Position(1, 48, 1)
        assert reader.schemas.get(1).table == "public.orders"


def test_a_golden_log_is_gone_on_with(tmp_path: Path):
    engine = FileEngine(golden_log(tmp_path / "log"))
    writer = engine.open_writer()
    assert writer.bounds().end == Position(2, 144, 40)
    writer.append(transaction(160, epoch=2))
    writer.sync()
    assert commits(read_all(engine.open_reader()))[-2:] == [144, 160]
    assert findings_of(engine.folder) == []
    engine.close()
