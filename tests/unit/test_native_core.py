"""The native core against its twin in Python: the same log, byte for byte, and the same errors, whatever comes.

The two run under the same assembler. What is fed: rows of every type with a native form (and some without), by their
canonical text, by odd texts, and by bytes that are no text; transactions small and large; and messages cut short or
garbled.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from support.memory_log import MemoryLog
from support.value_texts import BYTES, ODD, TEXTS
from walbus import native
from walbus.capture.assembly import Assembler
from walbus.capture.repeats import Repeats
from walbus.capture.timelines import Timelines
from walbus.errors import ProtocolError, SourceReplaced
from walbus.log import Piece, Run
from walbus.native.interface import PIECE_BYTES, RUN_BYTES, Envelope
from walbus.native.pure import Core as PureCore
from walbus.position import ORIGIN, Position
from walbus.records import Kind, body_of, check_record, iter_changes, pack_unsealed, read_header, seal
from walbus.schema import ReplicaIdentity
from walbus.values.types import NATIVE, NUMERIC

native_core = pytest.importorskip("walbus.native._core", reason="the native core was not built")

T, UNKNOWN_TYPE = 5000, 3802
OIDS = [*sorted(NATIVE), NUMERIC, UNKNOWN_TYPE]
TYPES = {oid: NATIVE[oid].name if oid in NATIVE else "other" for oid in OIDS}
VALUES = TEXTS | st.none() | st.just(made.UNCHANGED)


def assembled(core, messages):
    """What the log gets from these messages, what ended them, and the assembler."""
    log = MemoryLog()
    assembler = Assembler(
        core=core,
        schemas=log.schemas,
        repeats=Repeats(log.find, end=ORIGIN),
        builtin_types=TYPES,
        primary_key=lambda _oid, names: frozenset(names[:1]),
        timelines=Timelines(1),
        near_xid=700,
    )
    failure = None
    try:
        for message in messages:
            assembler.feed(message)
            if assembler.waiting_bytes > RUN_BYTES:
                log.write(assembler.take())
    except (ProtocolError, SourceReplaced) as error:
        failure = (type(error), str(error))
    log.write(assembler.take())
    log.sync()
    return log, failure, assembler


def assert_same(messages):
    """Feeds both; what they gave."""
    pure, expected, slow = assembled(PureCore(), messages)
    quick, failure, fast = assembled(native_core.Core(), messages)
    assert failure == expected
    assert quick.durable == pure.durable
    assert (fast.transactions, fast.changes, fast.bound) == (slow.transactions, slow.changes, slow.bound)
    assert (fast.core.end, fast.core.last_commit_time) == (slow.core.end, slow.core.last_commit_time)
    assert (fast.core.handed, fast.core.shown) == (slow.core.handed, slow.core.shown)
    return pure, expected


def layout(oids, identity="d", keys=1):
    columns = [(f"c{i}", oid, int(i < keys or identity == "f")) for i, oid in enumerate(oids)]
    return made.relation(T, "public.t", columns, identity=identity)


def transaction(lsn, *messages, xid=700):
    return [made.begin(lsn, xid, made.POSTGRES_EPOCH + lsn), *messages, made.commit(lsn)]


def changes(log):
    heads = [(read_header(record), record) for record in log.durable]
    return [c for h, r in heads if h.kind == Kind.TRANSACTION for c in iter_changes(body_of(r, h))]


@pytest.mark.parametrize("oid", OIDS)
def test_every_type_takes_every_text_as_in_python(oid):
    texts = [text.encode() for text in ODD] + BYTES
    rows = [made.insert(T, str(number), text) for number, text in enumerate(texts)]
    log, failure = assert_same(transaction(1000, layout([23, oid]), *rows))
    assert failure is None
    assert len(changes(log)) == len(texts)


@pytest.mark.parametrize("oid", OIDS)
def test_every_type_is_a_key_as_in_python(oid):
    rows = [made.insert(T, text) for text in [text.encode() for text in ODD] + BYTES]
    log, failure = assert_same(transaction(1000, layout([oid]), *rows))
    assert failure is None
    assert all(change.key_hash == google_crc32c.value(change.key) for change in changes(log))


@st.composite
def rows(draw, width):
    """A message with rows of a table, as PostgreSQL sends them or nearly so."""
    row = st.lists(VALUES, min_size=width, max_size=width)
    kind = draw(st.sampled_from("iiuuuuddx"))
    if kind == "i":
        return made.insert(T, *draw(row))
    if kind == "u":
        marker = draw(st.sampled_from(["none", "key", "old"]))
        return made.update(T, draw(row), **({} if marker == "none" else {marker: draw(row)}))
    if kind == "d":
        return made.delete(T, **{draw(st.sampled_from(["key", "old"])): draw(row)})
    return draw(st.sampled_from([made.truncate(T), made.message(7, "p", b"c", transactional=True), made.origin("o")]))


@st.composite
def streams(draw):
    oids = draw(st.lists(st.sampled_from(OIDS), min_size=1, max_size=5))
    identity = draw(st.sampled_from("dfn"))
    keys = draw(st.integers(0, len(oids)))
    messages, lsn = [], 1000
    for number in range(draw(st.integers(1, 6))):
        lsn += 100
        body = draw(st.lists(rows(len(oids)), max_size=6))
        tell = [layout(oids, identity, keys)] if number == 0 or draw(st.booleans()) else []
        messages += transaction(lsn, *tell, *body, xid=700 + number)
    return messages


@settings(max_examples=250, deadline=None)
@given(streams())
def test_streams_give_the_same_log(messages):
    assert_same(messages)


@settings(max_examples=250, deadline=None)
@given(streams(), st.data())
def test_garbled_streams_give_the_same_log_and_the_same_error(messages, data):
    victim = data.draw(st.integers(0, len(messages) - 1))
    message = bytearray(messages[victim])
    at = data.draw(st.integers(0, len(message) - 1))
    if data.draw(st.booleans()):
        message[at] ^= data.draw(st.integers(1, 255))
    else:
        del message[at + 1 :]
    messages[victim] = bytes(message)
    assert_same(messages)


@pytest.mark.parametrize("keys", [1, 2])
def test_a_row_cut_at_every_byte_is_refused_with_its_kind_and_offset(keys):
    whole = made.update(T, ["1", "abc", made.UNCHANGED], old=["1", None, "x"])
    for cut in range(len(whole)):
        _, failure = assert_same([*transaction(1000, layout([23, 25, 25], "f"))[:-1], whole[:cut]])
        assert failure is not None
        assert "offset" in failure[1]


def test_a_length_beyond_the_message_allocates_nothing():
    for claim in (0x7FFFFFFF, 0xFFFFFFFF, 100):
        row = made.insert(T, "1")[:-5] + struct.pack(">I", claim) + b"1"
        _, failure = assert_same([*transaction(1000, layout([23]))[:-1], row])
        assert failure is not None


@pytest.mark.parametrize("size", [10, 1000, PIECE_BYTES, 3 * PIECE_BYTES])
def test_large_transactions_leave_in_the_same_pieces(size):
    count = max(3, 3 * PIECE_BYTES // size)
    rows = [made.insert(T, str(number), b"x" * size) for number in range(count)]
    log, failure = assert_same(transaction(1000, layout([23, 25]), *rows) + transaction(2000, *rows[:3]))
    assert failure is None
    assert len(changes(log)) == count + 3


def test_many_changes_leave_in_the_same_pieces():
    rows = [made.insert(T, str(number)) for number in range(10_000)]
    log, _ = assert_same(transaction(1000, layout([23]), *rows))
    assert len([r for r in log.durable if read_header(r).kind == Kind.TRANSACTION]) == 3


def test_a_connection_that_begins_anew_forgets_what_was_open():
    cores = [PureCore(), native_core.Core()]
    for core in cores:
        _, _, assembler = assembled(core, transaction(1000, layout([23]), made.insert(T, "1"))[:-1])
        assembler.reconnected(Timelines(1), 700, end=ORIGIN, bound=0)
        assert (core.transaction, core.waiting, assembler.take()) == (None, 0, [])
        with pytest.raises(ProtocolError, match="outside of any transaction"):
            assembler.feed(made.insert(T, "1"))


def test_the_native_core_takes_all_of_a_plain_stream_but_the_first_row():
    log = MemoryLog()
    core = native_core.Core()
    _, _, assembler = assembled(core, transaction(1000, layout([23, 25]), made.insert(T, "1", "a")))
    log.write(assembler.take())
    plain = transaction(
        2000,
        made.insert(T, "2", "b"),
        made.update(T, ["2", made.UNCHANGED]),
        made.update(T, ["3", "c"], key=["2", None]),
        made.delete(T, key=["3", None]),
    )
    assert [core.feed(message, 0) for message in plain] == [True] * 6
    assert core.transactions == 2


@pytest.mark.parametrize(
    ("end", "lsn", "takes"),
    [
        (ORIGIN, 500, True),
        (Position(1, 499, 3), 500, True),
        (Position(1, 500, 0), 500, True),
        (Position(1, 500, 1), 500, False),
        (Position(1, 501, 0), 500, False),
        (Position(2, 1, 1), 500, True),
        (Position(3, 1, 1), 500, False),
    ],
)
def test_only_what_lies_behind_the_log_is_taken_without_a_question(end, lsn, takes):
    core = native_core.Core()
    core.restart(2 if end.epoch > 1 else 1, 400, end=end, bound=0)
    assert core.feed(made.begin(lsn, 1), 0) is takes
    assert (core.transaction is not None) is takes


def test_commits_of_an_earlier_timeline_are_left_to_the_owner():
    core = native_core.Core()
    core.restart(2, 400, end=ORIGIN, bound=0)
    assert not core.feed(made.begin(399, 1), 0)
    assert core.feed(made.begin(400, 1), 0)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1))
def test_transaction_ids_are_widened_alike(near, xid):
    from walbus.capture.xids import widen_xid

    core = native_core.Core()
    core.near_xid = near
    core.restart(1, 0, end=ORIGIN, bound=0)
    assert core.feed(made.begin(500, xid), 0)
    assert core.transaction.xid == widen_xid(xid, near)


# Frames.


def wal_data(message, lsn=77, time=made.POSTGRES_EPOCH):
    return b"w" + struct.pack(">QQq", lsn, lsn, time - made.POSTGRES_EPOCH) + message


def copy_row(message, lsn=77):
    return struct.pack(">hiQi", 2, 8, lsn, len(message)) + message


def frames(*all_: bytes) -> Iterator[tuple[int, memoryview]]:
    yield from [(len(frame), memoryview(frame)) for frame in all_]
    yield 0, memoryview(b"")


@pytest.fixture
def ready_core():
    core = native_core.Core()
    assembled(core, transaction(1000, layout([23]), made.insert(T, "1")))
    core.take()
    return core


def test_frames_are_drained_until_none_is_there(ready_core):
    source = frames(*[wal_data(m, lsn=99) for m in transaction(2000, made.insert(T, "2"))])
    size, left, taken = ready_core.drain(lambda _: next(source), [], 1 << 20, Envelope.WAL_DATA)
    assert (size, left, taken) == (0, b"", 21 + 14 + 26 + 3 * 25)
    assert (ready_core.server_lsn, ready_core.server_time) == (99, made.POSTGRES_EPOCH)
    (run,) = ready_core.take()
    assert (run.changes, run.last) == (1, Position(1, 2000, 1))


@pytest.mark.parametrize(
    "strange",
    [
        b"k" + bytes(17),
        b"w",
        b"w" + bytes(24),
        wal_data(layout([23])),
        wal_data(made.insert(9, "1")),
        b"x",
        wal_data(b"I"),
    ],
)
def test_a_frame_that_is_not_taken_comes_back_whole(ready_core, strange):
    source = frames(wal_data(made.begin(2000, 1)), strange, wal_data(made.insert(T, "2")))
    drained = ready_core.drain(lambda _: next(source), [], 1 << 20, Envelope.WAL_DATA)
    assert drained == (len(strange), strange, 46)


def test_no_frame_behind_an_alarm_is_taken(ready_core):
    alarm, source = [], frames(*[wal_data(m) for m in transaction(2000, made.insert(T, "2"))])

    def rings_at_the_row(_):
        size, frame = next(source)
        if frame[25:26] == b"I":
            alarm.append("rows were skipped")
        return size, frame

    drained = ready_core.drain(rings_at_the_row, alarm, 1 << 20, Envelope.WAL_DATA)
    assert drained.left[25:26] == b"I"
    assert ready_core.waiting == 0


def test_draining_stops_at_its_bound_and_at_the_end_of_the_stream(ready_core):
    source = frames(wal_data(made.begin(2000, 1)), wal_data(made.insert(T, "2")))
    assert ready_core.drain(lambda _: next(source), [], 1, Envelope.WAL_DATA).taken == 46
    assert ready_core.drain(lambda _: (-1, memoryview(b"")), [], 1, Envelope.WAL_DATA) == (-1, b"", 0)


def test_rows_of_copy_are_drained_and_others_left(ready_core):
    good = [copy_row(m) for m in transaction(2000, made.insert(T, "2"))]
    source = frames(*good)
    assert ready_core.drain(lambda _: next(source), [], 1 << 20, Envelope.COPY_ROW).left == b""
    assert ready_core.transactions == 2
    for strange in (b"\xff\xff", good[0][:18], good[0] + b"x", b"\x00\x03" + good[0][2:], good[0][:-1]):
        source = frames(strange)
        assert ready_core.drain(lambda _: next(source), [], 1 << 20, Envelope.COPY_ROW).left == strange  # noqa: B023


# Runs.


def unsealed(count, body):
    return pack_unsealed(
        epoch=1, commit_lsn=16, end_lsn=24, xid=7, commit_time=5, count=count, first_seq=0, origin=b"o", tables=1,
        body=body,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=300)), max_size=5), st.integers(0, 2**53))
def test_runs_are_sealed_alike(parts, base):
    records = b"".join(unsealed(count, body) for count, body in parts)
    sealed = native_core.seal(records, base)
    assert sealed == seal(records, base)
    if parts:
        header = check_record(sealed[: read_header(sealed).length])
        assert header.first_seq == base


@pytest.mark.parametrize("implementation", [seal, native_core.seal])
@pytest.mark.parametrize("damage", [b"short", unsealed(1, b"x")[:-1], b"\0" * 96, unsealed(1, b"x") + b"\0" * 96])
def test_bytes_that_are_no_whole_records_are_not_sealed(implementation, damage):
    with pytest.raises(ValueError, match="not whole records"):
        implementation(damage, 1)


def test_sealing_leaves_the_run_as_it_was():
    records = unsealed(1, b"x")
    before = bytes(bytearray(records))
    native_core.seal(records, 5)
    assert records == before


def test_small_transactions_leave_in_runs_and_a_piece_parts_them():
    small = [transaction(lsn, made.insert(T, str(lsn))) for lsn in (1100, 1200, 1300)]
    for core in (PureCore(), native_core.Core()):
        _, _, assembler = assembled(core, transaction(1000, layout([23]), made.insert(T, "1")))
        for message in [m for messages in small for m in messages]:
            assembler.feed(message)
        core.put(dataclasses.replace(_progress(1400)))
        for message in transaction(1500, made.insert(T, "2")):
            assembler.feed(message)
        first, progress, second = assembler.take()
        assert isinstance(first, Run)
        assert isinstance(second, Run)
        assert isinstance(progress, Piece)
        assert (first.first, first.last, first.changes) == (Position(1, 1100, 1), Position(1, 1300, 1), 3)
        assert (first.end_lsn, first.epoch) == (1348, 1)


def _progress(lsn):
    from walbus.capture.pieces import progress_piece

    return progress_piece(1, lsn, 0)


# Which one is in use.


def test_the_core_in_use_is_named():
    assert native.core_in_use() == "native" or native.core_in_use().startswith("pure (")


def test_python_is_used_when_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("WALBUS_PURE", "1")
    assert native._chosen().name == "pure (WALBUS_PURE=1)"
    monkeypatch.setenv("WALBUS_PURE", "0")
    assert native._chosen().name == "native"


def test_an_extension_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.delenv("WALBUS_PURE", raising=False)
    monkeypatch.setattr(native_core, "INTERFACE", 0)
    assert native._chosen().name == "pure (extension cannot be loaded: it was built from other sources; build it again)"


def test_a_layout_wider_than_a_row_has_place_for_every_column():
    wide = [23] * 1600
    log, failure = assert_same(
        transaction(1000, layout(wide), made.insert(T, *map(str, range(1600))))
        + transaction(2000, made.update(T, ["7", *[made.UNCHANGED] * 1599]))
    )
    assert failure is None
    assert len(changes(log)[1].unchanged) == 200
    assert log.schemas.get(1).identity is ReplicaIdentity.DEFAULT
