"""The manifest: which segments make up the log, and where each ends.

One JSON document a writer epoch, replaced atomically and synced with its folder at every roll, trim and takeover
(never at a sync). Its name carries the writer epoch and the highest one counts, so that a revived zombie, which can
only replace its own, changes nothing. A checksum over the document makes damage visible.

Sealed segments are a chain: each begins at the position where the one before it ends. A reader that moves to the next
segment checks that, and so notices when retention overtook it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import google_crc32c
import msgspec

from walbus.errors import DamagedRecord, UnknownFormat
from walbus.log import SourceIdentity
from walbus.position import Position
from walbus.relay.fs import Files, replace_whole
from walbus.relay.tip import Tip

_VERSION = 1


@dataclass(frozen=True)
class SealedSegment:
    """A segment that nothing is written to any more.

    Attributes:
        number: of the segment.
        base: "last done" before its first record.
        length: bytes that count, the file's header included; bytes behind are a zombie's or a torn tail.
        end: "last done" behind its last record.
        last_seq: the last seq given up to its end.
        max_time: the largest commit time in it, Unix microseconds; 0 if it holds none.
        sealed_at: Unix seconds.
    """

    number: int
    base: Position
    length: int
    end: Position
    last_seq: int
    max_time: int
    sealed_at: float


@dataclass(frozen=True)
class ActiveSegment:
    """The segment that is written to.

    Attributes:
        number: of the segment.
        base: what was known before its first record.
    """

    number: int
    base: Tip


@dataclass(frozen=True)
class Manifest:
    """A log's segments.

    Attributes:
        log_id: random name of the log, 32 hexadecimal digits.
        source: the database that it belongs to.
        writer_epoch: of the writer that wrote this manifest.
        lease_seconds: how long that writer may be silent before another one may take over.
        holder: host and process of the writer, for people.
        generation: rises with every replacement, in all epochs.
        trimmed: "last done" before the first record that is still held.
        sealed: oldest first.
        active: the newest.
    """

    log_id: str
    source: SourceIdentity
    writer_epoch: int
    lease_seconds: float
    holder: str
    generation: int
    trimmed: Position
    sealed: tuple[SealedSegment, ...]
    active: ActiveSegment

    @cached_property
    def sealed_bytes(self) -> int:
        """Bytes of all sealed segments."""
        return sum(segment.length for segment in self.sealed)

    @cached_property
    def starts(self) -> list[int]:
        """How many bytes of segments lie before each segment, the active one last; ascending."""
        return list(itertools.accumulate((segment.length for segment in self.sealed), initial=0))

    @cached_property
    def bases(self) -> list[Position]:
        """The base positions of all segments, the active one last; ascending."""
        return [segment.base for segment in self.sealed] + [self.active.base.position]

    @cached_property
    def last_seqs(self) -> list[int]:
        """The last seq given up to the end of each sealed segment; ascending."""
        return [segment.last_seq for segment in self.sealed]

    @cached_property
    def latest_times(self) -> list[int]:
        """The largest commit time up to the end of each sealed segment, Unix microseconds; ascending."""
        return list(accumulate((segment.max_time for segment in self.sealed), max))

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of all segments, the active one last; ascending."""
        return [segment.number for segment in self.sealed] + [self.active.number]


def manifest_path(folder: Path, writer_epoch: int) -> Path:
    """The manifest of a writer epoch."""
    return folder / f"manifest-{writer_epoch:08d}.json"


def manifest_epochs(folder: Path) -> list[int]:
    """The writer epochs that have a manifest, ascending."""
    return sorted(int(path.stem.removeprefix("manifest-")) for path in folder.glob("manifest-[0-9]*.json"))


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    crc32c: int
    manifest: msgspec.Raw


def write_manifest(files: Files, folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest of this writer epoch, durably.

    Raises:
        LogFull: no room; the old one stands.
    """
    document = msgspec.json.encode(manifest)
    envelope = _Envelope(_VERSION, google_crc32c.value(document), msgspec.Raw(document))
    replace_whole(files, manifest_path(folder, manifest.writer_epoch), msgspec.json.encode(envelope) + b"\n")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in a file's bytes.

    Raises:
        DamagedRecord: the bytes are not a whole manifest of a known version.
    """
    mend = "restore the file from a backup of the log's folder, or begin a new log in an empty folder"
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        document = bytes(envelope.manifest)
        if google_crc32c.value(document) != envelope.crc32c:
            raise DamagedRecord("a manifest's checksum is wrong", where=where, mend=mend)
        if envelope.version != _VERSION:
            what = f"the log's format {envelope.version} is not {_VERSION}"
            raise UnknownFormat(what, where=where, mend="read it with the Walbus that wrote it")
        return msgspec.json.decode(document, type=Manifest)
    except msgspec.DecodeError as error:
        raise DamagedRecord("a manifest is damaged", where=where, mend=mend) from error


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of the highest writer epoch; None if there is no log in the folder.

    Raises:
        DamagedRecord: it cannot be read.
    """
    while epochs := manifest_epochs(folder):
        path = manifest_path(folder, epochs[-1])
        try:
            return parse_manifest(path.read_bytes(), str(path))
        except FileNotFoundError:
            continue  # a newer writer has just removed it
    return None
