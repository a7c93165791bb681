"""Fault 4: an index is only a help; lost or garbled, it is built again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import BASE_TIME, FileEngine, UnsyncedFiles, commits, read_all, transaction
from walbus.position import Position

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
