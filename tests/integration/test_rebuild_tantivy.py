"""`walbus rebuild` of a tantivy index: generations in folders of their own, and a link that readers open."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tantivy

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, update
from support.rebuild_rig import (
    Load,
    Look,
    Looks,
    config_for,
    differing,
    dropped,
    filled,
    looking_at,
    rebuilt,
    stopped_while_it_reads,
)
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, tantivy_under_test
from support.tampering import TantivyHand
from support.waiting import wait_for
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Point
from walbus.consumers.rebuilding import discard
from walbus.consumers.sinks import open_copies, tantivy_folders
from walbus.consumers.sinks import tantivy as tantivy_sink
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.tantivy_copy import TantivyCopy
from walbus.consumers.sinks.tantivy_folders import IndexFolders
from walbus.errors import SinkRefused, SinkUnavailable, UsageError
from walbus.events import window_of
from walbus.position import ORIGIN, Position

pytestmark = pytest.mark.one_version

DOCS = Path(__file__).parents[2] / "docs" / "consumers.md"
MARKS = Marks(1, 1)


@pytest.fixture
def under_test(tmp_path: Path) -> SinkUnderTest:
    return tantivy_under_test(tmp_path)


def shown(under_test: SinkUnderTest) -> str:
    """What the link says."""
    return str(Path(under_test.options["path"]).readlink())


def folders(under_test: SinkUnderTest) -> list[str]:
    """The folders that lie there."""
    path = Path(under_test.options["path"])
    return sorted(one.name for one in path.parent.iterdir() if one.name.startswith("index~") and one.is_dir())


def opened(under_test: SinkUnderTest) -> Any:
    """As a reader opens it."""
    return tantivy.Index.open(str(under_test.options["path"]))


def found(index: Any, field: str, value: str, searcher: Any = None) -> list[Any]:
    """The documents that have a value."""
    searcher = searcher or index.searcher()
    return [
        searcher.doc(at) for _, at in searcher.search(tantivy.Query.term_query(index.schema, field, value), 999).hits
    ]


def windows(source: ModelSource, after: Position = ORIGIN) -> list[Any]:
    return [window_of(h, r, source.layouts.__getitem__, after=after) for h, r in source.after(after)]


def following(source: ModelSource) -> Following:
    return Following(source.log_id, MARKS, Point(source.end, source.last_seq))


# Readers


def test_a_rebuild_under_load_swaps_with_no_moment_without_an_answer(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    seed = announced_seed("a rebuild of an index under load")
    filled(relay, under_test, source)
    TantivyHand(under_test).rename(7, "by hand")
    with Load(source, seed), Looks(looking_at(under_test)) as looks, consumer(relay, under_test) as running:
        swapped = rebuilt(relay, under_test)
        behind = looks.seen
        wait_for(lambda: looks.seen > behind + 1, what="somebody looked behind the swap")
        wait_for(lambda: running.status().get("last_done") and source.end > swapped)
        assert (shown(under_test), folders(under_test)) == ("index~2", ["index~1", "index~2"])
    with consumer(relay, under_test):
        source.commit([update(ITEMS, 1, name="goes on"), insert(ITEMS, 300)])
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]
    assert dropped(under_test)
    assert not dropped(under_test)
    assert folders(under_test) == ["index~2"]
    with consumer(relay, under_test):
        source.commit([delete(ITEMS, 300)])
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]


def test_readers_by_the_page_turn_to_each_generation_and_see_no_row_that_is_older(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    page: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(import os\n.*?class Search.*?)```", DOCS.read_text(), re.DOTALL)
    exec(code, page)
    filled(relay, under_test, source)

    @contextmanager
    def reader() -> Iterator[Look]:
        search = page["Search"](str(under_test.options["path"]))

        def look() -> tuple[int, int]:
            searcher = search.searcher()
            (first,) = found(search.index, "_id", f"{ITEMS}/0", searcher)
            rows = found(search.index, "_table", ITEMS, searcher)
            return len(rows), int(json.loads(bytes(first.get_first("_source")))["name"])

        yield look

    with Load(source, announced_seed("readers by the page")), Looks(reader) as looks, consumer(relay, under_test):
        for _ in range(3):
            rebuilt(relay, under_test)
            behind = looks.seen
            wait_for(lambda seen=behind: looks.seen > seen + 1, what="the reader has turned to the new one")
            assert dropped(under_test)
    assert folders(under_test) == ["index~4"]


def test_a_reader_that_holds_the_old_index_sees_it_as_it_was_and_the_link_tells(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    path = str(under_test.options["path"])
    held, folder = opened(under_test), os.path.realpath(path)
    searcher = held.searcher()
    before = len(found(held, "_table", ITEMS))
    source.commit([delete(ITEMS, 3)])
    rebuilt(relay, under_test)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, delete(ITEMS, 4))
    held.reload()
    assert len(found(held, "_table", ITEMS)) == before
    assert os.path.realpath(path) != folder
    assert dropped(under_test)
    assert len(found(held, "_id", f"{ITEMS}/3", searcher)) == 1, "a searcher that is open needs no folder"
    with pytest.raises(ValueError, match="No such file"):
        held.reload()


# What takes the place of a folder


@contextmanager
def as_before(under_test: SinkUnderTest) -> Iterator[Path]:
    """A folder at the path, as versions before had it."""
    path = Path(under_test.options["path"])
    folder = path.resolve()
    path.unlink()
    folder.rename(path)
    yield path


def test_a_folder_of_before_becomes_a_link_at_the_start_and_readers_go_on(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    with as_before(under_test) as path:
        with pytest.raises(SinkRefused, match="start `walbus consume test` anew, which makes it one"):
            rebuilt(relay, under_test)
        assert not path.is_symlink()
        assert under_test.rows() == source.rows(ITEMS)
        held = opened(under_test)
        with Looks(looking_at(under_test)), consumer(relay, under_test) as running:
            followed(running, under_test, relay, insert(ITEMS, 300))
            assert shown(under_test) == "index~1"
            held.reload()
            assert len(found(held, "_table", ITEMS)) == len(source.rows(ITEMS)), "who held the folder reads on"
            rebuilt(relay, under_test)
    assert (shown(under_test), under_test.rows()) == ("index~2", source.rows(ITEMS))


@pytest.mark.parametrize("missing", ["exchange", "links"])
def test_where_a_folder_cannot_become_a_link_it_goes_on_and_a_rebuild_says_what_to_do(
    missing: str, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        if missing == "links":
            patch.setattr(Path, "symlink_to", cannot)
            filled(relay, under_test, source)
        else:
            patch.setattr(tantivy_folders, "_exchange", cannot)
            filled(relay, under_test, source)
            with as_before(under_test), consumer(relay, under_test) as running:
                followed(running, under_test, relay, delete(ITEMS, 2))
        path = Path(under_test.options["path"])
        assert not path.is_symlink()
        assert folders(under_test) == []
        with pytest.raises(SinkRefused, match=f"by hand, while .*: mv {path} {path}~1 && ln -s index~1 {path}"):
            rebuilt(relay, under_test)
    assert os.system(f"mv {path} {path}~1 && ln -s index~1 {path}") == 0
    rebuilt(relay, under_test)
    assert (shown(under_test), under_test.rows()) == ("index~2", source.rows(ITEMS))


def test_a_link_of_the_users_own_is_followed_to_where_the_generations_lie(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path, there = Path(under_test.options["path"]), elsewhere / "found"
    path.symlink_to(there)
    with pytest.raises(SinkRefused, match="a link leads to nothing"):
        under_test.open()
    there.mkdir()
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    assert (path.readlink(), there.readlink()) == (there, Path("found~2"))
    assert under_test.rows() == source.rows(ITEMS)


def test_an_index_that_was_moved_away_is_filled_anew_under_a_number_that_was_never_given(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    path = Path(under_test.options["path"])
    with closing(under_test.open()) as sink:
        sink.checkpoint()
        path.resolve().rename(path.with_name("damaged"))
        with pytest.raises(SinkRefused, match="start the consumer anew, which fills a new index"):
            sink.write([], MARKS)
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert (shown(under_test), folders(under_test)) == ("index~2", ["index~2"])
    path.unlink()
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert shown(under_test) == "index~3"
    assert dropped(under_test), "what has no link any more"


# Who writes


@pytest.mark.parametrize("gone", [False, True])
def test_a_late_writer_of_what_was_replaced_commits_nothing_and_goes_on_with_the_copy(
    gone: bool, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    with closing(under_test.open()) as sink:
        before = sink.checkpoint()
        end = source.end
        source.commit([update(ITEMS, 3, name="late"), delete(ITEMS, 4)])
        late = following(source)
        sink.write(windows(source, end), MARKS)
        rebuilt(relay, under_test)
        if gone:
            assert dropped(under_test)
        else:
            old: Any = tantivy.Index.open(str(Path(under_test.options["path"]).with_name("index~1")))
        for _ in range(2):
            with pytest.raises(SinkSwapped):
                sink.commit(late)
            with pytest.raises(SinkSwapped):
                sink.write(windows(source, end), MARKS)
            sink.rollback()
        if not gone:
            old.reload()
            assert found(old, "_id", f"{ITEMS}/4"), "what was replaced is as it was"
        now = sink.checkpoint()
        assert isinstance(now, Following)
        assert before is not None
        assert now.point.last_done == source.end
        source.commit([insert(ITEMS, 400)])
        sink.write(windows(source, now.point.last_done), now.marks)
        sink.commit(replace(now, point=Point(source.end, source.last_seq)))
        assert under_test.rows() == source.rows(ITEMS)


def test_an_index_that_is_replaced_and_dropped_while_it_is_opened_is_opened_where_it_is_now(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    begun = IndexFolders.begun

    def replaced(folders: IndexFolders) -> Path:
        found = begun(folders)
        monkeypatch.undo()
        rebuilt(relay, under_test)
        assert dropped(under_test)
        return found

    monkeypatch.setattr(IndexFolders, "begun", replaced)
    with closing(under_test.open()) as sink:
        before = sink.checkpoint()
        assert isinstance(before, Following)
        assert before.point.last_done == source.end
    assert (shown(under_test), folders(under_test)) == ("index~2", ["index~2"])
    assert under_test.rows() == source.rows(ITEMS)


def test_the_live_ones_writer_waits_while_it_is_held_and_goes_on_behind_it(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    monkeypatch.setattr(tantivy_folders, "_BUSY_SECONDS", 0.2)
    with (
        closing(open_copies("tantivy", under_test.options, under_test.place)) as copies,
        closing(copies.beside()) as copy,
        closing(under_test.open()) as sink,
    ):
        before = sink.checkpoint()
        assert isinstance(before, Following)
        assert copy.hold() == before
        source.commit([delete(ITEMS, 4)])
        sink.write(windows(source, before.point.last_done), before.marks)
        with pytest.raises(SinkUnavailable, match="another process commits to this index, or swaps it"):
            sink.commit(replace(before, point=Point(source.end, source.last_seq)))
        assert copies.live() == before
        copy.rollback()
        sink.rollback()
        assert sink.checkpoint() == before
        sink.write(windows(source, before.point.last_done), before.marks)
        sink.commit(replace(before, point=Point(source.end, source.last_seq)))
        assert under_test.rows() == source.rows(ITEMS)


def test_one_process_has_to_do_with_copies_at_a_time(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    config, folder = config_for(under_test), under_test.place.folder
    late: list[Callable[[], object]] = [
        lambda: rebuilt(relay, under_test),
        lambda: dropped(under_test),
        lambda: discard("test", config, folder),
    ]
    with (
        closing(open_copies("tantivy", under_test.options, under_test.place)) as copies,
        closing(copies.beside()),
    ):
        for comes in late:
            with pytest.raises(SinkRefused, match="another `walbus rebuild` has to do with this index"):
                comes()
    assert discard("test", config, folder)
    rebuilt(relay, under_test)
    with pytest.raises(UsageError, match="is there yet"):
        rebuilt(relay, under_test)


def test_a_part_of_a_transaction_that_readers_saw_is_in_the_copy_before_it_is_shown(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    monkeypatch.setattr(tantivy_sink, "_REMEMBERED", 10)
    hold, seen = TantivyCopy.hold, set[str]()
    with closing(under_test.open()) as sink:
        before = sink.checkpoint()
        assert isinstance(before, Following)

        def shows_a_part(copy: TantivyCopy) -> Checkpoint | None:
            if not seen:
                source.commit([insert(ITEMS, 500 + n) for n in range(60)], pieces=3)
                first, *_ = windows(source, before.point.last_done)
                sink.write([first], before.marks)
                seen.update(under_test.rows())
            return hold(copy)

        monkeypatch.setattr(TantivyCopy, "hold", shows_a_part)
        assert rebuilt(relay, under_test) == source.end
    assert "500" in seen
    assert "559" not in seen
    assert under_test.rows() == source.rows(ITEMS)


# The copy


def test_a_damaged_copy_is_named_and_the_live_one_is_as_it_was(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    filled(relay, under_test, source)
    stopped_while_it_reads(relay, under_test)
    path = Path(under_test.options["path"])
    before = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    path.with_name("index~2").joinpath("meta.json").write_text("{")
    with pytest.raises(SinkRefused, match="`walbus rebuild test --discard` drops this copy"):
        rebuilt(relay, under_test)
    assert {file.name: file.read_bytes() for file in sorted(path.iterdir())} == before
    assert discard("test", config_for(under_test), under_test.place.folder)
    assert folders(under_test) == ["index~1"]
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)


def test_rows_of_a_table_that_the_bootstrap_has_no_more_are_carried_over_as_they_are(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    gone = source.add_layout(items_layout("gone", oid=16500)).table
    source.commit([insert(gone, n, f"n{n}", "body") for n in range(1, 5)])
    filled(relay, under_test, source)
    own = {"_table": gone, "_mark": 1, "_source": b'{"id":9}'}
    TantivyHand(under_test).add({**own, "_id": f"{gone}/9"}, {**own, "_id": f"{gone}/8", "_seq": 1, "_source": b"{"})
    relay.unlisted.add(gone)
    before = source.rows(gone)
    rebuilt(relay, under_test)
    assert under_test.rows(gone) == before, "and none that somebody else wrote"
    index = opened(under_test)
    hits = index.searcher().search(index.parse_query("n3", ["text"]), 5).hits
    assert len(hits) == 2, "words are found, of this table and of items"
    with consumer(relay, under_test) as running:
        source.commit([update(gone, 1, name="anew"), delete(gone, 2), insert(gone, 5)])
        followed(running, under_test, relay, insert(ITEMS, 300))
        wait_for(lambda: under_test.rows(gone).keys() == {"1", "3", "4", "5"})
        assert under_test.rows(gone)["1"]["body"] == "body", "a value that was left out is that of the carried row"


def test_folders_that_were_left_by_who_was_killed_are_in_nobodys_way(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    (tmp_path / "index~1").mkdir()  # a start, before its link
    (tmp_path / "index~link").symlink_to("nowhere")  # a swap, before its rename
    filled(relay, under_test, source)
    assert shown(under_test) == "index~1"
    with as_before(under_test):
        (tmp_path / "index~1").symlink_to("index~1")  # a folder of before that was to become a link
        with consumer(relay, under_test) as running:
            followed(running, under_test, relay, insert(ITEMS, 300))
    (tmp_path / "index~2").mkdir()  # a copy, before it was an index
    (tmp_path / "index~1~dropped").mkdir()  # what was to be deleted
    (tmp_path / "index~1~dropped" / "meta.json").write_text("{}")
    rebuilt(relay, under_test)
    assert (shown(under_test), folders(under_test)) == ("index~2", ["index~1", "index~2"])
    assert under_test.rows() == source.rows(ITEMS)


def test_names_are_compared_whole(tmp_path: Path) -> None:
    for name in ("index~1", "index~10", "index~9", "index~01", "index~x", "index~3~dropped", "indexes~50", "a.b~7"):
        (tmp_path / name).mkdir()
    (tmp_path / "index").symlink_to("index~9")
    index = IndexFolders(tmp_path / "index", lambda: False)
    assert [one.name for one in index.replaced] == ["index~1"]
    assert [one.name for one in index.copies] == ["index~10"]
    assert IndexFolders(tmp_path / "a.b", lambda: False).begun().name == "a.b~7", "it is empty"
