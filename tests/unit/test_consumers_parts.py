"""The small parts of the consumers' room, by bytes and numbers alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.model_source import column, items_layout
from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Lacking,
    Marks,
    Point,
    Snapshotting,
    TableProgress,
    dump_checkpoint,
    last_done_of,
    load_checkpoint,
)
from walbus.consumers.checkpoint_store import FileCheckpointStore
from walbus.consumers.latency import LatencyWindow
from walbus.consumers.sinks.layout import layout_change, sources
from walbus.consumers.sinks.redis_rows import KeyTemplate
from walbus.consumers.stale import Freshness, Stale, stale_rows
from walbus.consumers.tables import check_patterns, matching
from walbus.errors import InvalidText
from walbus.events import Change
from walbus.keys import encode_key
from walbus.position import ORIGIN, Position
from walbus.records import Op, RawChange
from walbus.schema import ReplicaIdentity, TableSchema

positions = st.builds(Position, st.integers(0, 9), st.integers(0, 2**64 - 1), st.integers(0, 2**31))
points = st.builds(Point, positions, st.integers(0, 2**53))
marks = st.builds(Marks, st.integers(0, 2**53), st.integers(0, 2**53))
progress = st.builds(TableProgress, st.text(min_size=1), st.none() | st.binary(), st.booleans(), st.none() | points)
unread = st.lists(st.builds(Lacking, st.text(), st.integers(0, 2**32 - 1)), max_size=2).map(tuple)
asked = st.none() | st.lists(st.text(), max_size=2).map(tuple)
checkpoints = st.one_of(
    st.builds(Following, st.text(), marks, points, unread, st.integers(0, 99), positions, asked),
    st.builds(CatchingUp, st.text(), marks, points, positions, unread, st.integers(0, 99), positions, asked),
    st.builds(
        Snapshotting,
        st.text(),
        marks,
        st.lists(progress).map(tuple),
        st.none() | points,
        st.none() | points,
        unread,
        st.integers(0, 99),
        st.none() | positions,
        asked,
    ),
)


@given(checkpoints)
def test_a_checkpoint_is_the_same_after_its_json_form(checkpoint: Checkpoint) -> None:
    text = dump_checkpoint(checkpoint)
    assert load_checkpoint(text) == checkpoint
    assert dump_checkpoint(load_checkpoint(text)) == text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"version":1}', '{"version":1,"phase":"x"}', '{"version":2}']
)
def test_what_is_no_checkpoint_is_refused_with_a_mend(text: str) -> None:
    with pytest.raises(InvalidText, match="remove it"):
        load_checkpoint(text)


def test_a_checkpoint_file_is_replaced_whole_and_survives(tmp_path: Path) -> None:
    store = FileCheckpointStore(tmp_path / "deep" / "checkpoint.json")
    assert store.load() is None
    for lsn in (1, 2):
        store.save(Following("log", Marks(1, 1), Point(Position(1, lsn, 1), lsn)))
    assert FileCheckpointStore(tmp_path / "deep" / "checkpoint.json").load() == Following(
        "log", Marks(1, 1), Point(Position(1, 2, 1), 2)
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["checkpoint.json"]
    assert stat.S_ISREG((tmp_path / "deep" / "checkpoint.json").stat().st_mode)


def test_a_damaged_checkpoint_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    path.write_text('{"version":1')
    with pytest.raises(InvalidText, match=str(path)):
        FileCheckpointStore(path).load()


def test_the_log_is_read_on_from_the_lowest_state_of_a_snapshot() -> None:
    low, high = Point(Position(1, 5, 1), 5), Point(Position(1, 9, 1), 9)
    assert last_done_of(Snapshotting("l", Marks(1, 1), (), low, high)) == low.last_done
    assert last_done_of(Snapshotting("l", Marks(1, 1), ())) == ORIGIN
    assert last_done_of(None) == ORIGIN


def test_delays_double_up_to_the_longest_and_begin_again() -> None:
    backoff = Backoff(first=1, longest=5, uniform=lambda: 1.0)
    assert [backoff.next_delay() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next_delay() == 1


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2000))
def test_a_delay_is_between_half_and_all_of_its_length(jitter: float, attempts: int) -> None:
    backoff = Backoff(first=0.1, longest=5, uniform=lambda: jitter)
    backoff.attempts = attempts
    nominal = min(5, 0.1 * 2 ** min(attempts, 32))
    assert nominal / 2 <= backoff.next_delay() <= nominal


def test_latencies_older_than_the_window_are_forgotten() -> None:
    window = LatencyWindow(seconds=10)
    assert window.quantiles(0, 0.5) == [None]
    for second in range(20):
        window.add(second, second)
    assert window.quantiles(19, 0, 0.5, 1) == [9, 14, 19]
    assert window.quantiles(100, 0.5) == [None]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.*", ("a.x", "a.y", "b.x")), ("a.*", ("a.x", "a.y")), ("b.x", ("b.x",)), ("c.*", ())],
)
def test_patterns_name_tables(pattern: str, expected: tuple[str, ...]) -> None:
    assert matching(["a.x", "a.y", "b.x"], check_patterns([pattern])) == expected
    assert check_patterns([]) == ("*.*",)


KEY = column("id", 23, "int4", in_key=True)


def test_a_rename_is_told_from_a_drop_and_an_add() -> None:
    old = items_layout("items", KEY, column("a"), column("b"))
    renamed = layout_change(old, items_layout("items", KEY, column("c"), column("b")))
    assert (renamed.renamed, renamed.dropped, renamed.added) == ((("a", "c"),), (), ())
    replaced = layout_change(old, items_layout("items", KEY, column("b"), column("c", 23, "int4")))
    assert replaced.renamed == ()
    assert replaced.dropped == ("a",)
    assert [c.name for c in replaced.added] == ["c"]


def test_other_types_and_other_keys_are_told() -> None:
    old = items_layout("items", KEY, column("a"))
    assert [c.name for c in layout_change(old, items_layout("items", KEY, column("a", 23, "int4"))).retyped] == ["a"]
    rekeyed = items_layout("items", column("id", 23, "int4"), column("a", in_key=True))
    assert layout_change(old, rekeyed).rekeyed
    assert not layout_change(old, items_layout("items", KEY, column("z"))).rekeyed


def test_values_of_an_earlier_layout_find_their_columns() -> None:
    row = items_layout("items", KEY, column("a"), column("b"))
    assert sources(row, items_layout("items", KEY, column("c"), column("b"))) == [0, 1, 2]
    assert sources(row, items_layout("items", KEY, column("b"), column("new"), column("more"))) == [0, 2, None, None]


def test_keys_of_several_columns_never_collide() -> None:
    template = KeyTemplate("cache:{table}:{key}")
    keys = [("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c")]
    names = {template.row_key("s.t", encode_key([p.encode() for p in key], [25, 25])) for key in keys}
    assert len(names) == 3
    assert template.row_key("s.t", encode_key([b"a:b"], [25])) == "cache:s.t:a:b"


@pytest.mark.parametrize("template", ["{table}:{key}", "x:{table}[{key}]", "{key}@{table}:"])
@given(key=st.lists(st.text(), min_size=1, max_size=3))
def test_a_key_tells_the_values_that_it_is_made_of(template: str, key: list[str]) -> None:
    keys, texts = KeyTemplate(template), tuple(text.replace("\0", "") for text in key)
    row_key = keys.row_key("s.t", encode_key([text.encode() for text in texts], [25] * len(texts)))
    assert keys.texts(row_key, "s.t", len(texts)) == texts


def test_a_key_that_is_no_rows_is_told_as_it_is() -> None:
    keys = KeyTemplate("{table}:{key}")
    assert keys.texts("s.t:a%3Ab:c", "s.t", 2) == ("a:b", "c")
    for other in ("a", "a:b:c", "a%3ab:%zz", "a%:b"):
        assert keys.texts(f"s.t:{other}", "s.t", 2) == (other,)


def test_a_pattern_for_scan_takes_names_literally() -> None:
    assert KeyTemplate("{table}[{key}]").pattern("a*b?") == r"a\*b\?\[*\]"
    assert KeyTemplate("x:{table}:{key}").moved("x:old:5", "old", "new") == "x:new:5"


@pytest.mark.parametrize("template", ["{table}:{key}", "x:{table}[{key}]", "{key}@{table}:"])
def test_a_key_tells_its_table(template: str) -> None:
    keys = KeyTemplate(template)
    assert keys.table_of(keys.row_key("public.items", encode_key([b"7"], [23]))) == "public.items"
    assert keys.table_of("public.items") is None


@pytest.mark.parametrize("template", ["{key}", "{table}", "{table}{key}{key}", "{table}{key}{other}", ""])
def test_a_template_names_table_and_key_once_each(template: str) -> None:
    with pytest.raises(ValueError, match="each once"):
        KeyTemplate(template)


@pytest.mark.parametrize("template", ["{table}{key}", "{table}_{key}", "{key}.{table}", "x:{table}-{key}"])
def test_a_template_keeps_the_rows_of_tables_with_like_names_apart(template: str) -> None:
    with pytest.raises(ValueError, match="such as a colon"):
        KeyTemplate(template)


def event(op: Op, document: dict[str, object]) -> Change:
    layout = TableSchema(3, 16400, "public", "t", ReplicaIdentity.DEFAULT, ())
    raw = RawChange(op, 0, 16400, 3, 0, 0, 0, None, None, b"", json.dumps(document).encode(), None)
    return Change(raw, layout if op is Op.SCHEMA else None, ORIGIN, 0)


def told(op: Op, document: dict[str, object]) -> list[tuple[str, int | None]]:
    return [(stale.table, stale.settled) for stale in stale_rows(event(op, document), ORIGIN)]


def test_an_event_names_the_tables_whose_rows_must_be_had_again() -> None:
    lsn = "0/300"
    assert told(Op.SCHEMA, {"id": 3}) == []
    assert told(Op.SCHEMA, {"reseed": {"reason": "rewritten", "lsn": lsn}}) == [("public.t", 0x300)]
    assert told(Op.SCHEMA, {"reseed": {"reason": "key_changed", "lsn": lsn}}) == [("public.t", None)]
    assert told(Op.SCHEMA, {"reseed": {"reason": "of a later version"}}) == [("public.t", None)]
    assert told(Op.SCHEMA, {"reseed": {"reason": "dropped", "lsn": lsn}}) == []
    assert told(Op.EPOCH, {"reseed": [{"oid": 1, "table": "a.b"}]}) == [("a.b", None)]
    assert told(Op.EPOCH, {"lost": None}) == []


def test_rows_of_a_generation_behind_an_event_are_read_once_however_often_the_event_comes() -> None:
    rows, at = Freshness(), Position(1, 0x400, 0)
    event, keyed = Stale(7, "t", at, 0x300), Stale(7, "t", at, None)
    rows.reading(7, Position(1, 0x200, 4))
    assert rows.heed([event]) == [event]
    assert not rows.serves(7, Position(1, 0x2FF, 0))  # the bootstrap is at the event's position, and has not met it
    assert rows.serves(7, Position(1, 0x300, 0))
    rows.reading(7, Position(1, 0x300, 0))
    assert rows.heed([event]) == []
    assert rows.heed([keyed]) == [keyed]
    assert not rows.serves(7, Position(1, 0x3FF, 0))
    rows.reading(7, at)
    assert rows.heed([keyed, event]) == []
    later = Stale(7, "t by another name", Position(2, 0x100, 0))  # the next epoch, below
    assert rows.heed([later]) == [later]


def test_a_bootstrap_that_does_not_say_where_it_folds_from_is_believed() -> None:
    rows = Freshness()
    assert rows.heed([Stale(7, "t", ORIGIN)])
    assert rows.serves(7, None)
    assert rows.serves(8, None)
