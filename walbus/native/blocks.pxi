# Streamed transactions: the rows of a block into the spool's form, and out of it into a core.
#
# entry = length of the message (u32) | xid as it was sent (4 bytes) | message of protocol 1

cdef enum:
    ENTRY_HEADER = 8
    BLOCK_ROW_HEADER = 30  # of the frame, kind and xid
    XID_SIZE = 4


cdef inline bint is_row(unsigned char kind) noexcept:
    return kind == c"I" or kind == c"U" or kind == c"D"


def spool_rows(next_frame, list alarm not None, Py_ssize_t limit, sink):
    """See `walbus.native.interface.SpoolRows`."""
    cdef Buffer entries
    entries.data, entries.size, entries.room = NULL, 0, 0
    cdef Py_ssize_t size = 0, taken = 0
    cdef Bytes frame
    cdef bytes left = b""
    try:
        while taken < limit:
            size, view = next_frame(1)
            if size <= 0:
                break
            if not PyMemoryView_Check(view) or PyMemoryView_GET_BUFFER(view).len != size:
                raise TypeError("a frame that is not a memoryview of its size")
            frame = <Bytes>PyMemoryView_GET_BUFFER(view).buf
            if alarm or size <= BLOCK_ROW_HEADER or frame[0] != c"w" or not is_row(frame[WAL_DATA_HEADER]):
                left = bytes(view)
                break
            append_entry(&entries, frame + WAL_DATA_HEADER, <size_t>(size - WAL_DATA_HEADER))
            taken += size
        sink += emptied(&entries)
    finally:
        free(entries.data)
    return Drained(size, left, taken)


cdef int append_entry(Buffer *entries, Bytes message, size_t size) except -1:
    """A message of a block, `size` bytes with its xid, which are more than kind and xid."""
    cdef size_t length = size - XID_SIZE
    cdef unsigned char *at = reserve(entries, ENTRY_HEADER + length)
    write_32(at, <uint32_t>length)
    memcpy(at + 4, message + 1, XID_SIZE)
    at[ENTRY_HEADER] = message[0]
    memcpy(at + ENTRY_HEADER + 1, message + 1 + XID_SIZE, length - 1)
    entries.size += ENTRY_HEADER + length
    return 0


def replay_rows(Core core not None, bytes entries not None, Py_ssize_t at, frozenset aborted not None):
    """See `walbus.native.interface.ReplayRows`."""
    cdef Bytes base = <Bytes>PyBytes_AS_STRING(entries)
    cdef Py_ssize_t end = len(entries)
    cdef bint choosy = bool(aborted)
    cdef uint32_t length
    if at < 0:
        raise ValueError("entries have no place before their beginning")
    while end - at > ENTRY_HEADER:
        length = read_little_32(base + at)
        if not 0 < length <= end - at - ENTRY_HEADER or not is_row(base[at + ENTRY_HEADER]):
            break
        if not (choosy and PyBytes_FromStringAndSize(<const char *>base + at + 4, XID_SIZE) in aborted):
            if not core.takes(base + at + ENTRY_HEADER, length):
                break
        at += ENTRY_HEADER + length
    return at
