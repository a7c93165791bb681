# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native core: pgoutput's bytes to records of the log, in C.

A sans-IO state machine for the five kinds of messages that come by the million. `interface.py` says what it promises;
what it does not know it leaves to the Python code of its owner, which defines what is right:

    message ── B, C ──────────► the open transaction
            ── I, U, D ───────► values.pxi  text to Avro        a rare value is encoded by Python
                                rows.pxi    tuples to changes   ► body: the changes that wait
            ── anything else ─► refused: "left untouched"
    body    ── at Commit ─────► packing.pxi  run: small whole transactions, one record each
            ── when full ─────► out: pieces of a large one

Refusing is how every difficulty ends: an unknown table, a message that is cut short, a key that is null, a transaction
that the log may have. A message is taken whole or not at all: `body` is cut back to where it was. So there is one place
where errors are worded, and no half-taken change.

Safety: `at` and `end` bound every read, and a length is compared with what is left before it is used. Nothing is
allocated by a length that the message merely claims: buffers grow by bytes that are there. A table's columns are
counted by its layout, and a tuple of another width is refused before its first value.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.math cimport isfinite, isinf
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, UINT32_MAX, UINT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from copy import copy

from walbus.compression import decompress
from walbus.errors import DamagedRecord, WalbusError
from walbus.log import Piece, Run
from walbus.native.copy_text import encoded_line
from walbus.native.folding import PAGE_BYTES, SPACE_SIZE
from walbus.native.interface import PIECE_BYTES, PIECE_CHANGES, RUN_BYTES, Drained, Transaction
from walbus.native.reading import ALL_TABLES, ColumnBuffers, Outside, TakenRows
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RawChange, read_header
from walbus.values import row_encoder
from walbus.values.column_form import column_form

import sys

from cpython.ref cimport PyObject

cdef extern from "Python.h":
    double PyOS_string_to_double(const char *text, char **end, PyObject *overflow) except? -1.0

INTERFACE = 15  # as in interface.py when this was built

cdef bint BIG_ENDIAN = sys.byteorder == "big"

include "buffer.pxi"
include "values.pxi"
include "times.pxi"
include "rows.pxi"
include "packing.pxi"
include "scanning.pxi"
include "places.pxi"
include "pushing.pxi"

cdef enum:
    WAL_DATA_HEADER = 25
    COPY_ROW_HEADER = 18
    BEGIN_SIZE = 21
    COMMIT_SIZE = 26

cdef const char *COPY_ROW_BEGIN = b"\x00\x02\x00\x00\x00\x08"  # two fields, the first one of eight bytes
cdef int64_t POSTGRES_EPOCH = 946684800000000  # of 2000-01-01 in Unix microseconds
cdef size_t FULL_BYTES = PIECE_BYTES
cdef uint32_t FULL_CHANGES = PIECE_CHANGES
cdef size_t FULL_RUN = RUN_BYTES


cdef class Core:
    """See `walbus.native.interface.Core`."""

    # How far the stream has come.
    cdef public uint64_t near_xid, bound, handed, shown, server_lsn
    cdef public int64_t last_commit_time, server_time
    cdef public uint64_t transactions, changes
    cdef uint32_t current_epoch  # of commits at `since` and behind it
    cdef uint64_t since
    cdef Place place  # of the last change that was handed out

    # The open transaction.
    cdef bint is_open
    cdef readonly bint accepted
    cdef Head head
    cdef bytes _origin
    cdef readonly uint32_t done
    cdef readonly uint32_t waiting
    cdef uint64_t tables
    cdef Buffer body

    # What is complete.
    cdef list out
    cdef size_t out_bytes
    cdef OpenRun run

    cdef dict known
    cdef Table last_table  # of the last row: the next one is mostly of the same

    def __init__(self):
        self.run = OpenRun()
        self.restart(0, 0, end=ORIGIN, bound=0)

    def __dealloc__(self):
        free(self.body.data)

    # The stream.

    def restart(self, epoch, since, *, end, bound):
        self.current_epoch, self.since = epoch, since
        self.end = end
        self.bound = self.handed = bound
        self.shown = 0
        self.known, self.last_table = {}, None
        self.is_open = self.accepted = False
        self._origin = b""
        self.waiting = self.done = 0
        self.body.size = 0
        self.run.forget()
        self.out, self.out_bytes = [], 0

    @property
    def end(self):
        return Position(self.place.epoch, self.place.lsn, self.place.ordinal)

    @end.setter
    def end(self, position):
        self.place.epoch, self.place.lsn, self.place.ordinal = position

    def know(self, schema):
        self.known[schema.oid] = Table(schema, row_encoder(schema))
        self.last_table = None

    def forget(self, oid):
        self.known.pop(oid, None)
        self.last_table = None

    def feed(self, bytes data not None, Py_ssize_t offset):
        cdef Py_ssize_t length = len(data)
        if not 0 <= offset < length:
            return False
        return self.takes(<Bytes>PyBytes_AS_STRING(data) + offset, length - offset)

    def drain(self, next_frame, list alarm not None, Py_ssize_t limit, int envelope):
        cdef Py_ssize_t size = 0, taken = 0
        cdef Bytes frame
        while taken < limit:
            size, view = next_frame(1)
            if size <= 0:
                break
            if not PyMemoryView_Check(view) or PyMemoryView_GET_BUFFER(view).len != size:
                raise TypeError("a frame that is not a memoryview of its size")
            frame = <Bytes>PyMemoryView_GET_BUFFER(view).buf
            if alarm or not (self.takes_row_of_copy(frame, size) if envelope else self.takes_wal_data(frame, size)):
                return Drained(size, bytes(view), taken)
            taken += size
        return Drained(size, b"", taken)

    cdef bint takes_row_of_copy(self, Bytes frame, Py_ssize_t size) except -1:
        if size <= COPY_ROW_HEADER or memcmp(frame, COPY_ROW_BEGIN, 6) != 0:
            return False
        if read_32(frame + 14) != size - COPY_ROW_HEADER:
            return False
        return self.takes(frame + COPY_ROW_HEADER, size - COPY_ROW_HEADER)

    cdef bint takes_wal_data(self, Bytes frame, Py_ssize_t size) except -1:
        if size <= WAL_DATA_HEADER or frame[0] != c"w":
            return False
        if not self.takes(frame + WAL_DATA_HEADER, size - WAL_DATA_HEADER):
            return False
        self.server_lsn = read_64(frame + 9)
        self.server_time = <int64_t>read_64(frame + 17) + POSTGRES_EPOCH
        return True

    cdef bint takes(self, Bytes message, size_t length) except -1:
        """One message, taken or left."""
        cdef unsigned char kind = message[0]
        if kind == c"I" or kind == c"U" or kind == c"D":
            return self.is_open and self.accepted and self.takes_row(kind, message + 1, message + length)
        if kind == c"B":
            return length == BEGIN_SIZE and self.takes_begin(message + 1)
        if kind == c"C":
            return length == COMMIT_SIZE and self.takes_commit(message + 1)
        return False

    cdef bint takes_begin(self, Bytes at) except -1:
        cdef uint64_t commit_lsn = read_64(at)
        cdef int64_t commit_time = <int64_t>read_64(at + 8)
        if self.is_open or commit_lsn < self.since or commit_time > INT64_MAX - POSTGRES_EPOCH:
            return False
        if not is_behind(&self.place, self.current_epoch, commit_lsn):
            return False
        self.open(self.current_epoch, commit_lsn, commit_time + POSTGRES_EPOCH, widened(read_32(at + 16), self.near_xid))
        self.accepted = True
        return True

    cdef bint takes_commit(self, Bytes at) except -1:
        if not (self.is_open and self.accepted) or at[0] != 0 or read_64(at + 1) != self.head.commit_lsn:
            return False
        self.close(read_64(at + 9))
        return True

    cdef bint takes_row(self, unsigned char kind, Bytes at, Bytes end) except -1:
        """A row of the open transaction; the body is as before if it is left."""
        cdef size_t begin
        cdef bint taken
        cdef Table table
        if end - at < 5:
            return False
        table = self.table_of(read_32(at))
        if table is None or not self.read_tuples(kind, table, at + 4, end):
            return False
        self.make_room()
        begin = self.body.size
        try:
            taken = self.pack_row(kind, table, at[4])
        except BaseException:
            self.body.size = begin
            raise
        if not taken:
            self.body.size = begin
            return False
        self.count(table.bit)
        return True

    cdef bint read_tuples(self, unsigned char kind, Table table, Bytes at, Bytes end) noexcept:
        """Reads a row message's tuples into the table's; False if it is not exactly what its kind calls for."""
        if kind != c"I" and (at[0] == c"K" or at[0] == c"O"):
            at = read_row(at + 1, end, table.old_row, table.width)
            if at == NULL or kind == c"D":
                return at == end
        elif kind == c"D":
            return False
        if at == end or at[0] != c"N":
            return False
        return read_row(at + 1, end, table.new_row, table.width) == end

    cdef int pack_row(self, unsigned char kind, Table table, unsigned char marker) except -1:
        cdef bint whole = marker == c"O"
        cdef Value *old = table.old_row if whole or marker == c"K" else NULL
        if kind == c"I":
            return write_change(&self.body, table, OP_INSERT, self.waiting, table.new_row, NULL, False)
        if kind == c"U":
            return write_change(&self.body, table, OP_UPDATE, self.waiting, table.new_row, old, whole)
        return write_change(&self.body, table, OP_DELETE, self.waiting, NULL, old, whole)

    cdef Table table_of(self, uint32_t oid):
        if self.last_table is None or self.last_table.oid != oid:
            self.last_table = self.known.get(oid)
        return self.last_table

    # The open transaction.

    @property
    def transaction(self):
        if not self.is_open:
            return None
        return Transaction(self.head.epoch, self.head.commit_lsn, self.head.commit_time, self.head.xid)

    @property
    def origin(self):
        return self._origin

    @origin.setter
    def origin(self, bytes name not None):
        self._origin = name

    def begin(self, transaction):
        self.open(transaction.epoch, transaction.commit_lsn, transaction.commit_time, transaction.xid)

    cdef void open(self, uint32_t epoch, uint64_t commit_lsn, int64_t commit_time, uint64_t xid) noexcept:
        self.is_open, self.accepted = True, False
        self.head = Head(epoch, commit_lsn, xid, commit_time)
        self._origin = b""
        self.done = self.waiting = 0
        self.tables = 0
        self.body.size = 0

    def accept(self):
        self.accepted = True

    def next_delta(self):
        self.make_room()
        return self.waiting

    cdef int make_room(self) except -1:
        if self.body.size >= FULL_BYTES or self.waiting >= FULL_CHANGES:
            self.put_piece(0, 0)
        return 0

    def add(self, bytes change not None, uint64_t bit=0):
        append(&self.body, <Bytes>PyBytes_AS_STRING(change), len(change))
        self.count(bit)

    cdef inline void count(self, uint64_t bit) noexcept:
        self.waiting += 1
        self.tables |= bit

    def hand_out(self):
        if self.waiting:
            self.put_piece(0, 0)

    def commit(self, uint64_t end_lsn):
        self.close(end_lsn)

    cdef int close(self, uint64_t end_lsn) except -1:
        cdef uint32_t last = self.done + self.waiting
        if self.waiting:
            if self.done:
                self.put_piece(FLAG_END, end_lsn)
            else:
                self.put_record(end_lsn)
            self.transactions += 1
            self.handed, self.shown = end_lsn, self.head.commit_lsn
            move_to(&self.place, self.head.epoch, self.head.commit_lsn, last)
        self.is_open = self.accepted = False
        self.last_commit_time = max(self.last_commit_time, self.head.commit_time)
        self.bound = max(self.bound, end_lsn)
        return 0

    # What is complete.

    def put(self, piece):
        self.close_run()
        self.out.append(piece)
        self.out_bytes += len(piece.body)

    cdef int put_piece(self, int flags, uint64_t end_lsn) except -1:
        """Makes a piece of the waiting changes."""
        cdef uint32_t first = self.done + 1
        cdef uint32_t count = self.waiting
        cdef bytes body = emptied(&self.body)
        self.done += count
        self.changes += count
        self.put(
            Piece(
                kind=KIND_TRANSACTION,
                flags=flags | (FLAG_BEGIN if first == 1 else 0),
                epoch=self.head.epoch,
                commit_lsn=self.head.commit_lsn,
                end_lsn=end_lsn,
                first_ordinal=first,
                last_ordinal=self.done,
                count=count,
                xid=self.head.xid,
                commit_time=self.head.commit_time,
                origin=self._origin,
                tables=self.tables,
                body=body,
            )
        )
        self.waiting, self.tables = 0, 0
        return 0

    cdef int put_record(self, uint64_t end_lsn) except -1:
        """Makes a record of the whole transaction, at the end of the run."""
        if self.run.changes and self.run.last.epoch != self.head.epoch:
            self.close_run()
        self.run.add(&self.head, self._origin, &self.body, self.waiting, self.tables, end_lsn)
        self.changes += self.waiting
        self.waiting, self.tables = 0, 0
        self.body.size = 0
        if self.run.records.size >= FULL_RUN:
            self.close_run()
        return 0

    cdef int close_run(self) except -1:
        """Puts the run's records behind all that was handed out before them."""
        cdef size_t size = self.run.records.size
        if size:
            self.out.append(self.run.closed())
            self.out_bytes += size
        return 0

    @property
    def waiting_bytes(self):
        return self.out_bytes + self.run.records.size

    def take(self):
        self.close_run()
        out, self.out, self.out_bytes = self.out, [], 0
        return out


include "blocks.pxi"
include "avro.pxi"
include "filter.pxi"
include "reader.pxi"
include "changes.pxi"
include "transactions.pxi"
include "converted.pxi"
include "columns.pxi"
include "tally.pxi"
include "copied.pxi"
include "fold.pxi"
include "serving.pxi"
