"""`walbus log info`, `check` and `dump`: on logs that live, that were stopped, and that are damaged."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import google_crc32c
import pytest

from support.relay_log import BASE_TIME, FileEngine, UnsyncedFiles, read_all
from support.walbus_command import PROGRAM, environment, walbus, write_config
from support.well_formed_log import fill_well
from walbus.records import pack_record, read_header
from walbus.relay.log_check import LogCheck
from walbus.relay.manifest import load_manifest
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

COUNT = 900
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=UnsyncedFiles())
    yield made
    made.close()


@pytest.fixture
def writer(engine: FileEngine) -> FileLogWriter:
    opened = engine.open_writer()
    fill_well(opened, COUNT)
    assert len(engine.segments()) > 3
    return opened


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def record_places(engine: FileEngine, segment: int) -> list[int]:
    """Where the records of a segment begin."""
    data, places, at = engine.segments()[segment].read_bytes(), [], 128
    while at < len(data):
        places.append(at)
        at += read_header(data, at).length
    return places


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_info_tells_bounds_segments_layouts_and_writer_of_a_live_log(engine, writer):
    told = json.loads(walbus("log", "info", str(engine.folder), "--json").stdout)
    bounds = writer.bounds()
    assert (told["log_id"], told["end"], told["last_seq"]) == (bounds.log_id, str(bounds.end), bounds.last_seq)
    assert (told["bytes"], told["end_lsn"]) == (bounds.bytes, bounds.end_lsn)
    assert told["source"] == {"system_identifier": "7301", "database": "shop", "slot": "walbus"}
    assert (told["writer"]["state"], told["writer"]["epoch"]) == ("running", 1)
    assert [segment["number"] for segment in told["segments"]] == list(range(1, len(engine.segments()) + 1))
    assert {segment["index"] for segment in told["segments"]} == {"whole"}
    assert sum(segment["bytes"] for segment in told["segments"]) == told["bytes"]
    assert told["schemas"] == [{"id": 1, "table": "public.orders", "oid": 16385, "columns": 1}]
    writer.close()
    assert json.loads(walbus("log", "info", str(engine.folder), "--json").stdout)["writer"]["state"] == "stopped"


def test_info_for_people_names_what_is_wrong_with_files(engine, writer):
    engine.kill(writer)
    indexes = sorted((engine.folder / "segments").glob("*.idx"))
    indexes[0].unlink()
    flip(indexes[1], 3)
    engine.segments()[2].unlink()
    done = walbus("log", "info", str(engine.folder))
    assert done.code == 0
    assert "writer        ended: epoch 1" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].isdigit()}
    assert "missing" in rows["1"]
    assert "damaged" in rows["2"]
    assert "the file is missing" in rows["3"]


def test_the_folder_is_that_of_the_configuration(engine, writer, tmp_path):
    config = write_config(tmp_path / "walbus.toml", {"source": {"dsn": "host=x"}, "relay": {"dir": str(engine.folder)}},
                          tmp_path / "data")  # fmt: skip
    assert walbus("log", "info", "-c", str(config)).stdout.startswith("log ")


def test_a_check_beside_a_live_writer_finds_nothing_and_writes_nothing(engine, writer):
    stop, appended = threading.Event(), [COUNT]

    def go_on() -> None:
        while not stop.wait(0.005):  # or a slow check has more and more to look at
            fill_well(writer, 20, first=appended[0] + 1)
            appended[0] += 20
            writer.trim(0)

    before = {path: path.read_bytes() for path in engine.folder.glob("manifest-*")}
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for _ in range(3):
            done = walbus("log", "check", str(engine.folder))
            assert (done.code, "nothing is wrong" in done.stdout) == (0, True), done
    finally:
        stop.set()
        thread.join()
    assert before
    writer.close()
    files = {path: path.stat().st_mtime_ns for path in engine.folder.rglob("*")}
    told = json.loads(walbus("log", "check", str(engine.folder), "--json").stdout)
    assert told["findings"] == []
    assert told["records"] == len(read_all(engine.open_reader()))
    assert {path: path.stat().st_mtime_ns for path in engine.folder.rglob("*")} == files


def test_a_check_that_began_while_the_writer_rolled_finds_nothing(engine, writer):
    end, number = writer._mark, COUNT
    while writer._mark.segment == end.segment:
        end, number = writer._mark, number + 1
        fill_well(writer, 1, first=number)
    with closing(LogCheck(engine.folder)) as check:
        assert end.segment in {one.number for one in check._view.manifest.sealed}
        check._view = check._view._replace(mark=end)
        assert list(check.findings(lambda _: None)) == []


def test_a_check_that_takes_long_says_so_on_stderr_alone(engine, writer):
    program = (
        "import sys; from walbus.cli import application, log_progress; log_progress._LINE_SECONDS = 0.0;"
        " application.main(['log', 'check', sys.argv[1], '--json'])"
    )
    command = [sys.executable, "-P", "-c", program, str(engine.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["findings"] == []
    assert "checking the log" in done.stderr


def test_a_flipped_bit_is_named_with_segment_and_offset(engine, writer):
    writer.close()
    places = record_places(engine, 1)
    flip(engine.segments()[1], places[7] + 50)
    done = walbus("log", "check", str(engine.folder), "--json")
    assert done.code == 3
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["segment"], finding["offset"]) == (2, places[7])
    assert finding["what"] == "a record's checksum is wrong"
    people = walbus("log", "check", str(engine.folder))
    assert people.code == 3
    assert people.stdout.startswith(f"segment 2, offset {places[7]}: a record's checksum is wrong (")
    assert people.stdout.splitlines()[-1].endswith(": 1 finding")


def test_behind_a_damaged_length_nothing_is_guessed(engine, writer):
    writer.close()
    places = record_places(engine, 1)
    flip(engine.segments()[1], places[7] + 6)
    findings = json.loads(walbus("log", "check", str(engine.folder), "--json").stdout)["findings"]
    assert {(finding["segment"], finding["offset"]) for finding in findings} == {(2, places[7])}
    assert "was not checked" in findings[-1]["what"]


def resealed(engine: FileEngine, segment: int, number: int, **changed: int) -> int:
    """Changes a record's header fields and makes its checksum right again; where it lies."""
    path, place = engine.segments()[segment], record_places(engine, segment)[number]
    data = path.read_bytes()
    header = read_header(data, place)
    record = data[place : place + header.length]
    fields = header._asdict() | changed
    for name in ("length", "origin_length"):
        del fields[name]
    new = pack_record(fields.pop("kind"), body=record[96:], **fields)
    path.write_bytes(data[:place] + new + data[place + len(new) :])
    return place


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"last_seq": 1}, "goes backward"),
        ({"commit_lsn": 1}, "goes backward"),
        ({"flags": 0}, "does not belong"),
        ({"flags": 7}, "have no place in a log"),
        ({"count": 9}, "holds"),
        ({"kind": 5}, "no place in a log"),
        ({"tables": 0}, "table bits"),
        ({"flags": 11}, "compressed body"),
    ],
)
def test_a_good_checksum_over_what_makes_no_sense_is_found(engine, writer, changed, what):
    writer.close()
    place = resealed(engine, 1, 4, **changed)
    done = walbus("log", "check", str(engine.folder), "--json")
    assert done.code == 3
    found = json.loads(done.stdout)["findings"]
    assert any(what in finding["what"] and finding["offset"] == place for finding in found), found


def test_an_unknown_layout_a_broken_chain_and_a_wrong_index_are_found(engine, writer):
    writer.close()
    (engine.folder / "schemas" / "00000001.json").unlink()
    indexes = sorted((engine.folder / "segments").glob("*.idx"))
    indexes[1].write_bytes(indexes[1].read_bytes()[:48] * 1)
    indexes[0].unlink()
    (engine.folder / "holds" / "bootstrap.json").write_text("?")
    engine.segments()[2].unlink()
    found = json.loads(walbus("log", "check", str(engine.folder), "--json").stdout)["findings"]
    told = " ".join(finding["what"] for finding in found)
    for what in ("names layout 1", "index is missing", "index is damaged", "hold cannot be read", "file is missing"):
        assert what in told


def test_an_index_that_names_wrong_places_is_found(engine, writer):
    writer.close()
    path = sorted((engine.folder / "segments").glob("*.idx"))[1]
    data = bytearray(path.read_bytes())
    entry = data[48:92]
    entry[24:32] = (12345).to_bytes(8, "little")
    data[48:96] = entry + int(google_crc32c.value(bytes(entry))).to_bytes(4, "little")
    path.write_bytes(data)
    (finding,) = json.loads(walbus("log", "check", str(engine.folder), "--json").stdout)["findings"]
    assert "does not say what comes before it" in finding["what"]
    assert finding["file"] == str(path)


def test_a_damaged_manifest_is_found_and_a_newer_one_is_named(engine, writer):
    writer.close()
    (path,) = engine.folder.glob("manifest-*")
    good = path.read_bytes()
    flip(path, len(good) // 2)
    done = walbus("log", "check", str(engine.folder))
    assert done.code == 3
    assert str(path) in done.stdout
    assert walbus("log", "info", str(engine.folder)).one_line().startswith("a manifest")
    path.write_bytes(good.replace(b'"version":1', b'"version":2', 1))
    for command in ("info", "check", "dump"):
        done = walbus("log", command, str(engine.folder))
        assert done.code == 1
        assert "the log's format 2 is not 1" in done.one_line()
        assert "read it with the Walbus that wrote it" in done.one_line()


def test_a_folder_that_is_no_log_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for command in ("info", "check", "dump"):
        assert "there is no log yet" in walbus("log", command, str(tmp_path)).one_line()
        assert "there is no such folder" in walbus("log", command, str(tmp_path / "nowhere")).one_line()
        assert "there is no such folder" in walbus("log", command, str(tmp_path / "file")).one_line()


def without_the_powers_of_root() -> None:
    """What root may read is decided by modes from the next exec on, as for everybody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_log_that_may_not_be_read_is_told(engine, writer):
    writer.close()
    segment = engine.segments()[1]
    for path in (engine.folder, segment):
        mode = path.stat().st_mode
        path.chmod(0)
        for command in ("check", "dump"):
            done = subprocess.run(
                [*PROGRAM, "log", command, str(engine.folder)], capture_output=True, text=True, env=environment(),
                preexec_fn=without_the_powers_of_root, check=False,
            )  # fmt: skip
            assert done.returncode == 1, done
            assert f"the log cannot be read: permission denied (at {path})" in done.stderr
            assert "Traceback" not in done.stderr
        path.chmod(mode)


def test_a_check_draws_its_progress_on_a_terminal_and_only_there(engine, writer):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "log", "check", str(engine.folder)], stdout=subprocess.PIPE, stderr=theirs,
        env=environment(TERM="xterm", COLUMNS="100"),
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    while select.select([ours], [], [], 120)[0]:  # noqa: TID251  (a test has few of them)
        try:
            drawn += os.read(ours, 4096)
        except OSError:  # the process has closed its end
            break
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0
    assert b"checking the log" in drawn
    assert b"checking" not in out
    assert walbus("log", "check", str(engine.folder)).stderr == ""


def test_dump_gives_every_record_with_its_place(engine, writer):
    dumped = json_lines(walbus("log", "dump", str(engine.folder), "--json").stdout)
    headers = read_all(engine.open_reader())
    assert [one["last"] for one in dumped] == [str(header.last) for header in headers]
    assert [one["length"] for one in dumped] == [header.length for header in headers]
    for number in (0, 1):
        places = [one["offset"] for one in dumped if one["segment"] == number + 1]
        assert places == record_places(engine, number)
    people = walbus("log", "dump", str(engine.folder), "--limit", "2").stdout.splitlines()
    assert people[0].startswith("1:128  ")
    assert "SCHEMA" in people[0]
    assert "TRANSACTION BEGIN+END" in people[1]


def test_dump_takes_positions_times_and_seqs_as_bounds(engine, writer):
    headers = [header for header in read_all(engine.open_reader()) if header.commit_lsn >= 16 * 500]
    first, last = headers[0], headers[30]
    time = [datetime.fromtimestamp((BASE_TIME + one.commit_lsn) / 1e6, UTC).isoformat() for one in (first, last)]
    bounds = {
        "position": (str(first.first), str(last.last)),
        "time": (time[0], time[1]),
        "seq": (f"seq:{first.first_seq}", f"seq:{last.last_seq}"),
    }
    for kind, (start, until) in bounds.items():
        arguments = ("log", "dump", str(engine.folder), "--from", start, "--until", until, "--json")
        dumped = json_lines(walbus(*arguments).stdout)
        assert [one["last"] for one in dumped] == [str(header.last) for header in headers[:31]], kind
    assert "neither a position nor a time" in walbus("log", "dump", str(engine.folder), "--from", "soon").one_line()


def test_dump_gives_changes_with_their_rows(engine, writer):
    lines = json_lines(
        walbus("log", "dump", str(engine.folder), "--changes", "--json", "--from", "1:0/200:1", "--limit", "1").stdout
    )
    assert [line["op"] for line in lines] == ["begin", "insert", "insert", "insert", "commit"]
    assert lines[1]["table"] == "public.orders"
    assert lines[1]["after"] == {"id": 51201}
    people = walbus("log", "dump", str(engine.folder), "--changes", "--from", "1:0/200:1", "--limit", "1").stdout
    assert "insert   public.orders id=51201" in people


def test_dump_goes_on_behind_damage_where_it_is_told_to(engine, writer):
    writer.close()
    places = record_places(engine, 1)
    flip(engine.segments()[1], places[7] + 90)
    done = walbus("log", "dump", str(engine.folder), "--json")
    assert done.code == 1
    assert f"{engine.segments()[1]}, offset {places[7]}" in done.one_line()
    assert "--segment 2 --from-offset N" in done.one_line()
    assert json_lines(done.stdout)[-1]["offset"] == places[6]
    behind = walbus("log", "dump", str(engine.folder), "--json", "--segment", "2", "--from-offset", str(places[8]))
    assert [one["offset"] for one in json_lines(behind.stdout)] == places[8:]


def test_dump_refuses_places_that_are_not_there(engine, writer):
    folder = str(engine.folder)
    assert "no segment 99" in walbus("log", "dump", folder, "--segment", "99").one_line()
    assert "lies in one segment" in walbus("log", "dump", folder, "--from-offset", "128").one_line()
    assert "offsets 128 to" in walbus("log", "dump", folder, "--segment", "1", "--from-offset", "5").one_line()
    assert walbus("log", "dump", folder, "--segment", "99").code == 2


def test_every_segment_of_a_compressed_log_is_checked_and_dumped(tmp_path):
    engine = FileEngine(tmp_path / "log", files=UnsyncedFiles())
    engine.compression_level = 3
    fill_well(engine.open_writer(), 100)
    assert walbus("log", "check", str(engine.folder)).code == 0
    dumped = json_lines(walbus("log", "dump", str(engine.folder), "--json").stdout)
    assert any("ZSTD" in one["flags"] for one in dumped)
    assert walbus("log", "dump", str(engine.folder), "--changes").stdout.count("insert") > 800
    assert load_manifest(engine.folder) is not None
    engine.close()
