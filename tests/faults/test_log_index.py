"""Fault 4: an index is only a help; lost or garbled, it is built again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import BASE_TIME, FileEngine, UnsyncedFiles, commits, piece, read_all, transaction
from walbus.position import Position
from walbus.records import Flag, RecordHeader, read_header
from walbus.relay.reader import FileLogReader

COUNT = 3000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=UnsyncedFiles(), segment_bytes=400_000)
    writer = made.open_writer()
    for i in range(1, COUNT + 1):
        writer.append(transaction(i * 16, size=300))
        if i % 50 == 0:
            writer.sync()
    yield made
    made.close()


def indexes(engine: FileEngine) -> list[Path]:
    return sorted((engine.folder / "segments").glob("*.idx"))


def assert_seeks_are_right(engine: FileEngine) -> None:
    reader = engine.open_reader()
    for i in range(1, COUNT, 211):
        assert read_all(reader, Position(1, i * 16, 1))[0].commit_lsn == (i + 1) * 16
        assert reader.position_at((BASE_TIME + (i + 1) * 16) / 1e6) == Position(1, i * 16, 1)


def test_a_lost_index_is_built_again(engine, capsys):
    assert len(indexes(engine)) == len(engine.segments()) == 4
    for path in indexes(engine):
        path.unlink()
    assert_seeks_are_right(engine)
    assert "log_index_rebuilt" in capsys.readouterr().out
    assert len(indexes(engine)) == 3  # of the sealed segments; the active one's is its writer's
    assert_seeks_are_right(engine)
    assert capsys.readouterr().out.count("log_index_rebuilt") == 1


def test_a_garbled_index_is_built_again_whichever_byte_it_is(engine, capsys):
    path = indexes(engine)[1]
    good = path.read_bytes()
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        assert read_all(engine.open_reader(), Position(1, 16000, 1))[0].commit_lsn == 16016
        assert "log_index_rebuilt" in capsys.readouterr().out, offset
        path.write_bytes(good)


def test_an_index_cut_anywhere_finds_the_same(engine):
    path = indexes(engine)[1]
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert read_all(engine.open_reader(), Position(1, 16000, 1))[0].commit_lsn == 16016
        path.write_bytes(good)


def test_an_index_of_another_segment_is_not_believed(engine, capsys):
    first, second = indexes(engine)[:2]
    second.write_bytes(first.read_bytes())
    assert_seeks_are_right(engine)
    assert "log_index_rebuilt" in capsys.readouterr().out


def test_an_index_in_a_folder_that_cannot_be_written_to_is_kept_in_memory(engine, capsys, monkeypatch):
    indexes(engine)[0].unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    reader = engine.open_reader()
    monkeypatch.setattr(reader._indexes._files, "replace", refuse)
    assert commits(read_all(reader, Position(1, 160, 1)))[0] == 176
    assert "log_index_not_stored" in capsys.readouterr().out
    assert commits(read_all(reader, Position(1, 160, 1)))[0] == 176
    assert "log_index_rebuilt" not in capsys.readouterr().out


class CountedFiles(UnsyncedFiles):
    """Files that count what is read of indexes."""

    def __init__(self) -> None:
        self.index_bytes = 0
        self._indexes: set[int] = set()

    def open_for_reading(self, path: Path) -> int:
        fd = super().open_for_reading(path)
        (self._indexes.add if path.suffix == ".idx" else self._indexes.discard)(fd)
        return fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = super().pread(fd, size, offset)
        self.index_bytes += len(data) if fd in self._indexes else 0
        return data


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes of a test's logs are taken for large ones."""
    monkeypatch.setattr("walbus.relay.index_search.WHOLE_BYTES", 0)


@pytest.mark.usefixtures("small")
def test_a_large_index_finds_the_same_where_it_lies(engine, capsys):
    assert_seeks_are_right(engine)
    reader = engine.open_reader()
    for header in read_all(reader)[::173]:
        assert reader.position_at_seq(header.first_seq) == header.last._replace(commit_lsn=header.commit_lsn - 16) or (
            header.commit_lsn == 16
        )
    assert "log_index_rebuilt" not in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_garbled_entry_of_a_large_index_has_it_built_again_and_kept(engine, capsys):
    path = indexes(engine)[1]
    good = path.read_bytes()
    for offset in range(48, len(good), 7):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        for lsn in range(16_000, 30_000, 1600):
            assert read_all(engine.open_reader(), Position(1, lsn, 1))[0].commit_lsn == lsn + 16
    assert "log_index_rebuilt" in capsys.readouterr().out
    path.write_bytes(good[:-1])
    assert_seeks_are_right(engine)


@pytest.mark.usefixtures("small")
def test_the_end_of_a_large_index_that_is_still_written_is_passed_over(engine, capsys):
    path = indexes(engine)[-1]
    good = path.read_bytes()
    for length in range(48, len(good), 17):
        path.write_bytes(good[:length] + b"\0" * 48)
        assert_seeks_are_right(engine)
    assert "log_index_rebuilt" not in capsys.readouterr().out


def test_a_seek_in_a_huge_segment_reads_few_entries_of_its_index(tmp_path, monkeypatch):
    monkeypatch.setattr("walbus.relay.index_search.WHOLE_BYTES", 4096)
    engine = FileEngine(tmp_path / "log", files=UnsyncedFiles())
    writer = engine.open_writer()
    last = 300
    for ordinal in range(1, last + 1):  # one transaction, and so one segment
        flags = (Flag.BEGIN if ordinal == 1 else 0) | (Flag.END if ordinal == last else 0)
        writer.append(piece(16, ordinal, 1, flags, size=66_000))
    writer.append(transaction(32))
    writer.sync()
    engine.files = files = CountedFiles()
    reader = engine.open_reader()
    reader._files = reader._indexes._files = files
    for ordinal in (1, 211, last):
        files.index_bytes = 0
        header = read_some(reader, Position(1, 16, ordinal))
        assert header.first == (Position(1, 16, ordinal + 1) if ordinal < last else Position(1, 32, 1))
        assert 0 < files.index_bytes <= 48 * (1 + 9)
    engine.close()


def read_some(reader: FileLogReader, after: Position) -> RecordHeader:
    cursor = reader.cursor(after)
    try:
        return read_header(cursor.read(1)[0])
    finally:
        cursor.close()
