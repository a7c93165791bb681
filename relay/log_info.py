"""What `walbus log info` tells: a log's bounds, segments, layouts, writer and holds, as one JSON-like document.

It reads the manifest, the control file, and the headers of segments and indexes: no record. What is said of an index is
what its header and size tell; `walbus.relay.log_check` looks at every entry.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from walbus.errors import DamagedRecord
from walbus.jsonlines import iso_time
from walbus.records import FORMAT_VERSION
from walbus.relay.fs import Files
from walbus.relay.index import index_health
from walbus.relay.retention import holds_folder
from walbus.relay.schemas import SchemaFiles
from walbus.relay.segment import HEADER_SIZE, index_path, parse_segment_header, segment_path
from walbus.relay.view import LogView, ViewFiles
from walbus.status import read_status


def log_info(folder: Path, files: Files | None = None) -> dict[str, Any]:
    """The document.

    Raises:
        LogMissing: there is no log in the folder.
        DamagedRecord: its manifest cannot be read.
    """
    files = files or Files()
    views = ViewFiles(folder, files)
    try:
        view = views.view()
        manifest, bounds = view.manifest, view.bounds()
        return {
            "folder": str(folder),
            "log_id": bounds.log_id,
            "format": FORMAT_VERSION,
            "source": {
                "system_identifier": manifest.source.system_identifier,
                "database": manifest.source.database,
                "slot": manifest.source.slot,
            },
            "writer": {
                "epoch": manifest.writer_epoch,
                "holder": manifest.holder,
                "lease_seconds": manifest.lease_seconds,
                "state": _writer_state(files, views.control_path, view),
            },
            "trimmed": str(bounds.trimmed),
            "end": str(bounds.end),
            "end_lsn": bounds.end_lsn,
            "last_seq": bounds.last_seq,
            "commit_time": _time(bounds.commit_time),
            "bytes": bounds.bytes,
            "segments": [_segment(folder, files, view, at) for at in range(len(manifest.numbers))],
            "schemas": list(_schemas(folder)),
            "holds": {path.stem: (read_status(path) or {}).get("last_done") for path in _holds(folder)},
        }
    finally:
        views.close()


def _time(microseconds: int) -> str | None:
    return iso_time(microseconds) if microseconds else None


def _holds(folder: Path) -> list[Path]:
    return sorted(holds_folder(folder).glob("*.json"))


def _writer_state(files: Files, control: Path, view: LogView) -> str:
    """`running`, `stopped` in order, or `ended` without closing the log; by the lock that the kernel frees."""
    try:
        fd = files.open_for_reading(control)
    except FileNotFoundError:
        return "ended"
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    finally:
        files.close(fd)
    return "stopped" if view.mark.clean else "ended"


def _segment(folder: Path, files: Files, view: LogView, at: int) -> dict[str, Any]:
    manifest = view.manifest
    number, sealed = manifest.numbers[at], at < len(manifest.sealed)
    if sealed:
        known = manifest.sealed[at]
        end, last_seq, latest = known.end, known.last_seq, known.max_time
    elif number == view.mark.segment:
        end, last_seq, latest = view.mark.tip.position, view.mark.tip.last_seq, view.mark.max_time
    else:  # rolled just now
        end, last_seq, latest = manifest.active.base.position, manifest.active.base.last_seq, 0
    return {
        "number": number,
        "state": "sealed" if sealed else "active",
        "bytes": view.limit(at),
        "after": str(manifest.bases[at]),
        "end": str(end),
        "last_seq": last_seq,
        "latest_commit": _time(latest),
        "index": index_health(files, index_path(folder, number), number, sealed=sealed),
        **_header(files, segment_path(folder, number)),
    }


def _header(files: Files, path: Path) -> dict[str, Any]:
    """What the file says of itself; `problem` where it says nothing."""
    try:
        fd = files.open_for_reading(path)
    except FileNotFoundError:
        return {"problem": "the file is missing"}
    try:
        header = parse_segment_header(files.pread(fd, HEADER_SIZE, 0), str(path))
    except DamagedRecord as error:
        return {"problem": error.what}
    finally:
        files.close(fd)
    return {"after_seq": header.base_seq, "writer_epoch": header.writer_epoch, "created": _time(header.created)}


def _schemas(folder: Path) -> Iterator[dict[str, Any]]:
    for schema in SchemaFiles(folder).all():
        yield {"id": schema.id, "table": schema.table, "oid": schema.oid, "columns": len(schema.columns)}
