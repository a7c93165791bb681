"""Parts of all keys: names, checkpoints and places of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from walbus.config import ConsumerConfig
from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Marks,
    Part,
    Point,
    Snapshotting,
    TableProgress,
    dump_checkpoint,
    load_checkpoint,
)
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.partitions import (
    GroupPart,
    options_of,
    own_place,
    part_name,
    part_of,
    require_same_part,
    require_same_parts,
)
from walbus.errors import ConfigError, UsageError
from walbus.position import Position

AT = Point(Position(1, 0x200, 1), 7)
MARKS = Marks(3, 1)


def test_each_part_has_a_name_of_its_own() -> None:
    assert part_name("orders", None) == "orders"
    assert part_name("orders", "3/8") == "orders.3-of-8"
    with pytest.raises(UsageError, match="no consumer's name"):
        part_name("x" * 60, "3/8")


def test_a_part_has_one_way_to_be_written() -> None:
    assert Narrowing("03/008").partition == "3/8"


@pytest.mark.parametrize(
    "checkpoint",
    [
        Following("log", MARKS, AT, part=Part("3/8")),
        CatchingUp("log", MARKS, AT, AT.last_done, part=Part("3/8")),
        Snapshotting("log", MARKS, (TableProgress("public.a"),), part=Part("3/8")),
    ],
)
def test_a_checkpoint_keeps_its_part_and_no_older_version_takes_it_for_one_of_all_keys(checkpoint: Checkpoint) -> None:
    text = dump_checkpoint(checkpoint)
    assert load_checkpoint(text) == checkpoint
    assert '"version":3' in text


@pytest.mark.parametrize(
    ("stored", "asked"), [("3/8", "2/8"), ("3/8", "3/4"), ("3/8", None), (None, "3/8"), ("0/1", None)]
)
def test_a_checkpoint_of_another_part_is_refused(stored: str | None, asked: str | None) -> None:
    checkpoint = Following("log", MARKS, AT, part=None if stored is None else Part(stored))
    require_same_part(checkpoint, stored, "orders")
    require_same_part(None, asked, "orders")
    with pytest.raises(UsageError, match="the checkpoint is of") as raised:
        require_same_part(checkpoint, asked, "orders")
    assert (stored or "all keys") in raised.value.what
    assert (asked or "all keys") in raised.value.what


@pytest.mark.parametrize(("before", "now"), [("8", "3/4"), ("8", None), ("4", "3/8")])
def test_another_number_of_parts_under_a_name_is_refused(before: str, now: str | None, tmp_path: Path) -> None:
    (tmp_path / f"orders.0-of-{before}").mkdir()
    (tmp_path / "orders-old.0-of-3").mkdir()
    require_same_parts(tmp_path, "orders", f"1/{before}")
    require_same_parts(tmp_path, "others", now)
    with pytest.raises(UsageError, match=f"in {before} parts before"):
        require_same_parts(tmp_path, "orders", now)


def test_a_consumer_of_all_keys_is_not_cut_into_parts_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "checkpoint.json").write_text("{}")
    require_same_parts(tmp_path, "orders", None)
    with pytest.raises(UsageError, match="as one before, and is to read 8 parts"):
        require_same_parts(tmp_path, "orders", "3/8")


@pytest.mark.parametrize(
    ("sink", "options"),
    [
        ("redis", {"key": "{table}:{key}"}), ("redis", {"url": "redis://{partition}"}), ("postgres", {}),
        ("opensearch", {"state_index": "{partition}"}), ("sqlite", {"path": "/shared.sqlite"}),
        ("tantivy", {"path": "x"}),
        ("other", {"option": 1}),
    ],
)  # fmt: skip
def test_a_part_in_a_place_of_all_parts_is_refused(sink: str, options: dict[str, Any]) -> None:
    assert own_place(sink, options, None, "orders") == options
    with pytest.raises(ConfigError, match=r"sweep deletes those of the others .*key consumer\.orders"):
        own_place(sink, options, "3/8", "orders")


@pytest.mark.parametrize(
    ("sink", "options", "filled"),
    [
        ("redis", {"key": "{partition}:{table}:{key}"}, {"key": "3-of-8:{table}:{key}"}),
        ("postgres", {"into": "{schema}_{partition}"}, {"into": "{schema}_3-of-8"}),
        ("sqlite", {}, {}),
        ("sqlite", {"path": "/x/{partition}.sqlite"}, {"path": "/x/3-of-8.sqlite"}),
        ("stdout", {}, {}),
        ("other", {"place": "a{partition}", "n": 1}, {"place": "a3-of-8", "n": 1}),
    ],
)
def test_the_part_is_filled_into_the_options_of_a_sink(
    sink: str, options: dict[str, Any], filled: dict[str, Any]
) -> None:
    assert own_place(sink, options, "3/8", "orders") == filled


@pytest.mark.parametrize(
    ("section", "part", "options"),
    [
        ({"parts": 8}, GroupPart("3/8", together=True), {"key": "{table}:{key}"}),
        ({"parts": 8, "key": "{partition}:{table}:{key}"}, GroupPart("3/8", together=False), None),
        ({"partition": "3/8", "key": "{partition}:{table}:{key}"}, None, None),
    ],
)
def test_the_rows_of_a_groups_parts_lie_together_in_redis_unless_they_are_told_apart(
    section: dict[str, Any], part: GroupPart | None, options: dict[str, Any] | None
) -> None:
    config = ConsumerConfig(**{"sink": "redis", "key": "{table}:{key}", **section})
    assert part_of(config, "3/8") == part
    assert options_of(config, "3/8", "orders") == (options or {"key": "3-of-8:{table}:{key}"})


def test_a_part_is_written_into_keys_by_table_and_not_into_values() -> None:
    options = {
        "key": "{partition}:{key}",
        "keys": {"public.t": "{partition}:t:{id}"},
        "values": {"public.t": "{partition}"},
    }
    found = own_place("redis", options, "1/2", "orders")
    assert found["keys"] == {"public.t": "1-of-2:t:{id}"}
    assert found["values"] == {"public.t": "{partition}"}
