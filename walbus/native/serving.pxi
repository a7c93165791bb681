# Entries packed as changes, and the change index walked: `pure_serving.py`, in C.

def pack_rows(cursor, bytes end not None, uint32_t table, portion):
    """See `walbus.native.serving.PackRows`."""
    cdef Buffer body
    cdef size_t count = 0, size = portion.size
    cdef Py_ssize_t left = portion.entries
    cdef object key_of = cursor.key, value_of = cursor.value, go_on = cursor.next
    cdef object key
    cdef bytes entry
    body.data, body.size, body.room = NULL, 0, 0
    try:
        while left > 0 and body.size < size:
            key = key_of()
            if key is None or <bytes?>key >= end:
                break
            entry = checked_entry(value_of())
            if len(<bytes>key) < <Py_ssize_t>SPACE:
                raise no_entry()
            if not PyBytes_AS_STRING(entry)[0] & IS_TOMBSTONE:
                pack_version(&body, <Bytes>PyBytes_AS_STRING(<bytes>key) + SPACE, len(<bytes>key) - SPACE, entry, table)
                count += 1
            left -= 1
            go_on()
        return PyBytes_FromStringAndSize(<char *>body.data, <Py_ssize_t>body.size), count
    finally:
        free(body.data)


def pack_versions(list places not None, list entries not None, Py_ssize_t at, uint32_t table, size_t size):
    """See `walbus.native.serving.PackVersions`."""
    cdef Buffer body
    cdef size_t count = 0
    cdef uint64_t place, last = 0
    cdef bytes key, entry
    body.data, body.size, body.room = NULL, 0, 0
    try:
        while at < len(places):
            key, place = places[at]
            if body.size >= size and place != last:
                break
            found = entries[at]
            at += 1
            if found is None:
                continue
            entry = checked_entry(found)
            if read_little_64(<Bytes>PyBytes_AS_STRING(entry) + 1) == place:
                pack_version(&body, <Bytes>PyBytes_AS_STRING(key), len(key), entry, table)
                count += 1
                last = place
        return PyBytes_FromStringAndSize(<char *>body.data, <Py_ssize_t>body.size), count, at
    finally:
        free(body.data)


def take_places(dict places not None, bytes page not None, uint64_t after_seq):
    """See `walbus.native.serving.TakePlaces`."""
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(page)
    cdef Bytes end = at + len(page)
    cdef uint64_t seq
    cdef size_t size, taken = 0
    while at < end:
        if end - at < PLACE_HEADER:
            raise ValueError("a page of the change index is cut short")
        seq, size = read_little_64(at), read_little_32(at + 8)
        at += PLACE_HEADER
        if <size_t>(end - at) < size:
            raise ValueError("a page of the change index is cut short")
        if seq > after_seq:
            key = PyBytes_FromStringAndSize(<char *>at, <Py_ssize_t>size)
            if key in places:
                del places[key]
            places[key] = seq
            taken += 1
        at += size
    return taken


cdef no_entry():
    return ValueError("this is no entry of a store")


cdef bytes checked_entry(entry):
    """An entry whose parts lie within it."""
    cdef Bytes at
    if entry is None or len(<bytes?>entry) < FOLDED_HEADER:
        raise no_entry()
    at = <Bytes>PyBytes_AS_STRING(<bytes>entry)
    if FOLDED_HEADER + (at[21] | <size_t>at[22] << 8) > <size_t>len(<bytes>entry):
        raise no_entry()
    return entry


cdef int pack_version(Buffer *body, Bytes key, size_t key_size, bytes entry, uint32_t table) except -1:
    """A checked entry as the change that it is: an insert of its row, or the delete that a tombstone stands for."""
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(entry)
    cdef bint gone = at[0] & IS_TOMBSTONE
    cdef size_t row_at = FOLDED_HEADER + (at[21] | <size_t>at[22] << 8)
    cdef size_t row_size = 0 if gone else len(entry) - row_at
    cdef size_t length = CHANGE_HEADER + key_size + row_size
    cdef unsigned char *to = reserve(body, length)
    memset(to, 0, CHANGE_HEADER)
    write_32(to, <uint32_t>length)
    to[4] = OP_DELETE if gone else OP_INSERT
    to[5] = HAS_KEY if gone else HAS_KEY | HAS_AFTER
    write_32(to + 8, table)
    memcpy(to + 12, at + 9, 4)
    memcpy(to + 16, at + 1, 8)
    write_32(to + 28, crc32c(key, key_size) if key_size else 0)
    write_32(to + 32, <uint32_t>key_size)
    write_32(to + 40, <uint32_t>row_size)
    memcpy(to + CHANGE_HEADER, key, key_size)
    memcpy(to + CHANGE_HEADER + key_size, at + row_at, row_size)
    body.size += length
    return 0
