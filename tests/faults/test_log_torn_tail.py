"""Faults 3 and 4: a file that ends early, and bytes that are not what was written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import FileEngine, UnsyncedFiles, commits, piece, read_all, read_records, transaction
from walbus.errors import DamagedRecord, WalbusError
from walbus.position import ORIGIN, Position
from walbus.records import Flag
from walbus.relay.control import ControlFile, control_path
from walbus.relay.fs import Files


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=UnsyncedFiles())
    yield made
    made.close()


def died_with_unpublished_tail(engine: FileEngine) -> int:
    """A log whose writer died between fdatasync and publishing; gives the durable end's offset.

    The file holds transactions 16, 32 (published) and 48 (in two pieces, not published).
    """
    writer = engine.open_writer()
    for lsn in (16, 32):
        writer.append(transaction(lsn))
    writer.sync()
    durable = writer._mark.offset
    writer.append(piece(48, 1, 2, Flag.BEGIN))
    writer.append(piece(48, 3, 1, Flag.END))
    writer._file.flush()
    engine.kill(writer)
    return durable


def copy_of(engine: FileEngine, tmp_path: Path, name: object) -> FileEngine:
    folder = tmp_path / f"copy-{name}"
    shutil.copytree(engine.folder, folder)
    return FileEngine(folder, files=UnsyncedFiles())


def test_a_whole_tail_behind_the_durable_end_is_kept_and_written_again(engine):
    died_with_unpublished_tail(engine)
    writer = engine.open_writer()
    assert writer.bounds().end == Position(1, 48, 3)
    assert len(engine.segments()) == 2  # never the same file: a failed sync may have left it half on disk
    assert commits(read_all(engine.open_reader())) == [16, 32, 48]


def test_a_tail_cut_at_any_byte_is_cut_back_to_the_last_whole_transaction(engine, tmp_path, capsys):
    durable = died_with_unpublished_tail(engine)
    size = engine.segments()[0].stat().st_size
    for length in range(durable, size):
        copy = copy_of(engine, tmp_path, length)
        with copy.segments()[0].open("r+b") as file:
            file.truncate(length)
        writer = copy.open_writer()
        assert writer.bounds().end == Position(1, 32, 1), length
        said = capsys.readouterr().out
        assert ("log_tail_cut" in said) == (length > durable), length
        writer.append(transaction(48))
        writer.sync()
        assert commits(read_all(copy.open_reader())) == [16, 32, 48], length
        copy.close()
        shutil.rmtree(copy.folder)


def test_a_tail_with_any_byte_flipped_is_never_served_as_good(engine, tmp_path, capsys):
    durable = died_with_unpublished_tail(engine)
    size = engine.segments()[0].stat().st_size
    for offset in range(durable, size):
        copy = copy_of(engine, tmp_path, offset)
        flip(copy.segments()[0], offset)
        writer = copy.open_writer()
        assert writer.bounds().end == Position(1, 32, 1), offset
        assert "log_tail_cut" in capsys.readouterr().out
        assert commits(read_all(copy.open_reader())) == [16, 32], offset
        copy.close()
        shutil.rmtree(copy.folder)


def test_a_file_shorter_than_the_durable_end_is_cut_and_the_loss_is_said(engine, tmp_path, capsys):
    durable = died_with_unpublished_tail(engine)
    first_record = durable - (durable - 128) // 2
    for length in range(128, durable):
        copy = copy_of(engine, tmp_path, length)
        with copy.segments()[0].open("r+b") as file:
            file.truncate(length)
        writer = copy.open_writer()
        expected = Position(1, 16, 1) if length >= first_record else ORIGIN
        assert writer.bounds().end == expected, length
        assert "log_shorter_than_durable_end" in capsys.readouterr().out
        writer.append(transaction(32))
        writer.sync()
        assert commits(read_all(copy.open_reader(), expected)) == [32], length
        copy.close()
        shutil.rmtree(copy.folder)


def test_a_file_that_ends_inside_its_header_is_refused(engine):
    died_with_unpublished_tail(engine)
    (path,) = engine.segments()
    good = path.read_bytes()
    for length in range(128):
        path.write_bytes(good[:length])
        for open_log in (engine.open_writer, lambda: engine.open_reader().cursor(ORIGIN)):
            with pytest.raises(DamagedRecord, match="segment"):
                open_log()
    path.write_bytes(good)
    assert engine.open_writer().bounds().end == Position(1, 48, 3)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_every_flipped_byte_of_a_record_is_refused_with_file_and_offset(engine):
    writer = engine.open_writer()
    for lsn in range(16, 16 * 6, 16):
        writer.append(transaction(lsn))
    writer.sync()
    path = engine.segments()[0]
    size = path.stat().st_size
    record = (size - 128) // 5
    for offset in range(128 + 2 * record, 128 + 3 * record):  # of the third record
        flip(path, offset)
        reader = engine.open_reader()
        with pytest.raises(DamagedRecord) as failure:
            read_records(reader, ORIGIN if offset % 2 else Position(1, 32, 1), max_bytes=1 if offset % 3 else 1 << 20)
        assert failure.value.where == f"{path}, offset {128 + 2 * record}", offset
        flip(path, offset)
    assert commits(read_all(engine.open_reader())) == [16, 32, 48, 64, 80]


def test_every_flipped_byte_of_a_segments_header_is_refused(engine):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.sync()
    engine.kill(writer)
    path = engine.segments()[0]
    for offset in range(128):
        flip(path, offset)
        with pytest.raises(DamagedRecord, match="segment"):
            engine.open_reader().cursor(ORIGIN)
        with pytest.raises(DamagedRecord, match="segment"):
            engine.open_writer()
        flip(path, offset)
    engine.open_writer()


def test_a_manifest_with_any_byte_flipped_is_refused_or_says_the_same(engine):
    engine.open_writer().close()
    (path,) = engine.folder.glob("manifest-*.json")
    good = engine.open_reader().bounds()
    for offset in range(path.stat().st_size):
        flip(path, offset)
        try:
            assert engine.open_reader().bounds() == good, offset
        except WalbusError as error:
            assert isinstance(error, DamagedRecord), offset
        flip(path, offset)


@pytest.mark.parametrize("damage", ["flipped", "lost"])
def test_without_its_control_file_a_log_is_recovered_from_its_segment(engine, damage, capsys):
    died_with_unpublished_tail(engine)
    (path,) = engine.folder.glob("control-*")
    if damage == "lost":
        path.unlink()
    else:
        flip(path, 20)
    writer = engine.open_writer()
    assert writer.bounds().end == Position(1, 48, 3)
    assert "log_durable_end_unknown" in capsys.readouterr().out
    assert commits(read_all(engine.open_reader())) == [16, 32, 48]


def test_a_segment_that_is_missing_is_named(engine):
    writer = engine.open_writer()
    for i in range(1, 1000):
        writer.append(transaction(i * 16, size=300))
    writer.sync()
    lost = engine.segments()[2]
    lost.unlink()
    with pytest.raises(DamagedRecord, match=str(lost)):
        read_all(engine.open_reader())


def test_a_torn_control_file_is_recognised(tmp_path):
    path = control_path(tmp_path, 1)
    path.write_bytes(bytes(512))
    control = ControlFile(Files(), Files().open(path))
    assert control.state() == (None, 0, None, 0)
    control.close()
