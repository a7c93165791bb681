"""`verify_sink` on a tantivy index: what somebody did to its documents, or a disk to its files."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.running_consumer import consumer, equal
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, tantivy_under_test
from support.tampering import TantivyHand
from support.waiting import wait_for
from walbus.config import ConsumerConfig
from walbus.consumers.sink_verifying import TableVerdict, verify_sink
from walbus.errors import SinkRefused, SinkUnavailable

pytestmark = pytest.mark.one_version


@pytest.fixture
def index(tmp_path: Path) -> SinkUnderTest:
    return tantivy_under_test(tmp_path)


def verified(relay: ScriptedRelay, index: SinkUnderTest, *, repair: bool = False) -> TableVerdict:
    config = ConsumerConfig(sink="tantivy", tables=("public.*",), **index.options)
    (found,) = verify_sink("test", config, relay_url=relay.url, folder=index.place.folder, repair=repair)
    return found


def filled(relay: ScriptedRelay, index: SinkUnderTest, source: ModelSource, rows: int = 12) -> TantivyHand:
    source.commit([insert(ITEMS, n, f"n{n}", "body") for n in range(rows)])
    with consumer(relay, index):
        equal(index, relay)
        source.commit([update(ITEMS, 3, name="changed"), delete(ITEMS, 4), update(ITEMS, 5, new_id=50, name=None)])
        equal(index, relay)
    return TantivyHand(index)


def own(id: int, **fields: object) -> dict[str, object]:
    source = json.dumps({"id": id, "name": f"n{id}", "body": "body"}).encode()
    return {"_id": f"{ITEMS}/{id}", "_table": ITEMS, "_seq": 1, "_mark": 1, "_source": source, **fields}


def test_two_documents_of_one_key_differ_and_are_one_again_behind_a_repair(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    hand = filled(relay, index, source)
    same, older = hand.fields(1), {**hand.fields(2), "_seq": 1}
    hand.add(same, older, own(77), own(77))
    found = verified(relay, index, repair=True)
    assert sorted(found.keys) == [("different", ["1"]), ("different", ["2"]), ("ghost", ["77"])]
    assert (found.differing, found.mended) == (3, 3)
    assert index.rows() == source.rows()
    assert verified(relay, index).differing == 0


def test_documents_that_are_none_of_the_sinks_are_told_and_left_unless_a_row_belongs_there(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    hand = filled(relay, index, source)
    hand.remove(1)
    hand.remove(2)
    hand.add(
        {"_id": f"{ITEMS}/1", "_table": ITEMS, "_source": b"{}"},  # where a row belongs, without a version
        own(2, _table="public.others"),
        own(8, _id="8"),  # of no name that the sink gives
        {"_id": f"{ITEMS}/80", "_table": ITEMS},
        {"_id": f"{ITEMS}/81"},
        {"_table": ITEMS, "_source": b"{"},
        {"_id": "others/1", "_table": "public.others"},
        {"_id": f"{ITEMS}2/1"},
        {"text": "of no table"},
    )
    found = verified(relay, index)
    foreign = [("foreign", ["80"]), ("foreign", ["81"]), ("foreign", ["_id", ""])]
    different = [("different", ["1"]), ("different", ["2"])]
    assert sorted(found.keys) == [*different, *foreign, ("ghost", ["_id", "8"])]
    mended = verified(relay, index, repair=True)
    assert (mended.differing, mended.foreign, mended.mended) == (6, 3, 3)
    assert sorted(verified(relay, index).keys) == foreign
    for id in (80, 81):
        hand.remove(id)
    assert verified(relay, index).keys == [("foreign", ["_id", ""])]


def test_a_row_that_is_no_json_any_more_is_mended_and_hinders_neither_a_change_nor_another_layout(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    hand = filled(relay, index, source)
    for id in (1, 2, 6):
        before = hand.fields(id)
        hand.remove(id)
        hand.add({**before, "_source": b'{"id":'})
    found = verified(relay, index, repair=True)
    assert (found.keys, found.mended) == ([("different", [str(id)]) for id in (1, 2, 6)], 3)
    before = hand.fields(1)
    hand.remove(1)
    hand.add({**before, "_source": b'{"id":'})
    source.commit([update(ITEMS, 1, name="the body is left out")])
    source.add_layout(items_layout("items", *source.layouts[1].columns, column("note"), schema_id=2))
    source.commit([insert(ITEMS, 60, "n60")])
    expected = {id: {**row, "note": None} for id, row in source.rows().items()}
    with consumer(relay, index):
        wait_for(lambda: index.rows() == expected, 60, what="the row is read again")


def test_of_many_documents_each_is_read_once_and_few_are_in_memory(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    count = 20_000
    hand = filled(relay, index, source, count)
    chance = random.Random(announced_seed("tantivy_verifying"))
    ids = chance.sample(range(100, count), 20)
    for id in ids:
        hand.remove(id)
    hand.add(*(own(count + id) for id in ids[:10]), *(own(id, _source=b'{"id":0}') for id in ids[10:]))
    with closing(index.open()) as sink:
        sink.checkpoint()
        tracemalloc.start()
        names = [row.key for row in sink.held(ITEMS)]
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        assert sum(1 for _ in sink.held(ITEMS)) == len(source.rows())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(names) == len(set(names)) == len(source.rows())
    assert peak < 4 << 20, "a batch of documents, and not all of them"
    found = verified(relay, index, repair=True)
    kinds = sorted(kind for kind, _ in found.keys)
    assert kinds == ["ghost"] * 10 + ["missing"] * 10 + ["stale"] * 10
    assert found.mended == 30
    assert index.rows() == source.rows()


def replace(file: Path, content: bytes) -> None:
    """Has a file be another one, as a restored disk has it.

    An index that was let go in this process looks for a commit for up to half a second more, and reads its files then:
    whoever reads a mapped file while it is cut gets SIGBUS.
    """
    other = file.with_name("other")
    other.write_bytes(content)
    other.replace(file)


@pytest.mark.parametrize("kind", ["del", "fast", "fieldnorm", "idx", "pos", "store", "term"])
@pytest.mark.parametrize("how", ["flipped", "torn", "gone"])
def test_a_damaged_file_is_an_error_that_names_it(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest, kind: str, how: str
) -> None:
    hand = filled(relay, index, source, 400)
    hand.remove(7)
    hand.remove(8)
    assert verified(relay, index, repair=True).mended == 2
    path = Path(index.options["path"])
    hand.remove(9)  # so that a file of deletions is there, whatever was merged
    files = [file for file in path.iterdir() if file.suffix == f".{kind}"]
    file = max(files, key=lambda one: one.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[(len(content) - 150) // 2] ^= 0x10
        replace(file, content)
    elif how == "torn":
        replace(file, content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(SinkRefused, match="the index's files are damaged") as refused:
        verified(relay, index)
    assert re.search(re.escape(str(path)), refused.value.where)
    assert "move the folder away" in refused.value.mend


def test_a_folder_that_is_moved_away_is_filled_anew(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    filled(relay, index, source)
    path = Path(index.options["path"])
    (path / "meta.json").write_text("{")
    with pytest.raises(SinkRefused, match="the index's files are damaged"):
        verified(relay, index)
    path.rename(path.with_name("away"))
    with consumer(relay, index):
        equal(index, relay)
    assert verified(relay, index).differing == 0


def test_a_consumer_that_holds_the_index_is_told(
    relay: ScriptedRelay, source: ModelSource, index: SinkUnderTest
) -> None:
    filled(relay, index, source)
    with closing(index.open()), pytest.raises(SinkUnavailable, match="another process writes this index"):
        verified(relay, index)
