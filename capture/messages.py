"""pgoutput protocol 1, decoded: one message of bytes in, one frozen value out. No state, no I/O.

PostgreSQL's logical decoding plugin sends each committed transaction as Begin, its changes, Commit, and tells a
table's layout (Relation, and Type for types that are not built in) before the first row that needs it. `decode` is
the whole interface; an undecodable message raises `ProtocolError` with its kind and the offset, and is never skipped.

Lengths and counts in a message are claims of the peer: nothing is allocated by them before the bytes they promise
have been seen, so a crafted message costs at most a few times its own size.

Times are converted from PostgreSQL's microseconds since 2000-01-01 to Unix microseconds here, and nowhere else.
Later protocols prefix some messages with an xid while a transaction is streamed; they get a decoder of their own that
keeps that state, and the functions for message bodies below serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from walbus.errors import ProtocolError

#: Unix microseconds of 2000-01-01T00:00Z, where PostgreSQL's timestamps begin.
POSTGRES_EPOCH = 946_684_800_000_000

_LATEST = (1 << 63) - 1 - POSTGRES_EPOCH

_BEGIN = Struct(">QqI")
_COMMIT = Struct(">BQQq")
_MESSAGE = Struct(">BQ")
_COLUMN = Struct(">Ii")
_TRUNCATE = Struct(">IB")
_U64 = Struct(">Q")
_U32 = Struct(">I")
_U16 = Struct(">H")

_TEXT, _NULL, _UNCHANGED = b"tnu"
_NEW, _KEY, _OLD = b"NKO"


class Row(NamedTuple):
    """One tuple, its values still in PostgreSQL's text form.

    Attributes:
        texts: a value a column; None is NULL, or "not sent" (a column outside the key in a key-only tuple, and the
            columns in `unchanged`).
        unchanged: indexes of columns whose TOASTed value did not change and was therefore not sent.
    """

    texts: list[bytes | None]
    unchanged: tuple[int, ...]


class Begin(NamedTuple):
    """A transaction begins; what it says about the commit is already final.

    Attributes:
        commit_lsn: LSN of the commit record.
        commit_time: Unix microseconds.
        xid: 32 bits of the top-level transaction id.
    """

    commit_lsn: int
    commit_time: int
    xid: int


class Commit(NamedTuple):
    """The transaction ends; `end_lsn` is where its commit record ends, what a slot may be confirmed to."""

    commit_lsn: int
    end_lsn: int
    commit_time: int


class Origin(NamedTuple):
    """The transaction came to this server by replication; `commit_lsn` is its commit at the origin."""

    commit_lsn: int
    name: str


class RelationColumn(NamedTuple):
    """A column of a Relation message; `in_identity` is set for all columns under REPLICA IDENTITY FULL."""

    in_identity: bool
    name: str
    type_oid: int
    typmod: int


class Relation(NamedTuple):
    """A table's layout; `namespace` is empty for pg_catalog, `identity` is `pg_class.relreplident`."""

    oid: int
    namespace: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    """A type's name; that of the base type for a domain. `namespace` is empty for pg_catalog."""

    oid: int
    namespace: str
    name: str


class Insert(NamedTuple):
    """A new row."""

    oid: int
    new: Row


class Update(NamedTuple):
    """A changed row; the old row comes by its key alone, whole (REPLICA IDENTITY FULL), or not at all."""

    oid: int
    old_key: Row | None
    old: Row | None
    new: Row


class Delete(NamedTuple):
    """A deleted row: by its key alone, or whole."""

    oid: int
    old_key: Row | None
    old: Row | None


class Truncate(NamedTuple):
    """Tables emptied by one TRUNCATE."""

    oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """What pg_logical_emit_message wrote; `lsn` is where its record ends."""

    transactional: bool
    lsn: int
    prefix: bytes
    content: bytes


#: Kinds of messages, but for those that tell layouts: outside of any block they concern the assembler alone.
PLAIN_KINDS = frozenset(b"BCOIUDTM")

Message = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage


def decode(data: bytes, offset: int = 0) -> Message:
    """The one message that fills `data` from `offset` to its end.

    Raises:
        ProtocolError: the bytes are not exactly one message of protocol 1; `where` gives its kind and an offset into
            `data` (relative to `offset`).
    """
    decoder = _DECODERS.get(data[offset]) if offset < len(data) else None
    if decoder is None:
        raise ProtocolError("a message of no known kind", where=f"kind {data[offset : offset + 1]!r}, offset 0")
    try:
        message, end = decoder(data, offset + 1)
    except UnicodeDecodeError:
        raise _bad("a name is not UTF-8", data, offset, offset + 1) from None
    except (IndexError, ValueError, struct_error):  # an access past the end, in any of the ways that Python has
        raise _bad("the message is cut short", data, offset, len(data)) from None
    except _MalformedError as error:
        raise _bad(error.what, data, offset, error.at) from None
    if end != len(data):
        what = "the message is cut short" if end > len(data) else "bytes are left over behind the message"
        raise _bad(what, data, offset, min(end, len(data)))
    return message


class _MalformedError(Exception):
    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at


def _bad(what: str, data: bytes, offset: int, at: int) -> ProtocolError:
    return ProtocolError(what, where=f"message {chr(data[offset])!r}, offset {at - offset}")


def _begin(data: bytes, at: int) -> tuple[Message, int]:
    commit_lsn, commit_time, xid = _BEGIN.unpack_from(data, at)
    if commit_time > _LATEST:
        raise _MalformedError("a commit time that no clock shows", at + 8)
    return Begin(commit_lsn, commit_time + POSTGRES_EPOCH, xid), at + _BEGIN.size


def _commit(data: bytes, at: int) -> tuple[Message, int]:
    flags, commit_lsn, end_lsn, commit_time = _COMMIT.unpack_from(data, at)
    if flags:
        raise _MalformedError(f"commit flags {flags} are unknown", at)
    return Commit(commit_lsn, end_lsn, commit_time + POSTGRES_EPOCH), at + _COMMIT.size


def _origin(data: bytes, at: int) -> tuple[Message, int]:
    (commit_lsn,) = _U64.unpack_from(data, at)
    name, at = _name(data, at + 8)
    return Origin(commit_lsn, name), at


def _relation(data: bytes, at: int) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _name(data, at + 4)
    name, at = _name(data, at)
    identity = chr(data[at])
    if identity not in "dnfi":
        raise _MalformedError(f"replica identity {identity!r} is unknown", at)
    (count,) = _U16.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        column, at = _column(data, at)
        columns.append(column)
    return Relation(oid, namespace, name, identity, tuple(columns)), at


def _column(data: bytes, at: int) -> tuple[RelationColumn, int]:
    flags = data[at]
    name, at = _name(data, at + 1)
    type_oid, typmod = _COLUMN.unpack_from(data, at)
    return RelationColumn(bool(flags & 1), name, type_oid, typmod), at + _COLUMN.size


def _type(data: bytes, at: int) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _name(data, at + 4)
    name, at = _name(data, at)
    return Type(oid, namespace, name), at


def _insert(data: bytes, at: int) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, at)
    new, at = _row(data, _expect(data, at + 4, _NEW))
    return Insert(oid, new), at


def _update(data: bytes, at: int) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, at)
    old_key, old, at = _old_row(data, at + 4)
    new, at = _row(data, _expect(data, at, _NEW))
    return Update(oid, old_key, old, new), at


def _delete(data: bytes, at: int) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, at)
    old_key, old, end = _old_row(data, at + 4)
    if end == at + 4:
        raise _MalformedError(f"a tuple marked {chr(data[at + 4])!r} stands where an old one belongs", at + 4)
    return Delete(oid, old_key, old), end


def _truncate(data: bytes, at: int) -> tuple[Message, int]:
    count, options = _TRUNCATE.unpack_from(data, at)
    at += _TRUNCATE.size
    end = at + 4 * count
    if end > len(data):
        raise _MalformedError(f"{count} tables are promised, and the message is cut short", at)
    oids = tuple(oid for (oid,) in _U32.iter_unpack(data[at:end]))
    return Truncate(oids, bool(options & 1), bool(options & 2)), end


def _logical_message(data: bytes, at: int) -> tuple[Message, int]:
    flags, lsn = _MESSAGE.unpack_from(data, at)
    prefix, at = _name(data, at + _MESSAGE.size)
    (length,) = _U32.unpack_from(data, at)
    end = at + 4 + length
    return LogicalMessage(bool(flags & 1), lsn, prefix.encode(), data[at + 4 : end]), end


def _expect(data: bytes, at: int, marker: int) -> int:
    if data[at] != marker:
        raise _MalformedError(f"a tuple marked {chr(data[at])!r} stands where {chr(marker)!r} belongs", at)
    return at + 1


def _old_row(data: bytes, at: int) -> tuple[Row | None, Row | None, int]:
    marker = data[at]
    if marker == _KEY:
        row, at = _row(data, at + 1)
        return row, None, at
    if marker == _OLD:
        row, at = _row(data, at + 1)
        return None, row, at
    return None, None, at


def _row(data: bytes, at: int) -> tuple[Row, int]:
    """The hot loop: one pass, one slice a value. A slice past the end is noticed by `decode`, from the offset."""
    (count,) = _U16.unpack_from(data, at)
    at += 2
    length_at = _U32.unpack_from
    texts: list[bytes | None] = []
    unchanged: list[int] = []
    for index in range(count):
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + length_at(data, at + 1)[0]
            texts.append(data[start:at])
        elif kind == _NULL:
            texts.append(None)
            at += 1
        elif kind == _UNCHANGED:
            texts.append(None)
            unchanged.append(index)
            at += 1
        else:
            raise _MalformedError(f"a value of kind {chr(kind)!r} was not asked for", at)
    return Row(texts, tuple(unchanged)), at


def _name(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


_DECODERS: dict[int, Callable[[bytes, int], tuple[Message, int]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _logical_message,
}
