"""Dead letters on disk, and the command that an operator has for them."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, truncate, update
from walbus.consumers import DeadLetters, Sweep
from walbus.consumers.checkpoint import Following, Marks, Point, Snapshotting, TableProgress
from walbus.consumers.letter_file import LetterFile, Voiding
from walbus.errors import DeadLettersFull, StoreDamaged, StoreError, UsageError
from walbus.events import Change, Window, window_of
from walbus.position import Position
from walbus.records import Kind

pytestmark = pytest.mark.one_version

Walbus = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def walbus() -> Walbus:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "walbus", "dead-letters", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def window(source: ModelSource, *edits) -> Window:
    source.commit(edits)
    return window_of(*source.records[-1], source.layouts.__getitem__)


def park(store: DeadLetters, window: Window, error: str = "no") -> None:
    for change in window:
        store.park(change, window, "log-a", ValueError(error), 3)


def truncated(store: DeadLetters, source: ModelSource, void: int) -> None:
    """A TRUNCATE is dealt with and committed, and so many letters go."""
    (change,) = window(source, truncate(ITEMS)).changes
    store.truncating(Voiding(change.raw.table, ITEMS, "log-a", change.seq))
    assert store.committed() == {ITEMS: void}


def test_letters_that_are_to_be_tried_again_leave_room_for_others(source, tmp_path: Path) -> None:
    """A consumer that reads a snapshot cannot try them yet, and has to go on."""
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path, limit=3, tries_wait=True)) as store, closing(DeadLetters(path)) as operator:
        park(store, window(source, insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3)))
        with pytest.raises(DeadLettersFull):
            park(store, window(source, insert(ITEMS, 4)))
        operator.retry([1, 2])
        park(store, window(source, insert(ITEMS, 5), insert(ITEMS, 6)))
        with pytest.raises(DeadLettersFull):
            park(store, window(source, insert(ITEMS, 7)))
        store.failed_again(store.asked()[0], ValueError("again"))
        store.resolved(store.asked()[0])
        with pytest.raises(DeadLettersFull):
            park(store, window(source, insert(ITEMS, 8)))
        operator.drop([3, 1])
        park(store, window(source, insert(ITEMS, 9)))


def without_keys(window: Window) -> Window:
    changes = [replace(change, raw=change.raw._replace(key=None)) for change in window]
    return replace(window, changes=changes)


def said(change: Change) -> object:
    return (
        change.op,
        change.table,
        change.key,
        change.old_key,
        change.after,
        change.unchanged,
        change.position,
        change.seq,
    )


def test_a_letter_is_the_change_and_its_window_in_every_process(source, tmp_path: Path) -> None:
    whole = window(
        source, insert(ITEMS, 1, "\u00e9"), update(ITEMS, 1, new_id=2, name=None), delete(ITEMS, 2), truncate(ITEMS)
    )
    path = tmp_path / "new" / "letters.sqlite"
    with closing(DeadLetters(path)) as store:
        park(store, whole)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with closing(DeadLetters(path)) as store:
        found = store.letters()
        assert [said(letter.change) for letter in found] == [said(change) for change in whole]
        for letter in found:
            assert replace(letter.window, changes=whole.changes) == whole
            assert (letter.error, letter.message, letter.attempts, letter.log_id) == ("ValueError", "no", 3, "log-a")
        assert len(store) == 4


def test_what_is_parked_twice_is_one_letter(source, tmp_path: Path) -> None:
    whole = window(source, insert(ITEMS, 1), insert(ITEMS, 2))
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, whole)
        park(store, whole)
        assert [letter.change.key for letter in store.letters()] == [{"id": 1}, {"id": 2}]


def test_a_key_is_held_until_its_last_letter_is_gone_in_another_process_too(source, tmp_path: Path) -> None:
    first, later = window(source, insert(ITEMS, 1)), window(source, update(ITEMS, 1, name="b"))
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store, closing(DeadLetters(path)) as operator:
        park(store, first)
        (held,) = later.changes
        assert store.holds(held)
        assert store.park_behind(held, later, "log-a")
        operator.drop([operator.letters()[0].id])
        store.asked()
        assert store.holds(held), "the one behind it is still there"
        operator.drop()
        assert not store.park_behind(held, later, "log-a"), "nothing is parked behind what is gone"
        assert not store.holds(held)


def test_a_row_without_a_key_holds_updates_and_deletes_of_its_table_in_every_process(source, tmp_path: Path) -> None:
    whole = without_keys(window(source, insert(ITEMS, 1)))
    later = without_keys(window(source, insert(ITEMS, 2), update(ITEMS, 2, name="b"), delete(ITEMS, 2)))
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store, closing(DeadLetters(path)) as again:
        park(store, whole)
        for one in (store, again):
            one.asked()
            assert [one.holds(change) for change in later] == [False, True, True]


def test_tables_and_keys_do_not_hold_each_other(source, tmp_path: Path) -> None:
    source.add_layout(items_layout("others", oid=16500))
    one = window(source, insert(ITEMS, 1))
    others = window(source, insert("public.others", 1), insert(ITEMS, 2), truncate("public.others"))
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, one)
        assert [store.holds(change) for change in others] == [False, False, False]


def test_a_truncate_that_was_refused_holds_its_whole_table(source, tmp_path: Path) -> None:
    whole = window(source, truncate(ITEMS))
    later = window(source, insert(ITEMS, 5), truncate(ITEMS))
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, whole)
        assert all(store.park_behind(change, later, "log-a") for change in later)
        truncated(store, source, 3)


def test_a_truncate_takes_away_the_letters_of_rows_without_a_key_too(source, tmp_path: Path) -> None:
    whole = window(source, insert(ITEMS, 1))
    (change,) = whole.changes
    keyless = Change(change.raw._replace(key=None), change.schema, change.position, change.seq)
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        store.park(keyless, whole, "log-a", ValueError("no"), 3)
        truncated(store, source, 1)
        assert len(store) == 0


def test_retry_takes_those_before_of_the_same_keys_along_and_no_others(source, tmp_path: Path) -> None:
    whole = window(
        source,
        insert(ITEMS, 1),
        insert(ITEMS, 2),
        update(ITEMS, 1, new_id=3),
        insert(ITEMS, 4),
        update(ITEMS, 3, name="x"),
    )
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, whole)
        assert store.retry([5]) == 3
        assert [letter.id for letter in store.asked()] == [1, 3, 5]


def test_bounds_are_letters_and_bytes(source, tmp_path: Path) -> None:
    whole = window(source, insert(ITEMS, 1, "n" * 400), insert(ITEMS, 2, "n" * 400))
    for limits in ({"limit": 1}, {"limit_bytes": 700}):
        with closing(DeadLetters(tmp_path / f"{limits}.sqlite", **limits)) as store:
            with pytest.raises(DeadLettersFull) as full:
                park(store, whole)
            assert "nnn" not in str(full.value)
            assert len(store.letters()) == 1


def test_a_damaged_file_and_a_folder_that_cannot_be_made_are_told_as_what_they_are(source, tmp_path: Path) -> None:
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store:
        park(store, window(source, *[insert(ITEMS, n, "n" * 400) for n in range(200)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StoreDamaged, match="these are no dead letters"):
        DeadLetters(path)
    below, more = path / "below" / "letters.sqlite", window(source, insert(ITEMS, 300))
    with closing(DeadLetters(below)) as store, pytest.raises(StoreError, match=r"Not a directory|File exists"):
        park(store, more)


@pytest.mark.parametrize(
    ("progress", "committed"),
    [
        (TableProgress("public.others", done=True), False),
        (TableProgress(ITEMS), False),
        (TableProgress(ITEMS, after_key=b"k"), False),
        (TableProgress(ITEMS, done=True), True),
        (TableProgress(ITEMS, since=Point(Position(1, 0x500, 1), 49)), False),
        (TableProgress(ITEMS, since=Point(Position(1, 0x500, 1), 50)), True),
    ],
)
def test_a_truncate_that_a_reading_brought_is_committed_when_the_checkpoint_says_so(
    progress: TableProgress, committed: bool
) -> None:
    """The letters before it are void then, and hold again otherwise: it comes once more."""
    checkpoint = Snapshotting("log-a", Marks(2, 1), (progress,))
    assert Voiding(16400, ITEMS, "log-a", 50).is_in(checkpoint) is committed
    assert not Voiding(16400, ITEMS, "log-b", 50).is_in(checkpoint)


def test_letters_are_parked_where_others_find_them_when_somebody_took_the_file_away(source, tmp_path: Path) -> None:
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store:
        park(store, window(source, insert(ITEMS, 1)))
        path.unlink()
        later = window(source, insert(ITEMS, 2), update(ITEMS, 1, name="no letter holds it"))
        assert not store.park_behind(later.changes[1], later, "log-a")
        store.park(later.changes[0], later, "log-a", ValueError("no"), 3)
        with closing(DeadLetters(path)) as operator:
            assert [letter.change.key["id"] for letter in operator.letters()] == [2]
            assert operator.retry() == 1
        assert [letter.change.key["id"] for letter in store.asked()] == [2]


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "letters.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreDamaged) as damaged:
        DeadLetters(path)
    assert damaged.value.where == str(path)


def test_no_letters_are_no_file(tmp_path: Path) -> None:
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        assert (store.letters(), store.asked(), store.retry(), store.drop()) == ([], [], 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_without_values_unless_told_and_retries_and_drops(source, walbus, tmp_path: Path) -> None:
    whole = window(source, insert(ITEMS, 1, "secret"), insert(ITEMS, 2, "secret"), insert(ITEMS, 3, "secret"))
    with closing(DeadLetters(tmp_path / "orders" / "dead-letters.sqlite")) as store:
        park(store, whole, "secret")
        listed = walbus("list", "orders", "--folder", tmp_path)
        assert listed.returncode == 0, listed.stderr
        assert "secret" not in listed.stdout
        assert [line.split()[2:5] for line in listed.stdout.splitlines()] == [
            ["insert", "public.items", str(change.position)] for change in whole
        ]
        assert walbus("list", "orders", "--values", "--folder", tmp_path).stdout.count("secret") == 6
        lines = walbus("list", "orders", "--json", "--folder", tmp_path).stdout
        assert "secret" not in lines
        assert [msgspec.json.decode(line)["letter"] for line in lines.splitlines()] == [1, 2, 3]
        assert walbus("retry", "orders", "1", "2", "--folder", tmp_path).stdout == "2 to be tried again\n"
        assert [letter.id for letter in store.asked()] == [1, 2]
        assert walbus("drop", "orders", "3", "--folder", tmp_path).stdout == "1 dropped\n"
        assert walbus("drop", "orders", "--all", "--folder", tmp_path).stdout == "2 dropped\n"
        assert store.letters() == []


def test_the_command_says_what_is_wrong(source, walbus, tmp_path: Path) -> None:
    with closing(DeadLetters(tmp_path / "orders" / "dead-letters.sqlite")) as store:
        park(store, window(source, insert(ITEMS, 1)))
        for arguments, words in [
            (("drop", "orders", "7"), "there is no letter 7"),
            (("drop", "orders"), "which letters"),
            (("drop", "orders", "1", "--all"), "which letters"),
            (("list", "items"), "there is no consumer"),
        ]:
            refused = walbus(*arguments, "--folder", tmp_path)
            assert refused.returncode == 2
            assert words in refused.stderr
        assert len(store.letters()) == 1


def test_an_id_that_is_none_is_refused(tmp_path: Path) -> None:
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store, pytest.raises(UsageError, match="no letter 4"):
        store.drop([4])


def test_a_letter_that_an_operator_dropped_while_it_was_tried_is_dealt_with(source, tmp_path: Path) -> None:
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store, closing(DeadLetters(path)) as operators:
        park(store, window(source, insert(ITEMS, 1)))
        (letter,) = store.letters()
        operators.drop()
        store.resolved(letter)
        assert len(store) == 0


def test_a_file_that_somebody_holds_is_not_called_damaged(source, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "letters.sqlite"
    with closing(DeadLetters(path)) as store:
        park(store, window(source, insert(ITEMS, 1)))
    monkeypatch.setattr("walbus.consumers.letter_file._BUSY_SECONDS", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked") as caught:
            DeadLetters(path)
    assert not isinstance(caught.value, StoreDamaged), "nobody is told to move it away"


def test_a_file_that_two_make_at_a_time_is_made(source, tmp_path: Path, monkeypatch) -> None:
    """The operator lists letters when the consumer parks its first one: SQLite lets one of them wait for nothing."""
    path = tmp_path / "letters.sqlite"
    pauses = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if other.in_transaction:
                other.execute("COMMIT")

        monkeypatch.setattr("walbus.consumers.letter_file.time.sleep", pause)
        with closing(DeadLetters(path)) as store:
            park(store, window(source, insert(ITEMS, 1)))
            assert len(store) == 1
    assert pauses


def test_letters_of_a_key_are_tried_by_seq_however_they_were_parked(source, tmp_path: Path) -> None:
    first, second, third = (window(source, edit) for edit in (insert(ITEMS, 1), update(ITEMS, 1), delete(ITEMS, 1)))
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        for late in (third, first, second):  # the consumer went back
            park(store, late)
        assert store.retry() == 3
        assert [letter.change.seq for letter in store.asked()] == [w.last_seq for w in (first, second, third)]
        newest = max(store.letters(), key=lambda letter: letter.change.seq)
        for letter in store.letters():
            store.failed_again(letter, None)
        assert store.retry([newest.id]) == 3, "with all before it that hold its key"


def test_no_letter_is_tried_before_one_of_its_key_that_was_refused_again(source, tmp_path: Path) -> None:
    windows = [window(source, edit) for edit in (insert(ITEMS, 1), insert(ITEMS, 2), update(ITEMS, 1))]
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        for one in windows:
            park(store, one)
        store.retry()
        store.failed_again(store.asked()[0], ValueError("still"))  # a crash: the third is not told yet
        assert [letter.change.key for letter in store.asked()] == [{"id": 2}]
        assert [letter.asked for letter in store.letters()] == [False, True, False], "what is behind it waits again"
        store.retry()
        assert len(store.asked(most=1)) == 1
        assert len(store.asked()) == 3


def sweep(seq: int, generation: int, table: str = ITEMS) -> Sweep:
    marks = Marks(generation, 1)
    return Sweep(table, seq, marks, Following("log-a", marks, Point(Position(1, 1, 1), seq)))


def test_a_sweep_takes_letters_that_its_snapshot_did_not_bring_up_to_its_seq(source, tmp_path: Path) -> None:
    source.add_layout(items_layout("others", oid=16500))
    first = window(source, insert(ITEMS, 1), insert(ITEMS, 2), insert(ITEMS, 3), insert("public.others", 1))
    seq = first.last_seq
    later = window(source, insert(ITEMS, 4))
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, first)
        park(store, later)
        brought = replace(first, kind=Kind.SNAPSHOT, changes=[first.changes[1]])
        assert store.park_behind(brought.changes[0], brought, "log-a", generation=7), "the very letter that is there"
        assert store.swept(sweep(seq, 7), "log-a") == 2
        assert [letter.change.key["id"] for letter in store.letters()] == [2, 1, 4]
        assert store.swept(sweep(seq, 8), "log-a") == 1, "what an earlier snapshot brought counts no more"
        assert store.swept(sweep(seq, 8), "log-b") == 1, "a seq says nothing in another log"
        assert [letter.change.table for letter in store.letters()] == ["public.others"]
        assert not store.holds(first.changes[0])


def test_a_sweep_leaves_what_tells_no_rows(source, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1)])
    source.tell_again(1)
    layout = window_of(*source.records[-1], source.layouts.__getitem__)
    with closing(DeadLetters(tmp_path / "letters.sqlite")) as store:
        park(store, layout)
        assert store.swept(sweep(100, 7), "log-a") == 0


def test_a_store_knows_what_it_wrote_without_reading_it_again(source, tmp_path: Path, monkeypatch) -> None:
    path, read = tmp_path / "letters.sqlite", []
    entries = LetterFile.entries
    monkeypatch.setattr(LetterFile, "entries", lambda file: read.append(file) or entries(file))
    with closing(DeadLetters(path)) as store:
        park(store, window(source, *(insert(ITEMS, n) for n in range(20))))
        store.failed_again(store.letters()[0], None)
        assert store.drop([1, 2]) == 2
        assert store.retry() == 18
        for letter in store.asked():
            store.resolved(letter)
        assert len(store) == 0
        assert len(read) == 1
        with closing(DeadLetters(path)) as operator:
            park(operator, window(source, insert(ITEMS, 5)))
        assert [letter.change.key["id"] for letter in store.letters()] == [5]
        assert len(read) == 3


def test_a_bound_counts_what_another_process_has_made_room_for(source, tmp_path: Path) -> None:
    path = tmp_path / "letters.sqlite"
    first, second = window(source, insert(ITEMS, 1)), window(source, insert(ITEMS, 2))
    with closing(DeadLetters(path, limit=1)) as store, closing(DeadLetters(path)) as operator:
        park(store, first)
        park(store, first)
        with pytest.raises(DeadLettersFull):
            park(store, second)
        assert not store.holds(second.changes[0])
        operator.drop()
        park(store, second)
        assert len(store) == 1


def test_a_file_of_before_generations_is_taken_over(source, tmp_path: Path) -> None:
    path, whole = tmp_path / "letters.sqlite", window(source, insert(ITEMS, 1))
    with closing(DeadLetters(path)) as store:
        park(store, whole)
    with closing(sqlite3.connect(path)) as older:
        older.executescript("DROP TABLE voiding; DROP INDEX by_key; ALTER TABLE letters DROP COLUMN generation")
        older.execute("PRAGMA user_version = 1")
    with closing(DeadLetters(path)) as store:
        assert [said(letter.change) for letter in store.letters()] == [said(change) for change in whole]
        assert store.swept(sweep(whole.last_seq, 7), "log-a") == 1
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreDamaged, match="version 99"):
        DeadLetters(path)
