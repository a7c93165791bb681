"""The control file: where the durable end is, told to readers in other processes with one small write.

Each writer has a control file of its own, named by its writer epoch. After each fdatasync of a segment the writer
publishes the new end here; readers never look past it. The file lives in the page cache and is synced only when it
is made and when the log is closed: after a power loss an older end stands in it, and recovery verifies what lies
behind.

A writer that takes over marks the old control file: first `superseded`, then the final end that it found. From the
first moment on readers trust only that final end, so whatever a stopped and revived writer (a zombie) publishes
later is not seen. The zombie publishes first and looks for `superseded` afterwards; its successor writes `superseded`
first and reads the end afterwards. So either the zombie learns that it is fenced before it reports anything as
durable, or its successor keeps what the zombie reported.

    offset  size
         0   128  the durable end, by the owner of this epoch
       128    16  superseded by (writer epoch, 0 while it is not), by the successor; 8 bytes zero
       256   128  the final end, by the successor
       384     8  heartbeat: a counter that the owner raises while it lives

An end is: CRC32C of the rest, version, segment, offset, epoch, ordinal, commit LSN, end LSN, last seq, commit time,
largest commit time in the segment, manifest generation, last announced schema, clean flag.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from walbus.position import Position
from walbus.relay.fs import Files, write_at
from walbus.relay.tip import Tip

CONTROL_SIZE = 512
_VERSION = 1
_MARK = struct.Struct("<IQQIIQQQqqQII")
_MARK_SLOT = 128
_OWN_AT, _SUPERSEDED_AT, _FINAL_AT, _HEARTBEAT_AT = 0, 128, 256, 384
_COUNTER = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Mark:
    """The durable end of a log: always behind a whole transaction.

    Attributes:
        segment: number of the segment that the end lies in.
        offset: in bytes from the start of that file.
        tip: what is known there.
        max_time: the largest commit time in that segment so far, Unix microseconds.
        generation: of the manifest that knows the segment.
        clean: whether the writer stopped in order, here.
    """

    segment: int
    offset: int
    tip: Tip
    max_time: int
    generation: int
    clean: bool = False

    def pack(self) -> bytes:
        """The bytes of the end, checksum first."""
        tip = self.tip
        body = _MARK.pack(
            _VERSION, self.segment, self.offset, tip.position.epoch, tip.position.ordinal, tip.position.commit_lsn,
            tip.end_lsn, tip.last_seq, tip.commit_time, self.max_time, self.generation, tip.announced_schema,
            self.clean,
        )  # fmt: skip
        return int(google_crc32c.value(body)).to_bytes(4, "little") + body


def _unpack_mark(data: bytes) -> Mark | None:
    body = data[4 : 4 + _MARK.size]
    if google_crc32c.value(body) != int.from_bytes(data[:4], "little"):
        return None
    (version, segment, offset, epoch, ordinal, lsn, end_lsn, last_seq, commit_time, max_time, generation, announced,
     clean) = _MARK.unpack(body)  # fmt: skip
    if version != _VERSION:
        return None
    tip = Tip(Position(epoch, lsn, ordinal), end_lsn, last_seq, commit_time, announced)
    return Mark(segment, offset, tip, max_time, generation, bool(clean))


class ControlState(NamedTuple):
    """One look at a control file.

    Attributes:
        own: the end that the owner published; None if it never did, or the bytes are damaged.
        superseded_by: the writer epoch that took over; 0 while the owner is the writer.
        final: the end at which the successor sealed the owner's work; None until it has.
        heartbeat: the owner's counter.
    """

    own: Mark | None
    superseded_by: int
    final: Mark | None
    heartbeat: int

    @property
    def trusted(self) -> Mark | None:
        """The end that a reader may believe; None while a takeover is under way."""
        return self.final if self.superseded_by else self.own


def control_path(folder: Path, writer_epoch: int) -> Path:
    """The control file of a writer epoch."""
    return folder / f"control-{writer_epoch:08d}"


def control_epochs(folder: Path) -> list[int]:
    """The writer epochs that have a control file, ascending."""
    return sorted(int(path.name.removeprefix("control-")) for path in folder.glob("control-[0-9]*"))


class ControlFile:
    """An open control file.

    Args:
        files: the file operations.
        fd: the open file; this object closes it.
    """

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self._fd = fd

    def publish(self, mark: Mark) -> None:
        """The owner's write of the durable end; one small `pwrite`, seen whole or recognised as torn."""
        write_at(self._files, self._fd, mark.pack(), _OWN_AT)

    def beat(self, count: int) -> None:
        """The owner's sign of life."""
        write_at(self._files, self._fd, _COUNTER.pack(count), _HEARTBEAT_AT)

    def supersede(self, writer_epoch: int) -> None:
        """The successor's first act: from now on readers wait for its final end."""
        write_at(self._files, self._fd, _COUNTER.pack(writer_epoch), _SUPERSEDED_AT)

    def seal(self, mark: Mark) -> None:
        """The successor's second act: the end that stands for good."""
        write_at(self._files, self._fd, mark.pack(), _FINAL_AT)

    def state(self) -> ControlState:
        """What the file says now. The end is copied before `superseded`, which the protocol relies on."""
        data = self._files.pread(self._fd, CONTROL_SIZE, 0).ljust(CONTROL_SIZE, b"\0")
        return ControlState(
            _unpack_mark(data[_OWN_AT : _OWN_AT + _MARK_SLOT]),
            _COUNTER.unpack_from(data, _SUPERSEDED_AT)[0],
            _unpack_mark(data[_FINAL_AT : _FINAL_AT + _MARK_SLOT]),
            _COUNTER.unpack_from(data, _HEARTBEAT_AT)[0],
        )

    def superseded_by(self) -> int:
        """The writer epoch that took over, 0 if none did."""
        data = self._files.pread(self._fd, _COUNTER.size, _SUPERSEDED_AT)
        return int(_COUNTER.unpack(data)[0]) if len(data) == _COUNTER.size else 0

    def sync(self) -> None:
        """Makes the file durable."""
        self._files.fsync(self._fd)

    def close(self) -> None:
        """Closes the file, and with it gives up its lock."""
        self._files.close(self._fd)
