# Canonical text to Avro: `walbus.values.from_text` for the values that come by the million.
#
# Each function appends branch 1 of the column's union and says 1, or appends nothing and says 0 where the text is not
# one that it knows: outside the native range, spelt in a way that PostgreSQL does not use, or rare (NaN, arrays with
# quotes, text that is not UTF-8). Then the encoder in Python decides, so what a value is has one definition.

cdef enum Codec:
    TEXT
    BOOL
    INT
    LONG
    FLOAT4
    FLOAT8
    BYTEA
    UUID
    DATE
    TIME
    TIMESTAMP
    TIMESTAMPTZ
    ARRAY = 0x80  # a flag over the item's codec

CODECS = {
    16: BOOL, 17: BYTEA, 20: LONG, 21: INT, 23: INT, 26: LONG, 700: FLOAT4, 701: FLOAT8, 1082: DATE, 1083: TIME,
    1114: TIMESTAMP, 1184: TIMESTAMPTZ, 2950: UUID,
}
CODECS.update({
    1000: ARRAY | BOOL, 1001: ARRAY | BYTEA, 1003: ARRAY | TEXT, 1016: ARRAY | LONG, 1005: ARRAY | INT,
    1007: ARRAY | INT, 1009: ARRAY | TEXT, 1028: ARRAY | LONG, 1021: ARRAY | FLOAT4, 1022: ARRAY | FLOAT8,
    1014: ARRAY | TEXT, 1015: ARRAY | TEXT, 1182: ARRAY | DATE, 1183: ARRAY | TIME, 1115: ARRAY | TIMESTAMP,
    1185: ARRAY | TIMESTAMPTZ,
    2951: ARRAY | UUID,
})  # types that are not here are carried as their text

cdef enum:
    NATIVE = 2          # the byte that stands for branch 1
    LONGEST_VARINT = 10
    LONGEST_NUMBER = 64  # no float that PostgreSQL prints is as long

cdef uint64_t ASCII = 0x8080808080808080  # the bits that are clear in eight bytes of ASCII


cdef int write_value(Buffer *out, int codec, Bytes text, size_t length) except -1:
    if codec == TEXT:
        return write_string(out, text, length)
    elif codec == INT or codec == LONG:
        return write_integer(out, codec, text, length)
    elif codec == TIMESTAMP or codec == TIMESTAMPTZ:
        return write_timestamp(out, codec, text, length)
    elif codec == BOOL:
        return write_bool(out, text, length)
    elif codec == FLOAT4 or codec == FLOAT8:
        return write_float(out, codec, text, length)
    elif codec == UUID:
        return write_text(out, text, length) if is_uuid(text, length) else 0
    elif codec == DATE:
        return write_date(out, text, length)
    elif codec == TIME:
        return write_time(out, text, length)
    elif codec == BYTEA:
        return write_bytea(out, text, length)
    return write_array(out, codec & ~ARRAY, text, length)


cdef inline size_t put_varint(unsigned char *at, uint64_t value) noexcept:
    cdef size_t length = 0
    while value > 0x7F:
        at[length] = (value & 0x7F) | 0x80
        value >>= 7
        length += 1
    at[length] = <unsigned char>value
    return length + 1


cdef inline uint64_t zigzag(int64_t value) noexcept:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline int write_long(Buffer *out, int64_t value) except -1:
    cdef unsigned char *at = reserve(out, 1 + LONGEST_VARINT)
    at[0] = NATIVE
    out.size += 1 + put_varint(at + 1, zigzag(value))
    return 1


cdef inline int write_text(Buffer *out, Bytes text, size_t length) except -1:
    cdef unsigned char *at = reserve(out, 1 + LONGEST_VARINT + length)
    cdef size_t head
    at[0] = NATIVE
    head = 1 + put_varint(at + 1, <uint64_t>length << 1)
    memcpy(at + head, text, length)
    out.size += head + length
    return 1


cdef inline int write_string(Buffer *out, Bytes text, size_t length) except -1:
    return write_text(out, text, length) if is_utf8(text, length) else 0


cdef bint is_utf8(Bytes at, size_t length) noexcept:
    cdef Bytes end = at + length
    cdef int more
    while at < end:
        if end - at >= 8 and read_little_64(at) & ASCII == 0:
            at += 8
            continue
        more = continuations(at, end)
        if more < 0:
            return False
        at += 1 + more
    return True


cdef inline int continuations(Bytes at, Bytes end) noexcept:
    """How many bytes follow the first one of a character; -1 if it is none: too long, a surrogate, beyond Unicode."""
    cdef unsigned char lead = at[0], low = 0x80, high = 0xBF
    cdef int count, i
    if lead < 0x80:
        return 0
    if lead < 0xC2 or lead > 0xF4:
        return -1
    count = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
    if end - at <= count:
        return -1
    if lead == 0xE0:
        low = 0xA0
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF4:
        high = 0x8F
    if not low <= at[1] <= high:
        return -1
    for i in range(2, count + 1):
        if not 0x80 <= at[i] <= 0xBF:
            return -1
    return count


cdef inline int write_bool(Buffer *out, Bytes text, size_t length) except -1:
    cdef unsigned char *at
    if length != 1 or (text[0] != c"t" and text[0] != c"f"):
        return 0
    at = reserve(out, 2)
    at[0], at[1] = NATIVE, text[0] == c"t"
    out.size += 2
    return 1


cdef bint parse_integer(Bytes text, size_t length, int64_t *value) noexcept:
    """Whether the text is an integer of 64 bits as PostgreSQL prints it: no plus, no leading zero, no minus zero."""
    cdef uint64_t size = 0
    cdef bint negative = length > 0 and text[0] == c"-"
    cdef size_t i
    if length < 1 + <size_t>negative or length > 19 + <size_t>negative:
        return False
    if text[negative] == c"0":
        value[0] = 0
        return length == 1
    for i in range(<size_t>negative, length):
        if not c"0" <= text[i] <= c"9":
            return False
        size = size * 10 + (text[i] - c"0")
    if size > (<uint64_t>1 << 63) - (not negative):
        return False
    value[0] = <int64_t>(0 - size) if negative else <int64_t>size
    return True


cdef inline int write_integer(Buffer *out, int codec, Bytes text, size_t length) except -1:
    cdef int64_t value
    if not parse_integer(text, length, &value):
        return 0
    if codec == INT and not INT32_MIN <= value <= INT32_MAX:
        return 0
    return write_long(out, value)


# Floats.

cdef int write_float(Buffer *out, int codec, Bytes text, size_t length) except -1:
    cdef double value
    cdef float single
    cdef uint64_t bits
    if not parse_double(text, length, &value):
        return 0
    if codec == FLOAT8:
        return write_raw(out, &value, sizeof(double))
    single = <float>value
    memcpy(&bits, &value, sizeof(double))
    # A double midway between two floats may come from a text that is not midway: rounding it again could go wrong.
    if isinf(single) or (single != value and bits & 0x0FFFFFFF == 0):
        return 0
    return write_raw(out, &single, sizeof(float))


cdef bint parse_double(Bytes text, size_t length, double *value):
    """Whether the text is a finite number in the digits that PostgreSQL uses."""
    cdef char copy[LONGEST_NUMBER]
    cdef char *end
    cdef size_t i
    if length == 0 or length >= LONGEST_NUMBER:
        return False
    for i in range(length):
        if not (c"0" <= text[i] <= c"9" or text[i] in (c"-", c".", c"e", c"+")):
            return False
        copy[i] = text[i]
    copy[length] = 0
    try:
        value[0] = PyOS_string_to_double(copy, &end, NULL)
    except ValueError:
        return False
    return end == copy + length and isfinite(value[0])


cdef inline int write_raw(Buffer *out, const void *number, size_t size) except -1:
    """Branch 1 and the bytes of a number, which Avro has in little-endian order."""
    cdef unsigned char *at = reserve(out, 1 + size)
    cdef size_t i
    at[0] = NATIVE
    for i in range(size):
        at[1 + i] = (<Bytes>number)[size - 1 - i if BIG_ENDIAN else i]
    out.size += 1 + size
    return 1


# Bytes and UUIDs.

cdef inline int hex_digit(unsigned char digit) noexcept:
    if c"0" <= digit <= c"9":
        return digit - c"0"
    return digit - c"a" + 10 if c"a" <= digit <= c"f" else -1


cdef int write_bytea(Buffer *out, Bytes text, size_t length) except -1:
    cdef size_t size, head, i
    cdef int high, low
    cdef unsigned char *at
    if length < 2 or length % 2 or text[0] != c"\\" or text[1] != c"x":
        return 0
    size = length // 2 - 1
    at = reserve(out, 1 + LONGEST_VARINT + size)
    at[0] = NATIVE
    head = 1 + put_varint(at + 1, <uint64_t>size << 1)
    for i in range(size):
        high, low = hex_digit(text[2 + 2 * i]), hex_digit(text[3 + 2 * i])
        if high < 0 or low < 0:
            return 0
        at[head + i] = <unsigned char>(high << 4 | low)
    out.size += head + size
    return 1


cdef bint is_uuid(Bytes text, size_t length) noexcept:
    cdef size_t i
    if length != 36:
        return False
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if text[i] != c"-":
                return False
        elif hex_digit(text[i]) < 0:
            return False
    return True


# Arrays of one dimension whose items need no quotes.

cdef int write_array(Buffer *out, int codec, Bytes text, size_t length) except -1:
    cdef size_t begin = out.size
    cdef int64_t count
    if length < 2 or text[0] != c"{" or text[length - 1] != c"}":
        return 0
    count = count_items(text + 1, length - 2)
    if count < 0:
        return 0
    write_long(out, count)
    if count and not write_items(out, codec, text + 1, length - 2):
        out.size = begin
        return 0
    if count:
        reserve(out, 1)[0] = 0
        out.size += 1
    return 1


cdef int64_t count_items(Bytes text, size_t length) noexcept:
    """How many items stand between the braces; -1 if any is quoted, nested, empty or misspelt."""
    cdef int64_t count = 1
    cdef size_t i, begin = 0
    if length == 0:
        return 0
    for i in range(length):
        if text[i] == c",":
            if i == begin:
                return -1
            begin = i + 1
            count += 1
        elif text[i] in (c"{", c"}", c'"', c"\\", c" ") or 9 <= text[i] <= 13:
            return -1
    return count if begin < length else -1


cdef int write_items(Buffer *out, int codec, Bytes text, size_t length) except -1:
    cdef size_t i, begin = 0
    for i in range(length + 1):
        if i < length and text[i] != c",":
            continue
        if is_null_word(text + begin, i - begin):
            if memcmp(text + begin, b"NULL", 4) != 0:
                return 0
            reserve(out, 1)[0] = 0
            out.size += 1
        elif not write_value(out, codec, text + begin, i - begin):
            return 0
        begin = i + 1
    return 1


cdef inline bint is_null_word(Bytes text, size_t length) noexcept:
    """Whether it spells NULL in any case."""
    if length != 4:
        return False
    return (text[0] | 32) == c"n" and (text[1] | 32) == c"u" and (text[2] | 32) == c"l" and (text[3] | 32) == c"l"
