"""Keys of rows in Redis by a table's own template: what they tell, and which templates are refused."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.model_source import column, items_layout
from walbus.consumers.sinks.redis_keys import RowKeys, TableKeyTemplate
from walbus.keys import encode_key

PAIRS = items_layout("pairs", column("a", in_key=True), column("note"), column("b", in_key=True))
GENERAL = "{table}:{key}"


def keys_of(template: str) -> RowKeys:
    keys = RowKeys(GENERAL, {"public.pairs": template})
    keys.know(PAIRS)
    return keys


def row_key(keys: RowKeys, *values: str) -> str:
    return keys.row_key("public.pairs", encode_key([value.encode() for value in values], [25] * len(values)))


def test_a_tables_own_template_names_columns_in_any_order() -> None:
    assert row_key(keys_of("pair:{b}:{a}"), "x", "y") == "pair:y:x"
    assert row_key(keys_of("pair:{{a}}:{b}/"), "x", "y") == "pair:{x}:y/"
    one = RowKeys(GENERAL, {"public.items": "item:{id}"})
    one.know(items_layout())
    assert one.row_key("public.items", encode_key([b"5"], [23])) == "item:5"
    assert one.row_key("public.others", encode_key([b"5"], [23])) == "public.others:5"


def test_a_change_of_an_older_layout_tells_its_keys_values_in_that_ones_order() -> None:
    keys = keys_of("pair:{a}:{b}")
    b, a, note = column("b", in_key=True), column("a", in_key=True), column("note")
    keys.know(items_layout("pairs", b, note, a, schema_id=2))
    key = encode_key([b"x", b"y"], [25, 25])
    assert keys.tells("public.pairs", PAIRS)
    assert keys.row_key("public.pairs", key, PAIRS) == "pair:x:y"
    assert keys.row_key("public.pairs", key) == "pair:y:x"
    renamed = items_layout("pairs", column("c", in_key=True), note, a, schema_id=3)
    assert keys.row_key("public.pairs", key, renamed) == "pair:y:x", "it is what is called b now"
    other = items_layout("pairs", a, column("b"), note, schema_id=4)
    assert not keys.tells("public.pairs", other), "its key has no b"
    assert keys.tells("public.items", other), "a table without a template of its own"


@pytest.mark.parametrize("template", ["{a}:{b}", "x{a}-:-{b}y", "{b}::{a}", "p:{{b}}:{a}%"])
@given(values=st.tuples(st.text(":%-xA3"), st.text(":%-xA3")) | st.tuples(st.text(), st.text()))
def test_a_key_tells_the_values_of_its_columns(template: str, values: tuple[str, str]) -> None:
    keys, texts = keys_of(template), tuple(text.replace("\0", "") for text in values)
    assert keys.texts(row_key(keys, *texts), "public.pairs", 2) == texts


def test_no_two_rows_of_a_table_have_one_key() -> None:
    texts = ["", "a", ":", "%", "%3A", "a:", ":a", "a:b", "-"]
    for template in ("{a}:{b}", "{b}-:-{a}", "x{a}::{b}"):
        keys = keys_of(template)
        assert len({row_key(keys, *pair) for pair in product(texts, texts)}) == len(texts) ** 2


def test_what_no_row_of_the_table_lies_under_is_told_as_it_is() -> None:
    keys = keys_of("pair:{a}:{b}")
    for other in ("pair:a", "pair:a:b:c", "pairs:a:b", "pair:%zz:b%"):
        assert keys.texts(other, "public.pairs", 2) == (other,)


def test_a_pattern_takes_what_stands_around_the_columns_literally() -> None:
    assert keys_of("p*:{a}:?:{b}]").pattern("public.pairs") == r"p\*:*:\?:*\]"
    assert RowKeys(GENERAL, {"public.pairs": "p:{a}:{b}"}, "walbus:x:rows:1:").pattern("public.pairs") == (
        "walbus:x:rows:1:p:*:*"
    )


@pytest.mark.parametrize("template", ["person", "person:{}", "{id}:{id}", ""])
def test_a_template_names_columns_each_once(template: str) -> None:
    with pytest.raises(ValueError, match="each once"):
        TableKeyTemplate(template)


@pytest.mark.parametrize("template", ["{a}{b}", "x:{a}-{b}", "{a}:{b}{c}"])
def test_between_two_columns_stands_a_colon(template: str) -> None:
    with pytest.raises(ValueError, match="needs a colon"):
        TableKeyTemplate(template)


def test_keys_of_the_sinks_own_are_no_rows() -> None:
    with pytest.raises(ValueError, match="the sinks' own"):
        TableKeyTemplate("walbus:{id}")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("order:{id}", "order:{id}", True),
        ("order:{id}", "order:line:{id}", True),
        ("{id}", "order:{id}", True),
        ("{id}:order", "order:{id}", True),
        ("order:{id}:x", "order:{id}", True),
        ("order:{id}", "orders:{id}", False),
        ("{id}:a", "{id}:b", False),
        ("x{id}:a", "x{id}:b", False),
    ],
)
def test_two_tables_whose_keys_could_be_one_key_are_refused(one: str, other: str, alike: bool) -> None:
    own = {"public.a": one, "public.b": other}
    if alike:
        with pytest.raises(ValueError, match=r"keys of public\.a and of public\.b begin and end alike"):
            RowKeys(GENERAL, own)
    else:
        RowKeys(GENERAL, own)


def test_a_template_that_keys_of_other_tables_look_like_is_told_when_one_turns_up() -> None:
    keys = RowKeys("row:{table}:{key}", {"public.items": "row:{id}"})
    assert keys.misfit(items_layout(), None, ()) is None
    assert "public.other" in str(keys.misfit(items_layout(), None, ["public.other"]))
    assert "public.items" in str(keys.misfit(items_layout("other", oid=2), None, ()))
    apart = RowKeys(GENERAL, {"public.items": "item:{id}"})
    assert apart.misfit(items_layout(), None, ["public.other"]) is None
    assert apart.misfit(items_layout("other", oid=2), None, ["public.items"]) is None


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("p:{a}:{c}", "names c, which is no column of it"),
        ("p:{a}:{b}:{note}", "names note, which is not in its key"),
        ("p:{b}", "lacks a of its key, so that rows would share a key"),
    ],
)
def test_a_template_that_does_not_fit_the_tables_key_is_told(template: str, told: str) -> None:
    misfit = keys_of(template).misfit(PAIRS, None, ())
    assert misfit is not None
    assert told in misfit[0]
