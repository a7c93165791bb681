# Changes and bytes counted by table, over records that were checked: `pure_tally.py`, in C.


def tally_changes(bytes records not None, dict counts not None):
    """See `walbus.native.pure_tally.tally_changes`."""
    cdef Bytes start = <Bytes>PyBytes_AS_STRING(records)
    cdef size_t size = len(records), at = 0, head
    cdef uint32_t length
    while size - at >= RECORD_HEADER:
        length = read_little_32(start + at + 4)
        head = RECORD_HEADER + (start[at + 76] | <size_t>start[at + 77] << 8)
        if length < head or length > size - at:
            raise DamagedRecord("a record's length is impossible", where=f"offset {at}")
        if start[at + 9] == KIND_TRANSACTION:
            if start[at + 10] & RECORD_ZSTD:
                body = decompress(records[at + head : at + length])
                tally_body(<Bytes>PyBytes_AS_STRING(body), len(body), counts)
            else:
                tally_body(start + at + head, length - head, counts)
        at += length
    if at != size:
        raise DamagedRecord("a record's header is cut short", where=f"offset {at}")


cdef int tally_body(Bytes at, size_t size, dict counts) except -1:
    cdef Bytes end = at + size
    cdef uint32_t table = 0, length
    cdef uint64_t changes = 0, total = 0
    while at < end:
        length = read_little_32(at) if end - at >= CHANGE_HEADER else 0
        if length < CHANGE_HEADER or length > <uint64_t>(end - at):
            raise DamagedRecord("a change's length is impossible")
        if changes and read_little_32(at + 8) != table:
            add_to_tally(counts, table, changes, total)
            changes = total = 0
        table = read_little_32(at + 8)
        changes += 1
        total += length
        at += length
    if changes:
        add_to_tally(counts, table, changes, total)
    return 0


cdef int add_to_tally(dict counts, uint32_t table, uint64_t changes, uint64_t total) except -1:
    cdef tuple before = counts.get(table, (0, 0))
    counts[table] = (before[0] + changes, before[1] + total)
    return 0
