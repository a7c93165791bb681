# The log's changes folded into entries, and entries listed by seq: `pure_fold.py`, in C.

cdef enum:
    OP_TRUNCATE = 4
    FOLDED_HEADER = 23
    PLACE_HEADER = 12
    IS_TOMBSTONE = 1
    IS_MOVED = 4

cdef size_t SPACE = SPACE_SIZE
cdef size_t FULL_PAGE = PAGE_BYTES


cdef class FoldedTable:
    """A table whose changes are taken."""

    cdef bytes space
    cdef int64_t rows  # inserts less deletes
    cdef bint touched

    def __cinit__(self, bytes space not None):
        self.space = space


cdef class Fold:
    """See `walbus.native.folding.NewFold` and `Fold`."""

    cdef readonly set xids
    cdef dict tables, entries
    cdef uint64_t bits
    cdef uint32_t last_oid
    cdef FoldedTable last_table  # of the last change, None if that is passed over: the next one is mostly of the same
    cdef bint has_last
    cdef bytes body  # decompressed, of the record at hand

    def __init__(self, spaces, dict entries not None):
        cdef uint32_t oid
        self.xids, self.tables, self.entries = set(), {}, entries
        for oid, space in spaces.items():
            self.tables[oid] = FoldedTable(space)
            self.bits |= <uint64_t>1 << (oid % 64)

    def take(self, list records not None, Py_ssize_t at, done):
        cdef Place place
        cdef Py_ssize_t index
        place.epoch, place.lsn, place.ordinal = done
        for index in range(at, len(records)):
            if not self.takes(records[index], &place):
                return index
        return len(records)

    def counts(self):
        cdef FoldedTable table
        counts = {}
        for oid, table in self.tables.items():
            if table.touched:
                counts[oid] = table.rows
                table.rows, table.touched = 0, False
        return counts

    cdef bint takes(self, bytes record, Place *place) except -1:
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(record)
        cdef size_t size = len(record), head
        cdef uint64_t lsn
        cdef uint32_t ordinal
        if size < RECORD_HEADER or at[8] != FORMAT_VERSION or read_little_32(at + 4) != size:
            raise misshapen(record)
        head = RECORD_HEADER + (at[76] | <size_t>at[77] << 8)
        if size < head:
            raise misshapen(record)
        if read_little_32(at + 12) != place.epoch:
            return False
        if at[9] != KIND_TRANSACTION:
            return at[9] == KIND_PROGRESS
        lsn, ordinal = read_little_64(at + 16), read_little_32(at + 32)
        if lsn < place.lsn or (lsn == place.lsn and ordinal <= place.ordinal):
            return False
        if self.bits & read_little_64(at + 80) and not self.takes_body(record, at, at + head, at + size):
            return False
        self.xids.add(read_little_64(at + 56))
        place.lsn, place.ordinal = lsn, read_little_32(at + 36)
        return True

    cdef bint takes_body(self, bytes record, Bytes header, Bytes begin, Bytes end) except -1:
        cdef uint64_t first_seq = read_little_64(header + 40), xid = read_little_64(header + 56)
        cdef Bytes at
        cdef Change change
        cdef FoldedTable table
        if header[10] & RECORD_ZSTD:
            self.body = decompress(record[begin - header :])
            begin = <Bytes>PyBytes_AS_STRING(self.body)
            end = begin + len(self.body)
        if not self.is_plain(begin, end):
            return False
        at = begin
        while at < end:
            at = read_change(at, end, &change)
            table = self.table_of(change.table)
            if table is not None and 0 < change.op <= OP_DELETE:
                self.fold(table, &change, first_seq + read_little_64(at - change.length + 16), xid)
        return True

    cdef bint is_plain(self, Bytes begin, Bytes end) except -1:
        """Whether every change of a body can be folded without the owner."""
        cdef Bytes at = begin, next_at
        cdef Change change
        cdef bint plain = True
        while at < end:
            next_at = read_change(at, end, &change)
            if next_at == NULL:
                raise misread(at, begin, end)
            if 0 < change.op <= OP_TRUNCATE and self.table_of(change.table) is not None:
                if change.op == OP_TRUNCATE or not change.flags & HAS_KEY:
                    plain = False
                elif change.op != OP_DELETE and not change.flags & HAS_AFTER:
                    plain = False
            at = next_at
        return plain

    cdef inline FoldedTable table_of(self, uint32_t oid):
        if not self.has_last or self.last_oid != oid:
            self.last_table = self.tables.get(oid)
            self.last_oid, self.has_last = oid, True
        return self.last_table

    cdef int fold(self, FoldedTable table, Change *change, uint64_t seq, uint64_t xid) except -1:
        cdef size_t lacking = change.after - change.unchanged
        cdef bytes key = joined(table.space, change.key, change.old_key - change.key)
        cdef bytes source = key
        cdef object before = None
        cdef bint moved
        table.touched = True
        if change.op == OP_DELETE:
            table.rows -= 1
            return self.put(key, packed_entry(IS_TOMBSTONE, seq, change, xid))
        table.rows += change.op == OP_INSERT
        moved = change.flags & HAS_OLD_KEY and is_moved(change)
        if moved:
            source = joined(table.space, change.old_key, change.unchanged - change.old_key)
        if lacking:
            before = self.before(source)
        if moved:
            self.put(source, packed_entry(IS_TOMBSTONE, seq, change, xid))
        packed = packed_entry(IS_MOVED if moved and lacking else 0, seq, change, xid)
        return self.put(key, unfilled(packed, source, before) if lacking else packed)

    cdef object before(self, bytes source):
        """The entry as the batch has left it: empty bytes where there is none, None where it is untouched."""
        cdef PyObject *found = PyDict_GetItemWithError(self.entries, source)
        if found == NULL:
            return None
        return b"" if <object>found is None else <object>found

    cdef inline int put(self, bytes key, object entry) except -1:
        if key in self.entries:
            del self.entries[key]
        self.entries[key] = entry
        return 0


cdef inline bint is_moved(Change *change) noexcept:
    cdef size_t size = change.old_key - change.key
    return size != <size_t>(change.unchanged - change.old_key) or memcmp(change.key, change.old_key, size) != 0


cdef bytes packed_entry(int flags, uint64_t seq, Change *change, uint64_t xid):
    """The entry that a change makes; of a tombstone the header alone."""
    cdef size_t lacking = 0 if flags & IS_TOMBSTONE else change.after - change.unchanged
    cdef size_t size = 0 if flags & IS_TOMBSTONE else change.before - change.unchanged
    cdef bytes entry = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(FOLDED_HEADER + size))
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(entry)
    at[0] = flags
    write_64(at + 1, seq)
    write_32(at + 9, change.schema_id)
    write_64(at + 13, xid)
    write_16(at + 21, <uint32_t>lacking)
    memcpy(at + FOLDED_HEADER, change.unchanged, size)  # the row lies behind what it lacks
    return entry


cdef tuple unfilled(bytes packed, bytes source, before):
    """See `pure_fold._unfilled`."""
    if isinstance(before, tuple) and lacks_the_same(packed, (<tuple>before)[0]):
        return packed, (<tuple>before)[1], (<tuple>before)[2]
    return packed, source, before


cdef bint lacks_the_same(bytes packed, bytes before) noexcept:
    cdef Bytes at = <Bytes>PyBytes_AS_STRING(packed)
    cdef Bytes other = <Bytes>PyBytes_AS_STRING(before)
    if at[0] or other[0] or memcmp(at + 9, other + 9, 4) != 0 or memcmp(at + 21, other + 21, 2) != 0:
        return False
    return memcmp(at + FOLDED_HEADER, other + FOLDED_HEADER, at[21] | <size_t>at[22] << 8) == 0


cdef class Page:
    """Places of one space in the change index, until they are closed and begin again."""

    cdef bytes space
    cdef Buffer content
    cdef uint64_t seq  # of the last place

    def __cinit__(self, bytes space not None):
        self.space = space

    def __dealloc__(self):
        free(self.content.data)

    cdef int add(self, uint64_t seq, Bytes key, size_t size) except -1:
        cdef unsigned char *at = reserve(&self.content, PLACE_HEADER + size)
        write_64(at, seq)
        write_32(at + 8, <uint32_t>size)
        memcpy(at + PLACE_HEADER, key, size)
        self.content.size += PLACE_HEADER + size
        self.seq = seq
        return 0

    cdef tuple closed(self):
        cdef unsigned char seq[8]
        write_64_big(seq, self.seq)
        return self.space + (<char *>seq)[:8], emptied(&self.content)


def pack_pages(dict entries not None):
    """See `walbus.native.folding.PackPages`."""
    cdef list pages = []
    cdef dict spaces = {}
    cdef Page page = None
    cdef Bytes at
    cdef uint64_t seq
    for key, entry in entries.items():
        if entry is None:
            continue
        at = <Bytes>PyBytes_AS_STRING(<bytes?>key)
        if len(<bytes>key) < <Py_ssize_t>SPACE or len(<bytes?>entry) < FOLDED_HEADER:
            raise ValueError("this is no entry of a store")
        if page is None or memcmp(PyBytes_AS_STRING(page.space), at, SPACE) != 0:
            space = (<bytes>key)[:SPACE]
            page = spaces.get(space)
            if page is None:
                page = spaces[space] = Page(space)
        seq = read_little_64(<Bytes>PyBytes_AS_STRING(<bytes>entry) + 1)
        if page.content.size >= FULL_PAGE and seq != page.seq:
            pages.append(page.closed())
        page.add(seq, at + SPACE, len(<bytes>key) - SPACE)
    for page in spaces.values():
        pages.append(page.closed())
    return pages


cdef struct Item:
    Bytes at
    size_t size
    PyObject *key    # both are the dict's
    PyObject *value


cdef int compare_items(const void *one, const void *other) noexcept nogil:
    cdef const Item *left = <const Item *>one
    cdef const Item *right = <const Item *>other
    cdef int order = memcmp(left.at, right.at, min(left.size, right.size))
    if order:
        return order
    return (left.size > right.size) - (left.size < right.size)


def in_key_order(dict entries not None):
    """See `walbus.native.folding.InKeyOrder`."""
    cdef Py_ssize_t count = len(entries), i = 0
    cdef Item *items = <Item *>allocated(<int>count, sizeof(Item))
    cdef list pairs = []
    try:
        for key, value in entries.items():
            items[i].at, items[i].size = <Bytes>PyBytes_AS_STRING(<bytes?>key), len(<bytes>key)
            items[i].key, items[i].value = <PyObject *>key, <PyObject *>value
            i += 1
        qsort(items, <size_t>count, sizeof(Item), compare_items)
        for i in range(count):
            pairs.append((<object>items[i].key, <object>items[i].value))
        return pairs
    finally:
        free(items)
