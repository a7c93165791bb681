"""Prepared transactions, kept durably from their PREPARE to the commit or rollback that ends them.

Once the source may forget a PREPARE (it was confirmed), it sends nothing but COMMIT PREPARED, however much later and
to whichever connection. So what was prepared is synced here before anything behind it can be confirmed, and found again
by its xid and gid after a crash of this process, of the source, or of the machine.

    file    = entries (as in `walbus.capture.spool`) | footer | trailer
    footer  = JSON: what it is, whose log it belongs to, size and CRC32C of the entries
    trailer = length of the footer (u32) | CRC32C of the footer (u32) | "WALBUS2P"

A file's name is made of the xid and a digest of the gid, which is any 200 bytes that a user likes: behind a failover
that lost transactions, two may share xid and place, and only the gid tells them apart. It gets that name only when all
of it is durable. It goes when the log is durable past the end of its transaction, and before the source is told so:
what ends a transaction is then either sent again, or needs the file no more. A file that is left over all the same
belongs to a transaction that the source knows as ended, or not at all (`walbus.capture.prepared_ends`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from struct import Struct
from typing import Any

import google_crc32c
import structlog

from walbus.capture.spool import OpenSpool, Spooled
from walbus.capture.spool_files import SpoolFiles
from walbus.errors import DamagedRecord

logger = structlog.get_logger(__name__)

#: Ending of the files of prepared transactions.
PREPARED_SUFFIX = ".prepared"

_TRAILER = Struct("<II8s")
_MAGIC = b"WALBUS2P"
_DIGEST_BYTES = 16

#: xid (32 bits) and gid.
Key = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared transaction.

    Attributes:
        log_id: of the log that it is for.
        xid: of the top-level transaction, 32 bits.
        gid: its name at the source, hexadecimal.
        prepare_lsn: of its PREPARE.
        origin: pgoutput's Origin message, hexadecimal; empty for the source's own.
        aborted: xids of the subtransactions that were rolled back; entries of theirs do not count.
        size: bytes of its entries.
        crc: CRC32C of them.
    """

    log_id: str
    xid: int
    gid: str
    prepare_lsn: int
    origin: str
    aborted: tuple[int, ...]
    size: int
    crc: int

    @property
    def key(self) -> Key:
        """How COMMIT PREPARED names it."""
        return self.xid, bytes.fromhex(self.gid)

    @property
    def file_name(self) -> str:
        """Of its file: one for each key."""
        digest = blake2b(bytes.fromhex(self.gid), digest_size=_DIGEST_BYTES).hexdigest()
        return f"{self.xid}-{digest}{PREPARED_SUFFIX}"


class PreparedStore:
    """The prepared transactions of one log.

    Args:
        files: of the folder that holds them.
        log_id: of the log; files that belong to another one are removed.

    Raises:
        DamagedRecord: a file is not as it was written.
    """

    def __init__(self, files: SpoolFiles, log_id: str) -> None:
        self._files = files
        self._log_id = log_id
        self._held: dict[Key, Prepared] = {}
        self._ended: dict[Key, int] = {}  # where what ended it ends, an LSN
        names: dict[Key, str] = {}
        for name, prepared in self._found():
            if prepared.key in names:  # of an older Walbus: a kill could leave two of what was prepared again
                files.remove(names[prepared.key])
            self._held[prepared.key], names[prepared.key] = prepared, name
        for key, name in names.items():
            if name != self._held[key].file_name:  # of an older Walbus too: by xid and LSN
                files.rename(name, self._held[key].file_name)

    def _found(self) -> Iterator[tuple[str, Prepared]]:
        """The files of the log and what they hold, in the order of their PREPAREs."""
        found = [(name, _read(self._files, name)) for name in self._files.names(PREPARED_SUFFIX)]
        for name, prepared in sorted(found, key=lambda each: each[1].prepare_lsn):
            if prepared.log_id == self._log_id:
                yield name, prepared
            else:
                logger.warning("prepared.removed", file=name, reason="it belongs to another log")
                self._files.remove(name)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(prepared.size for prepared in self._held.values())

    @property
    def unfinished(self) -> tuple[Prepared, ...]:
        """Those whose end was not seen yet."""
        return tuple(prepared for key, prepared in self._held.items() if key not in self._ended)

    def keep(  # noqa: PLR0913  (what a prepared transaction is)
        self, spool: OpenSpool, *, xid: int, gid: bytes, prepare_lsn: int, origin: bytes, aborted: frozenset[int]
    ) -> None:
        """Takes a transaction over from the spool; durable when it returns.

        Raises:
            LogFull: no room; to be tried again.
            OSError: the disk failed; the process must end.
        """
        spool.flush()
        prepared = Prepared(
            self._log_id, xid, gid.hex(), prepare_lsn, origin.hex(), tuple(sorted(aborted)), spool.size, spool.crc
        )
        spool.seal(_footer(prepared), prepared.file_name)
        self._held[prepared.key] = prepared
        self._ended.pop(prepared.key, None)

    def find(self, xid: int, gid: bytes) -> Prepared | None:
        """The transaction; None if it is not here."""
        return self._held.get((xid, gid))

    def spooled(self, prepared: Prepared) -> Spooled:
        """Its messages. Read to the end, their `crc` must be that of `prepared`."""
        return Spooled(self._files, prepared.file_name, prepared.size)

    def reconnected(self) -> None:
        """A new connection: what ends a transaction behind the log's end is told again, or was lost by a failover.

        After a failover that lost a COMMIT or ROLLBACK PREPARED the transaction may still be prepared at the source,
        whose new history passes the LSN where the old one ended it.
        """
        self._ended.clear()

    def expect_end(self, key: Key, end_lsn: int) -> None:
        """The transaction ends, or ended, before an LSN; once the log is durable up to there, it is not needed."""
        if key in self._held:
            self._ended[key] = min(end_lsn, self._ended.get(key, end_lsn))

    def passed(self, end_lsn: int) -> None:
        """The log is durable up to an LSN, which the source does not know yet: what ended before it goes."""
        gone = [key for key, ended in self._ended.items() if ended <= end_lsn]
        if not gone:
            return
        self._files.remove(*(self._held[key].file_name for key in gone), durably=True)
        for key in gone:
            del self._held[key], self._ended[key]


def _footer(prepared: Prepared) -> bytes:
    text = json.dumps(asdict(prepared)).encode()
    return text + _TRAILER.pack(len(text), google_crc32c.value(text), _MAGIC)


def _read(files: SpoolFiles, name: str) -> Prepared:
    total = files.size(name)
    where = f"{files.folder / name}, offset {max(0, total - _TRAILER.size)}"
    if total < _TRAILER.size:
        raise DamagedRecord("a prepared transaction without its trailer", where=where)
    length, crc, magic = _TRAILER.unpack(files.read(name, total - _TRAILER.size, _TRAILER.size))
    if magic != _MAGIC or length > total - _TRAILER.size:
        raise DamagedRecord("a prepared transaction without its trailer", where=where)
    text = files.read(name, total - _TRAILER.size - length, length)
    if google_crc32c.value(text) != crc:
        raise DamagedRecord("the footer of a prepared transaction is damaged", where=where)
    try:
        footer: dict[str, Any] = json.loads(text)
        return Prepared(**{**footer, "aborted": tuple(footer["aborted"])})
    except (TypeError, ValueError, KeyError):
        what = "the footer of a prepared transaction is not one that this version knows"
        raise DamagedRecord(what, where=where, mend="start the Walbus that wrote it") from None
