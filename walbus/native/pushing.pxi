# Records read, checked and sent to a peer out of the same cache: for streams that send a log's own bytes.
#
# The one part of the core that knows files and sockets. No Python runs between two blocks, and no lock of it is held: see
# `walbus.native.pushing.PushRecords`.

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <stdio.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #if defined(__linux__)
    #define WALBUS_PUSHES 1
    #else
    #define WALBUS_PUSHES 0
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    #endif
    /* Sends three parts, one behind the other. */
    static ssize_t walbus_send(int peer, struct iovec *parts) {
        struct msghdr message = {0};
        message.msg_iov = parts;
        message.msg_iovlen = 3;
        return sendmsg(peer, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    static double walbus_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    }
    /* Whether a peer takes more; waits for it for as long as `patience` says, and takes off what that took. */
    static int walbus_wait(int peer, double *patience) {
        struct pollfd polled = {peer, POLLOUT, 0};
        double begun = walbus_now();
        struct timespec most;
        int ready;
        if (*patience <= 0) return 0;
    #if defined(__linux__)
        most.tv_sec = (time_t)*patience;
        most.tv_nsec = (long)((*patience - (double)most.tv_sec) * 1e9);
        ready = ppoll(&polled, 1, &most, NULL);
    #else
        (void)most;
        ready = poll(&polled, 1, (int)(*patience * 1e3));
    #endif
        *patience -= walbus_now() - begun;
        return ready > 0 || (ready < 0 && errno == EINTR);
    }
    """
    const bint WALBUS_PUSHES
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t walbus_send(int peer, iovec *parts) noexcept nogil
    ssize_t c_pread "pread"(int file, void *data, size_t size, int64_t at) noexcept nogil
    int c_snprintf "snprintf"(char *text, size_t size, const char *form, ...) noexcept nogil
    double walbus_now() noexcept nogil
    bint walbus_wait(int peer, double *patience) noexcept nogil

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno

from walbus.native.pushing import STEP_BYTES, Left, PushedRecords

PUSHES = WALBUS_PUSHES  # whether this system has what it takes

cdef enum Halt:
    NOT_YET   # time is up
    NO_MORE   # what comes next cannot be pushed
    FULL      # the peer takes no more
    FAILED    # see `error`

cdef char *CHUNK_END = b"\r\n"
cdef size_t STEP = STEP_BYTES


cdef struct Push:
    int file, peer
    Place furthest
    uint64_t furthest_seq
    unsigned char *scratch
    size_t room
    int64_t at, limit  # of the file's bytes that were not checked yet
    double patience
    int error
    unsigned char last[96]  # the header of the last record; `RECORD_HEADER` bytes
    # The chunk that is sent; what of the file is in it begins the scratch:
    char head[24]
    iovec parts[3]  # what is left to send: head, file's part, end


def push_records(stretch, connection, unsigned char[::1] scratch not None, double seconds, double patience):
    """See `walbus.native.pushing.PushRecords`."""
    cdef Push push
    cdef Halt halt
    cdef double until
    cdef int64_t begin
    push.file, begin, push.limit, (position, push.furthest_seq) = stretch
    push.furthest.epoch, push.furthest.lsn, push.furthest.ordinal = position
    push.peer = -1 if connection is None else connection.fileno()
    push.scratch, push.room = &scratch[0], scratch.shape[0]
    push.at = begin
    push.patience = patience
    if connection is not None and push.peer < 0:
        raise ValueError("the connection is closed")
    with nogil:
        until = walbus_now() + seconds
        halt = push_blocks(&push, until)
    if halt == FAILED:
        errno = push.error
        PyErr_SetFromErrno(OSError)
    left = None
    if halt == FULL:
        left = Left(
            (<char *>push.parts[0].iov_base)[: push.parts[0].iov_len],
            push.at - <int64_t>push.parts[1].iov_len,
            (<char *>push.parts[2].iov_base)[: push.parts[2].iov_len],
        )
    last = (<char *>push.last)[:RECORD_HEADER] if push.at > begin else b""
    return PushedRecords(push.at, last, left, halt == NOT_YET)


cdef Halt push_blocks(Push *push, double until) noexcept nogil:
    cdef Halt halt
    while walbus_now() < until:
        halt = check_block(push)
        if halt == NOT_YET:
            halt = send_chunk(push)
        if halt != NOT_YET:
            return halt
    return NOT_YET


cdef Halt check_block(Push *push) noexcept nogil:
    """Checks the next block, and begins its chunk; NOT_YET if that went well."""
    cdef size_t used = 0, last = 0
    cdef size_t most = min(push.room, <size_t>max(push.limit - push.at, 0)), wanted = min(most, STEP)
    cdef ssize_t size
    if not most:
        return NO_MORE
    while True:
        size = c_pread(push.file, push.scratch, wanted, push.at)
        if size < 0 and errno == EINTR:
            continue
        if size < 0:
            push.error = errno
            return FAILED
        scan_records(push.scratch, size, &used, &last)
        if used or wanted == most:
            break
        wanted = most  # the record may be larger than a step
    if not used or is_beyond(push, push.scratch + last):
        return NO_MORE
    memcpy(push.last, push.scratch + last, RECORD_HEADER)
    push.parts[0].iov_base = push.head
    push.parts[0].iov_len = c_snprintf(push.head, sizeof(push.head), b"%zx\r\n", used)
    push.parts[1].iov_base, push.parts[1].iov_len = push.scratch, used
    push.parts[2].iov_base, push.parts[2].iov_len = CHUNK_END, 2
    push.at += <int64_t>used
    return NOT_YET


cdef bint is_beyond(Push *push, Bytes header) noexcept nogil:
    """Whether a record ends behind what may be sent."""
    cdef uint32_t epoch = read_little_32(header + 12), ordinal = read_little_32(header + 36)
    cdef uint64_t lsn = read_little_64(header + 16)
    if read_little_64(header + 48) > push.furthest_seq:
        return True
    if epoch != push.furthest.epoch:
        return epoch > push.furthest.epoch
    if lsn != push.furthest.lsn:
        return lsn > push.furthest.lsn
    return ordinal > push.furthest.ordinal


cdef Halt send_chunk(Push *push) noexcept nogil:
    """Sends what is left of a chunk; NOT_YET if the peer takes all of it."""
    cdef ssize_t sent
    if push.peer < 0:
        return FULL
    while push.parts[2].iov_len:
        sent = walbus_send(push.peer, push.parts)
        if sent >= 0:
            take_off(push.parts, sent)
        elif errno == EAGAIN:
            if not walbus_wait(push.peer, &push.patience):
                return FULL
        elif errno != EINTR:
            push.error = errno
            return FAILED
    return NOT_YET


cdef void take_off(iovec *parts, size_t size) noexcept nogil:
    """Takes the first bytes off three parts, of which there are as many."""
    cdef size_t part
    cdef int i
    for i in range(3):
        part = min(size, parts[i].iov_len)
        parts[i].iov_base = <char *>parts[i].iov_base + part
        parts[i].iov_len -= part
        size -= part
