# Changes of a record as Python has them: `pure_changes.py`, in C. There are as many as rows.

cdef extern from *:
    """
    static PyObject *new_tuple_of(PyObject *type, PyObject *arguments) {
        return PyTuple_Type.tp_new((PyTypeObject *)type, arguments, NULL);
    }
    static PyObject *new_object_of(PyObject *type, PyObject *no_arguments) {
        return PyBaseObject_Type.tp_new((PyTypeObject *)type, no_arguments, NULL);
    }
    """
    object new_tuple_of(object type, tuple arguments)
    object new_object_of(object type, tuple no_arguments)

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(object)

cdef enum:
    KIND_SNAPSHOT = 5
    KIND_DELTA = 6

cdef object RAW_CHANGE = RawChange
cdef object POSITION = Position
cdef object NO_BYTES = b""


def read_changes(make not None, header, bytes record not None, layout_of, after=ORIGIN):
    """See `walbus.native.reading.ReadChanges`."""
    cdef size_t head = RECORD_HEADER + <size_t>header.origin_length
    cdef int kind = header.kind
    cdef ChangesOf of
    if kind == KIND_PROGRESS:
        return []
    of = ChangesOf(make, layout_of)
    of.of_record(header, after)
    if header.flags & RECORD_ZSTD:
        body = decompress(record[head:])
        return of.read(<Bytes>PyBytes_AS_STRING(body), len(body))
    head = min(head, <size_t>len(record))
    return of.read(<Bytes>PyBytes_AS_STRING(record) + head, len(record) - head)


cdef class ChangesOf:
    """What the changes of one record have in common."""

    cdef object make, layout_of, epoch, lsn, served
    cdef uint64_t first_ordinal, first_seq, above
    cdef bint skips  # whether changes with an ordinal below `above` are left out
    cdef uint32_t schema_id, table  # of the last change, and what is made of them
    cdef object layout, schema_number, table_number

    def __cinit__(self, make, layout_of):
        self.make, self.layout_of = make, layout_of
        self.schema_number = self.table_number = 0

    cdef int of_record(self, header, after) except -1:
        cdef int kind = header.kind
        cdef bint events = kind != KIND_TRANSACTION
        self.epoch, self.lsn = header.epoch, header.commit_lsn
        self.first_ordinal, self.first_seq = header.first_ordinal, header.first_seq
        self.served = header.last if kind == KIND_SNAPSHOT or kind == KIND_DELTA else None
        self.skips = self.served is None and (self.epoch, self.lsn) <= (after.epoch, after.commit_lsn)
        self.above = UINT64_MAX
        if self.skips and (self.epoch, self.lsn) == (after.epoch, after.commit_lsn):
            self.above = after.ordinal if events else after.ordinal + 1
        return 0

    cdef list read(self, Bytes begin, size_t size):
        cdef Bytes at = begin
        cdef Bytes end = begin + size
        cdef Bytes next_at
        cdef Change change
        cdef list changes = []
        cdef uint64_t ordinal
        cdef object position
        while at < end:
            next_at = read_change(at, end, &change)
            if next_at == NULL:
                raise misread(at, begin, end)
            ordinal = self.first_ordinal + read_little_32(at + 24)
            if not self.skips or ordinal >= self.above:
                if change.schema_id != self.schema_id:
                    schema_number = change.schema_id
                    self.layout = self.layout_of(schema_number) if change.schema_id else None
                    self.schema_id, self.schema_number = change.schema_id, schema_number
                if change.table != self.table:
                    self.table = change.table
                    self.table_number = change.table
                raw = raw_change(at, &change, self.table_number, self.schema_number)
                position = self.served
                if position is None:
                    position = new_plain_tuple(POSITION, (self.epoch, self.lsn, ordinal))
                made = new_object_of(self.make, ())
                PyObject_GenericSetAttr(made, "raw", raw)
                PyObject_GenericSetAttr(made, "schema", self.layout)
                PyObject_GenericSetAttr(made, "position", position)
                PyObject_GenericSetAttr(made, "seq", self.first_seq + read_little_64(at + 16))
                PyObject_GC_UnTrack(made)  # it is frozen, and nothing that it holds knows it
                changes.append(made)
            at = next_at
        return changes


cdef object raw_change(Bytes at, Change *change, table, schema_id):
    cdef int flags = change.flags
    parts = (
        change.op,
        flags,
        table,
        schema_id,
        read_little_64(at + 16),
        read_little_32(at + 24),
        change.key_hash,
        part_of(change.key, change.old_key) if flags & HAS_KEY else None,
        part_of(change.old_key, change.unchanged) if flags & HAS_OLD_KEY else None,
        part_of(change.unchanged, change.after) if change.after != change.unchanged else NO_BYTES,
        part_of(change.after, change.before) if flags & HAS_AFTER else None,
        part_of(change.before, change.end) if flags & HAS_BEFORE else None,
    )
    return new_plain_tuple(RAW_CHANGE, parts)


cdef inline object new_plain_tuple(type_of, tuple parts):
    """A named tuple of numbers and bytes, which is in no cycle: Python's collector would look at each again and again."""
    made = new_tuple_of(type_of, (parts,))
    PyObject_GC_UnTrack(made)
    return made


cdef inline object part_of(Bytes at, Bytes end):
    return PyBytes_FromStringAndSize(<const char *>at, end - at)
