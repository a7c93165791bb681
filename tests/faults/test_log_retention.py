"""Fault 18: retention, the holds of those who still need something, and the disk that overrides them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import BASE_TIME, FileEngine, UnsyncedFiles, commits, read_all, transaction
from walbus.errors import ConfigError, PositionTrimmed
from walbus.position import ORIGIN, Position
from walbus.relay.writer import FileLogWriter
from walbus.status import write_status

FAR_FUTURE = 1e12


class MeasuredFiles(UnsyncedFiles):
    """A disk with as much room as the test says."""

    free = 1 << 40

    def free_bytes(self, folder: Path) -> int:
        return self.free


@pytest.fixture
def files() -> MeasuredFiles:
    return MeasuredFiles()


@pytest.fixture
def engine(tmp_path: Path, files: MeasuredFiles) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=files)
    yield made
    made.close()


@pytest.fixture
def writer(engine: FileEngine) -> FileLogWriter:
    opened = engine.open_writer()
    for i in range(1, 1001):
        opened.append(transaction(i * 16, size=400))
    opened.sync()
    assert len(engine.segments()) == 9
    return opened


def hold(engine: FileEngine, position: object, name: str = "bootstrap") -> Path:
    path = engine.folder / "holds" / f"{name}.json"
    write_status(path, {"last_done": str(position)})
    return path


def test_a_hold_keeps_what_is_behind_it_and_no_more(engine, writer):
    hold(engine, Position(1, 8000, 1))
    trimmed = writer.trim(FAR_FUTURE)
    assert ORIGIN < trimmed <= Position(1, 8000, 1)
    assert commits(read_all(engine.open_reader(), Position(1, 8000, 1))) == list(range(8016, 16001, 16))
    hold(engine, Position(1, 16000, 1))
    assert writer.trim(FAR_FUTURE) > trimmed


def test_a_quiet_segment_goes_too_once_it_is_old(engine):
    quiet = engine.open_writer()
    quiet.append(transaction(16))
    quiet.sync()
    assert quiet.trim(engine.clock.now()) == ORIGIN
    quiet.trim(FAR_FUTURE)  # the segment is sealed now, and the next call may drop it
    assert quiet.trim(FAR_FUTURE) == Position(1, 16, 1)
    quiet.append(transaction(32))
    quiet.sync()
    assert commits(read_all(engine.open_reader(), Position(1, 16, 1))) == [32]


def test_the_lowest_of_several_holds_counts(engine, writer):
    hold(engine, Position(1, 16000, 1))
    path = hold(engine, ORIGIN, "other")
    assert writer.trim(FAR_FUTURE) == ORIGIN
    path.unlink()
    assert writer.trim(FAR_FUTURE) > ORIGIN


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"last_done": "soon"}', '{"last_done": null}'])
def test_a_hold_that_cannot_be_read_holds_everything_and_is_named(engine, writer, content, capsys):
    path = hold(engine, ORIGIN)
    path.write_text(content)
    assert writer.trim(FAR_FUTURE) == ORIGIN
    assert str(path) in capsys.readouterr().out


def test_a_disk_that_is_nearly_full_overrides_holds_and_says_so(engine, writer, files, capsys):
    hold(engine, ORIGIN)
    files.free = 1 << 20
    trimmed = writer.trim(FAR_FUTURE)
    assert trimmed > Position(1, 10_000, 0)
    assert "log_hold_overridden" in capsys.readouterr().out
    assert len(engine.segments()) == 2  # never the active one, which is sealed now, being old
    assert commits(read_all(engine.open_reader(), trimmed))[-1] == 16000


def test_a_disk_that_is_nearly_full_drops_nothing_that_the_policy_keeps(engine, writer, files):
    files.free = 1 << 20
    assert writer.trim(0) == ORIGIN


def test_what_was_trimmed_stays_trimmed_after_a_restart(engine, writer):
    trimmed = writer.trim(FAR_FUTURE)
    engine.kill(writer)
    again = engine.open_writer()
    assert again.bounds().trimmed == trimmed
    assert again.bounds().end == Position(1, 16000, 1)


def test_files_that_a_crash_left_behind_are_removed(engine, writer):
    engine.kill(writer)
    segments = engine.folder / "segments"
    leftovers = [segments / "0000000000009999.seg", segments / "0000000000009999.idx"]
    for path in leftovers:
        path.write_bytes(b"of a roll that was not finished")
    again = engine.open_writer()
    assert not any(path.exists() for path in leftovers)
    assert again.bounds().end == Position(1, 16000, 1)
    assert [p.name for p in engine.folder.glob("control-*")] == ["control-00000002"]
    assert [p.name for p in engine.folder.glob("manifest-*")] == ["manifest-00000002.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"relay\.dir") as failure:
        FileEngine(tmp_path / "file" / "log").open_writer()
    assert failure.value.where == str(tmp_path / "file" / "log")


def test_readers_of_a_folder_with_a_very_long_path_are_woken_too(tmp_path, capsys):
    engine = FileEngine(tmp_path / ("d" * 120) / ("e" * 120))
    writer = engine.open_writer()
    reader = engine.open_reader()
    assert not reader.wait(ORIGIN, 0.1)
    assert "log_writer_away" not in capsys.readouterr().out
    writer.append(transaction(16))
    writer.sync()
    assert reader.wait(ORIGIN, 60)
    engine.close()


def test_a_reader_without_a_writer_polls_and_says_so_once(tmp_path, capsys):
    engine = FileEngine(tmp_path / "log")
    engine.open_writer().close()
    reader = engine.open_reader()
    for _ in range(3):
        assert not reader.wait(ORIGIN, 0.02)
    assert capsys.readouterr().out.count("log_writer_away") == 1
    engine.close()


@pytest.mark.parametrize("missing_index", [False, True])
def test_a_reader_that_retention_overtakes_while_it_seeks_is_told_no_loss_that_is_none(
    engine, writer, monkeypatch, missing_index
):
    reader = engine.open_reader()
    stale, view = [reader.view()], reader._views.view
    trimmed = writer.trim(FAR_FUTURE)
    assert ORIGIN < trimmed < writer.bounds().end
    if missing_index:
        for path in (engine.folder / "segments").glob("*.idx"):
            path.unlink()
    seeks = {
        "position": lambda: reader.cursor(trimmed).close(),
        "time": lambda: reader.position_at((BASE_TIME + trimmed.commit_lsn + 32) / 1e6),
        "seq": lambda: reader.position_at_seq(read_all(reader, trimmed)[0].first_seq),
    }
    for kind, seek in seeks.items():
        monkeypatch.setattr(reader._views, "view", lambda left=[*stale]: left.pop() if left else view())
        seek()
        assert commits(read_all(reader, trimmed))[0] == trimmed.commit_lsn + 16, kind
    monkeypatch.setattr(reader._views, "view", lambda left=[*stale]: left.pop() if left else view())
    with pytest.raises(PositionTrimmed, match="after 1:0/10:1"):
        reader.cursor(Position(1, 16, 1))
    monkeypatch.setattr(reader._views, "view", lambda left=[*stale]: left.pop() if left else view())
    with pytest.raises(PositionTrimmed, match="since that time"):
        reader.position_at(0.0)
