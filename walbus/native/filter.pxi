# Records filtered by their headers and their changes' headers: `pure_filter.py`, in C.
#
# What passes without being altered is copied in runs of changes that lie behind each other; a record of which everything
# passes is not copied at all. Python is asked once for each operation of each layout.

cdef enum:
    RECORD_FILTERED = 4
    RECORD_ZSTD = 8
    KIND_PROGRESS = 2
    KIND_SCHEMA = 3
    KIND_EPOCH = 4
    OP_MESSAGE = 5
    LAST_OP = 8
    IS_PROJECTED = 128
    KNOWN_LAYOUTS = 1 << 20  # layouts with larger numbers are asked about each time

cdef uint64_t EVERY_TABLE = ALL_TABLES


cdef enum:
    AS_IT_IS
    LEFT_OUT
    CUT      # passes without some columns
    LEAVES   # passes as the delete of its old key


cdef struct Kept:
    uint32_t changes  # that pass
    uint64_t tables
    bint same         # whether all pass as they are
    Bytes run, end    # the last ones, which `out` does not hold yet


cdef struct Change:
    uint32_t length  # a change's header, and where its parts begin
    unsigned char op, flags
    uint32_t table, schema_id, key_hash
    Bytes key, old_key, unchanged, after, before, end


cdef Bytes read_change(Bytes at, Bytes end, Change *change) noexcept:
    """Where the next one begins; NULL if its header is cut short, or its lengths do not add up."""
    cdef uint64_t length = CHANGE_HEADER
    if end - at < CHANGE_HEADER:
        return NULL
    change.length = read_little_32(at)
    change.op, change.flags = at[4], at[5]
    change.table, change.schema_id = read_little_32(at + 8), read_little_32(at + 12)
    change.key_hash = read_little_32(at + 28)
    length += <uint64_t>read_little_32(at + 32) + read_little_32(at + 36) + (at[6] | <uint32_t>at[7] << 8)
    length += <uint64_t>read_little_32(at + 40) + read_little_32(at + 44)
    if length != change.length or length > <uint64_t>(end - at):
        return NULL
    change.key = at + CHANGE_HEADER
    change.old_key = change.key + read_little_32(at + 32)
    change.unchanged = change.old_key + read_little_32(at + 36)
    change.after = change.unchanged + (at[6] | <uint32_t>at[7] << 8)
    change.before = change.after + read_little_32(at + 40)
    change.end = at + length
    return change.end


cdef object misread(Bytes at, Bytes begin, Bytes end):
    """Why there is no change at a place in a body."""
    what = "a change's header is cut short" if end - at < CHANGE_HEADER else "a change's lengths do not add up"
    return DamagedRecord(what, where=f"body offset {at - begin}")


cdef class Cut:
    """The columns of a layout that are left out."""

    cdef RowForm form
    cdef bytes mask
    cdef bint anything
    cdef object where

    def __cinit__(self, schema, mask):
        self.form = RowForm(schema)
        self.mask = mask.to_bytes(self.form.bitmap_size, "little")
        self.anything = mask != 0
        self.where = f"{schema.table}, schema {schema.id}"

    cdef bint leaves_out(self, int column) noexcept:
        return (<Bytes>PyBytes_AS_STRING(self.mask))[column // 8] >> (column % 8) & 1

    cdef int write_bitmaps(self, Buffer *out, Bytes unchanged, Bytes unchanged_end) except -1:
        """What was not sent, and what is left out."""
        cdef size_t size = self.form.bitmap_size
        cdef size_t given = unchanged_end - unchanged
        cdef unsigned char *at = reserve(out, 2 * size)
        cdef Bytes mask = <Bytes>PyBytes_AS_STRING(self.mask)
        cdef size_t i
        for i in range(size):
            at[i] = mask[i] | (unchanged[i] if i < given else 0)
            at[size + i] = mask[i]
        if self.form.width % 8:
            at[size - 1] &= (1 << (self.form.width % 8)) - 1
        out.size += 2 * size
        return 0

    cdef int write_row(self, Buffer *out, Bytes row, Bytes end) except -1:
        """A row with its left out columns as nulls."""
        cdef Bytes at = row
        cdef Bytes next_at
        cdef int i
        cdef unsigned char *to = reserve(out, end - row + self.form.width)  # a null is not longer than a value
        for i in range(self.form.width):
            next_at = skip_nullable(at, end, self.form.codecs[i])
            if next_at == NULL:
                break
            if self.leaves_out(i):
                to[0] = 0
                to += 1
            else:
                memcpy(to, at, next_at - at)
                to += next_at - at
            at = next_at
        else:
            if at == end:
                out.size = to - out.data
                return 0
        raise DamagedRecord("a row does not decode in its schema", where=self.where)


cdef class RecordFilter:
    """See `walbus.native.reading.NewFilter` and `RecordFilter`."""

    cdef public bint in_window
    cdef object choice, columns
    cdef uint32_t index, count
    cdef uint64_t bits
    cdef bint whole_rows
    cdef uint16_t *verdicts  # by schema id: bit `op - 1` whether it is known, bit `op + 7` whether it passes
    cdef uint32_t verdict_room
    cdef dict cuts
    cdef bytes body  # decompressed, of the record at hand
    cdef Buffer out

    def __init__(self, choice, columns, partition=(0, 1)):
        index, count = partition
        if not 0 <= index < count <= UINT32_MAX:
            raise ValueError(f"there is no partition {index} of {count}")
        self.index, self.count = index, count
        self.choice, self.columns = choice, columns
        self.bits = choice.bits
        self.whole_rows = columns.everything
        self.cuts = {}

    def __dealloc__(self):
        free(self.verdicts)
        free(self.out.data)

    def __copy__(self):
        twin = RecordFilter(copy(self.choice), self.columns, (self.index, self.count))
        twin.in_window = self.in_window
        return twin

    def filter(self, header, bytes record not None):
        return self.passed(record)

    def scan(self, records):
        return [self.passed(record) for record in records]

    cdef bytes passed(self, bytes record):
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(record)
        cdef size_t size = len(record)
        cdef Kept kept
        if size < RECORD_HEADER or at[8] != FORMAT_VERSION or read_little_32(at + 4) != size:
            raise misshapen(record)
        if size < RECORD_HEADER + (at[76] | <size_t>at[77] << 8):
            raise misshapen(record)
        if at[9] == KIND_TRANSACTION:
            return self.transaction(record, at, at + size)
        if at[9] == KIND_SCHEMA:
            self.choice.learn()
            self.bits = self.choice.bits
        if at[9] != KIND_PROGRESS and at[9] != KIND_EPOCH:
            self.keep(record, at, at + size, &kept)
            return record if kept.changes else b""
        return record

    cdef bytes transaction(self, bytes record, Bytes at, Bytes end):
        cdef Kept kept
        cdef int flags = at[10] | <int>at[11] << 8
        cdef bint ends = flags & FLAG_END
        cdef int sent = flags & ~FLAG_BEGIN | (0 if self.in_window else FLAG_BEGIN)
        if self.bits == EVERY_TABLE or self.bits & read_little_64(at + 80):
            self.keep(record, at, end, &kept)
        else:
            self.begin_record(at, &kept)
            kept.same = read_little_32(at + 72) == 0
        if not kept.changes and not (ends and self.in_window):
            return b""
        self.in_window = not ends
        if kept.same and sent == flags:
            return record
        return self.packed(sent & ~RECORD_ZSTD | RECORD_FILTERED, &kept)

    cdef int begin_record(self, Bytes record, Kept *kept) except -1:
        """Nothing is kept yet; `out` holds the header of what is sent, and the origin's name behind it."""
        cdef size_t size = RECORD_HEADER + (record[76] | <size_t>record[77] << 8)
        kept.changes, kept.tables, kept.same = 0, 0, True
        kept.run = kept.end = record
        self.out.size = 0
        return append(&self.out, record, size)

    cdef bytes packed(self, int flags, Kept *kept):
        cdef unsigned char *at
        append(&self.out, kept.run, kept.end - kept.run)
        if self.out.size > UINT32_MAX:
            raise DamagedRecord(f"a record of {self.out.size} bytes is larger than the format allows")
        at = self.out.data
        write_32(at + 4, <uint32_t>self.out.size)
        write_16(at + 10, flags)
        write_32(at + 72, kept.changes)
        write_16(at + 78, 0)
        write_64(at + 80, kept.tables)
        write_64(at + 88, 0)
        write_32(at, crc32c(at + 4, self.out.size - 4))
        return emptied(&self.out)

    cdef int keep(self, bytes record, Bytes header, Bytes end, Kept *kept) except -1:
        """Finds the changes that pass; those that the last run does not hold lie behind a header in `out`."""
        cdef Bytes begin = header + RECORD_HEADER + (header[76] | <size_t>header[77] << 8)
        cdef Bytes at, next_at
        cdef Change change
        cdef uint32_t count = 0
        cdef int verdict
        self.begin_record(header, kept)
        if header[10] & RECORD_ZSTD:
            self.body = decompress(record[begin - header :])
            begin = <Bytes>PyBytes_AS_STRING(self.body)
            end = begin + len(self.body)
        at = kept.run = begin
        while at < end:
            next_at = read_change(at, end, &change)
            if next_at == NULL:
                raise misread(at, begin, end)
            verdict = self.judged(&change)
            if verdict != AS_IT_IS:
                append(&self.out, kept.run, at - kept.run)
                kept.run, kept.same = next_at, False
            if verdict == LEAVES or verdict == CUT:
                self.write_altered(at, &change, verdict == LEAVES)
            if verdict != LEFT_OUT:
                kept.changes += 1
                kept.tables |= <uint64_t>1 << (change.table % 64)
            at = next_at
            count += 1
        kept.end = end
        if count != read_little_32(header + 72):
            raise DamagedRecord(f"a record of {read_little_32(header + 72)} changes holds {count}")
        return 0

    cdef int judged(self, Change *change) except -1:
        cdef unsigned char op = change.op
        cdef bint leaves = False
        cdef Cut cut
        if self.count > 1 and (op <= OP_DELETE or op == OP_MESSAGE) and op and not self.has(change.key_hash):
            if op != OP_UPDATE or not change.flags & HAS_OLD_KEY:
                return LEFT_OUT
            if not self.has(crc32c(change.old_key, change.unchanged - change.old_key)):
                return LEFT_OUT
            leaves, op = True, OP_DELETE
        if not self.wants(op, change.table, change.schema_id):
            return LEFT_OUT
        if leaves:
            return LEAVES
        if self.whole_rows or not 0 < op <= OP_DELETE or not change.schema_id:
            return AS_IT_IS
        cut = self.cut_of(change.schema_id)
        return CUT if cut.anything and change.flags & (HAS_AFTER | HAS_BEFORE) else AS_IT_IS

    cdef inline bint has(self, uint32_t key_hash) noexcept:
        return key_hash % self.count == self.index

    cdef inline bint wants(self, unsigned char op, uint32_t table, uint32_t schema_id) except -1:
        cdef uint16_t known
        if schema_id < self.verdict_room and 0 < op <= LAST_OP and (schema_id or not table):
            known = self.verdicts[schema_id]
            if known >> (op - 1) & 1:
                return known >> (op + 7) & 1
        return self.asked(op, table, schema_id)

    cdef bint asked(self, unsigned char op, uint32_t table, uint32_t schema_id) except -1:
        """What the choice says, which is remembered where it is always the same."""
        cdef bint passes = self.choice.wants_change(op, table, schema_id)
        cdef uint16_t *verdicts
        cdef uint32_t room = max(self.verdict_room, <uint32_t>64)
        if schema_id >= KNOWN_LAYOUTS or not 0 < op <= LAST_OP or not (schema_id or not table):
            return passes
        while room <= schema_id:
            room *= 2
        if room > self.verdict_room:
            verdicts = <uint16_t *>realloc(self.verdicts, room * sizeof(uint16_t))
            if verdicts == NULL:
                raise MemoryError
            memset(verdicts + self.verdict_room, 0, (room - self.verdict_room) * sizeof(uint16_t))
            self.verdicts, self.verdict_room = verdicts, room
        self.verdicts[schema_id] |= 1 << (op - 1) | <int>passes << (op + 7)
        return passes

    cdef Cut cut_of(self, uint32_t schema_id):
        cut = self.cuts.get(schema_id)
        if cut is None:
            cut = self.cuts[schema_id] = Cut(*self.columns.left_out(schema_id))
        return cut

    cdef int write_altered(self, Bytes head, Change *change, bint leaves) except -1:
        """A change without its left out columns, and where its row leaves the partition as the delete of its old key."""
        cdef Cut cut = None
        cdef size_t begin = self.out.size, old_key, unchanged, after, before
        cdef int flags = change.flags
        cdef uint32_t key_hash = change.key_hash
        cdef unsigned char *at
        if not self.whole_rows and change.schema_id:
            cut = self.cut_of(change.schema_id)
        memcpy(reserve(&self.out, CHANGE_HEADER), head, CHANGE_HEADER)
        self.out.size += CHANGE_HEADER
        if leaves:
            flags = flags & ~(HAS_OLD_KEY | HAS_AFTER) | HAS_KEY
            key_hash = crc32c(change.old_key, change.unchanged - change.old_key)
            append(&self.out, change.old_key, change.unchanged - change.old_key)
            old_key = self.out.size
        else:
            append(&self.out, change.key, change.old_key - change.key)
            old_key = self.out.size
            append(&self.out, change.old_key, change.unchanged - change.old_key)
        unchanged = self.out.size
        if cut is not None and not (cut.anything and flags & (HAS_AFTER | HAS_BEFORE)):
            cut = None
        if cut is not None:
            cut.write_bitmaps(&self.out, change.unchanged, change.after if flags & HAS_AFTER else change.unchanged)
            flags |= IS_PROJECTED
        elif not leaves:
            append(&self.out, change.unchanged, change.after - change.unchanged)
        after = self.out.size
        if not leaves:
            self.write_part(cut if flags & HAS_AFTER else None, change.after, change.before)
        before = self.out.size
        self.write_part(cut if flags & HAS_BEFORE else None, change.before, change.end)
        if self.out.size - begin > UINT32_MAX:
            raise DamagedRecord("a change is larger than the format allows")
        at = self.out.data + begin
        write_32(at, <uint32_t>(self.out.size - begin))
        at[4], at[5] = OP_DELETE if leaves else change.op, flags
        write_16(at + 6, <uint32_t>(after - unchanged))
        write_32(at + 28, key_hash)
        write_32(at + 32, <uint32_t>(old_key - begin - CHANGE_HEADER))
        write_32(at + 36, <uint32_t>(unchanged - old_key))
        write_32(at + 40, <uint32_t>(before - after))
        write_32(at + 44, <uint32_t>(self.out.size - before))
        return 0

    cdef int write_part(self, Cut cut, Bytes at, Bytes end) except -1:
        if cut is None:
            return append(&self.out, at, end - at)
        return cut.write_row(&self.out, at, end)


cdef object misshapen(bytes record):
    """Why bytes are no record."""
    try:
        return DamagedRecord(f"a record of {read_header(record).length} bytes lies in {len(record)} bytes")
    except DamagedRecord as error:
        return error
