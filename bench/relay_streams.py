"""What the relay's server costs, with nothing else running but the log's writer.

One reader: an unfiltered binary stream of a log that is in memory, against a bare `sendfile` of the same file to the
same reader over the loopback, once as the system paces it and once as the relay has it. Followers: a writer appends at
a steady rate, followers take every transaction; how old transactions are when they arrive, how long the writer waited
for durability, and what an idle follower adds to the relay's memory. All followers' digests must be that of the log.
What they cost capture and its PostgreSQL is measured by `crowd_latency`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import google_crc32c

import relay_load
from measured import cpu_time
from relay_load import SOURCE, Followers, quantile, request, transaction
from report import Report
from walbus.position import ORIGIN, Position
from walbus.relay import open_reader, open_writer
from walbus.relay.outlet import do_not_pace

_DEADLINE = 60.0
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)
_CONFIG = """
data_dir = {data_dir}
[source]
dsn = "postgresql://nobody@127.0.0.1:1/none"
[relay]
listen = "127.0.0.1:{port}"
[log]
level = "warning"
"""
_CROWDS = (10, 100)
#: What is done to a connection before a file is sent to it: nothing, and what the relay does.
_REFERENCES: dict[str, Callable[[socket.socket], None]] = {
    "sendfile": lambda _: None,
    "sendfile-not-paced": do_not_pace,
}


def run(megabytes: int, followers: int, rate: int, seconds: int, rounds: int) -> list[Report]:
    """Measures one reader of `megabytes`, and up to `followers` followers of `rate` transactions a second."""
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix="walbus-bench-") as name:
        folder = Path(name)
        return [_one_reader(folder / "reader", megabytes, rounds), _crowds(folder, followers, rate, seconds)]


def raise_open_files() -> None:
    """A thousand sockets, here and, by inheritance, in the relay."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def running_relay(folder: Path) -> Iterator[tuple[int, int]]:
    """A relay's process over the log in `folder`/relay: its port and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "walbus.toml"
    config.write_text(_CONFIG.format(data_dir=json.dumps(str(folder)), port=port))
    process = subprocess.Popen([sys.executable, "-P", "-m", "walbus", "relay", "-c", str(config)])
    try:
        end = time.monotonic() + _DEADLINE
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the relay did not start")
            time.sleep(0.02)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port: int) -> bool:
    try:
        return b"true" in request(port, "/readyz")
    except OSError:
        return False


# --- one reader ---------------------------------------------------------------------------------------------------


def _one_reader(folder: Path, megabytes: int, rounds: int) -> Report:
    report = Report(
        "relay-reader",
        "One reader of the log",
        ("what", "MB", "seconds", "MB/s", "the server's processor seconds"),
        notes=["Medians over the rounds; the file is in memory, and the reader only counts."],
    )
    folder.mkdir()
    path, size = _write(folder / "relay", megabytes)
    taken: dict[str, list[float]] = {**{name: [] for name in _REFERENCES}, "stream": []}
    spent: dict[str, list[float]] = {name: [] for name in taken}
    with running_relay(folder) as (port, pid):
        _check(port, folder / "relay")
        for _ in range(rounds):
            for name, prepare in _REFERENCES.items():
                seconds, cpu = _sendfile(path, size, prepare)
                taken[name].append(seconds)
                spent[name].append(cpu)
            before = cpu_time(pid)
            taken["stream"].append(_stream(port, size))
            spent["stream"].append(cpu_time(pid) - before)
    seconds_of = {name: statistics.median(values) for name, values in taken.items()}
    for name, seconds in seconds_of.items():
        rate, cpu = size / seconds / 1e6, statistics.median(spent[name])
        report.row(name, f"{size / 1e6:,.0f}", f"{seconds:.3f}", f"{rate:,.0f}", f"{cpu:.3f}")
    for name in _REFERENCES:
        report.ratio(f"stream/{name} one-reader", seconds_of[name] / seconds_of["stream"])
    return report


def _write(folder: Path, megabytes: int) -> tuple[Path, int]:
    """A log of one segment with transactions of one row; the segment's file and its size."""
    writer = open_writer(folder, SOURCE, segment_bytes=1 << 40, retention_hours=1, retention_bytes=None)
    number = 0
    with closing(writer):
        while writer.bounds().bytes < megabytes << 20:
            for _ in range(10_000):
                number += 1
                writer.append(transaction(number, time.time()))
            writer.sync()
    (path,) = (folder / "segments").glob("*.seg")
    return path, path.stat().st_size


def _check(port: int, folder: Path) -> None:
    """Warms the cache, and proves that a stream is the log."""
    body = request(port, "/v1/stream?from=earliest&until=latest")
    if google_crc32c.value(body) != _digest(folder, ORIGIN):
        raise RuntimeError("the stream is not the log")


def _digest(folder: Path, after: Position) -> int:
    digest = 0
    with closing(open_reader(folder)) as reader, closing(reader.cursor(after)) as cursor:
        while records := cursor.read(1 << 20):
            digest = google_crc32c.extend(digest, b"".join(records))
    return digest


def _sendfile(path: Path, size: int, prepare: Callable[[socket.socket], None]) -> tuple[float, float]:
    """Seconds until the reader has all of a file that a thread sends, and that thread's processor time."""
    spent: list[float] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        prepare(connection)
        with connection, path.open("rb") as file:
            begin, at = time.thread_time(), 0
            while at < size:
                at += os.sendfile(connection.fileno(), file.fileno(), at, size - at)
            spent.append(time.thread_time() - begin)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        begin = time.perf_counter()
        with socket.create_connection(listener.getsockname()) as connection:
            received = _drain(connection)
        seconds = time.perf_counter() - begin
        thread.join()
    if received != size:
        raise RuntimeError(f"{received} of {size} bytes came")
    return seconds, spent[0]


def _stream(port: int, size: int) -> float:
    """Seconds until the reader has all of the log."""
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        asked = "GET /v1/stream?from=earliest&until=latest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(asked.encode())
        received = _drain(connection)
    seconds = time.perf_counter() - begin
    if received < size:
        raise RuntimeError(f"{received} of {size} bytes came")
    return seconds


def _drain(connection: socket.socket) -> int:
    buffer, received = bytearray(1 << 18), 0
    while size := connection.recv_into(buffer):
        received += size
    return received


# --- followers ----------------------------------------------------------------------------------------------------


def _crowds(folder: Path, followers: int, rate: int, seconds: int) -> Report:
    report = Report(
        "relay-followers",
        "Followers of the log",
        ("followers", "append to follower p50 ms", "p99 ms", "append to durable p50 ms", "p99 ms", "relay's cores"),
        notes=[
            f"{rate:,} transactions of one row a second for {seconds} s. Writer, relay and followers share the "
            "machine; all followers are one process. Every follower's digest is that of the log.",
        ],
    )
    for count in (0, *sorted({*_CROWDS, followers})):
        place = folder / f"followers-{count}"
        place.mkdir()
        _crowd(place, count, rate, seconds, report)
    return report


def _crowd(folder: Path, count: int, rate: int, seconds: int, report: Report) -> None:
    """Measures one number of followers."""
    log = folder / "relay"
    relay_load.append_steadily(log, rate, 0.1)  # a log must be there
    with running_relay(folder) as (port, pid):
        crowd = Followers(port, every_record=count <= max(_CROWDS))
        with closing(crowd):
            before = _resident(pid)
            crowd.connect(count)
            _idle(crowd, 2.5)
            idle = (_resident(pid) - before) / count if count else 0.0
            with closing(open_reader(log)) as reader:
                start = reader.bounds().end
            spent, begin = cpu_time(pid), time.perf_counter()
            figures = _append_beside(log, rate, seconds, crowd)
            cores = (cpu_time(pid) - spent) / (time.perf_counter() - begin)
            late = _catch_up(crowd, log, start)
    ages = sorted(crowd.ages)
    shown = [f"{quantile(ages, q) * 1e3:.2f}" if count else "" for q in (0.5, 0.99)]
    report.row(f"{count:,}", *shown, f"{figures['p50']:.2f}", f"{figures['p99']:.2f}", f"{cores:.2f}")
    if count:
        report.notes.append(
            f"With {count:,} followers the last one had everything {late * 1e3:,.0f} ms after the last append; "
            f"an idle follower added {idle / 1024:.1f} KB to the relay's memory."
        )


def _resident(pid: int) -> int:
    found = _RESIDENT.search(Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _idle(crowd: Followers, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        crowd.turn(0.1)


def _append_beside(log: Path, rate: int, seconds: int, crowd: Followers) -> dict[str, float]:
    """The writer's figures; the followers take what comes meanwhile."""
    command = [sys.executable, relay_load.__file__, "append", str(log), str(rate), str(seconds)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    while writer.poll() is None:
        crowd.turn(0.05)
    out, _ = writer.communicate()
    figures: dict[str, float] = json.loads(out)
    return figures


def _catch_up(crowd: Followers, log: Path, start: Position) -> float:
    """Seconds until every follower has what the log holds behind `start`.

    Raises:
        RuntimeError: one does not get there, or got something else.
    """
    begin = time.monotonic()
    with closing(open_reader(log)) as reader, closing(reader.cursor(start)) as cursor:
        expected = b"".join(record for records in iter(lambda: cursor.read(1 << 20), []) for record in records)
    while any(follower.received < len(expected) for follower in crowd.open.values()):
        crowd.turn(0.05)
        if time.monotonic() - begin > _DEADLINE:
            raise RuntimeError("a follower fell behind for good")
    digest = google_crc32c.value(expected)
    wrong = sum(follower.digest != digest for follower in crowd.open.values())
    if wrong:
        raise RuntimeError(f"{wrong} followers got something else than the log")
    return time.monotonic() - begin
