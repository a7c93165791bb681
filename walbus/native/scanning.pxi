# Records framed and checked where they lie: for streams that send a log's own bytes.


def good_records(const unsigned char[::1] data not None):
    """See `walbus.native.pure_scan.good_records`. Other threads run meanwhile."""
    cdef size_t used = 0, last = 0, size = data.shape[0]
    if size:
        with nogil:
            scan_records(&data[0], size, &used, &last)
    return used, last


cdef void scan_records(Bytes data, size_t size, size_t *used, size_t *last) noexcept nogil:
    """How many bytes of whole, undamaged records are there, and where the last one begins."""
    cdef size_t at = 0, begin
    cdef Bytes[4] bodies
    cdef size_t[4] lengths
    cdef uint32_t[4] sums
    cdef int framed, i
    while True:
        begin = at
        framed = 0
        while framed < 4 and frame_record(data + at, size - at, &bodies[framed], &lengths[framed]):
            at += 4 + lengths[framed]
            framed += 1
        if framed == 4 and CRC_INSTRUCTION:
            crc32c_four(bodies, lengths, sums)
        else:
            for i in range(framed):
                sums[i] = crc32c(bodies[i], lengths[i])
        for i in range(framed):
            if sums[i] != read_little_32(data + begin):
                break
            last[0] = begin
            begin += 4 + lengths[i]
        used[0] = begin
        if framed < 4 or begin < at:
            return


cdef inline bint frame_record(Bytes at, size_t size, Bytes *body, size_t *length) noexcept nogil:
    """Where what the checksum at `at` is of lies, if all of it is there."""
    cdef uint32_t whole
    if size < RECORD_HEADER:
        return False
    whole = read_little_32(at + 4)
    body[0] = at + 4
    length[0] = whole - 4
    return RECORD_HEADER <= whole <= size


def crc32c_both_ways(bytes data not None):
    """CRC32C as it is computed on this machine, and by tables, for the test that they agree."""
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(data)
    return crc32c(at, len(data)), crc32c_tables(at, len(data))
