# Whole transactions as windows, where their records lie: `pure_transactions.py`, in C. There may be as many as rows.

cdef enum:
    WHOLE = FLAG_BEGIN | FLAG_END
    RECORD_ASKED = 16
    RECORD_NET = 32

cdef object TRANSACTION = Kind.TRANSACTION


def read_transactions(make not None, make_window not None, bytes data not None, size_t at, layout_of, received not None):
    """See `walbus.native.reading.ReadTransactions`."""
    cdef Bytes begin = <Bytes>PyBytes_AS_STRING(data)
    cdef Bytes body
    cdef size_t size = len(data), length
    cdef ChangesOf of = ChangesOf(make, layout_of)
    cdef list windows = []
    cdef uint64_t epoch, lsn, seq
    (epoch, lsn, _), seq = received
    while at < size and frame_record(begin + at, size - at, &body, &length):
        if not follows(begin + at, epoch, lsn, seq) or crc32c(body, length) != read_little_32(begin + at):
            break
        window = whole_window(of, make_window, begin + at, length + 4)
        if window is None:
            break
        windows.append(window)
        epoch, lsn = read_little_32(begin + at + 12), read_little_64(begin + at + 16)
        seq = read_little_64(begin + at + 48)
        at += length + 4
    return windows, at


cdef bint follows(Bytes at, uint64_t epoch, uint64_t lsn, uint64_t seq) noexcept:
    """Whether a header is that of a whole transaction, later than what was received."""
    cdef uint64_t its_epoch = read_little_32(at + 12)
    if at[8] != FORMAT_VERSION or at[9] != KIND_TRANSACTION:
        return False
    if at[10] & (WHOLE | RECORD_ASKED) != WHOLE or read_little_64(at + 48) <= seq:
        return False
    return its_epoch > epoch or (its_epoch == epoch and read_little_64(at + 16) > lsn)


cdef object whole_window(ChangesOf of, make, Bytes at, size_t length):
    """The window of a record; None: it is to be looked at by who can say what is wrong with it."""
    cdef size_t head = RECORD_HEADER + (at[76] | <size_t>at[77] << 8)
    cdef uint32_t last_ordinal = read_little_32(at + 36)
    if head > length:
        return None
    of.epoch, of.lsn = read_little_32(at + 12), read_little_64(at + 16)
    of.first_ordinal, of.first_seq = read_little_32(at + 32), read_little_64(at + 40)
    try:
        if at[10] & RECORD_ZSTD:
            unpacked = decompress(PyBytes_FromStringAndSize(<const char *>(at + head), length - head))
            changes = of.read(<Bytes>PyBytes_AS_STRING(unpacked), len(unpacked))
        else:
            changes = of.read(at + head, length - head)
        origin = PyUnicode_DecodeUTF8(<const char *>(at + RECORD_HEADER), head - RECORD_HEADER, NULL)
    except (WalbusError, OSError, UnicodeDecodeError):
        return None
    time = timestamp_of(<int64_t>read_little_64(at + 64), UTC_ZONE)
    if not changes or <size_t>len(changes) != read_little_32(at + 72) or time is LEFT:
        return None
    made = new_object_of(make, ())
    PyObject_GenericSetAttr(made, "kind", TRANSACTION)
    PyObject_GenericSetAttr(made, "changes", changes)
    PyObject_GenericSetAttr(made, "xid", read_little_64(at + 56))
    PyObject_GenericSetAttr(made, "commit_lsn", of.lsn)
    PyObject_GenericSetAttr(made, "commit_time", time)
    PyObject_GenericSetAttr(made, "last", new_plain_tuple(POSITION, (of.epoch, of.lsn, last_ordinal)))
    PyObject_GenericSetAttr(made, "last_seq", read_little_64(at + 48))
    PyObject_GenericSetAttr(made, "begins", True)
    PyObject_GenericSetAttr(made, "ends", True)
    PyObject_GenericSetAttr(made, "origin", origin)
    PyObject_GenericSetAttr(made, "net", at[10] & RECORD_NET != 0)
    PyObject_GC_UnTrack(changes)  # as the changes themselves: no window is in a cycle
    PyObject_GC_UnTrack(made)
    return made
