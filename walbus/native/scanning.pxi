# Records framed and checked where they lie: for streams that send a log's own bytes.


def good_records(const unsigned char[::1] data not None):
    """See `walbus.native.pure_scan.good_records`. Other threads run meanwhile."""
    cdef size_t used = 0, last = 0, size = data.shape[0]
    if size:
        with nogil:
            scan_records(&data[0], size, &used, &last)
    return used, last


cdef void scan_records(Bytes data, size_t size, size_t *used, size_t *last) noexcept nogil:
    cdef size_t at = 0
    cdef uint32_t length
    while size - at >= RECORD_HEADER:
        length = read_little_32(data + at + 4)
        if length < RECORD_HEADER or length > size - at:
            break
        if crc32c(data + at + 4, length - 4) != read_little_32(data + at):
            break
        last[0] = at
        at += length
    used[0] = at


def crc32c_both_ways(bytes data not None):
    """CRC32C as it is computed on this machine, and by tables, for the test that they agree."""
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(data)
    return crc32c(at, len(data)), crc32c_tables(at, len(data))
