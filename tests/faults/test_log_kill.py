"""Fault 1: the writer's process is killed anywhere; what it confirmed is there, whole and once, and it goes on."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.relay_log import FileEngine, commits, read_all, transaction
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.errors import LogBusy

PROGRAM = Path(__file__).parents[1] / "support" / "log_writer_process.py"


def writer_process(folder: Path, *options: str, trace: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*trace, sys.executable, "-B", str(PROGRAM), str(folder), *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def confirmed(output: str) -> int:
    """The last commit LSN that a `sync` returned."""
    ends = [line.split() for line in output.splitlines() if line.startswith("end ")]
    return int(ends[-1][1]) if ends else 0


def assert_log_is_whole(folder: Path, at_least: int) -> int:
    """Every transaction up to the end, each once, seqs rising; gives the end."""
    engine = FileEngine(folder)
    writer = engine.open_writer()
    end = writer.bounds().end.commit_lsn
    trimmed = writer.bounds().trimmed
    headers = read_all(engine.open_reader(), trimmed)
    engine.close()
    assert commits(headers) == list(range(trimmed.commit_lsn + 16, end + 1, 16))
    seqs = [(header.first_seq, header.last_seq) for header in headers]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(seqs))
    assert end >= at_least
    return end


def test_a_writer_killed_at_random_points_loses_nothing_that_it_confirmed(tmp_path):
    chance = random.Random(announced_seed("the kills"))
    folder, last = tmp_path / "log", 0
    for _ in range(8):
        process = writer_process(folder)
        lines, wanted = [], chance.randrange(1, 120)
        for line in process.stdout:
            lines.append(line)
            if len(lines) > wanted:
                break
        process.kill()
        output = "".join(lines) + process.communicate()[0]
        assert "error" not in output
        last = assert_log_is_whole(folder, max(last, confirmed(output)))
    assert last > 0


#: The system calls that decide what is on the disk, and which ones of a run are the last. The first run of a log makes
#: about 17 of fsync; those beyond belong to rolls.
SWEEP = [
    pytest.param("fdatasync", range(1, 4), id="fdatasync"),
    pytest.param("rename", range(1, 3), id="rename"),
    pytest.param("link", range(1, 2), id="link"),
    pytest.param("fdatasync", range(4, 16), id="every-fdatasync", marks=pytest.mark.long),
    pytest.param("fsync", range(1, 22), id="every-fsync", marks=pytest.mark.long),
    pytest.param("pwrite64", range(1, 40), id="every-pwrite", marks=pytest.mark.long),
    pytest.param("unlink", range(1, 12), id="every-unlink", marks=pytest.mark.long),
]


#: The same with retention that drops a segment at almost every roll. A run makes about 30 of unlink.
RETENTION_SWEEP = [
    pytest.param("unlink", range(3, 9, 2), id="unlink"),
    pytest.param("rename", range(3, 6), id="rename"),
    pytest.param("unlink", range(1, 30), id="every-unlink", marks=pytest.mark.long),
    pytest.param("rename", range(1, 14), id="every-rename", marks=pytest.mark.long),
    pytest.param("fsync", range(1, 50), id="every-fsync", marks=pytest.mark.long),
]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("call", "moments"), RETENTION_SWEEP)
def test_a_writer_killed_while_it_drops_segments_leaves_a_log_that_opens(tmp_path, call, moments):
    killed = 0
    for moment in moments:
        folder = tmp_path / f"{call}-{moment}"
        inject = f"inject={call}:signal=SIGKILL:when={moment}"
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        sizes = ("--transactions", "90", "--segment", str(8 << 10), "--keep", str(20 << 10))
        process = writer_process(folder, *sizes, *(("--compress",) if moment % 2 else ()), trace=trace)
        output, _ = process.communicate(timeout=120)
        assert "error" not in output, output
        killed += process.returncode == -signal.SIGKILL
        assert_log_is_whole(folder, confirmed(output))
    assert killed, "no run was killed: the sweep proves nothing"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("call", "moments"), SWEEP)
def test_a_writer_killed_at_any_system_call_leaves_a_log_that_opens(tmp_path, call, moments):
    killed = 0
    for moment in moments:
        folder = tmp_path / f"{call}-{moment}"
        if moment % 2:  # every other time the log exists already, and is recovered by the process that dies
            first = writer_process(folder)
            wait_for(lambda p=first: p.stdout.readline().startswith("end"), what="a first end")
            first.kill()
            first.communicate()
        inject = f"inject={call}:signal=SIGKILL:when={moment}"
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        process = writer_process(folder, "--transactions", "60", "--segment", str(64 << 10), trace=trace)
        output, _ = process.communicate(timeout=120)
        assert "error" not in output, output
        killed += process.returncode == -signal.SIGKILL
        assert_log_is_whole(folder, confirmed(output))
    assert killed, "no run was killed: the sweep proves nothing"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_writer_whose_sync_fails_ends_without_a_second_try(tmp_path):
    trace_file = tmp_path / "trace"
    trace = ("strace", "-f", "-qq", "-o", str(trace_file), "-e", "trace=fdatasync", "-e")
    process = writer_process(tmp_path / "log", trace=(*trace, "inject=fdatasync:error=EIO:when=3+"))
    output, _ = process.communicate(timeout=120)
    assert output.splitlines()[-1] == "error OSError"
    assert trace_file.read_text().count("EIO") == 1
    assert_log_is_whole(tmp_path / "log", confirmed(output))


def stopped(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_stopped_writer_is_taken_over_and_finds_out_before_it_confirms_anything(tmp_path):
    folder = tmp_path / "log"
    zombie = writer_process(folder, "--pause", "--lease", "1")
    assert zombie.stdout.readline() == "open\n"
    for _ in range(5):
        zombie.stdin.write("\n")
        zombie.stdin.flush()
        before = zombie.stdout.readline()
    zombie.send_signal(signal.SIGSTOP)
    wait_for(lambda: stopped(zombie), what="the writer to stop")
    engine = FileEngine(folder)
    engine.lease_seconds = 1.0
    reader = engine.open_reader()
    writer = engine.open_writer()
    assert writer.bounds().end.commit_lsn == int(before.split()[1])
    lsn = writer.bounds().end.commit_lsn + 16
    writer.append(transaction(lsn))
    writer.sync()
    zombie.stdin.write("\n" * 50)
    zombie.stdin.flush()
    zombie.send_signal(signal.SIGCONT)
    output, _ = zombie.communicate(timeout=120)
    assert output == "error Fenced\n"  # not one end more
    writer.append(transaction(lsn + 16))
    writer.sync()
    assert commits(read_all(reader)) == list(range(16, lsn + 17, 16))
    assert reader.bounds() == writer.bounds()
    engine.close()


def test_a_writer_that_lives_is_not_taken_over(tmp_path):
    folder = tmp_path / "log"
    process = writer_process(folder, "--pause", "--lease", "10")
    assert process.stdout.readline() == "open\n"
    engine = FileEngine(folder)
    engine.lease_seconds = 10.0  # each look ends with its next sign of life, half a second apart
    for _ in range(3):
        with pytest.raises(LogBusy):
            engine.open_writer()
    process.kill()
    process.communicate()
    engine.open_writer()  # at once: the kernel has freed the lock
    engine.close()
