"""What protocols 2 to 4 of pgoutput add: bytes in, frozen values out. No state, no I/O.

    2   StreamStart, StreamStop, StreamCommit, StreamAbort      a transaction is sent while it runs, in blocks
    3   BeginPrepare, Prepare, CommitPrepared, RollbackPrepared, StreamPrepare      a transaction is sent at PREPARE
    4   StreamAbort tells LSN and time of the abort, if `streaming` is `parallel`

Between StreamStart and StreamStop, rows, truncates, layouts, types and messages carry the id of their own
(sub)transaction behind the kind byte; an Origin never does. `split_xid` takes it out, and what is left is a message of
protocol 1. Blocks of one transaction may alternate with those of others and with whole transactions, never nest.

A transactional message carries the id of the top-level transaction even if a subtransaction wrote it (measured on 14
to 18), so a StreamAbort does not tell whether it went with the subtransaction.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from walbus.capture.messages import POSTGRES_EPOCH
from walbus.errors import ProtocolError

#: How a message of a transaction waits in the spool: its length, the xid of its (sub)transaction as it was sent; then
#: the message, as protocol 1 has it.
ENTRY = Struct("<I4s")
#: Bytes of the transaction id behind the kind byte of a message in a block.
XID_SIZE = 4

_START = Struct(">IB")
_COMMIT = Struct(">IBQQq")
_ABORT = Struct(">II")
_ABORT_INFO = Struct(">Qq")
_BEGIN_PREPARE = Struct(">QQqI")
_PREPARE = Struct(">BQQqI")
_ROLLBACK_PREPARED = Struct(">BQQqqI")
_XID = Struct(">I")

_BEGIN_BYTES = Struct(">cQqI")
_COMMIT_BYTES = Struct(">cBQQq")


class StreamStart(NamedTuple):
    """A block of an open transaction begins; `first` is set for its first one."""

    xid: int
    first: bool


class StreamStop(NamedTuple):
    """The block ends."""


class StreamCommit(NamedTuple):
    """A streamed transaction committed; `end_lsn` is where its commit record ends. The time is in Unix microseconds."""

    xid: int
    commit_lsn: int
    end_lsn: int
    commit_time: int


class StreamAbort(NamedTuple):
    """A streamed transaction, or a subtransaction of it, is to be forgotten.

    The server says so too of a transaction that was confirmed before this connection and streamed again.

    Attributes:
        xid: of the top-level transaction.
        subxid: what is forgotten; equal to `xid` if it is all of it.
        abort_lsn, abort_time: of the abort (Unix microseconds); None unless `streaming` is `parallel`.
    """

    xid: int
    subxid: int
    abort_lsn: int | None
    abort_time: int | None


class BeginPrepare(NamedTuple):
    """What was prepared follows, whole, up to Prepare. LSNs are those of the PREPARE record; Unix microseconds."""

    prepare_lsn: int
    end_lsn: int
    prepare_time: int
    xid: int
    gid: bytes


class Prepare(NamedTuple):
    """What was prepared ends; from `end_lsn` on it is never sent again."""

    prepare_lsn: int
    end_lsn: int
    prepare_time: int
    xid: int
    gid: bytes


class StreamPrepare(NamedTuple):
    """A streamed transaction was prepared; as Prepare."""

    prepare_lsn: int
    end_lsn: int
    prepare_time: int
    xid: int
    gid: bytes


class CommitPrepared(NamedTuple):
    """A prepared transaction committed; its changes came before its PREPARE was confirmed. Unix microseconds."""

    commit_lsn: int
    end_lsn: int
    commit_time: int
    xid: int
    gid: bytes


class RollbackPrepared(NamedTuple):
    """A prepared transaction was rolled back; it may be one that was never sent. Unix microseconds."""

    end_lsn: int
    prepare_time: int
    rollback_time: int
    xid: int
    gid: bytes


StreamMessage = (
    StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | StreamPrepare
    | CommitPrepared
    | RollbackPrepared
)


def decode_streamed(data: bytes, offset: int = 0) -> StreamMessage:
    """The one message that fills `data` from `offset` to its end.

    Raises:
        ProtocolError: the bytes are not exactly one message that the protocols 2 to 4 add; `where` gives its kind and
            an offset relative to `offset`.
    """
    decoder = _DECODERS.get(data[offset]) if offset < len(data) else None
    if decoder is None:
        raise ProtocolError("a message of no known kind", where=f"kind {data[offset : offset + 1]!r}, offset 0")
    try:
        message, end = decoder(data, offset + 1)
    except (IndexError, ValueError, struct_error):  # an access past the end, in any of the ways that Python has
        raise malformed("the message is cut short", data, offset, len(data)) from None
    except _FlagsError as error:
        raise malformed(f"flags {error.flags} are unknown", data, offset, error.at) from None
    if end != len(data):
        raise malformed("bytes are left over behind the message", data, offset, end)
    if not getattr(message, "xid", 1) or not getattr(message, "subxid", 1):
        raise malformed("transaction 0 does not exist", data, offset, offset + 1)
    return message


def split_xid(data: bytes, offset: int = 0) -> tuple[int, bytes]:
    """A message of a block as the id of its (sub)transaction and a message of protocol 1.

    Raises:
        ProtocolError: it is cut short.
    """
    at = offset + 1 + XID_SIZE
    if len(data) < at:
        raise malformed("the message is cut short", data, offset, len(data))
    return _XID.unpack_from(data, offset + 1)[0], data[offset : offset + 1] + data[at:]


def begin_bytes(commit_lsn: int, commit_time: int, xid: int) -> bytes:
    """A Begin of protocol 1; the time in Unix microseconds."""
    return _BEGIN_BYTES.pack(b"B", commit_lsn, commit_time - POSTGRES_EPOCH, xid)


def commit_bytes(commit_lsn: int, end_lsn: int, commit_time: int) -> bytes:
    """A Commit of protocol 1; the time in Unix microseconds."""
    return _COMMIT_BYTES.pack(b"C", 0, commit_lsn, end_lsn, commit_time - POSTGRES_EPOCH)


def malformed(what: str, data: bytes, offset: int, at: int) -> ProtocolError:
    """The error of the message at `offset` in `data` whose fault lies at `at`."""
    return ProtocolError(what, where=f"message {chr(data[offset])!r}, offset {at - offset}")


def _start(data: bytes, at: int) -> tuple[StreamMessage, int]:
    xid, first = _START.unpack_from(data, at)
    return StreamStart(xid, first == 1), at + _START.size


def _stop(_data: bytes, at: int) -> tuple[StreamMessage, int]:
    return StreamStop(), at


def _commit(data: bytes, at: int) -> tuple[StreamMessage, int]:
    xid, flags, commit_lsn, end_lsn, commit_time = _COMMIT.unpack_from(data, at)
    _no_flags(flags, at + 4)
    return StreamCommit(xid, commit_lsn, end_lsn, commit_time + POSTGRES_EPOCH), at + _COMMIT.size


def _abort(data: bytes, at: int) -> tuple[StreamMessage, int]:
    xid, subxid = _ABORT.unpack_from(data, at)
    at += _ABORT.size
    if at == len(data):
        return StreamAbort(xid, subxid, None, None), at
    abort_lsn, abort_time = _ABORT_INFO.unpack_from(data, at)
    return StreamAbort(xid, subxid, abort_lsn, abort_time + POSTGRES_EPOCH), at + _ABORT_INFO.size


def _begin_prepare(data: bytes, at: int) -> tuple[StreamMessage, int]:
    prepare_lsn, end_lsn, prepare_time, xid = _BEGIN_PREPARE.unpack_from(data, at)
    gid, end = _gid(data, at + _BEGIN_PREPARE.size)
    return BeginPrepare(prepare_lsn, end_lsn, prepare_time + POSTGRES_EPOCH, xid, gid), end


def _prepared(
    kind: type[Prepare | StreamPrepare | CommitPrepared],
) -> Callable[[bytes, int], tuple[StreamMessage, int]]:
    """The decoder of a kind with flags, LSN, end LSN, time, xid and gid."""

    def decode(data: bytes, at: int) -> tuple[StreamMessage, int]:
        flags, lsn, end_lsn, time, xid = _PREPARE.unpack_from(data, at)
        _no_flags(flags, at)
        gid, end = _gid(data, at + _PREPARE.size)
        return kind(lsn, end_lsn, time + POSTGRES_EPOCH, xid, gid), end

    return decode


def _rollback_prepared(data: bytes, at: int) -> tuple[StreamMessage, int]:
    flags, _, end_lsn, prepare_time, rollback_time, xid = _ROLLBACK_PREPARED.unpack_from(data, at)
    _no_flags(flags, at)
    gid, end = _gid(data, at + _ROLLBACK_PREPARED.size)
    times = prepare_time + POSTGRES_EPOCH, rollback_time + POSTGRES_EPOCH
    return RollbackPrepared(end_lsn, *times, xid, gid), end


class _FlagsError(Exception):
    def __init__(self, flags: int, at: int) -> None:
        super().__init__(flags)
        self.flags = flags
        self.at = at


def _no_flags(flags: int, at: int) -> None:
    if flags:
        raise _FlagsError(flags, at)


def _gid(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.index(0, at)
    return data[at:end], end + 1


_DECODERS: dict[int, Callable[[bytes, int], tuple[StreamMessage, int]]] = {
    ord("S"): _start,
    ord("E"): _stop,
    ord("c"): _commit,
    ord("A"): _abort,
    ord("b"): _begin_prepare,
    ord("P"): _prepared(Prepare),
    ord("p"): _prepared(StreamPrepare),
    ord("K"): _prepared(CommitPrepared),
    ord("r"): _rollback_prepared,
}
