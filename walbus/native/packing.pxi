# Small whole transactions as records, behind each other in one buffer: a run.

cdef enum:
    RECORD_HEADER = 96
    FORMAT_VERSION = 1
    KIND_TRANSACTION = 1
    FLAG_BEGIN = 1
    FLAG_END = 2


cdef struct Head:
    uint32_t epoch  # of a transaction, as its Begin tells it
    uint64_t commit_lsn
    uint64_t xid
    int64_t commit_time


cdef class OpenRun:
    """The records that wait; they are of one epoch."""

    cdef Buffer records
    cdef Head first, last
    cdef uint32_t last_ordinal
    cdef uint64_t changes, end_lsn
    cdef int64_t latest

    def __dealloc__(self):
        free(self.records.data)

    cdef void forget(self) noexcept:
        self.records.size = 0
        self.changes = 0

    cdef int add(
        self, Head *head, bytes origin, Buffer *body, uint32_t count, uint64_t tables, uint64_t end_lsn
    ) except -1:
        """Makes a record of a whole transaction; the checksum is zero, and seqs count from the run's first one."""
        cdef size_t origin_length = len(origin)
        cdef size_t length = RECORD_HEADER + origin_length + body.size
        cdef unsigned char *at = reserve(&self.records, length)
        memset(at, 0, RECORD_HEADER)
        write_32(at + 4, <uint32_t>length)
        at[8], at[9] = FORMAT_VERSION, KIND_TRANSACTION
        write_16(at + 10, FLAG_BEGIN | FLAG_END)
        write_32(at + 12, head.epoch)
        write_64(at + 16, head.commit_lsn)
        write_64(at + 24, end_lsn)
        write_32(at + 32, 1)
        write_32(at + 36, count)
        write_64(at + 40, self.changes)
        write_64(at + 48, self.changes + count - 1)
        write_64(at + 56, head.xid)
        write_64(at + 64, <uint64_t>head.commit_time)
        write_32(at + 72, count)
        write_16(at + 76, <uint32_t>origin_length)
        write_64(at + 80, tables)
        memcpy(at + RECORD_HEADER, PyBytes_AS_STRING(origin), origin_length)
        memcpy(at + RECORD_HEADER + origin_length, body.data, body.size)
        self.records.size += length
        self.note(head, count, end_lsn)
        return 0

    cdef void note(self, Head *head, uint32_t count, uint64_t end_lsn) noexcept:
        if self.changes == 0:
            self.first, self.latest = head[0], head.commit_time
        self.last, self.last_ordinal = head[0], count
        self.changes += count
        self.end_lsn = end_lsn
        self.latest = max(self.latest, head.commit_time)

    cdef object closed(self):
        """The run; begins anew."""
        run = Run(
            records=emptied(&self.records),
            first=Position(self.first.epoch, self.first.commit_lsn, 1),
            last=Position(self.last.epoch, self.last.commit_lsn, self.last_ordinal),
            changes=self.changes,
            end_lsn=self.end_lsn,
            commit_time=self.last.commit_time,
            latest=self.latest,
        )
        self.forget()
        return run


def seal(bytes records not None, uint64_t base):
    """See `walbus.records.seal`."""
    cdef Py_ssize_t left = len(records)
    cdef bytes sealed = PyBytes_FromStringAndSize(PyBytes_AS_STRING(records), left)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(sealed)
    cdef uint32_t length
    while left > 0:
        length = read_little_32(at + 4) if left >= RECORD_HEADER else 0
        if not RECORD_HEADER <= length <= left:
            raise ValueError("these bytes are not whole records")
        write_64(at + 40, read_little_64(at + 40) + base)
        write_64(at + 48, read_little_64(at + 48) + base)
        write_32(at, crc32c(at + 4, length - 4))
        at += length
        left -= length
    return sealed
