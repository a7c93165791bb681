"""Very many followers of one log in one thread, each of which goes to the next relay when its own fails.

with Crowd([relay.port, standby.port], 1000) as crowd:
    ... load, kills ...
    crowd.at(end)                                      # waits until each of them has done everything up to a position
    assert crowd.digests() == {digest_of(records)}     # of the records that it got, in the order in which it did

A follower keeps what a client has to keep: the log's id, the position that it has done, and which layouts came at that
position. It goes on behind them, and so gets each record of the log once, whatever happens; its digest is over all
records but those that tell progress alone, which come at any time. It asks for the binary form without a filter, which
is the log's own bytes.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import google_crc32c

from support.waiting import wait_for
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, RecordHeader, read_header

_PAUSE = 0.1  # seconds until a follower whose relay failed asks the next one
_BUFFER = 1 << 18
_BESIDE = (Kind.SCHEMA, Kind.EPOCH)  # what stands at the position of the record before it

Digest = tuple[int, int]


def digest_of(records: Iterable[bytes]) -> Digest:
    """How many records there are but those of progress, and the CRC32C of all of them in a row."""
    count = digest = 0
    for record in records:
        if read_header(record).kind != Kind.PROGRESS:
            count, digest = count + 1, google_crc32c.extend(digest, record)
    return count, digest


@dataclass
class _Follower:
    """One client."""

    number: int
    relay: int = 0
    connection: socket.socket | None = None
    retry_at: float = 0.0
    connections: int = 0
    head: bool = False  # whether the head of the answer is here
    buffer: bytes = b""
    log_id: str = ""
    last: Position = ORIGIN
    beside: list[bytes] = field(default_factory=list)  # layouts and epochs at `last`, which are sent once more
    again: list[bytes] = field(default_factory=list)  # those of them that the present connection still has to send
    count: int = 0
    digest: int = 0


@dataclass(frozen=True)
class _Block:
    """A block's records; followers of one feed get the same blocks, so each is taken apart once.

    Attributes:
        records: with their headers, signs of life left out.
        count: of those that do not tell progress alone.
        data: their bytes in a row.
        beside: layouts and epochs at the position of the last one.
    """

    records: tuple[tuple[RecordHeader, bytes], ...]
    count: int
    data: bytes
    beside: tuple[bytes, ...]


@functools.lru_cache(maxsize=256)
def _block(chunk: bytes) -> _Block:
    found, at = [], 0
    while at < len(chunk):
        header = read_header(chunk, at)
        if not header.flags & Flag.FILTERED:
            found.append((header, chunk[at : at + header.length]))
        at += header.length
    assert at == len(chunk), "a block ends inside a record"
    last = found[-1][0].last if found else ORIGIN
    beside = tuple(record for header, record in found if header.last == last and header.kind in _BESIDE)
    digested = [record for header, record in found if header.kind != Kind.PROGRESS]
    return _Block(tuple(found), len(digested), b"".join(digested), beside)


class Crowd:
    """The followers; they run while it is entered.

    Args:
        ports: of the relays on this machine, in the order in which they are tried.
        count: how many followers.
    """

    def __init__(self, ports: Sequence[int], count: int) -> None:
        self._ports = ports
        self._followers = [_Follower(number) for number in range(count)]
        self._open: dict[int, _Follower] = {}
        self._epoll = select.epoll()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join(60)
        for follower in self._followers:
            if follower.connection is not None:
                follower.connection.close()
        self._epoll.close()

    def at(self, position: Position, deadline: float = 120) -> None:
        """Waits until each of them has done everything up to a position."""
        wait_for(lambda: self.error or self.slowest() >= position, deadline, what=f"all followers are at {position}")
        if self.error is not None:
            raise self.error

    def slowest(self) -> Position:
        """Up to where each of them has done everything."""
        return min(follower.last for follower in self._followers)

    def digests(self) -> set[Digest]:
        """Those of all followers."""
        return {(follower.count, follower.digest) for follower in self._followers}

    @property
    def connected(self) -> int:
        """How many have the head of an answer."""
        return sum(follower.head for follower in self._followers)

    @property
    def moved(self) -> int:
        """How many had to connect more than once."""
        return sum(follower.connections > 1 for follower in self._followers)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._connect()
                for descriptor, _ in self._epoll.poll(_PAUSE / 2):
                    self._receive(self._open[descriptor])
        except BaseException as error:
            self.error = error

    def _connect(self) -> None:
        now = time.monotonic()
        for follower in self._followers:
            if follower.connection is None and now >= follower.retry_at:
                self._ask(follower)

    def _ask(self, follower: _Follower) -> None:
        place = f"after={follower.last}&log_id={follower.log_id}" if follower.log_id else "from=earliest"
        request = f"GET /v1/stream?{place}&follow=true&name=f{follower.number} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        try:
            connection = socket.create_connection(("127.0.0.1", self._ports[follower.relay]), 10)
            connection.sendall(request.encode())
        except OSError:
            self._leave(follower)
            return
        connection.setblocking(False)
        follower.connection, follower.head, follower.buffer = connection, False, b""
        follower.again = follower.beside.copy()
        self._open[connection.fileno()] = follower
        self._epoll.register(connection, select.EPOLLIN)

    def _leave(self, follower: _Follower) -> None:
        """To the next relay, after a pause."""
        if follower.connection is not None:
            del self._open[follower.connection.fileno()]
            self._epoll.unregister(follower.connection)
            follower.connection.close()
        follower.connection, follower.head = None, False
        follower.relay = (follower.relay + 1) % len(self._ports)
        follower.retry_at = time.monotonic() + _PAUSE

    def _receive(self, follower: _Follower) -> None:
        assert follower.connection is not None
        data = b""
        with contextlib.suppress(ConnectionError):
            data = follower.connection.recv(_BUFFER)
        follower.buffer += data
        if not data or not (follower.head or self._takes_head(follower)):
            self._leave(follower)
        elif follower.head:
            self._take_chunks(follower)

    @staticmethod
    def _takes_head(follower: _Follower) -> bool:
        """Whether the answer is a stream, as far as it is here."""
        head, end, rest = follower.buffer.partition(b"\r\n\r\n")
        if not end:
            return True
        if b" 200 " not in head.partition(b"\r\n")[0]:
            return False
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert fields["Walbus-Log-Id"] in (follower.log_id or fields["Walbus-Log-Id"]), "another log"
        follower.log_id, follower.head, follower.buffer = fields["Walbus-Log-Id"], True, rest
        follower.connections += 1
        return True

    def _take_chunks(self, follower: _Follower) -> None:
        data, at = follower.buffer, 0
        while (line := data.find(b"\r\n", at)) >= 0:
            begin = line + 2
            end = begin + int(data[at:line], 16)
            if end + 2 > len(data):
                break
            self._take_records(follower, data[begin:end])
            at = end + 2
        follower.buffer = data[at:]

    @staticmethod
    def _take_records(follower: _Follower, chunk: bytes) -> None:
        block = _block(chunk)
        if not block.records:
            return
        if follower.again or block.records[0][0].last == follower.last:
            for header, record in block.records:
                _take_record(follower, header, record)
            return
        follower.count += block.count
        follower.digest = google_crc32c.extend(follower.digest, block.data)
        follower.last, follower.beside = block.records[-1][0].last, [*block.beside]


def _take_record(follower: _Follower, header: RecordHeader, record: bytes) -> None:
    if follower.again and record == follower.again[0]:
        del follower.again[0]
        return
    follower.again = []
    if header.kind != Kind.PROGRESS:
        follower.count += 1
        follower.digest = google_crc32c.extend(follower.digest, record)
    if header.last != follower.last:  # behind the digest: who waits for the position looks at that next
        follower.last, follower.beside = header.last, []
    if header.kind in _BESIDE:
        follower.beside.append(record)
