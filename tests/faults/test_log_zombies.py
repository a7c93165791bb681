"""Fault 9: a writer stands still at any of its file operations, another takes over, and the first one goes on."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.relay_log import FileEngine, UnsyncedFiles, commits, read_all, transaction
from support.seed import announced_seed
from support.waiting import wait_for
from support.well_formed_log import fill_well, findings_of
from walbus.errors import Fenced, LogBusy, LogError
from walbus.relay.fs import Files
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

SEGMENT_BYTES = 6_000
OPERATIONS = ("create", "open", "open_for_reading", "close", "pwrite", "pread", "fdatasync", "fsync", "truncate",
              "replace", "link", "unlink")  # fmt: skip


class StoppedFiles(UnsyncedFiles):
    """Files that stand still at their n-th operation (and all later ones, of any thread) until `go_on` is called.

    That is what SIGSTOP does to a process: also its heartbeat stands still.
    """

    def __init__(self, moment: int) -> None:
        self._left = moment
        self._going = threading.Event()
        self._lock = threading.Lock()
        self.stands_still = threading.Event()
        self.made = 0

    def go_on(self) -> None:
        self._going.set()

    def pass_through(self) -> None:
        with self._lock:
            self.made += 1
            self._left -= 1
            stopped = self._left <= 0
        if stopped:
            self.stands_still.set()
            self._going.wait()


def _stopping(name: str) -> Callable[..., object]:
    original = getattr(UnsyncedFiles, name)

    def operation(self: StoppedFiles, *arguments: object) -> object:
        self.pass_through()
        return original(self, *arguments)

    return operation


for _name in OPERATIONS:
    setattr(StoppedFiles, _name, _stopping(_name))


class Zombie:
    """A writer on a thread that appends, syncs, rolls and trims as capture lets it, and notes what was confirmed."""

    def __init__(self, engine: FileEngine, files: Files, moment_opened: Callable[[], None] = lambda: None) -> None:
        self.confirmed = 0
        self.closing = False  # which raises nothing
        self.error: BaseException | None = None
        self._engine, self._opened = engine, moment_opened
        engine.files = files
        self._writer: FileLogWriter | None = engine.open_writer()
        self._opened()
        self.thread = threading.Thread(target=self._live, daemon=True)

    def _live(self) -> None:
        try:
            writer = self._writer
            first = writer.bounds().end.commit_lsn // 16 + 1
            for number in range(first, first + 36, 3):
                fill_well(writer, 3, first=number, sync_every=3)
                self.confirmed = writer.bounds().end.commit_lsn
                writer.trim(0)
            self.closing = True
            writer.close()
        except BaseException as error:  # the test looks at it
            self.error = error


def engine_at(folder: Path) -> FileEngine:
    made = FileEngine(folder, files=UnsyncedFiles(), segment_bytes=SEGMENT_BYTES)
    made.lease_seconds = 0.1
    made.retention_bytes = 5 * SEGMENT_BYTES
    return made


@pytest.fixture(scope="module")
def operations_of_a_life(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many file operations it takes, heartbeats left out by a lease that is long."""
    engine = engine_at(tmp_path_factory.mktemp("life") / "log")
    engine.lease_seconds = 1e6
    files = StoppedFiles(1 << 60)
    zombie = Zombie(engine, files)
    opened = files.made
    zombie.thread.start()
    zombie.thread.join(60)
    assert zombie.error is None
    assert len(engine.segments()) > 3
    return files.made - opened


def stop_at(folder: Path, moment: int) -> None:
    """Stops a writer at a moment of its life, takes over, lets it go on, and judges the log."""
    engine = engine_at(folder)
    files = StoppedFiles(1 << 60)
    zombie = Zombie(engine, files, lambda: setattr(files, "_left", moment))
    reader = engine.open_reader()
    zombie.thread.start()
    wait_for(lambda: files.stands_still.is_set() or not zombie.thread.is_alive(), what="the writer to stand still")
    confirmed = zombie.confirmed
    engine.files = UnsyncedFiles()
    successor = wait_for(lambda: opened_unless_alive(engine), what="no beat that was under way is left")
    taken_over_at = successor.bounds().end.commit_lsn
    assert taken_over_at >= confirmed
    fill_well(successor, 6, first=taken_over_at // 16 + 1)
    files.go_on()
    zombie.thread.join(60)
    assert not zombie.thread.is_alive()
    if not isinstance(zombie.error, Fenced) and not (zombie.closing and zombie.error is None):
        raise AssertionError("a zombie ended otherwise") from zombie.error
    assert zombie.confirmed <= taken_over_at, "a zombie confirmed what the log does not hold"
    fill_well(successor, 30, first=taken_over_at // 16 + 7)
    successor.trim(0)
    assert reader.bounds() == successor.bounds()
    held = commits(read_all(reader, successor.bounds().trimmed))
    assert held == list(range(held[0], taken_over_at + 36 * 16 + 1, 16))
    assert not findings_of(folder)
    engine.close()


def opened_unless_alive(engine: FileEngine) -> FileLogWriter | None:
    """A writer; None where the one that stands still gave a sign of life: a beat that had begun before it did."""
    try:
        return engine.open_writer()
    except LogBusy:
        return None


@pytest.mark.parametrize("share", [pytest.param(12, id="some"), pytest.param(None, id="every", marks=pytest.mark.long)])
def test_whatever_a_zombie_was_about_to_do_nothing_of_it_counts(tmp_path, operations_of_a_life, share):
    moments = list(range(1, operations_of_a_life + 1))
    if share is not None:
        moments = random.Random(announced_seed("the moments")).sample(moments, share)
    for moment in moments:
        stop_at(tmp_path / f"moment-{moment}", moment)


def test_a_writer_that_was_taken_over_is_told_though_it_has_nothing_to_sync(tmp_path):
    """Capture syncs before it confirms anything to the source, also where nothing has come meanwhile."""
    engine = engine_at(tmp_path / "log")
    writer = engine.open_writer()
    fill_well(writer, 3)
    assert writer.sync() == writer.bounds()
    writer._lease.control.supersede(2)
    for call in (writer.sync, writer.sync, lambda: writer.trim(0)):
        with pytest.raises((Fenced, LogError), match="was taken over by writer epoch 2"):
            call()
    engine.close()


class OvertakenFiles(UnsyncedFiles):
    """Files under which a sync takes so long that another writer takes over meanwhile."""

    def __init__(self) -> None:
        self.take_over: Callable[[], None] = lambda: None

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self.take_over()


def test_a_writer_that_is_taken_over_in_the_middle_of_a_sync_confirms_nothing_of_it(tmp_path):
    """No later call has to find out: what this one returned would be confirmed."""
    engine = engine_at(tmp_path / "log")
    engine.files = files = OvertakenFiles()
    writer = engine.open_writer()
    fill_well(writer, 3)
    writer.append(transaction(64))
    files.take_over = lambda: writer._lease.control.supersede(2)
    with pytest.raises(Fenced):
        writer.sync()
    engine.close()
