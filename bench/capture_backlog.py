"""Capture into the durable log against `pg_recvlogical -f FILE`, both on the same backlog.

Two backlogs: many rows in one transaction, and many transactions of one row. Each is read in rounds under copies of one
slot, the order of the two changing each round, and medians are reported. The time of Walbus counts from the moment at
which it streams from its slot until the log holds the last commit durably; that of pg_recvlogical from its start (it
has no interpreter to start, and connects in hundredths of a second) until it has ended at that LSN. Processor time is
that of the whole life of each, the interpreter's start included; a further line leaves out what each took before it
streamed (Python and its imports; of pg_recvlogical nothing is left out). Walbus syncs its log before it confirms;
pg_recvlogical syncs its file every 10 seconds and at the end.

Walbus reads with its native core, and again with the twin in Python (`pure`).

The log is read back after each round: it must hold every row exactly once.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from measured import Measured, Usage
from report import Report
from source import Source, open_server
from walbus.lsn import Lsn, format_lsn
from walbus.position import ORIGIN
from walbus.records import Kind, read_header
from walbus.relay import open_reader

_DEADLINE = 600.0
#: The slot that nobody reads.
KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is to be read.

    Attributes:
        name: of the ratio.
        rows: how many, over all transactions.
        make: writes it; returns the LSN behind its end.
    """

    name: str
    rows: int
    make: Callable[[Source], Lsn]


def run(rows: int, transactions: int, rounds: int) -> Report:
    """Measures both backlogs."""
    report = Report(
        "capture",
        "Capture",
        ("backlog", "reader", "seconds", "changes/s", "processor seconds", "peak MiB"),
        notes=["Medians over the rounds; seconds count from the start of streaming, processor time from the start."],
    )
    backlogs = (
        Backlog("one-transaction", rows, lambda source: source.one_transaction(rows)),
        Backlog("single-rows", transactions, lambda source: source.single_rows(transactions)),
    )
    with open_server() as (server, folder):
        for number, backlog in enumerate(backlogs):
            _measure(Source(server, f"bench_{number}"), backlog, rounds, folder / backlog.name, report)
    return report


def _measure(source: Source, backlog: Backlog, rounds: int, folder: Path, report: Report) -> None:
    folder.mkdir()
    pristine = prepare(source, folder)
    target = backlog.make(source)
    readers = [("walbus", _walbus), ("walbus, pure", _pure_walbus), ("pg_recvlogical", _pg_recvlogical)]
    taken: dict[str, list[Usage]] = {name: [] for name, _ in readers}
    for number in range(rounds):
        for name, read in readers if number % 2 == 0 else reversed(readers):
            place = folder / f"{number}-{len(taken[name])}-{name.rpartition(' ')[2]}"
            taken[name].append(read(source, backlog, target, pristine, place))
            shutil.rmtree(place)
    source.drop_slot("walbus")
    source.drop_slot(KEPT)
    seconds = {name: statistics.median(usage.seconds for usage in usages) for name, usages in taken.items()}
    cpu = {name: statistics.median(usage.cpu for usage in usages) for name, usages in taken.items()}
    for name, usages in taken.items():
        peak = max(usage.peak for usage in usages) / (1 << 20)
        rate = f"{backlog.rows / seconds[name]:,.0f}"
        report.row(
            f"{backlog.rows:,} rows, {backlog.name}",
            name,
            f"{seconds[name]:.2f}",
            rate,
            f"{cpu[name]:.2f}",
            f"{peak:.0f}",
        )
    report.ratio(f"capture/pg_recvlogical {backlog.name}", seconds["pg_recvlogical"] / seconds["walbus"])
    report.ratio(f"capture/pg_recvlogical {backlog.name} cpu", cpu["walbus"] / cpu["pg_recvlogical"])
    report.ratio(f"capture/pg_recvlogical {backlog.name} pure", seconds["pg_recvlogical"] / seconds["walbus, pure"])
    streaming = statistics.median(usage.cpu - usage.cpu_before for usage in taken["walbus"])
    report.ratio(f"capture/pg_recvlogical {backlog.name} cpu, streaming alone", streaming / cpu["pg_recvlogical"])


def prepare(source: Source, folder: Path) -> Path:
    """Lets capture make publication, slot and an empty log; the slot is then kept as it is for every round."""
    pristine = folder / "pristine"
    capture = start_capture(source, pristine)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    capture.stop()
    until_free(source)
    source.copy_slot("walbus", KEPT)
    return pristine


def _walbus(source: Source, backlog: Backlog, target: Lsn, pristine: Path, place: Path) -> Usage:
    return _capture(source, backlog, target, pristine, place, {})


def _pure_walbus(source: Source, backlog: Backlog, target: Lsn, pristine: Path, place: Path) -> Usage:
    return _capture(source, backlog, target, pristine, place, {"WALBUS_PURE": "1"})


def _capture(  # noqa: PLR0913, PLR0917  (as the readers, and which core)
    source: Source, backlog: Backlog, target: Lsn, pristine: Path, place: Path, variables: Mapping[str, str]
) -> Usage:
    shutil.copytree(pristine, place)
    source.copy_slot(KEPT, "walbus")
    capture = start_capture(source, place, variables, CATCH_UP="false")  # the stream is what is measured
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    capture.mark()
    with closing(open_reader(place / "relay")) as reader:  # opened once: looking must not cost what is measured
        seconds = capture.until(lambda: reader.bounds().end_lsn >= target, _DEADLINE)
    usage = capture.stop(seconds)
    until_free(source)
    if (held := rows_in_log(place)) != backlog.rows:
        raise RuntimeError(f"the log holds {held} of {backlog.rows} rows")
    return usage


def _pg_recvlogical(source: Source, backlog: Backlog, target: Lsn, pristine: Path, place: Path) -> Usage:
    return run_reference(source, backlog.rows, target, place)


def run_reference(source: Source, rows: int, target: Lsn, place: Path) -> Usage:
    """What `pg_recvlogical -f` takes for the backlog of the kept slot, up to `target`; `place` is made for its file."""
    place.mkdir()
    source.copy_slot(KEPT, "reference")
    program = str(source.server.bin_dir / "pg_recvlogical")
    options = ["--slot=reference", "--start", "--no-loop", f"--endpos={format_lsn(target)}"]
    plugin = [f"--dbname={source.database}", "-o", "proto_version=1", "-o", "publication_names=walbus"]
    command = [program, *options, *plugin, f"--file={place / 'stream'}"]
    usage = Measured(command, source.libpq_environment(), place / "log").finish()
    source.drop_slot("reference")
    if (place / "stream").stat().st_size < rows * 100:
        raise RuntimeError("pg_recvlogical ended before the end of the backlog")
    return usage


def start_capture(source: Source, place: Path, variables: Mapping[str, str] | None = None, **options: str) -> Measured:
    """Capture with its data in a folder, as a process; options are those of `[source]`, in capitals.

    Args:
        source: the database.
        place: the folder.
        variables: of the environment, over those that are set here.
        options: keys of `[source]`.
    """
    place.mkdir(exist_ok=True)
    environment = {"WALBUS_SOURCE__DSN": source.dsn, "WALBUS_DATA_DIR": str(place), "WALBUS_LOG__LEVEL": "warning"}
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # compiled when it first runs, as an installed one is
    environment |= {f"WALBUS_SOURCE__{name}": value for name, value in options.items()} | dict(variables or {})
    config = place / "walbus.toml"
    config.touch()
    return Measured([sys.executable, "-P", "-m", "walbus", "capture", "-c", str(config)], environment, place / "log")


def until_free(source: Source, slot: str = "walbus") -> None:
    """The walsender of a process that has ended holds its slot a little longer."""
    end = time.monotonic() + 30
    while source.streams(slot) and time.monotonic() < end:
        time.sleep(0.02)


def rows_in_log(place: Path, log: str = "relay") -> int:
    """Changes in the log that lies in a folder under a name."""
    rows = 0
    with closing(open_reader(place / log)) as reader, closing(reader.cursor(ORIGIN)) as cursor:
        while records := cursor.read(1 << 20):
            headers = map(read_header, records)
            rows += sum(header.count for header in headers if header.kind == Kind.TRANSACTION)
    return rows
