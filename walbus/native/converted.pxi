# Rows as other systems want their values: `pure_converted.py`, in C.
#
# The functions of `walbus.values.to_text` that come by the million are known here, by what they are; any other is called.
# What they are not made for (a year that has five digits) leaves the whole row to the twin in Python.

from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeASCII

from walbus.native.pure_converted import ConvertedRows as PureConvertedRows
from walbus.values import to_text
from walbus.values.types import finite

cdef enum Printed:
    CALLED
    PRINTED_INTEGER
    PRINTED_BOOL
    PRINTED_DATE
    PRINTED_TIME
    PRINTED_TIMESTAMP
    PRINTED_TIMESTAMPTZ
    PRINTED_ISO
    FINITE_DOUBLE

PRINTED = {
    (INT, str): PRINTED_INTEGER, (LONG, str): PRINTED_INTEGER, (BOOL, to_text.bool_text): PRINTED_BOOL,
    (DATE, to_text.date_text): PRINTED_DATE, (TIME, to_text.time_text): PRINTED_TIME,
    (TIMESTAMP, to_text.timestamp_text): PRINTED_TIMESTAMP, (TIMESTAMPTZ, to_text.timestamptz_text): PRINTED_TIMESTAMPTZ,
    (TIMESTAMPTZ, to_text.timestamptz_iso): PRINTED_ISO, (FLOAT8, finite): FINITE_DOUBLE,
}

cdef enum:
    PUT_OP = 0  # where a RawChange has its parts
    PUT_KEY = 7
    PUT_OLD_KEY = 8
    PUT_UNCHANGED = 9
    PUT_AFTER = 10


cdef class ConvertedRows:
    """See `walbus.native.reading.ConvertedRows`."""

    cdef RowForm form
    cdef int *printed
    cdef list functions
    cdef object schema, twin

    def __cinit__(self, schema, functions):
        cdef int i
        self.form = RowForm(schema)
        self.schema, self.functions = schema, list(functions)
        if len(self.functions) != self.form.width:
            raise ValueError(f"{len(self.functions)} functions for {self.form.width} columns")
        self.printed = <int *>allocated(self.form.width, sizeof(int))
        for i in range(self.form.width):
            self.printed[i] = PRINTED.get((self.form.codecs[i], self.functions[i]), CALLED)

    def __dealloc__(self):
        free(self.printed)

    def values(self, bytes payload not None):
        row = self.read(payload, 0)
        return self.left().values(payload) if row is None else list(row)

    def whole_puts(self, changes not None, Py_ssize_t at, behind):
        cdef list rows = []
        cdef object layout = changes[at].schema
        cdef tuple row
        for i in range(at, <Py_ssize_t>len(changes)):
            change = changes[i]
            raw = change.raw
            if change.schema is not layout or not is_whole_put(raw):
                break
            payload = (<tuple>raw)[PUT_AFTER]
            row = self.read(payload, 2)
            if row is None:
                row = (*self.left().values(payload), change.seq, behind)
            else:
                put_item(row, self.form.width, change.seq)
                put_item(row, self.form.width + 1, behind)
            rows.append(row)
        return rows

    cdef object left(self):
        if self.twin is None:
            self.twin = PureConvertedRows(self.schema, self.functions)
        return self.twin

    cdef tuple read(self, bytes payload, int more):
        """The values, with room for more behind them; None where the twin must read the row."""
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(payload)
        cdef Bytes end = at + len(payload)
        cdef tuple row = PyTuple_New(self.form.width + more)
        cdef int i
        for i in range(self.form.width):
            value = self.value(&at, end, i)
            if value is LEFT:
                return None
            put_item(row, i, value)
        return row if at == end else None

    cdef object value(self, Bytes *at, Bytes end, int i):
        cdef object function = <object>self.functions[i]
        if function is None or at[0] == end or at[0][0] != BRANCH_NATIVE:
            return read_nullable(at, end, self.form.codecs[i], False)
        if self.printed[i] != CALLED:
            at[0] += 1
            return printed_value(at, end, self.printed[i])
        value = read_nullable(at, end, self.form.codecs[i], False)
        if value is LEFT:
            return LEFT
        try:
            return function(value)
        except Exception:  # the twin raises it, where nothing before it is wrong
            return LEFT


cdef inline void put_item(tuple row, int at, object value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(row, at, value)


cdef inline bint is_whole_put(object change) except -1:
    """Whether a RawChange inserts or updates a whole row under its own key."""
    cdef int op
    cdef tuple raw
    if not isinstance(change, tuple) or len(change) <= PUT_AFTER:
        return False
    raw = <tuple>change
    op = raw[PUT_OP]
    if op != OP_INSERT and op != OP_UPDATE:
        return False
    if raw[PUT_KEY] is None or raw[PUT_OLD_KEY] is not None or raw[PUT_AFTER] is None:
        return False
    return not raw[PUT_UNCHANGED]


cdef object printed_value(Bytes *at, Bytes end, int printed):
    cdef int64_t number
    if printed == FINITE_DOUBLE:
        value = read_double(at, end)
        return value if value is not LEFT and isfinite(<double>value) else LEFT
    if printed == PRINTED_BOOL:
        value = read_bool(at, end)
        return LEFT if value is LEFT else "t" if value else "f"
    if not takes_long(at, end, &number):
        return LEFT
    if printed == PRINTED_INTEGER:
        return str(number)
    if printed == PRINTED_DATE:
        return printed_time(number * DAY, b"") if MIN_DAY <= number <= MAX_DAY else LEFT
    if printed == PRINTED_TIME:
        return printed_clock(number) if 0 <= number < DAY else LEFT
    if printed == PRINTED_ISO:
        return printed_time(number, b"TZ")
    return printed_time(number, b" +00" if printed == PRINTED_TIMESTAMPTZ else b" ")


cdef inline char *put_digits(char *at, int number, int count) noexcept:
    cdef int i
    for i in range(count - 1, -1, -1):
        at[i] = <char>(c"0" + number % 10)
        number //= 10
    return at + count


cdef char *put_clock(char *at, int64_t micros) noexcept:
    """`HH:MM:SS[.ffffff]` without zeros at its end."""
    cdef int seconds = <int>(micros // SECOND)
    cdef int fraction = <int>(micros % SECOND)
    at = put_digits(at, seconds // 3600, 2)
    at[0] = c":"
    at = put_digits(at + 1, seconds // 60 % 60, 2)
    at[0] = c":"
    at = put_digits(at + 1, seconds % 60, 2)
    if fraction:
        at[0] = c"."
        at = put_digits(at + 1, fraction, 6)
        while (at - 1)[0] == c"0":
            at -= 1
    return at


cdef object printed_clock(int64_t micros):
    cdef char text[16]
    return PyUnicode_DecodeASCII(text, put_clock(text, micros) - text, NULL)


cdef object printed_time(int64_t micros, const char *marks):
    """`YYYY-MM-DD`, and if there are marks the first one, the time, and the others; of the years 1 to 9999."""
    cdef char text[40]
    cdef char *at = text
    cdef int64_t days = micros // DAY
    cdef int64_t rest = micros % DAY
    cdef int year, month, day
    if rest < 0:  # C divides towards zero
        days, rest = days - 1, rest + DAY
    if not MIN_DAY <= days <= MAX_DAY:
        return LEFT
    civil(days, &year, &month, &day)
    at = put_digits(at, year, 4)
    at[0] = c"-"
    at = put_digits(at + 1, month, 2)
    at[0] = c"-"
    at = put_digits(at + 1, day, 2)
    if marks[0]:
        at[0] = marks[0]
        at = put_clock(at + 1, rest)
        marks += 1
        while marks[0]:
            at[0] = marks[0]
            at, marks = at + 1, marks + 1
    return PyUnicode_DecodeASCII(text, at - text, NULL)
