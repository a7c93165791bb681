# Rows in their Avro form, walked column by column: `walbus.values.merge` in C.
#
# Every read is bounded by `end`; a length is compared with what is left before it is used.

cdef enum:
    BRANCH_NULL = 0
    BRANCH_NATIVE = 2
    BRANCH_TEXT = 4  # of types whose native form is no string


cdef class RowForm:
    """The columns of a layout, as their values lie in a row."""

    cdef int width
    cdef size_t bitmap_size
    cdef int *codecs

    def __cinit__(self, schema, *_):
        cdef int i
        self.width = len(schema.columns)
        self.bitmap_size = (self.width + 7) // 8
        self.codecs = <int *>allocated(self.width, sizeof(int))
        for i, column in enumerate(schema.columns):
            self.codecs[i] = CODECS.get(column.type_oid, TEXT)

    def __dealloc__(self):
        free(self.codecs)


cdef inline Bytes read_long(Bytes at, Bytes end, int64_t *value) noexcept:
    """A zigzag varint of at most 64 bits; where it ends, NULL if it does not."""
    cdef uint64_t zigzag = 0
    cdef int shift = 0
    while at < end:
        if shift == 63 and at[0] > 1:
            return NULL
        zigzag |= <uint64_t>(at[0] & 0x7F) << shift
        if at[0] < 0x80:
            value[0] = <int64_t>(zigzag >> 1) ^ -<int64_t>(zigzag & 1)
            return at + 1
        at += 1
        shift += 7
    return NULL


cdef inline Bytes read_span(Bytes at, Bytes end, size_t *length) noexcept:
    """Where the bytes of a string begin; NULL if they are not all there."""
    cdef int64_t size
    at = read_long(at, end, &size)
    if at == NULL or size < 0 or size > end - at:
        return NULL
    length[0] = <size_t>size
    return at


cdef inline bint is_string(int codec) noexcept:
    return codec == TEXT or codec == UUID


cdef Bytes skip_nullable(Bytes at, Bytes end, int codec) noexcept:
    """Where a column's value ends, branch included; NULL if it makes no sense."""
    if at == end:
        return NULL
    if at[0] == BRANCH_NULL:
        return at + 1
    if at[0] == BRANCH_NATIVE:
        return skip_native(at + 1, end, codec)
    if at[0] != BRANCH_TEXT or is_string(codec):
        return NULL
    return skip_span(at + 1, end)


cdef inline Bytes skip_span(Bytes at, Bytes end) noexcept:
    cdef size_t length
    at = read_span(at, end, &length)
    return at + length if at != NULL else at


cdef Bytes skip_native(Bytes at, Bytes end, int codec) noexcept:
    cdef int64_t number
    cdef size_t length
    if codec & ARRAY:
        return skip_array(at, end, codec & ~ARRAY)
    if codec == TEXT or codec == UUID or codec == BYTEA:
        return skip_span(at, end)
    if codec == BOOL or codec == FLOAT4 or codec == FLOAT8:
        length = 1 if codec == BOOL else 4 if codec == FLOAT4 else 8
        if <size_t>(end - at) < length:
            return NULL
        return at + length
    return read_long(at, end, &number)


cdef Bytes skip_array(Bytes at, Bytes end, int codec) noexcept:
    """An array's blocks; one that tells its size in bytes, which Walbus does not write, makes no sense."""
    cdef int64_t count
    while True:
        at = read_long(at, end, &count)
        if at == NULL or count < 0:
            return NULL
        if count == 0:
            return at
        while count:
            if at == end:
                return NULL
            if at[0] == BRANCH_NULL:
                at += 1
            elif at[0] == BRANCH_NATIVE:
                at = skip_native(at + 1, end, codec)
            else:
                return NULL
            if at == NULL:
                return NULL
            count -= 1
