"""Reading the log on Kafka: through a relay that has nothing yet, beside a bare consumer of the same topic.

    confluent-kafka   a consumer in Python with settings as they come, `read_committed`, which counts bytes
    relay, empty      a follower counts the bytes that a relay serves which begins with an empty folder: it copies the
                      log out of Kafka onto its disk, with all checks of its records, and serves it
    relay             the same again, once the relay has all of it: what every further consumer has

The time of the consumer counts from its first fetch on, that of the relay from the moment at which its folder has a
log, both until the last byte has come. The order changes each round, and medians are reported.
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from measured import Measured
from relay_load import request
from report import Report
from walbus.log import Bounds
from walbus.position import ORIGIN
from walbus.records import Kind, read_header
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.manifest import load_manifest

_DEADLINE = 600.0
_MEMORY = 250 << 20  # bytes that a process of Walbus may have


class Sizes(NamedTuple):
    """Of a log on Kafka."""

    changes: int
    bytes: int
    messages: int


class _Read(NamedTuple):
    """What a reader took."""

    seconds: float
    peak: int


def variables(settings: ClusterSettings) -> dict[str, str]:
    """The environment of a process whose log lies there."""
    return {
        "WALBUS_RELAY__ENGINE": "kafka",
        "WALBUS_RELAY__KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap,
        "WALBUS_RELAY__KAFKA__TOPIC": settings.topic,
    }


def sizes(settings: ClusterSettings) -> Sizes:
    """Reads the log whole."""
    changes = 0
    with closing(open_kafka_reader(settings)) as reader:
        with closing(reader.cursor(ORIGIN)) as cursor:
            while records := cursor.read(1 << 20):
                headers = map(read_header, records)
                changes += sum(header.count for header in headers if header.kind == Kind.TRANSACTION)
        return Sizes(changes, reader.bounds().bytes, _bare(settings)[1])


def run(settings: ClusterSettings, folder: Path, rounds: int) -> Report:
    """Measures with the log that lies there."""
    report = Report(
        "kafka-reading",
        "Reading the log on Kafka",
        ("what", "MB", "seconds", "MB/s", "peak MiB"),
        notes=["Medians over the rounds. Consumer and follower only count; all share the machine with the broker."],
    )
    with closing(open_kafka_reader(settings)) as reader:
        bounds = reader.bounds()
    taken: dict[str, list[_Read]] = {"confluent-kafka": [], "relay, empty": [], "relay": []}

    def bare(_: Path) -> None:
        taken["confluent-kafka"].append(_Read(_bare(settings)[0], 0))

    def relay(place: Path) -> None:
        for name, read in zip(("relay, empty", "relay"), _through_relay(settings, bounds, place), strict=True):
            taken[name].append(read)

    ways: list[Callable[[Path], None]] = [bare, relay]
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            way(folder / f"reading-{number}")
    medians = {name: statistics.median(read.seconds for read in reads) for name, reads in taken.items()}
    for name, seconds in medians.items():
        peak = max(read.peak for read in taken[name]) / (1 << 20)
        rate = bounds.bytes / seconds / 1e6
        report.row(name, f"{bounds.bytes / 1e6:,.0f}", f"{seconds:.3f}", f"{rate:,.0f}", f"{peak:.0f}" if peak else "")
    report.ratio("kafka-relay/confluent-kafka", medians["confluent-kafka"] / medians["relay, empty"])
    report.ratio("kafka-relay/confluent-kafka, once it is there", medians["confluent-kafka"] / medians["relay"])
    report.ratio("memory/250MiB kafka relay", max(read.peak for read in taken["relay"]) / _MEMORY)
    return report


def _bare(settings: ClusterSettings) -> tuple[float, int]:
    """Seconds from its first fetch on, and how many messages there are; of a consumer as confluent-kafka has it."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition  # noqa: PLC0415

    options = {"bootstrap.servers": settings.bootstrap, "group.id": "bench", "isolation.level": "read_committed"}
    options |= {"enable.auto.commit": False, "enable.partition.eof": True}  # type: ignore[dict-item]
    consumer = Consumer(options)
    count, size, whole = 0, 0, False
    with closing(consumer):
        consumer.get_watermark_offsets(TopicPartition(settings.topic, 0), 30)  # it is connected
        begin = time.perf_counter()
        consumer.assign([TopicPartition(settings.topic, 0, 0)])
        while not whole:
            message = consumer.poll(30)
            if message is None:
                raise RuntimeError("the topic cannot be read: nothing came")
            if (error := message.error()) is None:
                count, size = count + 1, size + len(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                whole = True
            else:
                raise RuntimeError(f"the topic cannot be read: {error.str()}")
        seconds = time.perf_counter() - begin
    return seconds, count


def _through_relay(settings: ClusterSettings, bounds: Bounds, place: Path) -> tuple[_Read, _Read]:
    """What a follower takes of a relay that begins empty, and then of the same relay."""
    place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = place / "walbus.toml"
    config.write_text(
        f'data_dir = {json.dumps(str(place))}\n[source]\ndsn = "postgresql://nobody@127.0.0.1:1/none"\n'
        f'[relay]\nlisten = "127.0.0.1:{port}"\n[log]\nlevel = "warning"\n'
    )
    command = [sys.executable, "-P", "-m", "walbus", "relay", "-c", str(config)]
    relay = Measured(command, variables(settings), place / "log")
    relay.until(lambda: load_manifest(place / "relay") is not None, _DEADLINE)
    begin = time.perf_counter()
    relay.until(lambda: _serves(port), _DEADLINE)
    _follow(port, bounds)
    empty = time.perf_counter() - begin
    begin = time.perf_counter()
    _follow(port, bounds)
    again = time.perf_counter() - begin
    peak = relay.stop().peak
    shutil.rmtree(place)
    return _Read(empty, peak), _Read(again, peak)


def _serves(port: int) -> bool:
    try:
        return b"true" in request(port, "/readyz")
    except OSError:
        return False


def _follow(port: int, bounds: Bounds) -> None:
    """Counts what comes, from the log's beginning up to its end."""
    query = f"from=earliest&until={bounds.end}&follow=true"
    asked = (
        f"GET /v1/stream?{query} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    buffer, received = bytearray(1 << 18), 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(asked.encode())
        while size := connection.recv_into(buffer):
            received += size
    if received < bounds.bytes:
        raise RuntimeError(f"{received} of {bounds.bytes} bytes came: {bytes(buffer[:300])!r}")
