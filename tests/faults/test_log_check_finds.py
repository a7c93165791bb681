"""Fault 4: whichever byte of a log's files is flipped, a check finds it and names file, segment and offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import FileEngine, UnsyncedFiles, read_all, transaction
from support.well_formed_log import fill_well, findings_of
from walbus.errors import DamagedRecord
from walbus.records import read_header
from walbus.relay.segment_check import Finding

pytestmark = pytest.mark.one_version


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=UnsyncedFiles(), segment_bytes=500)
    writer = made.open_writer()
    fill_well(writer, 6)
    writer.close()
    assert len(made.segments()) > 2
    yield made
    made.close()


def found_with_each_byte_flipped(engine: FileEngine, path: Path) -> Iterator[tuple[int, list[Finding]]]:
    """What a check finds for each offset."""
    good = path.read_bytes()
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 0x04]) + good[offset + 1 :])
        yield offset, findings_of(engine.folder)
    path.write_bytes(good)
    assert findings_of(engine.folder) == []


def test_every_byte_of_a_segment(engine):
    path = engine.segments()[1]
    data, starts = path.read_bytes(), [128]
    while starts[-1] < len(data):
        starts.append(starts[-1] + read_header(data, starts[-1]).length)
    for offset, found in found_with_each_byte_flipped(engine, path):
        start = 0 if offset < 128 else max(one for one in starts if one <= offset)
        assert {(one.file, one.segment, one.offset) for one in found} == {(str(path), 2, start)}, offset


def test_every_byte_of_an_index(engine):
    path = sorted((engine.folder / "segments").glob("*.idx"))[1]
    for offset, found in found_with_each_byte_flipped(engine, path):
        assert [(one.file, one.segment) for one in found] == [(str(path), 2)], offset


def test_every_byte_of_the_durable_end(engine):
    (path,) = engine.folder.glob("control-*")
    good = path.read_bytes()
    for offset in range(88):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 0x04]) + good[offset + 1 :])
        with pytest.raises(DamagedRecord, match=f"the durable end cannot be read .at {path}, offset 0"):
            findings_of(engine.folder)
        with pytest.raises(DamagedRecord, match="walbus capture"):
            engine.open_reader()
    writer = engine.open_writer()  # finds the end again
    assert writer.bounds().end.commit_lsn == 96
    writer.append(transaction(112))
    writer.sync()
    assert read_all(engine.open_reader())[-1].commit_lsn == 112
