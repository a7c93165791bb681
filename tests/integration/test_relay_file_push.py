"""Parts of the log's files on their way to a connection, in C and in Python: a peer that reads, one that is full, one
that left."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.cores import NAMES, implementation
from support.relay_log import FileEngine, commits, transaction
from support.relay_server import Follower, Relay, fill
from support.waiting import wait_for
from walbus.native.pushing import ANYWHERE, BLOCK_BYTES, STEP_BYTES, Furthest, Stretch
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, pack_record
from walbus.relay.delivery import Delivery
from walbus.relay.file_push import Patience, Pushed, Unsent, push_in_python
from walbus.relay.outlet import Outlet

CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


@pytest.fixture
def reader(tmp_path):
    """A reader of a log of about 6 MiB."""
    engine = FileEngine(tmp_path / "log")
    writer = engine.open_writer()
    for number in range(1, 3001):
        writer.append(transaction(number * 16, size=2000))
    writer.sync()
    yield engine.open_reader()
    engine.close()


@pytest.fixture(params=NAMES, autouse=True)
def push_records(request, monkeypatch):
    """What goes over blocks."""
    chosen = implementation(request.param).push_records or push_in_python
    monkeypatch.setattr("walbus.relay.file_push._push_records", chosen)
    monkeypatch.setattr("walbus.relay.file_push._SECONDS", 5.0)  # a push is over when there is no more, or no room
    return chosen


@pytest.fixture
def ends():
    """The server's end of a connection, which does not block, and the client's."""
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        yield here, there


def everything(reader):
    """The log's bytes behind what a first step takes."""
    delivery = Delivery(reader, ORIGIN)
    delivery.step()
    rest = b""
    while data := delivery.step().data:
        rest += data
    delivery.close()
    return rest


def begun(reader):
    delivery = Delivery(reader, ORIGIN)
    delivery.step()
    return delivery


def taken(there, wanted=1 << 30):
    """What a client has waiting, up to a number of bytes."""
    there.setblocking(False)
    data = b""
    try:
        while len(data) < wanted and (part := there.recv(wanted - len(data))):
            data += part
    except BlockingIOError:
        pass
    return data


def sent_by_hand(unsent: Unsent):
    """What the event loop sends of a chunk."""
    part = b""
    if unsent.span is not None:
        with open(unsent.span.fd, "rb", closefd=False) as file:
            file.seek(unsent.span.offset)
            part = file.read(unsent.span.length)
    return unsent.head + part + unsent.tail


def record(body, number):
    return pack_record(
        Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=number * 16, end_lsn=number * 16 + 8,
        first_ordinal=1, last_ordinal=1, first_seq=number, last_seq=number, commit_time=0, body=body,
    )  # fmt: skip


def unframed(data):
    body = b""
    while data:
        head = CHUNK.match(data)
        size = int(head[1], 16)
        body += data[head.end() : head.end() + size]
        assert data[head.end() + size :][:2] == b"\r\n"
        data = data[head.end() + size + 2 :]
    return body


@pytest.mark.parametrize("room", [0, 1 << 16, 1 << 22], ids=["tiny", "small", "large"])
def test_whatever_a_peer_takes_what_is_left_over_is_told(reader, ends, room):
    here, there = ends
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    expected, delivery = everything(reader), begun(reader)
    got, told, full = b"", 0, 0
    over = False
    while not over:
        pushed = delivery.push(here.dup())
        got += taken(there)
        if pushed.unsent is not None:
            full += 1
            got += sent_by_hand(pushed.unsent)
        told, over = told + pushed.sent, pushed.over
    while data := delivery.step().data:
        expected = expected.removesuffix(data)
    delivery.close()
    assert unframed(got) == expected
    assert told == len(expected) > 4 << 20
    assert full or room > 1 << 20


def test_a_part_that_is_handed_out_is_not_sent(reader):
    delivery = begun(reader)
    pushed = delivery.push(None)
    data = sent_by_hand(pushed.unsent)
    delivery.close()
    assert everything(reader).startswith(unframed(data))
    assert pushed.sent == len(unframed(data))


def test_a_peer_that_left_ends_the_push(reader, ends):
    here, there = ends
    delivery = begun(reader)
    there.close()
    with pytest.raises(ConnectionError):
        delivery.push(here.dup())
    delivery.close()


def test_nothing_is_pushed_of_a_closed_delivery(reader, ends):
    here, there = ends
    delivery = begun(reader)
    delivery.close()
    pushed = delivery.push(handle := here.dup())
    assert (pushed.sent, pushed.over, taken(there)) == (0, True, b"")
    assert handle.fileno() == -1, "a handle is closed where it was used"


def test_a_stream_holds_one_segment_wherever_it_is(reader, tmp_path):
    """What connections are admitted is reckoned by that: a socket and a file each."""
    before, delivery = open_segments(tmp_path), begun(reader)
    assert len(before) == 1, "the writer's"
    seen = set()
    while not delivery.push(None).over:
        (held,) = Counter(open_segments(tmp_path)) - Counter(before)
        seen.add(held)
    assert len(seen) > 10
    delivery.close()
    assert open_segments(tmp_path) == before


def open_segments(folder: Path) -> list[str]:
    """Those of this test: other tests may have left some open in this process."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    targets = [os.path.realpath(link) for link in links]
    return sorted(target for target in targets if target.startswith(f"{folder}/") and target.endswith(".seg"))


def test_streams_that_catch_up_take_a_few_descriptors_more_however_many_they_are(tmp_path, monkeypatch):
    handle, push, taken_by, go_on = Outlet.handle, Delivery.push, [], threading.Event()

    def counted(outlet):
        taken_by.append(outlet)
        return handle(outlet)

    def waiting(delivery, connection):
        assert go_on.wait(60)
        return push(delivery, connection)

    monkeypatch.setattr(Outlet, "handle", counted)
    monkeypatch.setattr(Delivery, "push", waiting)
    relay = Relay(tmp_path)
    try:
        relay.engine.segment_bytes = 4 << 20
        fill(relay)
        for number in range(201, 2001):
            relay.writer.append(transaction(number * 16, 2, size=300))
        relay.writer.sync()
        bounded = ("/v1/stream?from=earliest&until=latest",)
        threads = [threading.Thread(target=relay.get, args=bounded) for _ in range(3)]
        followers = [Follower(relay, "from=earliest") for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(taken_by) == 4, what="as many as there are threads")
        assert relay.get("/healthz")[0] == 200
        assert len(taken_by) == 4
        go_on.set()
        for follower in followers:
            wait_for(lambda f=follower: commits(f.headers())[-1:] == [32_000], what="the log's end")
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    finally:
        go_on.set()
        relay.close()


@pytest.mark.parametrize("harm", ["cut", "overwritten"])
def test_what_was_checked_is_sent_whatever_becomes_of_the_file(tmp_path, push_records, ends, harm):
    here, there = ends
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    data = b"".join(record(bytes(4000), number) for number in range(1, 121))
    path, scratch = tmp_path / "records", memoryview(bytearray(BLOCK_BYTES))
    path.write_bytes(data)
    with path.open("rb") as file, ThreadPoolExecutor(1) as threads:
        stretch = Stretch(file.fileno(), 0, len(data), ANYWHERE)
        pushing = threads.submit(push_records, stretch, here, scratch, 60.0, 60.0)
        there.settimeout(60)
        got = there.recv(1)
        if harm == "cut":
            os.truncate(path, 0)
        else:
            path.write_bytes(b"\xff" * len(data))
        while not pushing.done():
            got += taken(there)
        got += taken(there)
    pushed = pushing.result()
    assert 0 < pushed.end < len(data), "the harm came between two steps"
    assert unframed(got) == data[: pushed.end]
    assert (pushed.left, pushed.more) == (None, False)


def test_a_record_that_is_larger_than_a_step_is_a_block(tmp_path, push_records, ends):
    here, there = ends
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    sizes = (10, STEP_BYTES + 1000, 20, STEP_BYTES, BLOCK_BYTES - 1000, 30)
    data = b"".join(record(bytes(size), number) for number, size in enumerate(sizes, start=1))
    whole = len(data)
    data += record(bytes(BLOCK_BYTES), len(sizes) + 1)
    path, scratch = tmp_path / "records", memoryview(bytearray(BLOCK_BYTES))
    path.write_bytes(data)
    with path.open("rb") as file:
        pushed = push_records(Stretch(file.fileno(), 0, len(data), ANYWHERE), here, scratch, 10.0, 0.0)
    assert (pushed.end, pushed.left, pushed.more) == (whole, None, False), "one larger than a block is not pushed"
    assert unframed(taken(there)) == data[:whole]


def test_a_peer_that_was_waited_for_in_vain_is_waited_for_less_often():
    patience, pushes = Patience(), []
    full = Pushed(BLOCK_BYTES, Unsent(b"", None, b"\r\n"), over=False)
    for _ in range(200):
        pushes.append(patience.seconds() > 0)
        patience.note(full)
    waits = [at for at, waited in enumerate(pushes) if waited]
    assert waits == [0, 2, 6, 14, 30, 62, 95, 128, 161, 194]
    patience.note(Pushed(4 * BLOCK_BYTES, full.unsent, over=False))
    assert patience.seconds() > 0, "it reads fast"


def test_a_record_with_any_byte_flipped_is_not_sent_and_ends_the_push(tmp_path, push_records, ends):
    here, there = ends
    one = len(record(b"", 1))
    data = b"".join(record(b"", number) for number in range(1, 11))
    path, scratch = tmp_path / "records", memoryview(bytearray(BLOCK_BYTES))
    for offset in range(6 * one, 7 * one):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        with path.open("rb") as file:
            pushed = push_records(Stretch(file.fileno(), 0, len(data), ANYWHERE), here, scratch, 30.0, 0.0)
        assert pushed == (6 * one, data[5 * one : 6 * one], None, False), offset
        assert unframed(taken(there)) == data[: 6 * one], offset


def test_nothing_is_sent_of_a_block_with_a_record_behind_the_furthest(tmp_path, push_records, ends):
    here, there = ends
    data = b"".join(record(b"", number) for number in range(1, 11))
    path, scratch = tmp_path / "records", memoryview(bytearray(BLOCK_BYTES))
    path.write_bytes(data)
    beyond = [
        ANYWHERE._replace(seq=9),
        *(ANYWHERE._replace(position=place) for place in (Position(0, 1000, 9), Position(1, 159, 9))),
        ANYWHERE._replace(position=Position(1, 160, 0)),
    ]
    with path.open("rb") as file:
        for furthest in beyond:
            pushed = push_records(Stretch(file.fileno(), 0, len(data), furthest), here, scratch, 30.0, 0.0)
            assert (pushed, taken(there)) == ((0, b"", None, False), b""), furthest
        for furthest in (ANYWHERE, Furthest(Position(1, 160, 1), 10), Furthest(Position(2, 0, 0), 10)):
            pushed = push_records(Stretch(file.fileno(), 0, len(data), furthest), here, scratch, 30.0, 0.0)
            assert pushed == (len(data), data[-len(data) // 10 :], None, False)
            assert unframed(taken(there)) == data


def test_a_peer_that_reads_meanwhile_gets_everything_in_order(reader, ends):
    here, there = ends
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    there.settimeout(60)
    expected, delivery = everything(reader), begun(reader)

    def read_to_the_end():
        return b"".join(iter(lambda: there.recv(1 << 20), b""))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_to_the_end)
        pushed = delivery.push(here.dup())
        while not pushed.over:
            if pushed.unsent is not None:
                here.settimeout(60)
                here.sendall(sent_by_hand(pushed.unsent))
                here.setblocking(False)
            pushed = delivery.push(here.dup())
        while data := delivery.step().data:
            expected = expected.removesuffix(data)
        delivery.close()
        here.shutdown(socket.SHUT_WR)
        assert unframed(reading.result()) == expected
