# Tuples in, changes out: what `walbus.capture.rows` and the assembler do with the rows of one table.

cdef enum:
    CHANGE_HEADER = 48
    HAS_KEY = 1
    HAS_OLD_KEY = 2
    HAS_AFTER = 4
    HAS_BEFORE = 8
    OP_INSERT = 1
    OP_UPDATE = 2
    OP_DELETE = 3


cdef struct Value:
    unsigned char kind  # t: text, n: null or not sent, u: an unchanged TOASTed value that was not sent
    Bytes text          # into the message
    size_t length


cdef class Table:
    """A layout, compiled: what each column's text becomes, and which columns are the key."""

    cdef uint32_t oid, schema_id
    cdef uint64_t bit
    cdef int width, key_width
    cdef int *codecs
    cdef int *key_columns
    cdef bint *key_integers
    cdef Value *new_row
    cdef Value *old_row
    cdef object encoder

    def __cinit__(self, schema, encoder):
        cdef int i
        self.oid, self.schema_id = schema.oid, schema.id
        self.bit = <uint64_t>1 << (self.oid % 64)
        self.width, self.key_width = len(schema.columns), len(schema.key_indexes)
        self.encoder = encoder
        self.codecs = <int *>allocated(self.width, sizeof(int))
        self.key_columns = <int *>allocated(self.key_width, sizeof(int))
        self.key_integers = <bint *>allocated(self.key_width, sizeof(bint))
        self.new_row = <Value *>allocated(self.width, sizeof(Value))
        self.old_row = <Value *>allocated(self.width, sizeof(Value))
        for i, column in enumerate(schema.columns):
            self.codecs[i] = CODECS.get(column.type_oid, TEXT)
        for i, index in enumerate(schema.key_indexes):
            self.key_columns[i] = index
            self.key_integers[i] = CODECS.get(schema.columns[index].type_oid, TEXT) in (INT, LONG)

    def __dealloc__(self):
        free(self.codecs)
        free(self.key_columns)
        free(self.key_integers)
        free(self.new_row)
        free(self.old_row)


cdef void *allocated(int count, size_t size) except NULL:
    cdef void *memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef Bytes read_row(Bytes at, Bytes end, Value *values, int width) noexcept:
    """Reads one tuple; where it ends, or NULL if it is cut short or is not as wide as the layout."""
    cdef uint32_t length
    cdef int i
    if end - at < 2 or read_16(at) != width:
        return NULL
    at += 2
    for i in range(width):
        if at == end:
            return NULL
        values[i].kind = at[0]
        at += 1
        if values[i].kind == c"t":
            if end - at < 4:
                return NULL
            length = read_32(at)
            at += 4
            if <size_t>(end - at) < length:
                return NULL
            values[i].text, values[i].length = at, length
            at += length
        elif values[i].kind != c"n" and values[i].kind != c"u":
            return NULL
    return at


cdef int write_row(Buffer *out, Table table, Value *values) except -1:
    """One row in the layout's Avro form; what was not sent is null."""
    cdef Value *value
    cdef int i
    for i in range(table.width):
        value = values + i
        if value.kind != c"t":
            reserve(out, 1)[0] = 0
            out.size += 1
        elif not write_value(out, table.codecs[i], value.text, value.length):
            write_rare(out, table, i, value)
    return 0


cdef int write_rare(Buffer *out, Table table, int column, Value *value) except -1:
    cdef bytes encoded = table.encoder.value(column, <bytes>(<char *>value.text)[: value.length])
    return append(out, encoded, len(encoded))


cdef int write_key(Buffer *out, Table table, Value *values) except -1:
    """The memcomparable key; 0 if a key column is null, not sent or not UTF-8 (some may have been written then)."""
    cdef Value *value
    cdef int i
    for i in range(table.key_width):
        value = values + table.key_columns[i]
        if value.kind != c"t" or not is_utf8(value.text, value.length):
            return 0
        write_key_part(out, table.key_integers[i], value.text, value.length)
    return 1


cdef int write_key_part(Buffer *out, bint integer, Bytes text, size_t length) except -1:
    cdef unsigned char *at = reserve(out, 2 * length + 10)
    cdef int64_t number
    cdef size_t i, size = 1
    if integer and parse_integer(text, length, &number):
        at[0] = 1
        write_64_big(at + 1, <uint64_t>number + (<uint64_t>1 << 63))
        out.size += 9
        return 0
    at[0] = 2
    for i in range(length):
        at[size] = text[i]
        size += 1
        if text[i] == 0:
            at[size] = 0xFF
            size += 1
    at[size], at[size + 1] = 0, 1
    out.size += size + 2
    return 0


cdef bint complete(Table table, Value *new, Value *old, bint whole) noexcept:
    """Takes unchanged values from the old tuple where it has them; whether any stays unknown."""
    cdef bint unknown = False
    cdef int i
    if old != NULL:
        if whole:
            for i in range(table.width):
                if new[i].kind == c"u":
                    new[i] = old[i]
        else:
            for i in range(table.key_width):
                if new[table.key_columns[i]].kind == c"u":
                    new[table.key_columns[i]] = old[table.key_columns[i]]
    for i in range(table.width):
        unknown = unknown or new[i].kind == c"u"
    return unknown


cdef int write_unchanged(Buffer *out, Table table, Value *values) except -1:
    """The bitmap of the columns whose value is not known."""
    cdef size_t size = (table.width + 7) // 8
    cdef unsigned char *at = reserve(out, size)
    cdef int i
    memset(at, 0, size)
    for i in range(table.width):
        if values[i].kind == c"u":
            at[i // 8] |= 1 << (i % 8)
    out.size += size
    return 0


cdef bint lacks_value(Table table, Value *values) noexcept:
    cdef int i
    for i in range(table.width):
        if values[i].kind == c"u":
            return True
    return False


cdef int write_change(Buffer *out, Table table, int op, uint32_t delta, Value *new, Value *old, bint whole) except -1:
    """One change behind what `out` holds; 0 if the assembler must look at it (some may have been written then).

    Args:
        new: the new tuple; NULL for a delete.
        old: the old tuple, NULL if none was sent.
        whole: whether the old tuple is the whole row, and not its key alone.
    """
    cdef size_t begin = out.size, key, old_key, unchanged, after, before, end
    cdef bint unknown, moved
    cdef int flags = HAS_KEY if table.key_width else 0
    cdef unsigned char *head
    reserve(out, CHANGE_HEADER)
    out.size += CHANGE_HEADER
    unknown = new != NULL and complete(table, new, old, whole)
    if old != NULL and whole and lacks_value(table, old):
        return 0
    key = out.size
    if not write_key(out, table, new if new != NULL else old):
        return 0
    old_key = out.size
    if new != NULL and old != NULL:
        if not write_key(out, table, old):
            return 0
        moved = out.size - old_key != old_key - key or memcmp(out.data + key, out.data + old_key, old_key - key) != 0
        if moved:
            flags |= HAS_OLD_KEY
        else:
            out.size = old_key
    unchanged = out.size
    if unknown:
        write_unchanged(out, table, new)
    after = out.size
    if new != NULL:
        flags |= HAS_AFTER
        write_row(out, table, new)
    before = out.size
    if old != NULL and whole:
        flags |= HAS_BEFORE
        write_row(out, table, old)
    end = out.size
    if end - begin > UINT32_MAX:
        return 0
    head = out.data + begin
    write_32(head, <uint32_t>(end - begin))
    head[4], head[5] = op, flags
    write_16(head + 6, <uint32_t>(after - unchanged))
    write_32(head + 8, table.oid)
    write_32(head + 12, table.schema_id)
    write_64(head + 16, delta)
    write_32(head + 24, delta)
    write_32(head + 28, crc32c(out.data + key, old_key - key) if table.key_width else 0)
    write_32(head + 32, <uint32_t>(old_key - key))
    write_32(head + 36, <uint32_t>(unchanged - old_key))
    write_32(head + 40, <uint32_t>(before - after))
    write_32(head + 44, <uint32_t>(end - before))
    return 1
