"""The golden records and the golden log: what the format's version 1 is, as bytes that were written once.

    python -m support.golden FOLDER      (with tests/ on the path) writes the files that are missing in a folder

A file that is there is never written again: bytes of a released version do not change. A new version of the format gets
files of its own, and the old ones stay readable.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import zstandard

from support.relay_log import BASE_TIME, FileEngine, epoch_piece, progress, schema_piece
from support.well_formed_log import fill_well, rows
from walbus.compressed_records import plain
from walbus.records import ChangeFlag, Flag, Kind, Op, pack_change, pack_record
from walbus.relay.fs import Files
from walbus.relay.lease import Clock
from walbus.relay.manifest import load_manifest, write_manifest

FOLDER = Path(__file__).parents[1] / "golden"
_SEQ = 1_764_342_000_000_000
_WHOLE = int(Flag.BEGIN | Flag.END)


def _change(op: int, at: int = 0, **parts: object) -> bytes:
    return pack_change(op, table=16385, schema_id=3, seq_delta=at, ordinal_delta=at, **parts)


def _free(op: int, at: int, **parts: object) -> bytes:
    """A change of no table."""
    return pack_change(op, seq_delta=at, ordinal_delta=at, **parts)


def _record(kind: int, flags: int, body: bytes = b"", count: int = 0, **more: object) -> bytes:
    fields = {
        "epoch": 2, "commit_lsn": 0x16B374D848, "first_ordinal": 1, "last_ordinal": max(count, 1),
        "first_seq": _SEQ, "last_seq": _SEQ + max(count - 1, 0), "xid": (1 << 32) + 742,
        "commit_time": BASE_TIME, "count": count, "tables": 2 if body else 0, "body": body,
    }  # fmt: skip
    return pack_record(kind, flags=flags, **{**fields, **more})


_KEY = bytes.fromhex("018000000000000007")
_OLD_KEY = _KEY[:-1] + b"\x06"
_INSERT = _change(Op.INSERT, key=_KEY, after=b"\x02\x0e")
_LARGE = b"".join(_change(Op.INSERT, i, key=b"\x01\x80" + i.to_bytes(7, "big"), after=b"\x02\x0e") for i in range(40))
_FRAME = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(_LARGE)
_END = 0x16B374D878
_EVENT = {"first_ordinal": 0, "last_ordinal": 0, "xid": 0, "last_seq": _SEQ}

#: One record of every kind, with every flag of records and of changes, by name.
RECORDS = {
    "transaction-whole": _record(Kind.TRANSACTION, _WHOLE, _INSERT, 1, end_lsn=_END),
    "transaction-begin-origin": _record(Kind.TRANSACTION, Flag.BEGIN, _INSERT, 1, origin="ferne ✓".encode()),
    "transaction-middle": _record(Kind.TRANSACTION, 0, _INSERT, 1, first_ordinal=2, last_ordinal=2),
    "transaction-end-empty": _record(Kind.TRANSACTION, Flag.END, end_lsn=_END),
    "transaction-filtered": _record(Kind.TRANSACTION, _WHOLE | Flag.FILTERED, _INSERT, 1, last_ordinal=9, end_lsn=_END),
    "transaction-net": _record(
        Kind.TRANSACTION, _WHOLE | Flag.NET, _INSERT, 1, end_lsn=_END, xid=0, origin=b"walbus:1764351234567890"
    ),
    "transaction-projected": _record(
        Kind.TRANSACTION, _WHOLE | Flag.FILTERED,
        _change(Op.INSERT, key=_KEY, unchanged=b"\x02\x02", after=b"\x02\x0e\x00", flags=ChangeFlag.PROJECTED),
        1, end_lsn=_END,
    ),
    "transaction-zstd": _record(Kind.TRANSACTION, _WHOLE | Flag.ZSTD, _FRAME, 40, end_lsn=_END),
    "changes": _record(
        Kind.TRANSACTION, _WHOLE,
        _change(Op.INSERT, 0, key=_KEY, after=b"\x02\x0e")
        + _change(Op.UPDATE, 1, key=_KEY, old_key=_OLD_KEY, unchanged=b"\x05", after=b"\x00", before=b"\x02\x0c")
        + _change(Op.DELETE, 2, key=b"", before=b"")
        + _change(Op.TRUNCATE, 3, flags=ChangeFlag.CASCADE | ChangeFlag.RESTART_IDENTITY)
        + _free(Op.MESSAGE, 4, key=b"outbox", after=b"{}", flags=ChangeFlag.TRANSACTIONAL)
        + _free(Op.HEARTBEAT, 5),
        6, end_lsn=_END,
    ),
    "progress": _record(Kind.PROGRESS, 0, **_EVENT),
    "progress-asked": _record(Kind.PROGRESS, Flag.FILTERED | Flag.ASKED, **_EVENT),
    "schema": _record(Kind.SCHEMA, 0, _change(Op.SCHEMA, after=b'{"table":"orders"}'), 1, **_EVENT),
    "epoch": _record(Kind.EPOCH, 0, _free(Op.EPOCH, 0, after=b'{"epoch":2}'), 1, **_EVENT),
    "snapshot-end": _record(
        Kind.SNAPSHOT, Flag.END,
        pack_change(Op.INSERT, table=16385, schema_id=3, seq_delta=77, ordinal_delta=0, key=_KEY, after=b"\x02\x0e"), 1,
        first_seq=0, first_ordinal=0,
    ),
    "delta-begin-end": _record(
        Kind.DELTA, _WHOLE,
        pack_change(Op.TRUNCATE, table=16385, seq_delta=70, ordinal_delta=0)
        + pack_change(Op.DELETE, table=16385, schema_id=3, seq_delta=76, ordinal_delta=0, key=_OLD_KEY)
        + pack_change(Op.INSERT, table=16385, schema_id=3, seq_delta=77, ordinal_delta=0, key=_KEY, after=b"\x02\x0e"),
        3,        first_seq=0, first_ordinal=0,
    ),
}  # fmt: skip


def write_missing(folder: Path) -> None:
    """Writes the files that are not there."""
    folder.mkdir(exist_ok=True)
    for name, record in RECORDS.items():
        path = folder / f"{name}.hex"
        if not path.exists():
            path.write_text("\n".join(record[at : at + 32].hex(" ") for at in range(0, len(record), 32)) + "\n")
    if not (folder / "log-1").exists():
        _write_log(folder / "log-1")


def _write_log(folder: Path) -> None:
    """A log of some segments with every kind of record, stopped in order."""
    engine = FileEngine(folder, segment_bytes=1_200)
    engine.clock = Clock(now=lambda: BASE_TIME / 1e6)
    writer = engine.open_writer()
    schema = fill_well(writer, 6)
    writer.append(rows(112, 1, 2, Flag.BEGIN, schema))
    writer.append(schema_piece(112, 2, schema))
    writer.append(rows(112, 3, 30, Flag.END, schema))
    writer.append(progress(128))
    writer.append(epoch_piece(120, 2))
    writer.sync()
    writer.close()
    engine.compression_level = 3
    writer = engine.open_writer()
    writer.append(dataclasses.replace(rows(144, 1, 40, _WHOLE, schema), epoch=2))
    writer.close()
    manifest = load_manifest(folder)
    assert manifest is not None
    write_manifest(Files(), folder, dataclasses.replace(manifest, holder="golden:1"))


def golden_record(name: str) -> bytes:
    """A record as it was written once."""
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text())


def golden_log(folder: Path) -> Path:
    """A copy of the golden log, to be opened."""
    return Path(shutil.copytree(FOLDER / "log-1", folder))


def as_written_today(name: str) -> bytes:
    """What this code writes; the frames of two versions of zstd may differ, and are compared decompressed."""
    return RECORDS[name] if name != "transaction-zstd" else plain(RECORDS[name])


if __name__ == "__main__":
    write_missing(Path(sys.argv[1]))
