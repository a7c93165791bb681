# Rows of COPY's text format to sorted entries of the bootstrap's store: `pure_copied.py` in C.

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdlib.h>
    #include <string.h>
    typedef struct { const unsigned char *key; size_t key_at, key_size, row_at, row_size; } walbus_copied;
    static int walbus_compare_copied(const void *a, const void *b) {
        const walbus_copied *left = (const walbus_copied *)a, *right = (const walbus_copied *)b;
        size_t common = left->key_size < right->key_size ? left->key_size : right->key_size;
        int order = memcmp(left->key, right->key, common);
        if (order) return order;
        if (left->key_size != right->key_size) return left->key_size < right->key_size ? -1 : 1;
        return left->key_at < right->key_at ? -1 : left->key_at > right->key_at;
    }
    static void walbus_sort_copied(walbus_copied *rows, size_t count) {
        qsort(rows, count, sizeof(walbus_copied), walbus_compare_copied);
    }
    """
    ctypedef struct Copied "walbus_copied":
        Bytes key
        size_t key_at
        size_t key_size
        size_t row_at
        size_t row_size
    int compare_copied "walbus_compare_copied"(const void *a, const void *b) noexcept nogil
    void sort_copied "walbus_sort_copied"(Copied *rows, size_t count) noexcept nogil


cdef inline unsigned char unescaped(unsigned char letter) noexcept:
    """What a backslash and a letter stand for; 0 for one that COPY TO never writes."""
    if letter == c"\\":
        return c"\\"
    if letter == c"n":
        return c"\n"
    if letter == c"t":
        return c"\t"
    if letter == c"r":
        return c"\r"
    if letter == c"b":
        return c"\b"
    if letter == c"f":
        return c"\f"
    if letter == c"v":
        return c"\v"
    return 0


cdef class CopiedRows:
    """See `walbus.native.copying.CopiedRows`."""

    cdef Table table
    cdef Buffer rows      # keys and rows, behind each other
    cdef Buffer places    # of Copied
    cdef Buffer scratch   # a line's texts without their escapes
    cdef Py_ssize_t count

    def __cinit__(self, schema):
        self.table = Table(schema, row_encoder(schema))

    def __dealloc__(self):
        free(self.rows.data)
        free(self.places.data)
        free(self.scratch.data)

    def __len__(self):
        return self.count

    @property
    def size(self):
        return self.rows.size

    def drain(self, next_frame, Py_ssize_t limit):
        cdef Py_ssize_t size = 0, taken = 0
        while taken < limit:
            size, view = next_frame(1)
            if size <= 0:
                break
            if not PyMemoryView_Check(view) or PyMemoryView_GET_BUFFER(view).len != size:
                raise TypeError("a frame that is not a memoryview of its size")
            self.add(<Bytes>PyMemoryView_GET_BUFFER(view).buf, size)
            taken += size
        return size, taken

    cdef int add(self, Bytes line, size_t length) except -1:
        cdef size_t begin = self.rows.size
        try:
            if not self.add_quickly(line, length):
                self.rows.size = begin
                self.add_slowly(<bytes>(<const char *>line)[:length])
        except BaseException:
            self.rows.size = begin
            raise
        self.count += 1
        return 0

    cdef bint add_quickly(self, Bytes line, size_t length) except -1:
        """False for a line that Python must look at: malformed, or with a key that is null or not UTF-8."""
        cdef size_t key_at = self.rows.size, row_at
        if not self.read_line(line, length) or not self.table.key_width:
            return False
        if not write_key(&self.rows, self.table, self.table.new_row):
            return False
        row_at = self.rows.size
        write_row(&self.rows, self.table, self.table.new_row)
        self.note(key_at, row_at)
        return True

    cdef int add_slowly(self, bytes line) except -1:
        cdef bytes key, row
        cdef size_t key_at = self.rows.size, row_at
        key, row = encoded_line(self.table.encoder, line, self.table.width)
        append(&self.rows, <Bytes>PyBytes_AS_STRING(key), len(key))
        row_at = self.rows.size
        append(&self.rows, <Bytes>PyBytes_AS_STRING(row), len(row))
        self.note(key_at, row_at)
        return 0

    cdef int note(self, size_t key_at, size_t row_at) except -1:
        cdef Copied *place = <Copied *>reserve(&self.places, sizeof(Copied))
        place.key_at, place.key_size = key_at, row_at - key_at
        place.row_at, place.row_size = row_at, self.rows.size - row_at
        self.places.size += sizeof(Copied)
        return 0

    cdef bint read_line(self, Bytes line, size_t length) except -1:
        """The texts of a line, into the table's row; False if it is not exactly one row."""
        cdef Bytes at = line, end = line + length - 1, begin
        cdef unsigned char *to
        cdef unsigned char letter
        cdef Value *value
        cdef bint escaped
        cdef int column = 0
        if length == 0 or end[0] != c"\n":
            return False
        self.scratch.size = 0
        to = reserve(&self.scratch, length)
        while True:
            if column == self.table.width:
                return False
            value = self.table.new_row + column
            column += 1
            begin, escaped = at, False
            while at < end and at[0] != c"\t":
                if at[0] == c"\\":
                    escaped = True
                    at += 1
                    if at == end:
                        return False
                at += 1
            value.kind, value.text, value.length = c"t", begin, at - begin
            if escaped and at - begin == 2 and begin[1] == c"N":
                value.kind, value.length = c"n", 0
            elif escaped:
                value.text = to
                while begin < at:
                    letter = begin[0]
                    if letter == c"\\":
                        begin += 1
                        letter = unescaped(begin[0])
                        if letter == 0:
                            return False
                    to[0] = letter
                    to += 1
                    begin += 1
                value.length = to - value.text
            if at == end:
                return column == self.table.width
            at += 1

    def take(self, bytes space not None, bytes prefix not None):
        cdef Copied *places = <Copied *>self.places.data
        cdef Py_ssize_t i, count = self.count
        cdef bint sorted = True
        cdef list keys = [], entries = []
        for i in range(count):
            places[i].key = self.rows.data + places[i].key_at
            if i and sorted:
                sorted = compare_copied(places + i - 1, places + i) < 0
        if not sorted:
            with nogil:
                sort_copied(places, count)
        for i in range(count):
            if i and places[i].key_size == places[i - 1].key_size:
                if memcmp(places[i].key, places[i - 1].key, places[i].key_size) == 0:
                    continue
            keys.append(joined(space, places[i].key, places[i].key_size))
            entries.append(joined(prefix, self.rows.data + places[i].row_at, places[i].row_size))
        self.rows.size = self.places.size = 0
        self.count = 0
        return keys, entries


cdef inline bytes joined(bytes head, Bytes data, size_t length):
    cdef size_t first = len(head)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, first + length)
    memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(head), first)
    memcpy(PyBytes_AS_STRING(whole) + first, data, length)
    return whole
