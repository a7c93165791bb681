"""What documents, fields and indices are called, and what their mappings say. No server."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.model_source import column, items_layout
from walbus.consumers.sinks.opensearch_documents import (
    IndexTemplate,
    acceptable,
    document_id,
    field_name,
    key_of_id,
    properties_of,
    seq_of,
    version_of,
)
from walbus.keys import encode_key

names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=63)
TEMPLATE = IndexTemplate("{table}")


@given(names, names)
def test_two_tables_never_share_an_index(one: str, other: str) -> None:
    aliases = TEMPLATE.alias(f"public.{one}"), TEMPLATE.alias(f"public.{other}")
    assert (aliases[0] == aliases[1]) == (one == other)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1, max_size=3))
def test_a_key_is_read_off_the_id_that_it_gave_unless_that_is_a_digest(texts: list[str]) -> None:
    id_ = document_id(encode_key([text.encode() for text in texts], [25] * len(texts)))
    assert key_of_id(id_, len(texts)) == ((id_,) if id_.startswith("%sha256-") else tuple(texts))


def test_an_id_of_no_such_key_is_told_as_it_is() -> None:
    assert key_of_id("a", 2) == ("a",)
    assert key_of_id("a:b:c", 2) == ("a:b:c",)
    assert key_of_id("a:b", 1) == ("a:b",)


def test_a_version_of_another_log_is_older_or_newer_than_all_seqs() -> None:
    assert seq_of(1, version_of(1, 7)) == 7
    assert seq_of(1, version_of(0, 7)) < 0
    assert seq_of(1, version_of(2, 7)) > 2**53


@given(names, names)
def test_an_index_has_a_name_that_servers_take(schema: str, table: str) -> None:
    alias = TEMPLATE.alias(f"{schema}.{table}")
    assert len(f"{alias}~1000".encode()) <= 255
    assert alias == alias.lower() and alias.isascii() and not set(alias) & set('\\/*?"<>|,#: ~')
    assert alias[0] not in "-_+."


@given(names, names)
def test_two_columns_never_share_a_field_nor_lie_in_one_another(one: str, other: str) -> None:
    fields = field_name(one), field_name(other)
    assert (fields[0] == fields[1]) == (one == other)
    assert not any("." in name or name.startswith("_") or not name.strip() for name in fields)


@given(st.lists(names | st.just(""), min_size=1, max_size=3), st.lists(names | st.just(""), min_size=1, max_size=3))
def test_two_keys_of_a_table_never_share_a_document(one: list[str], other: list[str]) -> None:
    other = (other * 3)[: len(one)]
    ids = [document_id(encode_key([text.encode() for text in key], [25] * len(key))) for key in (one, other)]
    assert (ids[0] == ids[1]) == (one == other)
    assert all(0 < len(id_.encode()) <= 512 for id_ in ids)


def test_an_ordinary_key_is_its_text() -> None:
    assert document_id(encode_key([b"17"], [23])) == "17"
    assert document_id(encode_key([b"17", b"a:b%"], [23, 25])) == "17:a%3Ab%25"


@given(st.integers(0, 1000), st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_a_later_log_has_higher_versions_whatever_its_seqs(number: int, one: int, other: int) -> None:
    assert version_of(number, one) < version_of(number + 1, other) < 2**63
    assert version_of(0, one) == one


@pytest.mark.parametrize(
    "template", ["shop", "{table}{table}", "Shop-{table}", "-{table}", "a~{table}", "a b{table}", ".{table}"]
)
def test_a_template_that_names_no_index_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="table"):
        IndexTemplate(template)


def test_a_field_is_mapped_by_its_columns_type_or_as_it_is_told() -> None:
    layout = items_layout(
        "items", column("id", 20, "int8", in_key=True), column("price", 1700, "numeric"), column("many", 1007, "_int4"),
        column("mood", 16500, "public.mood"), column("word", 16600, "public.citext"), column("a.b"),
    )  # fmt: skip
    mapped = properties_of(layout, {"a.b": {"type": "keyword"}})
    assert {name: field["type"] for name, field in mapped.items()} == {
        "id": "long", "price": "double", "many": "integer", "mood": "keyword", "word": "text", "a%2eb": "keyword",
        "_walbus_mark": "long", "_walbus_lacks": "boolean",
    }  # fmt: skip


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=4).map(tuple)
    ),
)


def _written(document: object) -> str:
    if isinstance(document, tuple):
        return "{" + ",".join(f"{json.dumps(name)}: {_written(value)}" for name, value in document) + "}"
    if isinstance(document, list):
        return "[" + ", ".join(map(_written, document)) + "]"
    return json.dumps(document)


@given(documents)
def test_a_document_without_repeats_means_the_same_and_has_none(document: object) -> None:
    text = _written(document)
    told = bytes(acceptable(msgspec.Raw(text.encode()))).decode()

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    assert json.loads(told, object_pairs_hook=once) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("[" * 300 + "]" * 300, True),
        ("[" * 301 + "]" * 301, False),
        ('{"d":' * 301 + "0" + "}" * 301, False),
        ("[[]," * 200 + "0" + "]" * 200, True),
        ('"' + "[" * 5000 + '"', True),
        ('"\\"' + "1" * 5000 + '"', True),
        ("0." + "0" * 3000 + "1", False),
        ("[" + "1," * 5000 + "1]", True),
        ('{"a":"b","c":' + "1" * 1200 + "}", False),
        ('["\\ud83d\\ude00"]', True),
        ('["\\ud800"]', False),
    ],
)
def test_a_document_that_no_server_can_read_is_kept_as_its_text(text: str, kept: bool) -> None:
    told = acceptable(msgspec.Raw(text.encode()))
    assert told == (msgspec.Raw(text.encode()) if kept else text)
