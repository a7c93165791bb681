"""The assembler on both cores: messages to pieces, written into a log in memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import cores
from support import pgoutput_bytes as made
from support.captured_pgoutput import BUILTIN_TYPES, ITEM, STREAM, WHOLE
from support.memory_log import MemoryLog
from walbus.capture.assembly import Assembler
from walbus.capture.repeats import Repeats
from walbus.capture.timelines import Timelines
from walbus.errors import LogFull, ProtocolError, SourceReplaced
from walbus.keys import key_texts
from walbus.native.interface import PIECE_BYTES, PIECE_CHANGES
from walbus.position import Position
from walbus.records import ChangeFlag, Flag, Kind, Op, body_of, iter_changes, origin_of, read_header
from walbus.values import row_texts

CAPTURED = [data for _, data in STREAM]
T = 5000
FIRST_TIMELINE = Timelines(1)
LAYOUT = made.relation(T, "public.t", [("id", 23, 1), ("a", 25, 0), ("b", 25, 0)])


chosen = [cores.implementation("pure")]


@pytest.fixture(params=cores.NAMES, scope="module", autouse=True)
def implementation(request):
    chosen[0] = cores.implementation(request.param)


def assembler_on(log, *, primary_key=frozenset({"id"}), timelines=FIRST_TIMELINE, near_xid=700):
    bounds = log.bounds()
    return Assembler(
        core=chosen[0].new_core(),
        schemas=log.schemas,
        repeats=Repeats(log.find, end=bounds.end, trimmed=bounds.trimmed),
        builtin_types=BUILTIN_TYPES,
        primary_key=lambda oid, columns: primary_key,
        timelines=timelines,
        near_xid=near_xid,
        bound=bounds.end_lsn,
        last_commit_time=bounds.commit_time,
    )


def reconnect(assembler, log):
    bounds = log.sync()
    assembler.reconnected(FIRST_TIMELINE, 700, end=bounds.end, bound=bounds.end_lsn)


def feed(assembler, log, messages):
    for message in messages:
        assembler.feed(message)
    log.write(assembler.take())


def captured_log():
    log = MemoryLog()
    feed(assembler_on(log), log, CAPTURED)
    log.sync()
    return log


def written(messages, **options):
    """The log after these messages."""
    log = MemoryLog()
    feed(assembler_on(log, **options), log, messages)
    log.sync()
    return log


def records(log, *kinds):
    pairs = [(read_header(record), record) for record in log.durable]
    return [(h, r) for h, r in pairs if not kinds or h.kind in kinds]


def changes(log):
    return [c for h, r in records(log, Kind.TRANSACTION) for c in iter_changes(body_of(r, h))]


def transaction(lsn, *messages, xid=700):
    return [made.begin(lsn, xid), *messages, made.commit(lsn)]


def test_a_captured_stream_becomes_whole_transactions_in_commit_order():
    log = captured_log()
    heads = [h for h, _ in records(log, Kind.TRANSACTION)]
    assert [h.xid for h in heads if h.xid] == [761, 762, 763, 764, 765, 766, 767, 768, 769, 770]
    assert [h.first for h in heads] == sorted(h.first for h in heads)
    assert all(h.flags & Flag.END and h.end_lsn > h.commit_lsn for h in heads)
    assert [Op(c.op).name for c in changes(log)] == [
        "INSERT", "INSERT", "UPDATE", "UPDATE", "DELETE", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRUNCATE",
        "MESSAGE", "MESSAGE", "INSERT",
    ]  # fmt: skip


def test_a_layout_is_in_the_log_before_the_first_row_that_needs_it():
    seen = set()
    for header, record in records(captured_log()):
        for change in iter_changes(body_of(record, header)):
            if header.kind == Kind.SCHEMA:
                seen.add(change.schema_id)
            elif change.op != Op.MESSAGE:
                assert change.schema_id in seen


def test_types_are_named_as_pgoutput_names_them_and_domains_by_their_base():
    item = captured_log().schemas.get(1)
    assert [c.type_name for c in item.columns] == ["int4", "varchar", "numeric", "public.mood", "int4", "text"]


def test_a_key_change_carries_both_keys_and_an_unchanged_toast_its_bit():
    log = captured_log()
    priced, moved = [c for c in changes(log) if c.op == Op.UPDATE and c.table == ITEM]
    assert (priced.unchanged, priced.old_key) == (bytes([1 << 5]), None)
    assert (key_texts(moved.old_key), key_texts(moved.key)) == (("2",), ("9",))


def test_full_identity_gives_the_whole_old_row_and_the_primary_key():
    log = captured_log()
    update, delete = [c for c in changes(log) if c.table == WHOLE and c.op in {Op.UPDATE, Op.DELETE}]
    schema = log.schemas.get(update.schema_id)
    assert row_texts(schema, update.before) == ["1", "a"]
    assert row_texts(schema, update.after) == ["1", "b"]
    assert update.old_key is None
    assert (row_texts(schema, delete.before), key_texts(delete.key)) == (["1", "b"], ("1",))


def test_truncate_is_one_change_a_table_with_its_flags():
    emptied = [c for c in changes(captured_log()) if c.op == Op.TRUNCATE]
    assert [c.table for c in emptied] == [ITEM, WHOLE]
    assert all(c.flags == ChangeFlag.CASCADE | ChangeFlag.RESTART_IDENTITY for c in emptied)


def test_a_message_outside_transactions_stands_alone_at_its_records_last_byte():
    head = next(h for h, _ in records(captured_log(), Kind.TRANSACTION) if h.xid == 0)
    assert (head.commit_lsn, head.end_lsn, head.flags) == (0x16FCD57, 0x16FCD58, Flag.BEGIN | Flag.END)
    assert head.commit_time > 0


def test_the_origin_of_a_transaction_is_kept():
    header, record = records(captured_log(), Kind.TRANSACTION)[-1]
    assert origin_of(record, header) == b"elsewhere"


def test_an_unchanged_toast_is_taken_from_the_whole_old_row():
    layout = made.relation(T, "public.t", [("id", 23, 1), ("a", 25, 1), ("b", 25, 1)], identity="f")
    update = made.update(T, ["1", made.UNCHANGED, "y"], old=["1", "long", "x"])
    log = written(transaction(1000, layout, update))
    (change,) = changes(log)
    assert (row_texts(log.schemas.get(1), change.after), change.unchanged) == (["1", "long", "y"], b"")


def test_an_unchanged_key_column_is_taken_from_the_old_key():
    layout = made.relation(T, "public.t", [("id", 25, 1), ("a", 25, 0), ("b", 25, 0)])
    update = made.update(T, [made.UNCHANGED, made.UNCHANGED, "y"], key=["long key", None, None])
    (change,) = changes(written(transaction(1000, layout, update)))
    assert (key_texts(change.key), change.old_key, change.unchanged) == (("long key",), None, bytes([0b010]))


def test_a_key_that_was_not_sent_stops_the_stream():
    with pytest.raises(ProtocolError, match="not sent"):
        written(transaction(1000, LAYOUT, made.update(T, [made.UNCHANGED, "x", "y"])))


def test_a_table_without_a_key_has_none():
    layout = made.relation(T, "public.t", [("id", 23, 1)], identity="f")
    messages = transaction(
        1000, layout, made.insert(T, "1"), made.update(T, ["2"], old=["1"]), made.delete(T, old=["2"])
    )
    log = written(messages, primary_key=frozenset())
    assert [(c.key, c.old_key) for c in changes(log)] == [(None, None)] * 3


def test_a_changed_layout_is_told_between_the_rows_of_one_transaction():
    wider = made.relation(T, "public.t", [("id", 23, 1), ("a", 25, 0), ("b", 25, 0), ("c", 23, 0)])
    log = written(transaction(1000, LAYOUT, made.insert(T, "1", "x", "y"), wider, made.insert(T, "2", "x", "y", "3")))
    kinds = [(Kind(h.kind).name, h.first_ordinal, h.last_ordinal, int(h.flags)) for h, _ in records(log)]
    assert kinds == [("SCHEMA", 0, 0, 0), ("TRANSACTION", 1, 1, 1), ("SCHEMA", 1, 1, 0), ("TRANSACTION", 2, 2, 2)]
    assert [c.schema_id for c in changes(log)] == [1, 2]


WIDER = made.relation(T, "public.t", [("id", 23, 1), ("a", 25, 0), ("b", 25, 0), ("c", 25, 0)])


def layouts_of(*transactions):
    """The number of the layout of each row, of transactions given as (xid, messages)."""
    fed = [transaction(1000 * n, *messages, xid=xid) for n, (xid, messages) in enumerate(transactions, 1)]
    return [change.schema_id for change in changes(written(itertools.chain(*fed)))]


def test_a_layout_that_a_table_comes_back_to_is_a_version_above_the_one_between():
    narrow = (LAYOUT, made.insert(T, "1", "a", "b"))
    wide = (WIDER, made.insert(T, "2", "a", "b", "c"))
    assert layouts_of((700, narrow), (701, wide), (702, narrow), (703, narrow)) == [1, 2, 3, 3]


def test_rows_that_were_written_before_the_layout_that_was_told_keep_their_version():
    """ALTER PUBLICATION waits for no writer: a transaction that began before another one may commit behind it."""
    narrow = (LAYOUT, made.insert(T, "1", "a", "b"))
    wide = (WIDER, made.insert(T, "2", "a", "b", "c"))
    assert layouts_of((700, narrow), (702, wide), (701, (*narrow, *wide)), (703, wide)) == [1, 2, 1, 2, 2]
    assert layouts_of((700, narrow), (702, wide), (701, narrow), (703, narrow)) == [1, 2, 1, 3]
    assert layouts_of((702, wide), (701, narrow)) == [1, 2], "it was never told"


def test_a_rename_is_a_new_version_of_the_same_table():
    renamed = made.relation(T, "public.u", [("id", 23, 1), ("a", 25, 0), ("b", 25, 0)])
    row = made.insert(T, "1", "x", "y")
    log = written([*transaction(1000, LAYOUT, row), *transaction(2000, renamed, row, xid=701)])
    assert [(s.oid, s.table) for s in log.schemas.all()] == [(T, "public.t"), (T, "public.u")]


def test_a_large_transaction_leaves_in_bounded_pieces():
    log, big = MemoryLog(), b"x" * 1000
    assembler = assembler_on(log)
    feed(assembler, log, [made.begin(1000, 700), LAYOUT])
    for number in range(3000):
        assembler.feed(made.insert(T, str(number), big, None))
        for piece in assembler.take():
            assert len(piece.body) <= PIECE_BYTES + 2000
            log.append(piece)
    feed(assembler, log, [made.commit(1000)])
    log.sync()
    heads = [h for h, _ in records(log, Kind.TRANSACTION)]
    assert len(heads) > 10
    assert [h.flags & Flag.BEGIN for h in heads] == [1] + [0] * (len(heads) - 1)
    assert [bool(h.flags & Flag.END) for h in heads] == [False] * (len(heads) - 1) + [True]
    assert [h.first_ordinal for h in heads[1:]] == [h.last_ordinal + 1 for h in heads[:-1]]
    assert heads[-1].last_ordinal == 3000


def test_small_rows_leave_by_count():
    messages = transaction(1000, LAYOUT, *(made.insert(T, str(n), None, None) for n in range(PIECE_CHANGES + 1)))
    assert [h.count for h, _ in records(written(messages), Kind.TRANSACTION)] == [PIECE_CHANGES, 1]


def test_an_empty_transaction_is_progress_alone():
    log = MemoryLog()
    assembler = assembler_on(log)
    feed(assembler, log, transaction(1000))
    piece = assembler.progress(5)
    assert piece is not None
    assert (piece.kind, piece.commit_lsn, piece.commit_time, piece.end_lsn) == (Kind.PROGRESS, 1048, 5, 0)
    assert assembler.progress(6) is None


def test_a_keepalive_counts_between_transactions_alone():
    log = MemoryLog()
    assembler = assembler_on(log)
    feed(assembler, log, [made.begin(1000, 700), LAYOUT])
    assembler.keepalive(5000)
    assert assembler.progress(1) is None
    feed(assembler, log, [made.insert(T, "1", None, None), made.commit(1000)])
    assert assembler.progress(1) is None
    assembler.keepalive(5000)
    piece = assembler.progress(1)
    assert piece is not None
    assert piece.commit_lsn == 5000


def test_a_keepalive_at_the_end_of_the_last_commit_is_progress_once():
    log = MemoryLog()
    assembler = assembler_on(log)
    feed(assembler, log, transaction(1000, LAYOUT, made.insert(T, "1", None, None)))
    assert assembler.progress(1) is None, "under load a commit is enough"
    assembler.keepalive(1048)
    piece = assembler.progress(2)
    assert piece is not None
    assert (piece.kind, piece.commit_lsn) == (Kind.PROGRESS, 1048)
    assembler.keepalive(1048)
    assert assembler.progress(3) is None


def owing(log):
    """An assembler that is owed the log's last transaction."""
    assembler = assembler_on(log)
    assembler.owe(log.find(1, 2000))
    return assembler


def two_transactions():
    row = made.insert(T, "1", "a", "b")
    return written([LAYOUT, *transaction(1000, row), *transaction(2000, row)])


def test_a_source_that_goes_on_without_the_logs_last_transaction_is_another_history():
    row = made.insert(T, "1", "a", "b")
    assembler = owing(two_transactions())
    for message in (LAYOUT, *transaction(1000, row), *transaction(3000, row)):
        assembler.feed(message)
    with pytest.raises(SourceReplaced, match="without the log's last transaction"):
        assembler.take()
    assembler = owing(two_transactions())
    assembler.keepalive(5000)
    with pytest.raises(SourceReplaced, match="without the log's last transaction"):
        assembler.progress(1)


def test_a_source_that_sends_the_logs_last_transaction_again_owes_nothing():
    log = two_transactions()
    assembler = owing(log)
    row = made.insert(T, "1", "a", "b")
    feed(assembler, log, [LAYOUT, *transaction(1000, row), *transaction(2000, row), *transaction(3000, row)])
    assert [h.commit_lsn for h, _ in records(log, Kind.TRANSACTION)] == [1000, 2000]
    log.sync()
    assert [h.commit_lsn for h, _ in records(log, Kind.TRANSACTION)] == [1000, 2000, 3000]


def test_an_epoch_record_stands_before_the_first_record_of_a_new_epoch():
    history = Timelines(3, ((1, 1500), (2, 2500)))
    log = MemoryLog()
    row = made.insert(T, "1", "a", "b")
    feed(assembler_on(log), log, [LAYOUT, *transaction(1000, row), *transaction(1200, row)])
    log.sync()
    assembler = assembler_on(log, timelines=history)
    feed(assembler, log, [LAYOUT, *transaction(1000, row), *transaction(1200, row), *transaction(1400, row)])
    feed(assembler, log, [*transaction(1600, row), *transaction(2600, row)])
    log.sync()
    stream = [(h.kind, h.epoch, h.commit_lsn) for h, _ in records(log, Kind.TRANSACTION, Kind.EPOCH)]
    assert stream == [
        (Kind.TRANSACTION, 1, 1000), (Kind.TRANSACTION, 1, 1200), (Kind.TRANSACTION, 1, 1400), (Kind.EPOCH, 2, 1500),
        (Kind.TRANSACTION, 2, 1600), (Kind.EPOCH, 3, 2500), (Kind.TRANSACTION, 3, 2600),
    ]  # fmt: skip
    assert log.bounds().end_lsn == 2648


def test_progress_passes_every_switch_with_an_epoch_record():
    log = MemoryLog()
    feed(assembler_on(log), log, [LAYOUT, *transaction(1000, made.insert(T, "1", "a", "b"))])
    log.sync()
    assembler = assembler_on(log, timelines=Timelines(3, ((1, 1500), (2, 2500))))
    assembler.keepalive(2600)
    given = iter(lambda: assembler.progress(5), None)
    assert [(p.kind, p.epoch, p.commit_lsn) for p in given] == [
        (Kind.EPOCH, 2, 1500), (Kind.EPOCH, 3, 2500), (Kind.PROGRESS, 3, 2600)
    ]  # fmt: skip
    assert assembler.progress(6) is None


def test_the_first_record_of_a_log_needs_no_epoch_record():
    log = written([LAYOUT, *transaction(3000, made.insert(T, "1", "a", "b"))], timelines=Timelines(3, ((1, 1500),)))
    assert not records(log, Kind.EPOCH)


def test_commits_below_a_switch_point_keep_their_epoch():
    history = Timelines(3, ((1, 1500), (2, 2500)))
    row = made.insert(T, "1", None, None)
    messages = [*transaction(1000, LAYOUT, row), *transaction(2000, row, xid=701), *transaction(3000, row, xid=702)]
    heads = [h.epoch for h, _ in records(written(messages, timelines=history), Kind.TRANSACTION)]
    assert heads == [1, 2, 3]


@pytest.mark.parametrize(
    "messages",
    [
        [made.insert(T, "1", None, None)],
        [made.commit(1000)],
        [made.begin(1000, 1), made.begin(1000, 1)],
        [made.begin(1000, 1), made.commit(2000)],
        [made.begin(1000, 1), made.insert(T, "1", None, None)],
        [made.begin(1000, 1), LAYOUT, made.insert(T, "1")],
        [made.begin(1000, 1), LAYOUT, made.update(T, ["1", "2", "3"], key=["1"])],
        [made.begin(1000, 1), LAYOUT, made.message(900, "p", b"", transactional=False)],
        [made.begin(1000, 1), made.relation(T, "a.b", [("id", 99_999, 1)]), made.insert(T, "1")],
    ],
)
def test_a_message_at_the_wrong_place_stops_the_stream(messages):
    with pytest.raises(ProtocolError):
        written(messages)


def test_an_error_inside_a_transaction_names_it():
    with pytest.raises(ProtocolError, match="transaction 700, commit 0/3E8"):
        written([made.begin(1000, 700), b"S"])


# Sent again.


def test_what_is_sent_again_after_a_crash_is_dropped():
    log = captured_log()
    before = list(log.durable)
    again = assembler_on(log)
    feed(again, log, CAPTURED)
    log.sync()
    assert log.durable == before
    assert again.repeated == 11


@given(st.integers(0, len(CAPTURED)), st.booleans(), st.booleans())
@settings(deadline=None)
def test_wherever_the_stream_breaks_the_log_ends_up_the_same(cut, synced, process_dies):
    log = MemoryLog()
    assembler = assembler_on(log)
    feed(assembler, log, CAPTURED[:cut])
    if synced or not process_dies:
        log.sync()
    if process_dies:
        log = log.crashed()
        assembler = assembler_on(log)
    else:
        reconnect(assembler, log)
    feed(assembler, log, CAPTURED)
    log.sync()
    whole = captured_log()
    assert [r for _, r in records(log, Kind.TRANSACTION)] == [r for _, r in records(whole, Kind.TRANSACTION)]
    assert log.schemas.all() == whole.schemas.all()


def test_a_connection_that_breaks_inside_a_large_transaction_leaves_no_trace():
    rows = [made.insert(T, str(n), None, None) for n in range(PIECE_CHANGES * 2 + 5)]
    stream = transaction(1000, LAYOUT, *rows)
    whole = written(stream)
    for cut in (2, PIECE_CHANGES + 10, PIECE_CHANGES * 2 + 6):
        log = MemoryLog()
        assembler = assembler_on(log)
        feed(assembler, log, stream[:cut])
        reconnect(assembler, log)
        assembler.keepalive(990)
        piece = assembler.progress(1)
        if piece is not None:
            log.append(piece)
        feed(assembler, log, stream)
        log.sync()
        assert [r for _, r in records(log, Kind.TRANSACTION)] == [r for _, r in records(whole, Kind.TRANSACTION)]


@pytest.mark.parametrize(
    "other",
    [
        transaction(1000, LAYOUT, made.insert(T, "1", None, None), xid=699),
        [made.begin(1000, 700, made.POSTGRES_EPOCH + 1), LAYOUT, made.insert(T, "1", None, None), made.commit(1000)],
        transaction(990, LAYOUT, made.insert(T, "1", None, None)),
    ],
    ids=["another xid", "another commit time", "a place that the log has passed"],
)
def test_another_history_stops_the_stream(other):
    log = written(transaction(1000, LAYOUT, made.insert(T, "1", None, None)))
    with pytest.raises(SourceReplaced, match="history is not the log's"):
        feed(assembler_on(log), log, other)


def test_what_retention_has_dropped_cannot_be_compared_and_is_dropped():
    log = MemoryLog()
    assembler = assembler_on(log)
    feed(assembler, log, transaction(2000, LAYOUT, made.insert(T, "1", None, None)))
    assembler.forget(Position(1, 1500, 0))
    reconnect(assembler, log)
    feed(assembler, log, transaction(1000, LAYOUT, made.insert(T, "1", None, None), xid=600))
    assert assembler.repeated == 1


def test_what_a_full_disk_refused_before_the_connection_broke_is_taken_when_it_comes_again():
    log = MemoryLog()
    assembler = assembler_on(log)
    stream = transaction(1000, LAYOUT, made.insert(T, "1", None, None))
    for message in stream:
        assembler.feed(message)  # the log takes none of the pieces
    reconnect(assembler, log)
    assert assembler.progress(1) is None
    feed(assembler, log, stream)
    log.sync()
    assert [h.kind for h, _ in records(log)] == [Kind.SCHEMA, Kind.TRANSACTION]


def test_a_full_disk_at_a_new_layout_takes_nothing_of_the_message():
    log = MemoryLog()
    assembler = assembler_on(log)
    register, refusals = log.schemas.register, itertools.count()

    def refuse_first(schema):
        if next(refusals) == 0:
            raise LogFull("no room")
        return register(schema)

    log.schemas.register = refuse_first
    feed(assembler, log, [made.begin(1000, 700), LAYOUT])
    message = made.truncate(T)
    with pytest.raises(LogFull):
        assembler.feed(message)
    feed(assembler, log, [message, made.commit(1000)])
    log.sync()
    assert [c.op for c in changes(log)] == [Op.TRUNCATE]


def test_an_error_tells_offset_and_lsn_outside_of_transactions_too():
    with pytest.raises(ProtocolError, match=r"message 'I', offset 0, behind 0/0"):
        assembler_on(MemoryLog()).feed(made.insert(1, "x"))
