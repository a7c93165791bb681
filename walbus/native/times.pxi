# Dates and times in PostgreSQL's text, as the numbers that Avro has of them: as `values.pxi` promises.

cdef int64_t SECOND = 1000000
cdef int64_t DAY = 86400 * SECOND


cdef inline int digits_2(Bytes text) noexcept:
    """Two digits, or a number below zero."""
    if not (c"0" <= text[0] <= c"9" and c"0" <= text[1] <= c"9"):
        return -10000
    return (text[0] - c"0") * 10 + (text[1] - c"0")


cdef int days_in(int year, int month) noexcept:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef bint parse_date(Bytes text, int64_t *days) noexcept:
    """Unix days of ten characters `YYYY-MM-DD`, of the years 1 to 9999."""
    cdef int year = digits_2(text) * 100 + digits_2(text + 2)
    cdef int month = digits_2(text + 5)
    cdef int day = digits_2(text + 8)
    cdef int64_t march_year, march_month
    if text[4] != c"-" or text[7] != c"-" or year < 1 or not 1 <= month <= 12 or not 1 <= day <= days_in(year, month):
        return False
    # Years that begin in March end with the leap day, so the days before a month are the same in each.
    march_year = year - (month <= 2)
    march_month = (month + 9) % 12
    days[0] = (
        march_year * 365 + march_year // 4 - march_year // 100 + march_year // 400
        + (153 * march_month + 2) // 5 + day - 719469
    )
    return True


cdef bint parse_time(Bytes text, size_t length, int64_t *micros) noexcept:
    """Microseconds of `HH:MM:SS[.ffffff]` below 24:00; the fraction has one to six digits and no zero at its end."""
    cdef int hour, minute, second
    cdef int64_t fraction = 0, unit = SECOND
    cdef size_t i
    if length < 8 or length == 9 or length > 15 or text[2] != c":" or text[5] != c":":
        return False
    hour, minute, second = digits_2(text), digits_2(text + 3), digits_2(text + 6)
    if not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second < 60):
        return False
    if length > 8 and (text[8] != c"." or text[length - 1] == c"0"):
        return False
    for i in range(9, length):
        if not c"0" <= text[i] <= c"9":
            return False
        unit //= 10
        fraction += (text[i] - c"0") * unit
    micros[0] = (<int64_t>hour * 3600 + minute * 60 + second) * SECOND + fraction
    return True


cdef inline int write_date(Buffer *out, Bytes text, size_t length) except -1:
    cdef int64_t days
    return write_long(out, days) if length == 10 and parse_date(text, &days) else 0


cdef inline int write_time(Buffer *out, Bytes text, size_t length) except -1:
    cdef int64_t micros
    return write_long(out, micros) if parse_time(text, length, &micros) else 0


cdef inline int write_timestamp(Buffer *out, int codec, Bytes text, size_t length) except -1:
    cdef int64_t days, micros
    if codec == TIMESTAMPTZ:
        if length < 3 or memcmp(text + length - 3, b"+00", 3) != 0:
            return 0
        length -= 3
    if length < 19 or text[10] != c" " or not parse_date(text, &days):
        return 0
    if not parse_time(text + 11, length - 11, &micros):
        return 0
    return write_long(out, days * DAY + micros)
