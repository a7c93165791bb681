"""Keeps the known consumers over restarts of the relay: one small file in the log's folder.

It is replaced whole (a new file, synced, renamed over the old one), at most once in a few seconds, and the more seldom
the larger it is, so that no number of reports makes the disk busy. A relay that is killed so loses a few seconds of
what consumers told it, and they tell it again. What cannot be read is put aside and begun anew; what cannot be written
is tried again later. Both are told once, in the relay's own log and by `problem`, and neither keeps the relay from
serving.

    {"version": 1, "crc32c": N, "consumers": […]}       the checksum is over the list's bytes
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import google_crc32c
import msgspec
import structlog

from walbus.errors import DamagedRecord, InvalidText, LogFull
from walbus.relay.fs import Files, replace_whole
from walbus.relay.known_consumers import KnownConsumers, StoredConsumer

_log = structlog.get_logger(__name__)

_VERSION = 1

#: Seconds between two times of writing, at least.
WRITE_SECONDS: Final = 2.0

#: Bytes a second that writing takes at most, on average.
WRITE_RATE: Final = 256 << 10

#: Seconds until the next try, where writing failed.
RETRY_SECONDS: Final = 30.0

_MAX_BYTES = 32 << 20  # a file that is larger was not written here


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    crc32c: int
    consumers: msgspec.Raw


def pack_consumers(consumers: list[StoredConsumer]) -> bytes:
    """The file's bytes."""
    document = msgspec.json.encode(consumers)
    return msgspec.json.encode(_Envelope(_VERSION, google_crc32c.value(document), msgspec.Raw(document))) + b"\n"


def parse_consumers(data: bytes) -> list[StoredConsumer]:
    """The inverse of `pack_consumers`.

    Raises:
        DamagedRecord: the bytes are not a whole file of this version.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        document = bytes(envelope.consumers)
        if envelope.version != _VERSION:
            raise DamagedRecord(f"it is of version {envelope.version}, and not of {_VERSION}")
        if google_crc32c.value(document) != envelope.crc32c:
            raise DamagedRecord("its checksum is wrong")
        return msgspec.json.decode(document, type=list[StoredConsumer])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedRecord("it is no such file, or cut short") from None


class ConsumersFile:
    """The file of one relay. `load` first; then `write`, on whatever thread: nothing is written over what is newer.

    Args:
        path: of the file.
        files: the file operations.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._writing = threading.Lock()
        self._written = 0  # `KnownConsumers.changes` as of the last time
        self._due = 0.0
        self._loaded: str | None = None  # what was wrong with the file that was found
        self._unwritten: str | None = None  # why it cannot be written at present

    @property
    def problem(self) -> str | None:
        """What people should know; None if all is well."""
        return self._unwritten or self._loaded

    def load(self, known: KnownConsumers) -> None:
        """Reads what an earlier relay knew; nothing if there is no such file or it is damaged, which is told."""
        try:
            known.load(parse_consumers(self._read()))
        except FileNotFoundError:
            return
        except (DamagedRecord, InvalidText, ValueError) as error:
            for one in list(known):
                known.forget(one.name)
            self._put_aside(str(error))
        except OSError as error:
            self._tell_damage(error.strerror or "it cannot be read", "let the relay read the file")
        self._written = known.changes

    def due(self, known: KnownConsumers, now: float) -> bool:
        """Whether there is something to write, and it may be written now (monotonic seconds)."""
        return known.changes != self._written and now >= self._due

    def write(self, data: bytes, changes: int, now: float) -> bool:
        """Replaces the file; False if that failed, which is told once.

        Args:
            data: of `pack_consumers`.
            changes: `KnownConsumers.changes` when it was packed.
            now: monotonic seconds.
        """
        with self._writing:
            return changes < self._written or self._replace(data, changes, now)

    def _replace(self, data: bytes, changes: int, now: float) -> bool:
        try:
            replace_whole(self._files, self._path, data)
        except (OSError, LogFull) as error:
            self._due = now + RETRY_SECONDS
            self._cannot_write(error)
            return False
        self._written, self._due = changes, now + max(WRITE_SECONDS, len(data) / WRITE_RATE)
        if self._unwritten is not None:
            _log.info("relay_keeps_consumers_again", file=str(self._path))
            self._unwritten = None
        return True

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise DamagedRecord("it is larger than it can be")
        return data

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        mend = f"nothing: consumers tell where they are; what was found is in {aside}"
        try:
            self._files.replace(self._path, aside)
        except OSError:  # it is written over, then
            mend = "nothing: consumers tell where they are"
        self._tell_damage(why, mend)

    def _tell_damage(self, why: str, mend: str) -> None:
        self._loaded = f"the consumers known before were lost: {self._path.name} could not be read ({why})"
        _log.error("relay_consumers_lost", file=str(self._path), why=why, mend=mend)

    def _cannot_write(self, error: OSError | LogFull) -> None:
        why = error.what if isinstance(error, LogFull) else error.strerror or type(error).__name__
        if self._unwritten is None:
            mend = "free space, or let the relay write to the log's folder; until then a restart forgets consumers"
            _log.warning("relay_cannot_keep_consumers", file=str(self._path), why=why, mend=mend)
        self._unwritten = f"consumers are not kept over a restart: {why}"
