"""Transactions that are open at the source, kept until they commit: in memory while small, in a file each beyond.

A streamed transaction arrives in blocks that alternate with those of thousands of others, and may be far larger than
memory. Its messages are kept as they came, each with the id of its (sub)transaction:

    entry = length (u32) | xid (u32, as it was sent) | message of protocol 1 (`length` bytes)

They wait in a buffer that goes to the transaction's file when it holds `BUFFER_BYTES`; where all buffers together pass
`MEMORY_BYTES`, the largest go until half of that is left. So memory is bounded by those two whatever the number of
transactions, and files are open only while they are written or read.

What is here is never needed by another connection: the source streams an open transaction again from its first change.
The files are not synced, and go at a commit, an abort, a reconnect, and a start. What was prepared is kept for longer
(`walbus.capture.prepared`).
"""

from __future__ import annotations

import google_crc32c

from walbus.capture.spool_files import SpoolFiles
from walbus.capture.streamed import ENTRY
from walbus.errors import DamagedRecord, ProtocolError

#: A transaction's buffer goes to its file when it is so long.
BUFFER_BYTES = 256 << 10
#: What all buffers together may hold.
MEMORY_BYTES = 16 << 20
#: Where prepared transactions are taken, a file is synced each time it has grown so much: a PREPARE of gigabytes
#: would else wait for all of them.
SYNC_BYTES = 16 << 20

#: Ending of the files of open transactions.
OPEN_SUFFIX = ".open"

#: Bytes that are read at a time.
READ_BYTES = 256 << 10


class Spooled:
    """A whole transaction's messages, to be read in order; nothing is added any more.

    Args:
        files: of the spool.
        name: of the file with the first `written` bytes of entries; None if there is none.
        written: so many.
        rest: the entries behind them.
    """

    def __init__(self, files: SpoolFiles, name: str | None, written: int, rest: bytes = b"") -> None:
        self._files = files
        self._name = name
        self._written = written
        self._rest = rest
        self._at = 0
        self.crc = 0  #: CRC32C of what was read so far

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return self._written + len(self._rest) - self._at

    def read(self, at_least: int = 0) -> bytes:
        """The next bytes of the entries, `READ_BYTES` or `at_least`; fewer only at the end, where there are none.

        Raises:
            DamagedRecord: there are not so many, or the file ends too early.
        """
        size = max(READ_BYTES, at_least)
        if at_least > self.left:
            raise self.damaged("an entry is longer than what is left")
        chunk = b""
        while self.left and len(chunk) < size:
            part = self._part(size - len(chunk))
            if not part:
                raise self.damaged("the file ends too early")
            chunk = chunk + part if chunk else part
            self._at += len(part)
        self.crc = google_crc32c.extend(self.crc, chunk)
        return chunk

    def damaged(self, what: str) -> DamagedRecord:
        """The error of a spool that is not as it was written."""
        return DamagedRecord(what, where=f"{self._files.folder / (self._name or 'memory')}, offset {self._at}")

    def _part(self, size: int) -> bytes:
        if self._at >= self._written or self._name is None:
            return self._rest[self._at - self._written :][:size]
        return self._files.read(self._name, self._at, min(size, self._written - self._at))


class OpenSpool:
    """The messages of one open transaction.

    Args:
        spool: where it belongs.
        xid: of the top-level transaction, 32 bits.
    """

    def __init__(self, spool: Spool, xid: int) -> None:
        self._spool = spool
        self._files = spool.files
        self._name = f"{xid}{OPEN_SUFFIX}"
        self._buffer = bytearray()
        self._written = 0
        self._synced = 0
        self._counted = 0  # bytes of the buffer that the spool knows of
        self._crc = 0

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return self._written + len(self._buffer)

    @property
    def waiting(self) -> int:
        """Size of those that are in memory alone."""
        return len(self._buffer)

    def add_prefixed(self, data: bytes, offset: int) -> None:
        """Takes a message of a block: its kind byte, its xid, and the rest.

        Raises:
            ProtocolError: it is cut short.
            LogFull: no room; the message was not taken.
        """
        length = len(data) - offset - 4
        if length < 1:
            raise ProtocolError("the message is cut short", where=f"message {data[offset : offset + 1]!r}, offset 1")
        buffer = self._buffer
        if len(buffer) >= BUFFER_BYTES:
            self.flush()
        buffer += ENTRY.pack(length, data[offset + 1 : offset + 5])
        buffer += data[offset : offset + 1]
        buffer += data[offset + 5 :]

    def sink(self) -> bytearray:
        """For whoever can add entries with less ado than `add_prefixed`: some hundred KB, then it is asked for again.

        Raises:
            LogFull: no room.
        """
        if len(self._buffer) >= BUFFER_BYTES:
            self.flush()
        return self._buffer

    def add(self, xid: int, message: bytes) -> None:
        """Takes a message of protocol 1 that belongs to a (sub)transaction.

        Raises:
            LogFull: no room; the message was not taken.
        """
        if len(self._buffer) >= BUFFER_BYTES:
            self.flush()
        self._buffer += ENTRY.pack(len(message), xid.to_bytes(4, "big"))
        self._buffer += message

    def flush(self) -> None:
        """Moves the buffer into the file.

        Raises:
            LogFull: no room; the buffer stays.
        """
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._files.write(self._name, data, self._written)
        self._crc = google_crc32c.extend(self._crc, data)
        self._written += len(data)
        self._buffer.clear()
        self.count()
        if self._spool.durable and self._written - self._synced >= SYNC_BYTES:
            self._files.sync(self._name)
            self._synced = self._written

    def count(self) -> None:
        """Tells the spool how much of this is in memory."""
        self._spool.memory += len(self._buffer) - self._counted
        self._counted = len(self._buffer)

    def spooled(self) -> Spooled:
        """What was taken, from its beginning."""
        return Spooled(self._files, self._name if self._written else None, self._written, bytes(self._buffer))

    @property
    def crc(self) -> int:
        """CRC32C of what is in the file."""
        return self._crc

    def seal(self, footer: bytes, final: str) -> None:
        """Makes what was flushed durable under another name, with `footer` behind it.

        Raises:
            LogFull: no room; to be tried again.
        """
        self._files.write(self._name, footer, self._written)
        self._files.sync(self._name)
        self._files.rename(self._name, final)
        self._written = 0

    def discard(self) -> None:
        """Forgets it, and deletes its file."""
        if self._written:
            self._files.remove(self._name)
        self._buffer.clear()
        self._written = 0
        self.count()


class Spool:
    """All open transactions of a source; begins empty, whatever an earlier process left.

    Args:
        files: of the folder that holds them.
        durable: whether transactions may be prepared, so that they must be synced.
        memory_bytes: what all buffers together may hold.
    """

    def __init__(self, files: SpoolFiles, *, durable: bool = False, memory_bytes: int = MEMORY_BYTES) -> None:
        self.files = files
        self.durable = durable
        self.memory = 0  #: bytes in the buffers of transactions that have no open block
        self._memory_bytes = memory_bytes
        self._open: dict[int, OpenSpool] = {}
        files.remove(*files.names(OPEN_SUFFIX))

    @property
    def size(self) -> int:
        """Bytes of everything spooled."""
        return sum(transaction.size for transaction in self._open.values())

    def open(self, xid: int) -> OpenSpool:
        """A new open transaction."""
        transaction = self._open[xid] = OpenSpool(self, xid)
        return transaction

    def settle(self, transaction: OpenSpool) -> None:
        """Keeps memory in its bound; to be called at the end of each block.

        Raises:
            LogFull: no room; to be tried again.
        """
        transaction.count()
        if self.memory <= self._memory_bytes:
            return
        for largest in sorted(self._open.values(), key=lambda each: -each.waiting):
            largest.flush()
            if self.memory <= self._memory_bytes // 2:
                return

    def close(self, xid: int) -> None:
        """Forgets a transaction."""
        transaction = self._open.pop(xid, None)
        if transaction is not None:
            transaction.discard()

    def clear(self) -> None:
        """Forgets all of them."""
        for xid in list(self._open):
            self.close(xid)
