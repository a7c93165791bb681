# Bytes in memory: numbers of both endiannesses, a buffer that grows, and CRC32C.
#
# Everything that is read has been checked against an end before; everything that is written has been reserved before.

ctypedef const unsigned char *Bytes


cdef struct Buffer:
    unsigned char *data
    size_t size
    size_t room


cdef enum:
    SMALL_BUFFER = 1 << 20  # below it a buffer doubles, above it grows by a quarter, so that huge rows cost little more
    KEPT_BUFFER = 4 << 20   # an emptied buffer that is larger is given back


cdef int grow(Buffer *buffer, size_t more) except -1:
    cdef size_t needed = buffer.size + more
    cdef size_t room = max(buffer.room, <size_t>4096)
    cdef unsigned char *data
    while room < needed:
        room += room if room < SMALL_BUFFER else room // 4
    data = <unsigned char *>realloc(buffer.data, room)
    if data == NULL:
        raise MemoryError
    buffer.data, buffer.room = data, room
    return 0


cdef inline unsigned char *reserve(Buffer *buffer, size_t more) except NULL:
    """Where the next bytes go; at least so many may be written there, and `size` moved behind them."""
    if buffer.room - buffer.size < more:
        grow(buffer, more)
    return buffer.data + buffer.size


cdef inline int append(Buffer *buffer, Bytes data, size_t length) except -1:
    memcpy(reserve(buffer, length + 1), data, length)
    buffer.size += length
    return 0


cdef bytes emptied(Buffer *buffer):
    """The content as bytes; the buffer is empty then."""
    cdef bytes content = PyBytes_FromStringAndSize(<char *>buffer.data, <Py_ssize_t>buffer.size)
    buffer.size = 0
    if buffer.room > KEPT_BUFFER:
        free(buffer.data)
        buffer.data, buffer.room = NULL, 0
    return content


cdef inline uint16_t read_16(Bytes at) noexcept:
    return <uint16_t>((at[0] << 8) | at[1])


cdef inline uint32_t read_32(Bytes at) noexcept:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef inline uint64_t read_64(Bytes at) noexcept:
    return (<uint64_t>read_32(at) << 32) | read_32(at + 4)


cdef inline void write_16(unsigned char *at, uint32_t value) noexcept:
    at[0], at[1] = value & 0xFF, (value >> 8) & 0xFF


cdef inline void write_32(unsigned char *at, uint32_t value) noexcept:
    write_16(at, value & 0xFFFF)
    write_16(at + 2, value >> 16)


cdef inline void write_64(unsigned char *at, uint64_t value) noexcept:
    write_32(at, <uint32_t>value)  # a mask of 32 bits would be a Python integer
    write_32(at + 4, <uint32_t>(value >> 32))


cdef inline void write_64_big(unsigned char *at, uint64_t value) noexcept:
    cdef int i
    for i in range(8):
        at[i] = (value >> (56 - 8 * i)) & 0xFF


cdef inline uint32_t read_little_32(Bytes at) noexcept nogil:
    return at[0] | (<uint32_t>at[1] << 8) | (<uint32_t>at[2] << 16) | (<uint32_t>at[3] << 24)


cdef inline uint64_t read_little_64(Bytes at) noexcept nogil:
    return read_little_32(at) | (<uint64_t>read_little_32(at + 4) << 32)


# CRC32C by the processor's instruction where it has one, and by eight tables ("slicing by 8") elsewhere: a key or a
# record is too short for a call of the checksum library to pay.

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__) && defined(__GNUC__)
    #define WALBUS_CRC __attribute__((target("sse4.2"))) static
    #define walbus_crc_64 __builtin_ia32_crc32di
    #define walbus_crc_32 __builtin_ia32_crc32si
    #define walbus_crc_8 __builtin_ia32_crc32qi
    static int has_crc32c_instruction(void) { __builtin_cpu_init(); return __builtin_cpu_supports("sse4.2") != 0; }
    #elif defined(__AARCH64EL__) && defined(__ARM_FEATURE_CRC32)
    #include <arm_acle.h>
    #define WALBUS_CRC static
    #define walbus_crc_64 __crc32cd
    #define walbus_crc_32 __crc32cw
    #define walbus_crc_8 __crc32cb
    static int has_crc32c_instruction(void) { return 1; }
    #endif
    #if defined(WALBUS_CRC)
    /* Goes on with a checksum that was begun. */
    WALBUS_CRC uint32_t crc32c_end(uint64_t crc, const unsigned char *at, size_t length) {
        uint64_t word;
        uint32_t half;
        for (; length >= 8; at += 8, length -= 8) {
            memcpy(&word, at, 8);
            crc = walbus_crc_64(crc, word);
        }
        if (length >= 4) {
            memcpy(&half, at, 4);
            crc = walbus_crc_32((uint32_t)crc, half);
            at += 4, length -= 4;
        }
        for (; length; at++, length--) crc = walbus_crc_8((uint32_t)crc, *at);
        return (uint32_t)crc ^ 0xFFFFFFFFu;
    }
    static uint32_t crc32c_instruction(const unsigned char *at, size_t length) {
        return crc32c_end(0xFFFFFFFFu, at, length);
    }
    /* Four side by side: the instruction's result is there three cycles later, and a next one can begin in each. */
    WALBUS_CRC void crc32c_four(const unsigned char **at, const size_t *length, uint32_t *crc) {
        uint64_t a = 0xFFFFFFFFu, b = a, c = a, d = a, word;
        size_t i, least = length[0];
        for (i = 1; i < 4; i++) if (length[i] < least) least = length[i];
        for (i = 0; i + 8 <= least; i += 8) {
            memcpy(&word, at[0] + i, 8);
            a = walbus_crc_64(a, word);
            memcpy(&word, at[1] + i, 8);
            b = walbus_crc_64(b, word);
            memcpy(&word, at[2] + i, 8);
            c = walbus_crc_64(c, word);
            memcpy(&word, at[3] + i, 8);
            d = walbus_crc_64(d, word);
        }
        crc[0] = crc32c_end(a, at[0] + i, length[0] - i);
        crc[1] = crc32c_end(b, at[1] + i, length[1] - i);
        crc[2] = crc32c_end(c, at[2] + i, length[2] - i);
        crc[3] = crc32c_end(d, at[3] + i, length[3] - i);
    }
    #else
    static uint32_t crc32c_instruction(const unsigned char *at, size_t length) { (void)at; (void)length; return 0; }
    static void crc32c_four(const unsigned char **at, const size_t *length, uint32_t *crc) {
        (void)at; (void)length; (void)crc;
    }
    static int has_crc32c_instruction(void) { return 0; }
    #endif
    """
    uint32_t crc32c_instruction(Bytes at, size_t length) noexcept nogil
    void crc32c_four(Bytes *at, const size_t *length, uint32_t *crc) noexcept nogil
    int has_crc32c_instruction() noexcept

cdef bint CRC_INSTRUCTION = has_crc32c_instruction()

cdef uint32_t CRC[8][256]


cdef void fill_crc_tables() noexcept:
    cdef uint32_t value, byte
    cdef int i
    for byte in range(256):
        value = byte
        for i in range(8):
            value = (value >> 1) ^ (<uint32_t>0x82F63B78 if value & 1 else 0)
        CRC[0][byte] = value
    for byte in range(256):
        for i in range(1, 8):
            CRC[i][byte] = (CRC[i - 1][byte] >> 8) ^ CRC[0][CRC[i - 1][byte] & 0xFF]


fill_crc_tables()


cdef uint32_t crc32c(Bytes at, size_t length) noexcept nogil:
    if CRC_INSTRUCTION:
        return crc32c_instruction(at, length)
    return crc32c_tables(at, length)


cdef uint32_t crc32c_tables(Bytes at, size_t length) noexcept nogil:
    cdef uint32_t low, high, crc = 0xFFFFFFFF
    while length >= 8:
        low = crc ^ read_little_32(at)
        high = read_little_32(at + 4)
        crc = (
            CRC[7][low & 0xFF] ^ CRC[6][(low >> 8) & 0xFF] ^ CRC[5][(low >> 16) & 0xFF] ^ CRC[4][low >> 24]
            ^ CRC[3][high & 0xFF] ^ CRC[2][(high >> 8) & 0xFF] ^ CRC[1][(high >> 16) & 0xFF] ^ CRC[0][high >> 24]
        )
        at += 8
        length -= 8
    while length:
        crc = (crc >> 8) ^ CRC[0][(crc ^ at[0]) & 0xFF]
        at += 1
        length -= 1
    return crc ^ <uint32_t>0xFFFFFFFF
