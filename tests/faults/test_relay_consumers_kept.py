"""What the relay knows of consumers, over kills, damage and full disks: whole or begun anew, never half or silently."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.relay_log import FileEngine, transaction
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from walbus.consumer_reports import ConsumerReport
from walbus.position import Position
from walbus.relay.consumers_file import RETRY_SECONDS, WRITE_RATE, WRITE_SECONDS, ConsumersFile, pack_consumers
from walbus.relay.fs import Files
from walbus.relay.keeper_lock import KeeperLock
from walbus.relay.known_consumers import MAX_CONSUMERS, KnownConsumers
from walbus.relay.peer import Peer

pytestmark = pytest.mark.one_version

PROGRAM = Path(__file__).parents[1] / "support" / "consumers_file_process.py"
NAMES = [f"consumer-{n}" for n in range(5)]

#: The calls of one turn: a file unlinked, made, written, synced, the folder synced, renamed, the folder synced again.
SWEEP = [
    pytest.param("unlink", range(1, 4), id="unlink"),
    pytest.param("pwrite64", range(1, 4), id="pwrite"),
    pytest.param("fsync", range(1, 8), id="fsync"),
    pytest.param("rename", range(1, 4), id="rename"),
]


def keeper(folder: Path, turns: int, *trace: str) -> subprocess.Popen[str]:
    command = [*trace, sys.executable, "-B", str(PROGRAM), str(folder), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def last(output: str, word: str) -> int:
    found = [int(line.split()[1]) for line in output.splitlines() if line.startswith(word)]
    return found[-1] if found else 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("call", "points"), SWEEP)
def test_a_relay_killed_while_it_writes_leaves_the_old_file_or_the_new_one(tmp_path, call, points):
    kept, killed = 0, 0
    for nth in points:
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={nth}")
        process = keeper(tmp_path, 3, *trace)
        output, _ = process.communicate(timeout=120)
        killed += process.returncode == -signal.SIGKILL
        assert output.startswith("open "), "the file that a killed relay left was not read"
        assert last(output, "open") in (kept, kept + 1)  # the rename may have come before the kill
        known = loaded(tmp_path / "consumers.json")
        places = {one.last_done.commit_lsn for one in known}
        assert len(places) <= 1, "half of a turn was kept"
        assert len(known) in (0, len(NAMES))
        kept = max(last(output, "kept"), *places, kept)
        assert not places or places == {kept}
    assert killed, "no run was killed: the sweep proves nothing"


def loaded(path: Path) -> KnownConsumers:
    file, known = ConsumersFile(path, Files()), KnownConsumers()
    file.load(known)
    assert file.problem is None, file.problem
    return known


def some(count: int) -> KnownConsumers:
    known = KnownConsumers()
    for n in range(count):
        report = ConsumerReport("1", True, "ab", "online", Position(1, n, 1), n, 1, whole=True)
        known.report(f"n{n}", report, Peer("127.0.0.1", "test"), 5.0)
    return known


def test_whatever_byte_is_damaged_or_missing_is_noticed_said_and_put_aside(tmp_path):
    good = pack_consumers(some(2).dump())
    path = tmp_path / "consumers.json"
    for i in range(len(good)):
        for bad in (good[:i], good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]):
            path.write_bytes(bad)
            file, known = ConsumersFile(path, Files()), KnownConsumers()
            file.load(known)
            if file.problem is None:  # white space, and bytes behind the end, are no damage
                assert [one.last_done for one in known] == [Position(1, n, 1) for n in range(2)]
                continue
            assert len(known) == 0
            assert "consumers.json" in file.problem
            assert (tmp_path / "consumers.json.damaged").read_bytes() == bad
            assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\0" * 4096, b"[" * 100_000, b'{"version":2,"crc32c":0,"consumers":[]}']
)
def test_a_file_of_another_kind_is_begun_anew(tmp_path, content):
    path = tmp_path / "consumers.json"
    path.write_bytes(content)
    file, known = ConsumersFile(path, Files()), KnownConsumers()
    file.load(known)
    assert file.problem is not None
    assert file.write(pack_consumers(some(3).dump()), 1, 0.0)
    assert len(loaded(path)) == 3


class NoRoom(Files):
    """A disk that is full until it is told otherwise."""

    def __init__(self) -> None:
        self.full = True
        self.tries = 0

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.tries += 1
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(fd, data, offset)


class SlowFirst(Files):
    """A disk whose first rename waits until it is let go."""

    def __init__(self) -> None:
        self.at_it, self.go_on = threading.Event(), threading.Event()

    def replace(self, source: Path, target: Path) -> None:
        first = not self.at_it.is_set()
        self.at_it.set()
        if first:
            assert self.go_on.wait(60)
        super().replace(source, target)


@pytest.mark.parametrize("first", [1, 3], ids=["older first", "newer first"])
def test_two_who_write_at_a_time_leave_what_is_newer(tmp_path, first):
    path, files = tmp_path / "consumers.json", SlowFirst()
    file = ConsumersFile(path, files)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(file.write, pack_consumers(some(first).dump()), first, 0.0)
        assert files.at_it.wait(60)
        other = threads.submit(file.write, pack_consumers(some(2).dump()), 2, 0.0)
        wait([other], timeout=0.2)  # it waits for the first, or runs into it
        files.go_on.set()
        assert one.result(60)
        assert other.result(60)
    assert file.problem is None
    assert len(loaded(path)) == max(first, 2)


def test_a_full_disk_is_said_once_tried_seldom_and_leaves_the_old_file(tmp_path, capsys):
    path = tmp_path / "consumers.json"
    ConsumersFile(path, Files()).write(pack_consumers(some(2).dump()), 1, 0.0)
    before, files = path.read_bytes(), NoRoom()
    file, known = ConsumersFile(path, files), some(3)
    now = 100.0
    for _ in range(5):
        assert file.due(known, now)
        assert not file.write(pack_consumers(known.dump()), known.changes, now)
        assert not file.due(known, now + RETRY_SECONDS - 1)
        now += RETRY_SECONDS
    assert (path.read_bytes(), files.tries) == (before, 5)
    assert "room" in file.problem
    assert [one.name for one in tmp_path.iterdir()] == ["consumers.json"]
    files.full = False
    assert file.write(pack_consumers(known.dump()), known.changes, now)
    assert file.problem is None
    said = capsys.readouterr().out
    assert (said.count("relay_cannot_keep_consumers"), said.count("relay_keeps_consumers_again")) == (1, 1)


def test_the_disk_is_not_kept_busy_by_any_number_of_consumers(tmp_path):
    file, known = ConsumersFile(tmp_path / "consumers.json", Files()), some(MAX_CONSUMERS)
    data = pack_consumers(known.dump())
    file.write(data, known.changes, 100.0)
    assert not file.due(known, 1e9)  # nothing has changed
    known.seen(["n1"], 6.0)
    known.forget("n1")
    rest = max(WRITE_SECONDS, len(data) / WRITE_RATE)
    assert not file.due(known, 100.0 + rest - 0.1)
    assert file.due(known, 100.0 + rest)


# --- with a whole relay ---------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    with closing(FileEngine(tmp_path / "log")) as engine:
        writer = engine.open_writer()
        writer.append(transaction(0x10))
        writer.sync()
        yield engine


BODY = json.dumps(
    {
        "session": "1", "begins": True, "log_id": "", "phase": "online", "last_done": "1:0/10:1", "seq": 0,
        "generation": 0, "whole": True,
    }
).encode()  # fmt: skip


def test_a_relay_with_a_damaged_file_serves_and_says_so(engine):
    path = engine.folder / "consumers.json"
    path.write_bytes(b'{"version":1,"crc')
    with ServingRelay(engine.folder) as relay:
        status, document = relay.json("GET", "/v1/consumers")
        assert (status, document["consumers"]) == (200, [])
        assert "consumers.json" in document["problem"]
        assert relay.json("PUT", "/v1/consumers/cache", BODY)[0] == 200
    assert (engine.folder / "consumers.json.damaged").exists()
    with ServingRelay(engine.folder) as relay:
        assert relay.json("GET", "/v1/consumers/cache")[1]["last_done"] == "1:0/10:1"


def test_a_relay_that_cannot_write_serves_and_says_so(engine):
    (engine.folder / "consumers.json").mkdir()  # nothing can be renamed over it
    with ServingRelay(engine.folder) as relay:
        assert relay.json("PUT", "/v1/consumers/cache", BODY)[0] == 200
        wait_for(lambda: relay.json("GET", "/v1/consumers")[1]["problem"], what="it to say so")
        assert relay.json("GET", "/v1/consumers/cache")[1]["last_done"] == "1:0/10:1"
        assert relay.json("DELETE", "/v1/consumers/cache")[0] == 200
        assert relay.get("/v1/stream?from=earliest&until=latest")


def names_kept(engine: FileEngine) -> set[str]:
    return {one.name for one in loaded(engine.folder / "consumers.json")}


def test_of_two_relays_on_one_log_one_keeps_the_consumers_and_the_other_says_that_it_does_not(engine):
    with ExitStack() as running:
        first = ServingRelay(engine.folder)
        running.enter_context(first)
        assert first.json("PUT", "/v1/consumers/cache", BODY)[0] == 200
        with ServingRelay(engine.folder) as second:
            problem = second.json("GET", "/v1/consumers")[1]["problem"]
            assert f"another relay, process {os.getpid()}, keeps the consumers" in problem
            assert first.json("GET", "/v1/consumers")[1]["problem"] is None
            assert second.json("PUT", "/v1/consumers/lost", BODY)[0] == 200
        wait_for(lambda: names_kept(engine) == {"cache"}, what="the first one keeps its own")
        with ServingRelay(engine.folder) as third:
            assert third.json("PUT", "/v1/consumers/search", BODY)[0] == 200
            assert first.json("PUT", "/v1/consumers/late", BODY)[0] == 200
            running.close()
            wait_for(lambda: third.json("GET", "/v1/consumers")[1]["problem"] is None, what="it is the keeper now")
            known = {one["name"] for one in third.json("GET", "/v1/consumers")[1]["consumers"]}
            assert known == {"cache", "late", "search"}
        assert names_kept(engine) == {"cache", "late", "search"}


def test_a_relay_that_takes_over_says_so_until_it_knows_what_the_other_one_kept(engine, monkeypatch):
    may_read = threading.Event()
    may_read.set()
    load = ConsumersFile.load

    def load_slowly(self, known):
        may_read.wait(60)
        return load(self, known)

    monkeypatch.setattr(ConsumersFile, "load", load_slowly)
    with ExitStack() as running:
        first = ServingRelay(engine.folder)
        running.enter_context(first)
        assert first.json("PUT", "/v1/consumers/cache", BODY)[0] == 200
        with ServingRelay(engine.folder) as second:

            def problem() -> str:
                return second.json("GET", "/v1/consumers")[1]["problem"] or ""

            may_read.clear()
            running.close()
            wait_for(lambda: "is being read" in problem(), what="it takes over")
            assert second.json("PUT", "/v1/consumers/other", BODY)[0] == 200
            assert second.json("DELETE", "/v1/consumers/other")[0] in (200, 204)
            may_read.set()
            wait_for(lambda: not problem(), what="it has taken over")
            assert {one["name"] for one in second.json("GET", "/v1/consumers")[1]["consumers"]} == {"cache"}
    assert names_kept(engine) == {"cache"}


def test_the_lock_of_a_killed_relay_is_free(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from walbus.relay.keeper_lock import KeeperLock;"
        "lock = KeeperLock(Path(sys.argv[1])); print(lock.take(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    mine = KeeperLock(tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not mine.take()
        assert f"process {process.pid}," in mine.problem
    finally:
        process.kill()
        process.communicate()
    assert mine.take()
    assert mine.problem is None
    mine.release()
