"""Fault 49: crafted and damaged pgoutput messages give typed errors, on both cores alike, in bounded memory.

The corpus holds streams that real servers sent, by every protocol, and what the fuzzer (`pgoutput.py`) once found.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.pgoutput_streams import outcome_of, unpack_stream
from support.seed import announced_seed
from walbus.native import native_implementation, pure_implementation
from walbus.records import Kind, read_header

FOLDER = Path(__file__).parent
CORPUS = sorted((FOLDER / "corpus").iterdir())
SENT = [path for path in CORPUS if path.name.startswith("pg")]
PURE = pure_implementation("under test")


@pytest.fixture(scope="module")
def native():
    try:
        return native_implementation()
    except ImportError as error:
        pytest.skip(f"no native core: {error}")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_both_cores_make_the_same_of_every_stream_that_was_ever_kept(native, path):
    messages = unpack_stream(path.read_bytes())
    assert outcome_of(native, messages) == outcome_of(PURE, messages)


@pytest.mark.parametrize("version", sorted({path.name[:4] for path in SENT}))
def test_every_protocol_gives_the_same_transactions(version):
    outcomes = [outcome_of(PURE, unpack_stream(p.read_bytes())) for p in SENT if p.name.startswith(version)]
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    records = [[r for r in o.records if read_header(r).kind == Kind.TRANSACTION] for o in outcomes]
    assert len(records[0]) == 10
    assert all(found == records[0] for found in records[1:])


@pytest.mark.parametrize(
    ("stream", "share"),
    [
        ("pg18-protocol1-whole", 0.02),
        ("pg18-protocol4-parallel", 0.005),
        *(
            pytest.param(path.name, 1, marks=[pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(3600)])
            for path in SENT
        ),
    ],
)
def test_damaged_messages_are_refused_alike_and_allocate_no_more_than_they_bring(native, stream, share):
    seed = announced_seed("the damages")
    command = [sys.executable, FOLDER / "damaged_streams.py", FOLDER / "corpus" / stream, str(share), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    tried, grown_kib = map(int, done.stdout.split()[-2:])
    assert tried > 100
    assert grown_kib < 20_000


@pytest.mark.parametrize(
    ("stream", "share"),
    [
        ("pg18-protocol1-whole", 0.02),
        *(
            pytest.param(path.name, 1, marks=[pytest.mark.long, pytest.mark.exhaustive, pytest.mark.timeout(3600)])
            for path in SENT
        ),
    ],
)
def test_damaged_records_are_filtered_and_read_alike_and_allocate_no_more_than_they_bring(native, stream, share):
    seed = announced_seed("the damages")
    command = [sys.executable, FOLDER / "damaged_records.py", FOLDER / "corpus" / stream, str(share), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    tried, grown_kib = map(int, done.stdout.split()[-2:])
    assert tried > 100
    assert grown_kib < 20_000
