"""`docs/log-format.md` is normative: its tables must be what the code does."""

from __future__ import annotations

import dataclasses
import re
from enum import IntEnum
from pathlib import Path

import pytest

from walbus import records
from walbus.keys import encode_key
from walbus.records import ChangeFlag, Flag, Kind, Op
from walbus.relay import control, index, segment
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment

TEXT = (Path(__file__).parents[2] / "docs" / "log-format.md").read_text()
SIZES = {"u8": ("B", 1), "u16": ("H", 2), "u32": ("I", 4), "u64": ("Q", 8), "i64": ("q", 8)}
LAYOUT = re.compile(r"^\| (\d+) \| ([ui]\d+) \|", re.MULTILINE)


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(("heading", "form"), [("Records", records.HEADER.format), ("Changes", records._CHANGE.format)])
def test_the_fields_stand_at_the_documented_offsets(heading: str, form: str) -> None:
    at, letters = 0, ""
    for offset, kind in LAYOUT.findall(section(heading)):
        assert int(offset) == at
        letters += SIZES[kind][0]
        at += SIZES[kind][1]
    assert f"<{letters}" == form


@pytest.mark.parametrize(
    ("heading", "names"), [("Kinds", Kind), ("Flags", Flag), ("Changes", Op), ("Changes", ChangeFlag)]
)
def test_every_number_is_documented(heading: str, names: type[IntEnum]) -> None:
    documented = re.findall(r"^\| (\d+) \| (\w+) \| \S", section(heading), re.MULTILINE)
    assert {(str(m.value), m.name.lower()) for m in names} <= {(n, name.lower()) for n, name in documented}


def test_the_header_of_a_segment_is_as_documented() -> None:
    form, at = "<", 0
    rows = re.findall(r"^\| (\d+) \| ([ui]\d+|(\d+) bytes) \|", section("Segments"), re.MULTILINE)
    for offset, kind, count in rows:
        assert int(offset) == at
        letters, size = (f"{count}s", int(count)) if count else SIZES[kind]
        form, at = form + letters, at + size
    assert (form, at) == (segment._HEADER.format.replace("28x", "28s") + "I", segment.HEADER_SIZE)


def test_the_durable_end_and_the_blocks_of_an_index_are_as_documented() -> None:
    _, end = section("The control file").split("An end is")
    assert form_of(end) == "I" + control._MARK.format.removeprefix("<")  # the checksum stands before it
    (header,) = re.findall("    header .*", section("Indexes"))
    (entry,) = re.findall("    entry .*", section("Indexes"))
    assert f"<8s{form_of(header)}" == index._HEADER.format
    assert f"<{form_of(entry)}" == index._ENTRY.format


def form_of(text: str) -> str:
    """The types that a text names, as `struct` writes them."""
    return "".join(SIZES[kind][0] for kind in re.findall(r"\b[ui]\d+\b", text))


def test_the_members_of_a_manifest_are_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", section("The manifest")))
    members = {field.name for one in (Manifest, SealedSegment, ActiveSegment) for field in dataclasses.fields(one)}
    assert members <= documented


def test_the_example_key_is_the_keys_form() -> None:
    (example,) = re.findall(r"the key \(7, 'ab'\) is `([0-9a-f ]+)`", TEXT)
    assert encode_key([b"7", b"ab"], [23, 25]) == bytes.fromhex(example)
