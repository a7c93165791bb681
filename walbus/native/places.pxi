# Places in the stream, as they are compared, and transaction ids made 64 bits.

cdef struct Place:
    uint32_t epoch  # of a change: `walbus.position.Position`
    uint32_t ordinal
    uint64_t lsn


cdef bint is_behind(Place *place, uint32_t epoch, uint64_t commit_lsn) noexcept:
    """Whether a commit lies behind a place; one at a place without any change does."""
    if place.epoch != epoch:
        return place.epoch < epoch
    return commit_lsn > place.lsn or (commit_lsn == place.lsn and place.ordinal == 0)


cdef void move_to(Place *place, uint32_t epoch, uint64_t lsn, uint32_t ordinal) noexcept:
    """Moves a place, never back."""
    if epoch < place.epoch or (epoch == place.epoch and lsn < place.lsn):
        return
    if epoch == place.epoch and lsn == place.lsn and ordinal <= place.ordinal:
        return
    place.epoch, place.lsn, place.ordinal = epoch, lsn, ordinal


cdef uint64_t widened(uint32_t xid, uint64_t near_xid) noexcept:
    """As `walbus.capture.xids.widen_xid`."""
    cdef int64_t turn = <int64_t>1 << 32
    cdef int64_t near = <int64_t>near_xid
    cdef int64_t candidate = near - near % turn + xid
    if candidate - near > turn // 2 and candidate >= turn:
        return candidate - turn
    return candidate + turn if near - candidate > turn // 2 else candidate
