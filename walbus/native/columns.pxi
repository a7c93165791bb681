# Rows to columns in Arrow's layout: `pure_columns.py` in C.

cdef extern from *:
    """
    typedef unsigned __int128 walbus_wide;
    """
    ctypedef unsigned long long wide "walbus_wide"

cdef enum Physical:
    AS_BIT
    AS_FIXED
    AS_DECIMAL
    AS_SPAN
    AS_LIST

cdef dict PHYSICAL = {"bit": AS_BIT, "decimal": AS_DECIMAL, "bytes": AS_SPAN, "text": AS_SPAN, "list": AS_LIST}
cdef dict SIZES = {"int16": 2, "int32": 4, "int64": 8, "float32": 4, "float64": 8, "decimal": 16}


cdef class ColumnData:
    """The values of one column."""

    cdef int codec, physical, precision, scale
    cdef size_t size
    cdef bint checked_text
    cdef int64_t length, nulls
    cdef Buffer valid, offsets, values
    cdef ColumnData items

    def __cinit__(self, int codec, form):
        self.codec = codec
        self.physical = PHYSICAL.get(form.kind, AS_FIXED)
        self.size = SIZES.get(form.kind, 0)
        self.precision, self.scale = form.precision, form.scale
        self.checked_text = form.kind == "text"
        if form.item is not None:
            self.items = ColumnData(codec & ~ARRAY, form.item)
        self.start()

    def __dealloc__(self):
        free(self.valid.data)
        free(self.offsets.data)
        free(self.values.data)

    cdef int start(self) except -1:
        self.length = self.nulls = 0
        self.valid.size = self.offsets.size = self.values.size = 0
        if self.physical == AS_SPAN or self.physical == AS_LIST:
            self.end_at(0)
        return 0

    cdef int end_at(self, uint64_t end) except -1:
        write_64(reserve(&self.offsets, 8), end)
        self.offsets.size += 8
        return 0

    cdef inline int mark(self, bint there) except -1:
        put_bit(&self.valid, self.length, there)
        self.length += 1
        return 0

    cdef int add_null(self) except -1:
        if self.physical == AS_BIT:
            put_bit(&self.values, self.length, False)
        elif self.physical == AS_SPAN:
            self.end_at(self.values.size)
        elif self.physical == AS_LIST:
            self.end_at(self.items.length)
        else:
            memset(reserve(&self.values, self.size), 0, self.size)
            self.values.size += self.size
        self.nulls += 1
        return self.mark(False)

    cdef Bytes add(self, Bytes at, Bytes end) except? NULL:
        """Appends a native value; where it ends, or NULL if it makes no sense."""
        cdef size_t length
        cdef int64_t number
        if self.physical == AS_LIST:
            return self.add_list(at, end)
        if self.physical == AS_SPAN:
            at = read_span(at, end, &length)
            if at == NULL or (self.checked_text and not is_utf8(at, length)):
                return NULL
            append(&self.values, at, length)
            self.end_at(self.values.size)
            at += length
        elif self.physical == AS_BIT:
            if at == end:
                return NULL
            put_bit(&self.values, self.length, at[0] != 0)
            at += 1
        elif self.codec == FLOAT4 or self.codec == FLOAT8:
            if <size_t>(end - at) < self.size:
                return NULL
            append(&self.values, at, self.size)
            at += self.size
        else:
            at = read_long(at, end, &number)
            if at == NULL or not fits(number, self.size):
                return NULL
            write_64(reserve(&self.values, 8), <uint64_t>number)
            self.values.size += self.size
        self.mark(True)
        return at

    cdef Bytes add_list(self, Bytes at, Bytes end) except? NULL:
        cdef int64_t count
        while True:
            at = read_long(at, end, &count)
            if at == NULL or count < 0:
                return NULL
            if count == 0:
                self.end_at(self.items.length)
                self.mark(True)
                return at
            while count:
                if at == end:
                    return NULL
                if at[0] == BRANCH_NULL:
                    self.items.add_null()
                    at += 1
                elif at[0] == BRANCH_NATIVE:
                    at = self.items.add(at + 1, end)
                    if at == NULL:
                        return NULL
                else:
                    return NULL
                count -= 1

    cdef int add_decimal(self, Bytes text, size_t length) except -1:
        """Appends the number of a canonical text; 0 where there is no such decimal."""
        cdef wide number = 0
        cdef int digits = 0, behind = -1
        cdef bint negative = length > 0 and text[0] == c"-"
        cdef size_t i
        cdef unsigned char *to
        for i in range(negative, length):
            if text[i] == c"." and behind < 0 and i > <size_t>negative:
                behind = 0
            elif c"0" <= text[i] <= c"9":
                digits += digits > 0 or text[i] != c"0"
                behind += behind >= 0
                if digits > self.precision or behind > self.scale:
                    return 0
                number = number * 10 + (text[i] - c"0")
            else:
                return 0
        if behind == 0 or length == <size_t>negative:
            return 0
        behind = max(behind, 0)
        if digits and digits + self.scale - behind > self.precision:
            return 0
        for _ in range(self.scale - behind):
            number *= 10
        if negative:
            number = 0 - number
        to = reserve(&self.values, 16)
        write_64(to, <uint64_t>number)
        write_64(to + 8, <uint64_t>(number >> 64))
        self.values.size += 16
        self.mark(True)
        return 1

    cdef object taken(self):
        """The buffers; begins anew."""
        cdef int64_t length = self.length, nulls = self.nulls
        parts = [emptied(&self.valid)]
        if self.offsets.size:
            parts.append(emptied(&self.offsets))
        if self.physical != AS_LIST:
            parts.append(emptied(&self.values))
        items = self.items.taken() if self.items is not None else None
        self.start()
        return ColumnBuffers(length, nulls, tuple(parts), items)


cdef inline int put_bit(Buffer *bits, int64_t at, bint value) except -1:
    if at % 8 == 0:
        reserve(bits, 1)[0] = 0
        bits.size += 1
    bits.data[bits.size - 1] |= <unsigned char>(value << (at % 8))
    return 0


cdef inline bint fits(int64_t number, size_t size) noexcept:
    if size == 8:
        return True
    if size == 4:
        return INT32_MIN <= number <= INT32_MAX
    return -32768 <= number <= 32767


cdef class RowColumns:
    """See `walbus.native.reading.RowColumns`."""

    cdef RowForm form
    cdef list columns, outside
    cdef int64_t length
    cdef object where

    def __cinit__(self, schema):
        cdef int i
        self.form = RowForm(schema)
        self.columns = [ColumnData(self.form.codecs[i], column_form(c)) for i, c in enumerate(schema.columns)]
        self.outside, self.length = [], 0
        self.where = f"{schema.table}, schema {schema.id}"

    def add(self, rows):
        for row in rows:
            if row is None:
                self.add_nulls()
            elif not self.add_row(row):
                raise DamagedRecord("a row does not decode in its schema", where=self.where)
            self.length += 1

    cdef int add_nulls(self) except -1:
        for column in self.columns:
            (<ColumnData>column).add_null()
        return 0

    cdef bint add_row(self, bytes row) except -1:
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(row)
        cdef Bytes end = at + len(row)
        cdef ColumnData column
        cdef int i
        for i in range(self.form.width):
            column = <ColumnData>self.columns[i]
            if at == end:
                return False
            if at[0] == BRANCH_NULL:
                column.add_null()
                at += 1
            elif at[0] == BRANCH_NATIVE and column.physical != AS_DECIMAL:
                at = column.add(at + 1, end)
            elif at[0] == BRANCH_NATIVE or (at[0] == BRANCH_TEXT and not is_string(column.codec)):
                at = self.add_text(column, i, at + 1, end)
            else:
                return False
            if at == NULL:
                return False
        return at == end

    cdef Bytes add_text(self, ColumnData column, int index, Bytes at, Bytes end) except? NULL:
        """A number by its text, or a value that the column's form does not have."""
        cdef size_t length
        at = read_span(at, end, &length)
        if at == NULL or not is_utf8(at, length):
            return NULL
        if column.physical != AS_DECIMAL or not column.add_decimal(at, length):
            column.add_null()
            self.outside.append(Outside(self.length, index, (<bytes>(<const char *>at)[:length]).decode()))
        return at + length

    def take(self):
        taken = TakenRows(self.length, [(<ColumnData>column).taken() for column in self.columns], self.outside)
        self.outside, self.length = [], 0
        return taken
