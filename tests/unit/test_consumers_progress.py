"""What a consumer's status file says: never more than what is done."""

from __future__ import annotations

from pathlib import Path

from walbus.consumers.checkpoint import CatchingUp, Checkpoint, Following, Marks, Point, Snapshotting, TableProgress
from walbus.consumers.clock import Clock
from walbus.consumers.progress import ConsumerProgress, Tally
from walbus.position import ORIGIN, Position
from walbus.status import read_status

MARKS = Marks(2, 1)


def at(commit_lsn: int) -> Point:
    return Point(Position(1, commit_lsn, 0), commit_lsn)


def told_of(path: Path, *checkpoints: Checkpoint) -> list[tuple[str, int]]:
    """Place and LSN in the status file, behind each of some commits of a process."""
    progress, told = ConsumerProgress("cache", "sqlite", path, Clock()), []
    for checkpoint in checkpoints:
        progress.committed(Tally(), checkpoint)
        progress.publish_now("online", None)
        status = read_status(path) or {}
        told.append((status["last_done"], status["walbus_consumer_last_done_lsn"]))
    return told


def test_deltas_that_are_read_at_the_logs_end_are_not_done_up_to_there(tmp_path: Path) -> None:
    """The demo compared a sink with the source in the middle of its deltas: they are as of a place far ahead."""
    half = Snapshotting("log", MARKS, (TableProgress("public.items", since=at(0x10)),), at(0x90), at(0x90))
    told = told_of(
        tmp_path / "status.json",
        Following("log", MARKS, at(0x10)),
        half,
        CatchingUp("log", MARKS, at(0x90), at(0xA0).last_done),
        Following("log", MARKS, at(0xB0)),
    )
    assert told == [("1:0/10:0", 0x10), ("1:0/10:0", 0x10), ("1:0/90:0", 0x90), ("1:0/B0:0", 0xB0)]


def test_a_process_that_begins_in_the_middle_of_deltas_knows_of_no_place(tmp_path: Path) -> None:
    half = Snapshotting("log", MARKS, (TableProgress("public.items", since=at(0x10)),), at(0x90), at(0x90))
    assert told_of(tmp_path / "status.json", half) == [("0:0/0:0", 0)]


def test_a_process_that_begins_in_the_middle_of_a_snapshot_keeps_what_was_done_before(tmp_path: Path) -> None:
    half = Snapshotting("log", MARKS, (TableProgress("public.items"),), at(0x90), at(0x90), done=at(0x70).last_done)
    path = tmp_path / "status.json"
    progress = ConsumerProgress("cache", "sqlite", path, Clock())
    progress.begins(half)
    progress.publish_now("snapshot", None)
    assert (read_status(path) or {})["last_done"] == "1:0/70:0"
    assert told_of(path, half, CatchingUp("log", MARKS, at(0x90), at(0xA0).last_done)) == [
        ("1:0/70:0", 0x70), ("1:0/90:0", 0x90),
    ]  # fmt: skip


def test_a_sink_that_came_back_empty_has_nothing_done(tmp_path: Path) -> None:
    progress = ConsumerProgress("cache", "sqlite", tmp_path / "status.json", Clock())
    progress.begins(Following("log", MARKS, at(0x10)))
    assert progress.last_done == at(0x10).last_done
    progress.begins(None)
    assert progress.last_done == ORIGIN
