# Rows to Python values: `walbus.values.avro_rows` in C.
#
# A value that is not one of those that come by the million (outside Python's range, text that is not UTF-8, an array in
# blocks that tell their size) leaves the whole row to the twin in Python, which knows the value, or words the error.

from cpython.datetime cimport date_new, datetime_new, import_datetime, time_new
from cpython.dict cimport PyDict_SetItem
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8

from datetime import UTC as UTC_ZONE
from decimal import Decimal
from uuid import UUID as Uuid, SafeUUID

from walbus.values.avro_rows import AvroRows
from walbus.values.types import NUMERIC as NUMERIC_OID, as_decimal

import_datetime()

cdef extern from "Python.h":
    int PyObject_GenericSetAttr(object, object, object) except -1

cdef enum:
    DECIMAL = 64  # beside the codecs: text that stands for a number
    MIN_DAY = -719162  # 0001-01-01
    MAX_DAY = 2932896  # 9999-12-31

cdef object LEFT = object()  # in place of a value that is left to Python
cdef object UNSAFE = SafeUUID.unknown
cdef object NEW_UUID = Uuid.__new__


cdef class RowReader:
    """See `walbus.native.reading.RowReader`."""

    cdef RowForm form
    cdef int *codecs  # those of Python values
    cdef tuple names
    cdef object schema, twin

    def __cinit__(self, schema):
        cdef int i
        self.form = RowForm(schema)
        self.schema = schema
        self.names = tuple([column.name for column in schema.columns])
        self.codecs = <int *>allocated(self.form.width, sizeof(int))
        for i, column in enumerate(schema.columns):
            self.codecs[i] = DECIMAL if column.type_oid == NUMERIC_OID else self.form.codecs[i]

    def __dealloc__(self):
        free(self.codecs)

    def raw(self, bytes payload not None):
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(payload)
        cdef Bytes end = at + len(payload)
        cdef list row = PyList_New(self.form.width)
        cdef int i
        for i in range(self.form.width):
            value = read_nullable(&at, end, self.form.codecs[i], False)
            if value is LEFT:
                return self.left().raw(payload)
            Py_INCREF(value)
            PyList_SET_ITEM(row, i, value)
        return row if at == end else self.left().raw(payload)

    def python(self, bytes payload not None):
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(payload)
        cdef Bytes end = at + len(payload)
        cdef dict row = {}
        cdef int i
        for i in range(self.form.width):
            value = read_nullable(&at, end, self.codecs[i], True)
            if value is LEFT:
                return self.left().python(payload)
            PyDict_SetItem(row, <object>self.names[i], value)
        if at != end:
            return self.left().python(payload)
        PyObject_GC_UnTrack(row)  # of values alone; whoever puts more into it has it tracked again
        return row

    cdef object left(self):
        if self.twin is None:
            self.twin = AvroRows(self.schema)
        return self.twin


cdef object read_nullable(Bytes *at, Bytes end, int codec, bint python):
    """The value of one column, and `at` behind it."""
    cdef unsigned char branch
    if at[0] == end:
        return LEFT
    branch = at[0][0]
    at[0] += 1
    if branch == BRANCH_NULL:
        return None
    if branch == BRANCH_NATIVE:
        return read_array(at, end, codec & ~ARRAY, python) if codec & ARRAY else read_scalar(at, end, codec, python)
    if branch != BRANCH_TEXT or codec == TEXT or codec == UUID or codec == DECIMAL:
        return LEFT
    return read_text(at, end)


cdef object read_scalar(Bytes *at, Bytes end, int codec, bint python):
    cdef int64_t number
    if codec == TEXT or (codec == UUID and not python):
        return read_text(at, end)
    if codec == INT or codec == LONG:
        return number if takes_long(at, end, &number) else LEFT
    if codec == DECIMAL:
        return read_decimal(at, end)
    if codec == BOOL:
        return read_bool(at, end)
    if codec == FLOAT8:
        return read_double(at, end)
    if codec == FLOAT4:
        return read_float(at, end)
    if codec == BYTEA:
        return read_bytes(at, end)
    if codec == UUID:
        return read_uuid(at, end)
    if not takes_long(at, end, &number):
        return LEFT
    if not python:
        return number
    if codec == DATE:
        return date_of(number)
    if codec == TIME:
        return time_of(number)
    return timestamp_of(number, UTC_ZONE if codec == TIMESTAMPTZ else None)


cdef inline bint takes_long(Bytes *at, Bytes end, int64_t *number) noexcept:
    at[0] = read_long(at[0], end, number)
    return at[0] != NULL


cdef inline object read_text(Bytes *at, Bytes end):
    cdef size_t length
    cdef Bytes text = read_span(at[0], end, &length)
    if text == NULL:
        return LEFT
    at[0] = text + length
    try:
        return PyUnicode_DecodeUTF8(<const char *>text, <Py_ssize_t>length, NULL)
    except UnicodeDecodeError:
        return LEFT


cdef object read_decimal(Bytes *at, Bytes end):
    text = read_text(at, end)
    if text is LEFT:
        return LEFT
    try:
        return Decimal(text)
    except ArithmeticError:
        return as_decimal(text)


cdef inline object read_bool(Bytes *at, Bytes end):
    if at[0] == end or at[0][0] > 1:
        return LEFT
    at[0] += 1
    return (at[0] - 1)[0] == 1


cdef inline object read_double(Bytes *at, Bytes end):
    cdef double number
    if end - at[0] < <Py_ssize_t>sizeof(double):
        return LEFT
    from_little(&number, at[0], sizeof(double))
    at[0] += sizeof(double)
    return PyFloat_FromDouble(number)


cdef inline object read_float(Bytes *at, Bytes end):
    cdef float number
    if end - at[0] < <Py_ssize_t>sizeof(float):
        return LEFT
    from_little(&number, at[0], sizeof(float))
    at[0] += sizeof(float)
    return PyFloat_FromDouble(number)


cdef inline void from_little(void *number, Bytes at, size_t size) noexcept:
    cdef size_t i
    for i in range(size):
        (<unsigned char *>number)[size - 1 - i if BIG_ENDIAN else i] = at[i]


cdef inline object read_bytes(Bytes *at, Bytes end):
    cdef size_t length
    cdef Bytes data = read_span(at[0], end, &length)
    if data == NULL:
        return LEFT
    at[0] = data + length
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>length)


cdef object read_uuid(Bytes *at, Bytes end):
    cdef size_t length, i
    cdef uint64_t high = 0, low = 0
    cdef Bytes text = read_span(at[0], end, &length)
    if text == NULL or not is_uuid(text, length):
        return LEFT
    at[0] = text + length
    for i in range(36):
        if text[i] != c"-":
            if i < 18:
                high = high << 4 | <uint64_t>hex_digit(text[i])
            else:
                low = low << 4 | <uint64_t>hex_digit(text[i])
    made = NEW_UUID(Uuid)
    PyObject_GenericSetAttr(made, "int", (<object>high) << 64 | low)
    PyObject_GenericSetAttr(made, "is_safe", UNSAFE)
    PyObject_GC_UnTrack(made)
    return made


cdef object read_array(Bytes *at, Bytes end, int codec, bint python):
    """An array's items, whose union has no branch for texts."""
    cdef int64_t count
    cdef list items = []
    while True:
        if not takes_long(at, end, &count) or count < 0:
            return LEFT
        if count == 0:
            return items
        while count:
            if at[0] == end or at[0][0] == BRANCH_TEXT:
                return LEFT
            item = read_nullable(at, end, codec, python)
            if item is LEFT:
                return LEFT
            items.append(item)
            count -= 1


cdef void civil(int64_t days, int *year, int *month, int *day) noexcept:
    """The date of a Unix day, of the years 1 to 9999."""
    # Years that begin in March end with the leap day; an era is 400 of them.
    cdef int64_t shifted = days + 719468
    cdef int64_t era = shifted // 146097
    cdef int64_t of_era = shifted - era * 146097
    cdef int64_t years = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    cdef int64_t of_year = of_era - (365 * years + years // 4 - years // 100)
    cdef int64_t months = (5 * of_year + 2) // 153
    day[0] = <int>(of_year - (153 * months + 2) // 5 + 1)
    month[0] = <int>(months + 3 if months < 10 else months - 9)
    year[0] = <int>(years + era * 400 + (month[0] <= 2))


cdef object date_of(int64_t days):
    cdef int year, month, day
    if not MIN_DAY <= days <= MAX_DAY:
        return LEFT
    civil(days, &year, &month, &day)
    return date_new(year, month, day)


cdef object time_of(int64_t micros):
    cdef int seconds
    if not 0 <= micros < DAY:
        return LEFT
    seconds = <int>(micros // SECOND)
    return time_new(seconds // 3600, seconds // 60 % 60, seconds % 60, <int>(micros % SECOND), None)


cdef object timestamp_of(int64_t micros, object zone):
    cdef int64_t days = micros // DAY
    cdef int64_t rest = micros % DAY
    cdef int year, month, day, seconds
    if rest < 0:  # C divides towards zero
        days, rest = days - 1, rest + DAY
    if not MIN_DAY <= days <= MAX_DAY:
        return LEFT
    civil(days, &year, &month, &day)
    seconds = <int>(rest // SECOND)
    return datetime_new(year, month, day, seconds // 3600, seconds // 60 % 60, seconds % 60, <int>(rest % SECOND), zone)
