"""Fault 4, over HTTP: a live server never serves a damaged record as good, and never passes it."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.relay_log import transaction
from support.relay_server import Follower, Relay
from support.waiting import wait_for
from support.well_formed_log import fill_well
from walbus.record_parser import RecordParser
from walbus.records import read_header
from walbus.relay.delivery import Delivery

pytestmark = pytest.mark.one_version

COUNT, DAMAGED = 40, 25


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path)
    made.writer = made.engine.open_writer()
    fill_well(made.writer, COUNT)
    wait_for(lambda: made.get("/readyz")[0] == 200, what="the server to find the log")
    yield made
    made.close()


def place_of(data: bytes, lsn: int) -> tuple[int, int]:
    """Where the record of a transaction lies, and its length."""
    at = 128
    while (header := read_header(data, at)).commit_lsn != lsn:
        at += header.length
    return at, header.length


def stream(relay: Relay, query: str) -> tuple[bytes, bool]:
    """What came of a bounded stream, and whether it ended cleanly."""
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
    try:
        connection.request("GET", f"/v1/stream?{query}&until=latest")
        return connection.getresponse().read(), True
    except http.client.IncompleteRead as broken:
        return broken.partial, False
    except (ConnectionError, http.client.HTTPException):
        return b"", False
    finally:
        connection.close()


def records_in(body: bytes) -> list[int]:
    """The commit LSNs of whole, good records."""
    parser = RecordParser()
    parser.feed(body)
    return [header.commit_lsn for header, _ in parser.records()]


def positions_in(body: bytes) -> list[int]:
    lines = [line for line in body.split(b"\n") if line.startswith(b"{")]
    texts = [json.loads(line).get("position") or "1:0/0:0" for line in lines[:-1]]
    return [int(text.split(":")[1].split("/")[1], 16) for text in texts]


FORMS = {
    "binary": ("", 1, records_in),
    "filtered": ("&tables=public.orders", 5, records_in),
    "json": ("&format=json", 5, positions_in),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_ends_with_an_error_at_a_record_with_any_byte_flipped(relay, form):
    more, step, read = FORMS[form]
    (path,) = relay.engine.segments()
    data = path.read_bytes()
    start, length = place_of(data, DAMAGED * 16)
    after = f"after=1:0/{(DAMAGED - 3) * 16:X}:3{more}"
    good, clean = stream(relay, after)
    assert clean
    assert read(good)[-1] == COUNT * 16
    with path.open("r+b", buffering=0) as file:
        for offset in range(start, start + length, step):
            file.seek(offset)
            file.write(bytes([data[offset] ^ 0x20]))
            body, clean = stream(relay, after)
            assert not clean, offset
            assert all(lsn < DAMAGED * 16 for lsn in read(body)), offset
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert stream(relay, after) == (good, True)


def test_what_is_sent_straight_from_the_file_ends_at_the_damage_too(tmp_path, monkeypatch):
    pushed, push = [], Delivery.push
    monkeypatch.setattr(Delivery, "push", lambda delivery, peer: pushed.append(push(delivery, peer)) or pushed[-1])
    with closing(Relay(tmp_path)) as relay:
        relay.engine.segment_bytes = 4 << 20
        relay.writer = relay.engine.open_writer()
        for number in range(1, 301):
            relay.writer.append(transaction(number * 16, size=2000))
        relay.writer.sync()
        wait_for(lambda: relay.get("/readyz")[0] == 200, what="the server to find the log")
        (path,) = relay.engine.segments()
        start, length = place_of(path.read_bytes(), 200 * 16)
        with path.open("r+b", buffering=0) as file:
            for offset in (start, start + 5, start + 60, start + length - 1):
                byte = os.pread(file.fileno(), 1, offset)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
                body, clean = stream(relay, "from=earliest")
                assert (records_in(body), clean) == ([number * 16 for number in range(1, 200)], False), offset
                os.pwrite(file.fileno(), byte, offset)
        assert sum(one.sent for one in pushed) > 4 * start // 2, "it was not read step by step"
        assert records_in(stream(relay, "from=earliest")[0])[-1] == 300 * 16


def test_a_follower_is_cut_off_at_the_damage_and_the_server_lives(relay):
    (path,) = relay.engine.segments()
    data = path.read_bytes()
    start, _ = place_of(data, DAMAGED * 16)
    with path.open("r+b", buffering=0) as file:
        file.seek(start + 100)
        file.write(bytes([data[start + 100] ^ 1]))
    follower = Follower(relay, "from=earliest&follow=true")
    wait_for(lambda: follower.ended, what="the stream to end")
    assert follower.ended != "whole"
    assert follower.headers()[-1].commit_lsn == (DAMAGED - 1) * 16
    follower.close()
    assert relay.get("/healthz")[0] == 200
    _, before = relay.get(f"/v1/stream?from=earliest&until=1:0/{(DAMAGED - 1) * 16:X}:1")
    assert records_in(before)[-1] == (DAMAGED - 1) * 16
