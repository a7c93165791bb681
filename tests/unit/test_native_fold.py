"""Changes folded into entries, by both cores: the same entries in the same order, and those of the rule written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.bootstrap.change_index import page_key, pages_of, places_of, seq_of_page
from walbus.bootstrap.entry import Entry, FromEvent, pack_entry, unpack_entry
from walbus.bootstrap.store import space_of
from walbus.compression import Compressor
from walbus.errors import DamagedRecord, StoreDamaged
from walbus.native.folding import PAGE_BYTES
from walbus.position import Position
from walbus.records import Flag, Kind, Op, iter_changes, pack_change, pack_record

WHOLE = Flag.BEGIN | Flag.END
SPACES = {16: space_of(16, 1), 17: space_of(17, 3)}
STRANGER = 18
START = Position(1, 100, 0)
LACKING = (b"\x01", b"\x02")

keys = st.integers(0, 3).map(lambda number: b"k%d" % number)
changes = st.one_of(
    st.tuples(st.just(Op.INSERT), st.sampled_from([16, 17, STRANGER]), keys, st.none(), st.just(b"")),
    st.tuples(
        st.just(Op.UPDATE), st.sampled_from([16, 17]), keys, st.none() | keys, st.sampled_from([b"", b"", *LACKING])
    ),
    st.tuples(st.just(Op.DELETE), st.sampled_from([16, 17]), keys, st.none(), st.just(b"")),
    st.tuples(st.just(Op.MESSAGE), st.just(0), keys, st.none(), st.just(b"")),
)
transactions = st.lists(st.lists(changes, min_size=1, max_size=8), max_size=6)


@pytest.fixture(params=NAMES)
def core(request: pytest.FixtureRequest) -> Any:
    return implementation(request.param)


def packed(number: int, change: tuple[Any, ...]) -> bytes:
    op, table, key, old_key, unchanged = change
    return pack_change(
        op,
        table=table,
        schema_id=number % 3,
        seq_delta=number,
        ordinal_delta=number,
        key=key,
        old_key=old_key,
        unchanged=unchanged,
        after=None if op == Op.DELETE else b"row %d" % number + b"." * 200,
    )


def record(
    lsn: int, body: list[bytes], *, kind: int = Kind.TRANSACTION, epoch: int = 1, tables: int = 7 << 16, **more: Any
) -> bytes:
    fields: dict[str, Any] = {
        "flags": WHOLE,
        "first_ordinal": 1,
        "last_ordinal": len(body),
        "first_seq": lsn * 1000,
        "last_seq": lsn * 1000 + len(body) - 1,
        "xid": lsn + 5,
        "commit_time": 0,
        "count": len(body),
        "body": b"".join(body),
    }
    return pack_record(kind, epoch=epoch, commit_lsn=lsn, tables=tables, **{**fields, **more})


def records_of(transactions: list[list[tuple[Any, ...]]]) -> list[bytes]:
    return [record(101 + n, [packed(i, c) for i, c in enumerate(t)]) for n, t in enumerate(transactions)]


def merged(before: Entry | None, entry: Entry) -> Entry:
    """The entry with what it lacks from the one before; rows here are lists of who gave them."""
    if before is None or before.row is None:
        return entry
    if before.missing == entry.missing:
        return replace(entry, moved=entry.moved or before.moved)
    return Entry(entry.seq, entry.schema_id, (entry.row or b"") + b" over " + before.row, entry.origin)


def whole(value: Any, store: dict[bytes, Entry]) -> Entry:
    """An entry of the fold with what it lacks."""
    if not isinstance(value, tuple):
        return unpack_entry(value, {})
    content, source, before = value
    known = store.get(source) if before is None else None if before == b"" else whole(before, store)
    return merged(known, unpack_entry(content, {}))


def by_the_rule(transactions: list[list[tuple[Any, ...]]], store: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Every change by itself, one after the other."""
    state = dict(store)
    touched: dict[bytes, None] = {}
    for raw in records_of(transactions):
        lsn = int.from_bytes(raw[16:24], "little")
        for change in iter_changes(raw[96:]):
            if change.table not in SPACES or change.op > Op.DELETE:
                continue
            seq, origin, space = lsn * 1000 + change.seq_delta, FromEvent(lsn + 5), SPACES[change.table]
            key = source = space + (change.key or b"")
            before = state.get(source)
            if change.old_key is not None and change.old_key != change.key:
                source = space + change.old_key
                before = state.get(source)
                state[source] = Entry(seq, change.schema_id, None, origin)
                touched.pop(source, None)
                touched[source] = None
            touched.pop(key, None)
            touched[key] = None
            if change.op == Op.DELETE:
                state[key] = Entry(seq, change.schema_id, None, origin)
                continue
            moved = source != key and bool(change.unchanged)
            entry = Entry(seq, change.schema_id, change.after, origin, change.unchanged, moved)
            state[key] = merged(before, entry) if change.unchanged else entry
    return {key: state[key] for key in touched}


def chain_free(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Without what a chain of updates that lack the same columns says of those in its middle."""
    return {key: replace(entry, row=_ends(entry.row)) for key, entry in entries.items()}


def _ends(row: bytes | None) -> bytes | None:
    if row is None:
        return None
    parts = row.split(b" over ")
    return b" over ".join([parts[0], parts[-1]])


@given(transactions, st.booleans())
def test_both_cores_fold_to_the_same_entries_and_these_are_the_rules(transactions: Any, compressed: bool) -> None:
    records = records_of(transactions)
    if compressed:
        frames = [Compressor(3).compress(raw[96:]) for raw in records]
        records = [
            raw
            if frame is None
            else record(101 + n, [frame], flags=WHOLE | Flag.ZSTD, last_ordinal=len(transactions[n]))
            for n, (raw, frame) in enumerate(zip(records, frames, strict=True))
        ]
    store = {
        SPACES[16] + b"k0": Entry(1, 1, b"old", FromEvent(1)),
        SPACES[16] + b"k1": Entry(1, 1, None, FromEvent(1)),
        SPACES[17] + b"k0": Entry(2, 1, b"partly", FromEvent(1), b"\x02", True),
    }
    results = []
    for name in NAMES:
        entries: dict[bytes, Any] = {}
        fold = implementation(name).new_fold(SPACES, entries)
        assert fold.take(records, 0, START) == len(records)
        results.append((list(entries.items()), fold.counts(), fold.xids))
        assert fold.counts() == {}
        listed = {key: pack_entry(whole(value, store)) for key, value in entries.items()}
        pages = dict(implementation(name).pack_pages(listed))
        found = [(space[:8], *place) for space, page in pages.items() for place in places_of(page)]
        assert sorted(found) == sorted((k[:8], unpack_entry(v, {}).seq, k[8:]) for k, v in listed.items())
        assert [place[1] for place in found if place[0] == SPACES[16]] == sorted(
            p[1] for p in found if p[0] == SPACES[16]
        )
    assert results[0] == results[1]
    expected = by_the_rule(transactions, store)
    folded = {key: whole(value, store) for key, value in results[0][0]}
    assert list(folded) == list(expected)
    assert chain_free(folded) == chain_free(expected)
    inserted = [c for t in transactions for c in t if c[1] in SPACES and c[0] in (Op.INSERT, Op.DELETE)]
    assert sum(results[0][1].values()) == sum(1 if c[0] == Op.INSERT else -1 for c in inserted)
    assert results[0][2] == {101 + n + 5 for n in range(len(transactions))}


def test_a_chain_of_updates_that_lack_the_same_columns_stays_short(core: Any) -> None:
    entries: dict[bytes, Any] = {}
    update = (Op.UPDATE, 16, b"k", None, b"\x02")
    body = [
        pack_change(
            Op.UPDATE, table=16, schema_id=1, seq_delta=i, ordinal_delta=i, key=b"k", unchanged=b"\x02", after=b""
        )
        for i in range(50)
    ]
    assert core.new_fold(SPACES, entries).take([record(101, body)], 0, START) == 1
    key = SPACES[16] + update[2]
    content, source, before = entries[key]
    assert unpack_entry(content, {}).seq == 101_049 and (source, before) == (key, None)


def test_what_the_batch_took_out_has_no_values_to_give(core: Any) -> None:
    key = SPACES[16] + b"k1"
    entries: dict[bytes, Any] = {key: None}
    core.new_fold(SPACES, entries).take([record(101, [packed(0, (Op.UPDATE, 16, b"k1", None, b"\x02"))])], 0, START)
    assert entries[key][2] == b""


def plain(lsn: int, **more: Any) -> bytes:
    return record(lsn, [packed(0, (Op.INSERT, 16, b"k0", None, b""))], **more)


TRUNCATE = pack_change(Op.TRUNCATE, table=16, schema_id=1, seq_delta=1, ordinal_delta=1)
KEYLESS = pack_change(Op.INSERT, table=16, schema_id=1, seq_delta=1, ordinal_delta=1, after=b"")
ROWLESS = pack_change(Op.UPDATE, table=16, schema_id=1, seq_delta=1, ordinal_delta=1, key=b"k")


@pytest.mark.parametrize(
    "left",
    [
        plain(102, kind=Kind.SCHEMA),
        plain(102, kind=Kind.EPOCH),
        plain(102, epoch=2),
        plain(99),
        *(
            record(102, [packed(0, (Op.INSERT, 16, b"k1", None, b"")), change])
            for change in (TRUNCATE, KEYLESS, ROWLESS)
        ),
    ],
)
def test_a_record_that_needs_its_owner_is_left_untouched(core: Any, left: bytes) -> None:
    entries: dict[bytes, Any] = {}
    fold = core.new_fold(SPACES, entries)
    records = [plain(101), left, plain(103)]
    assert fold.take(records, 0, START) == 1
    assert list(entries) == [SPACES[16] + b"k0"]
    assert (fold.counts(), fold.xids) == ({16: 1}, {106})
    assert fold.take(records, 2, Position(1, 102, 2)) == 3


def test_progress_and_strangers_are_passed_over(core: Any) -> None:
    entries: dict[bytes, Any] = {}
    fold = core.new_fold(SPACES, entries)
    progress = record(105, [], kind=Kind.PROGRESS, first_ordinal=0, last_ordinal=0, tables=0)
    stranger = record(106, [packed(0, (Op.TRUNCATE, STRANGER, b"", None, b""))])
    assert fold.take([progress, stranger], 0, START) == 2
    assert entries == {} and fold.counts() == {}


def test_damage_is_refused(core: Any) -> None:
    good = plain(101)
    for bad in (good[:-1], good[:50], good[:96] + b"\xff" * 4 + good[100:], good[:128] + b"\xff" + good[129:]):
        with pytest.raises(DamagedRecord):
            core.new_fold(SPACES, {}).take([bad], 0, START)


@given(st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=40)), max_size=400))
def test_pages_are_cut_alike_and_never_between_two_places_of_one_seq(steps: list[tuple[int, bytes]]) -> None:
    entries: dict[bytes, bytes | None] = {}
    seq = 0
    for n, (step, key) in enumerate(steps):
        seq += step - 1
        entries[SPACES[16] + b"%d" % n + key * 9] = pack_entry(Entry(seq, 1, b"", FromEvent(1)))
    pages = [implementation(name).pack_pages(entries) for name in NAMES]
    assert pages[0] == pages[1]
    places = [place for _, page in pages[0] for place in places_of(page)]
    assert [key for _, key in places] == [key[8:] for key in entries]
    assert pages_of(SPACES[16], places) == dict(pages[0])
    assert len(dict(pages[0])) == len(pages[0])
    for key, page in pages[0]:
        assert list(places_of(page))[-1][0] == seq_of_page(key)
        assert len(page) < 2 * PAGE_BYTES


@given(st.dictionaries(st.binary(max_size=12), st.none() | st.binary(max_size=3), max_size=50))
def test_a_batch_is_sorted_by_key(entries: dict[bytes, bytes | None]) -> None:
    for name in NAMES:
        assert implementation(name).in_key_order(entries) == sorted(entries.items(), key=lambda item: item[0])


def test_a_page_that_is_cut_short_is_damage() -> None:
    page = pages_of(SPACES[16], [(5, b"abc")])[page_key(SPACES[16], 5)]
    for end in range(1, len(page)):
        with pytest.raises(StoreDamaged):
            list(places_of(page[:end]))
