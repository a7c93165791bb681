"""What loads a relay in its benchmark: a writer that appends at a steady rate, and very many followers in one process.

    python bench/relay_load.py append FOLDER RATE SECONDS     the writer; prints its figures as JSON
    python bench/relay_load.py follow PORT COUNT              followers; they say when they are connected, and follow
                                                              until a line tells how many bytes there were, and
                                                              their digest

The writer stands in for capture: it appends what is due, makes it durable, and notes how long each transaction waited
for that. A transaction's commit time is the moment at which it was appended, so that whoever receives it knows how old
it is. The followers share one thread and one epoll; each takes the chunks of its answer apart and digests them, and
that is all, since they run on the machine that they measure.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import struct
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from walbus.capture import ask_for_short_slices
from walbus.log import Piece, SourceIdentity
from walbus.records import Flag, Kind, Op, pack_change
from walbus.relay import open_writer

SOURCE = SourceIdentity("1", "bench", "bench")
TABLE, ROW = 16_400, 150
_SEGMENT_BYTES = 64 << 20
_RECORD = struct.Struct("<4xIxB54xq")  # length, kind, commit time
_PROGRESS = int(Kind.PROGRESS)
_BUFFER = 1 << 20
_DEADLINE = 60.0


def transaction(number: int, now: float, rows: int = 1) -> Piece:
    """A transaction of `rows` inserted rows of ROW bytes, some 300 bytes in the log for one row.

    Args:
        number: its place in the log, from 1.
        now: Unix seconds.
        rows: how many.
    """
    body = b"".join(
        pack_change(
            Op.INSERT, table=TABLE, schema_id=0, seq_delta=i, ordinal_delta=i, key=b"%08d" % number,
            after=b"%0*d" % (ROW, number),
        )
        for i in range(rows)
    )  # fmt: skip
    return Piece(
        kind=Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=number * 512, end_lsn=number * 512 + 8,
        first_ordinal=1, last_ordinal=rows, count=rows, xid=number, commit_time=int(now * 1e6),
        tables=1 << TABLE % 64, body=body,
    )  # fmt: skip


def append_steadily(folder: Path, rate: int, seconds: float) -> dict[str, float]:
    """Appends `rate` transactions a second; how long they waited until they were durable, in milliseconds."""
    writer = open_writer(folder, SOURCE, segment_bytes=_SEGMENT_BYTES, retention_hours=1, retention_bytes=None)
    try:
        first = writer.bounds().end.commit_lsn // 512 + 1
        waited: list[float] = []
        begin = time.perf_counter()
        done = 0
        while done < rate * seconds:
            due = int((time.perf_counter() - begin) * rate) + 1 - done
            if due <= 0:
                time.sleep(max(0.0, begin + done / rate - time.perf_counter()))
                continue
            for i in range(due):
                writer.append(transaction(first + done + i, time.time()))
            writer.sync()
            durable = time.perf_counter()
            waited += [durable - (begin + (done + i) / rate) for i in range(due)]
            done += due
    finally:
        writer.close()
    waited.sort()
    return {"p50": quantile(waited, 0.5) * 1e3, "p99": quantile(waited, 0.99) * 1e3, "transactions": done}


def quantile(ordered: list[float], share: float) -> float:
    """A quantile of sorted figures; 0 of none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


@dataclass
class Follower:
    """One connection.

    Attributes:
        connection: its socket.
        digest: CRC32C of all records but those that tell progress.
        received: their bytes.
        rest: bytes of a chunk that is not whole yet.
    """

    connection: socket.socket
    digest: int = 0
    received: int = 0
    rest: bytes = b""


@dataclass
class Followers:
    """Connections that follow the log from its end on.

    Attributes:
        port: of the relay.
        every_record: whether the age of each record is noted, or of the oldest of a chunk only.
        ages: seconds between a transaction's append and its arrival.
    """

    port: int
    every_record: bool
    ages: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._epoll = select.epoll()
        self.open: dict[int, Follower] = {}
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._chunk, self._told = b"", (b"", list[int]())

    def connect(self, count: int, query: str = "from=latest") -> None:
        """Opens connections, each with the head of its answer read."""
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", self.port), 30)
            request = (
                f"GET /v1/stream?{query}&name=f{number} HTTP/1.1\r\n"
                "Host: localhost\r\nAccept-Encoding: identity\r\n\r\n"
            )
            connection.sendall(request.encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(_BUFFER)
            head, _, rest = head.partition(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise RuntimeError(f"the relay refuses: {head[:200]!r}")
            connection.setblocking(False)
            self.open[connection.fileno()] = Follower(connection, rest=rest)
            self._epoll.register(connection, select.EPOLLIN)

    def turn(self, timeout: float) -> bool:
        """Takes what has come; False if nothing came in `timeout` seconds."""
        ready = self._epoll.poll(timeout)
        for descriptor, _ in ready:
            follower = self.open[descriptor]
            size = follower.connection.recv_into(self._buffer)
            if not size:
                raise RuntimeError("the relay hung up")
            self._take(follower, bytes(self._view[:size]))
        return bool(ready)

    def close(self) -> None:
        """Hangs up."""
        for follower in self.open.values():
            follower.connection.close()
        self._epoll.close()

    def _take(self, follower: Follower, data: bytes) -> None:
        data = follower.rest + data if follower.rest else data
        at, now = 0, time.time()
        while (line := data.find(b"\r\n", at)) >= 0:
            begin = line + 2
            end = begin + int(data[at:line], 16)
            if end + 2 > len(data):
                break
            self._digest(follower, data[begin:end], now)
            at = end + 2
        follower.rest = data[at:]

    def _digest(self, follower: Follower, chunk: bytes, now: float) -> None:
        told, times = self._looked_at(chunk)
        follower.digest = google_crc32c.extend(follower.digest, told)
        follower.received += len(told)
        self.ages += [now - commit_time / 1e6 for commit_time in times]

    def _looked_at(self, chunk: bytes) -> tuple[bytes, list[int]]:
        """A chunk without records of progress, and commit times in it; all followers get the same chunks."""
        if chunk != self._chunk:
            told, times, at = [], [], 0
            while at < len(chunk):
                length, kind, commit_time = _RECORD.unpack_from(chunk, at)
                if kind != _PROGRESS:
                    told.append(chunk[at : at + length])
                    times.append(commit_time)
                at += length
            self._chunk, self._told = chunk, (b"".join(told), times if self.every_record else times[:1])
        return self._told


def request(port: int, path: str) -> bytes:
    """The body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def follow(port: int, count: int) -> dict[str, float]:
    """Follows until standard input tells what there was to get.

    Returns:
        Seconds by which the last one was `late`, and how many had got something `wrong`.

    Raises:
        RuntimeError: one fell behind for good.
    """
    with closing(Followers(port, every_record=False)) as crowd:
        crowd.connect(count)
        print("connected", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:  # noqa: TID251  (its number is 0)
            crowd.turn(0.05)
        size, digest = map(int, sys.stdin.readline().split())
        begin = time.monotonic()
        while any(follower.received < size for follower in crowd.open.values()):
            crowd.turn(0.05)
            if time.monotonic() > begin + _DEADLINE:
                raise RuntimeError("a follower fell behind for good")
        late = time.monotonic() - begin
        wrong = sum(follower.digest != digest for follower in crowd.open.values())
    return {"late": late, "wrong": wrong}


def _run(what: str, *arguments: str) -> dict[str, float]:
    if what == "follow":
        return follow(int(arguments[0]), int(arguments[1]))
    ask_for_short_slices()
    return append_steadily(Path(arguments[0]), int(arguments[1]), float(arguments[2]))


if __name__ == "__main__":
    print(json.dumps(_run(*sys.argv[1:])))
