"""The bootstrap's applier against capture, on the same backlogs, with the table consistent before.

Two backlogs: inserts of distinct keys in random order, and updates of a thousand hot rows; each in transactions of a
hundred rows. Capture reads a backlog as it comes (`walbus capture`, in steps where it is far behind); its time counts
from the first use of its slot until the log holds the last commit durably. Then `walbus bootstrap` starts on that log;
its time counts from its first answer until it has applied the last commit. Medians over the rounds.

In a last round a client reads snapshots of the table without pause while the distinct keys are applied: what readers
cost the applier. In another one the updates are applied with `[bootstrap] complete`: what it costs to keep the row
before each change.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from capture_backlog import KEPT, prepare, rows_in_log, start_capture, until_free
from measured import Measured, Usage
from report import Report
from source import Source, open_server
from walbus.demo.postgres import free_port
from walbus.lsn import Lsn
from walbus.position import parse_position
from walbus.relay import open_reader

_DEADLINE = 1800.0
_PER_TRANSACTION = 100
HOT_ROWS = 1_000
#: Keys in an order without locality: multiples of an odd number, modulo a power of two, never repeat.
SCATTERED = "mod(i * 11400714819, 1099511627776)"
_VALUES = "mod(i, 1000), 'kind-' || mod(i, 7), i * 0.01, now(), md5(i::text) || md5((-i)::text)"
_UPDATES = """
DO $$ BEGIN
    FOR round IN 1..{rounds} LOOP
        UPDATE events SET amount = amount + 1, at = clock_timestamp(), note = md5(round::text) || md5(note)
        WHERE id > mod(round * {step}, {hot}) AND id <= mod(round * {step}, {hot}) + {step};
        COMMIT;
    END LOOP;
END $$
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is applied.

    Attributes:
        name: of the ratio.
        rows: how many changes.
        before: rows in the table before it, by number.
        make: writes it; returns the LSN behind its end.
    """

    name: str
    rows: int
    before: int
    make: Callable[[Source], Lsn]


def run(changes: int, rounds: int) -> Report:
    """Measures both backlogs."""
    report = Report(
        "bootstrap-apply",
        "The bootstrap's applier",
        ("backlog", "what", "seconds", "changes/s", "processor seconds", "peak MiB"),
        notes=["Medians over the rounds. Each runs alone; the source's server is idle while the bootstrap applies."],
    )
    distinct = Backlog("distinct", changes, 0, lambda source: scatter(source, changes))
    hot = Backlog("hot", changes, HOT_ROWS, lambda source: _heat(source, changes))
    with open_server() as (server, folder):
        for number, backlog in enumerate((distinct, hot)):
            _measure(Source(server, f"apply_{number}"), backlog, rounds, folder / backlog.name, report)
    return report


def scatter(source: Source, rows: int) -> Lsn:
    """Inserts rows with keys in random order."""
    return source.fill("events", f"{SCATTERED}, {_VALUES}", rows, _PER_TRANSACTION)


def _heat(source: Source, changes: int) -> Lsn:
    source.execute(_UPDATES.format(rounds=changes // _PER_TRANSACTION, step=_PER_TRANSACTION, hot=HOT_ROWS))
    return source.insert_lsn()


def _measure(source: Source, backlog: Backlog, rounds: int, folder: Path, report: Report) -> None:
    folder.mkdir()
    pristine = pristine_store(source, folder, backlog.before, keys="i")
    target = backlog.make(source)
    taken: dict[str, list[Usage]] = {"capture": [], "bootstrap": []}
    for number in range(rounds):
        place = folder / f"round-{number}"
        taken["capture"].append(_captured(source, backlog, pristine, place, target))
        with open_bootstrap(source, place) as (bootstrap, url):
            seconds = _until_applied(bootstrap, url, place)
            taken["bootstrap"].append(bootstrap.stop(seconds))
        shutil.rmtree(place)
    if backlog.name == "distinct":
        place = folder / "read"
        _captured(source, backlog, pristine, place, target)
        taken["bootstrap, while read"] = [_while_read(source, place)]
        shutil.rmtree(place)
    else:
        place = folder / "complete"
        _captured(source, backlog, pristine, place, target)
        with open_bootstrap(source, place, WALBUS_BOOTSTRAP__COMPLETE="public.*") as (bootstrap, url):
            seconds = _until_applied(bootstrap, url, place)
            taken["bootstrap, complete"] = [bootstrap.stop(seconds)]
        shutil.rmtree(place)
    source.drop_slot("walbus")
    source.drop_slot(KEPT)
    seconds = {what: statistics.median(usage.seconds for usage in usages) for what, usages in taken.items()}
    for what, usages in taken.items():
        cpu = statistics.median(usage.cpu for usage in usages)
        peak = max(usage.peak for usage in usages) / (1 << 20)
        rate = f"{backlog.rows / seconds[what]:,.0f}"
        report.row(
            f"{backlog.rows:,} changes, {backlog.name}", what, f"{seconds[what]:.2f}", rate, f"{cpu:.2f}", f"{peak:.0f}"
        )
    report.ratio(f"apply/capture {backlog.name}", seconds["capture"] / seconds["bootstrap"])
    if "bootstrap, while read" in seconds:
        report.ratio("apply-while-read/apply", seconds["bootstrap"] / seconds["bootstrap, while read"])
    if "bootstrap, complete" in seconds:
        report.ratio("apply-complete/apply", seconds["bootstrap"] / seconds["bootstrap, complete"])


def pristine_store(source: Source, folder: Path, rows: int, keys: str = SCATTERED) -> Path:
    """A log, and a store in which the table with so many rows is consistent; the slot is kept for every round."""
    pristine = prepare(source, folder)
    if rows:
        source.fill("events", f"{keys}, {_VALUES}", rows, _PER_TRANSACTION)
    source.copy_slot(KEPT, "walbus")
    capture = start_capture(source, pristine)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    with open_bootstrap(source, pristine) as (bootstrap, url):
        bootstrap.until(lambda: _consistent(url), _DEADLINE)
        bootstrap.stop()
    capture.stop()
    until_free(source)
    source.copy_slot("walbus", KEPT)
    return pristine


def _captured(source: Source, backlog: Backlog, pristine: Path, place: Path, target: Lsn) -> Usage:
    shutil.copytree(pristine, place)
    held = rows_in_log(place)
    source.copy_slot(KEPT, "walbus")
    capture = start_capture(source, place)
    capture.until(lambda: source.streams("walbus"), _DEADLINE)
    capture.mark()
    with closing(open_reader(place / "relay")) as reader:
        seconds = capture.until(lambda: reader.bounds().end_lsn >= target, _DEADLINE)
    usage = capture.stop(seconds)
    until_free(source)
    if (found := rows_in_log(place) - held) != backlog.rows:
        raise RuntimeError(f"the log holds {found} of {backlog.rows} changes")
    return usage


@contextmanager
def open_bootstrap(source: Source, place: Path, **more: str) -> Iterator[tuple[Measured, str]]:
    """`walbus bootstrap` on the data in a folder, from its first answer on, and its address; `more` is environment."""
    listen = f"127.0.0.1:{free_port()}"
    environment = {
        "WALBUS_SOURCE__DSN": source.dsn,
        "WALBUS_DATA_DIR": str(place),
        "WALBUS_LOG__LEVEL": "warning",
        "WALBUS_BOOTSTRAP__LISTEN": listen,
        "PYTHONDONTWRITEBYTECODE": "",
        **more,
    }
    command = [sys.executable, "-P", "-m", "walbus", "bootstrap", "-c", str(place / "walbus.toml")]
    bootstrap = Measured(command, environment, place / "bootstrap.log")
    url = f"http://{listen}"
    bootstrap.until(lambda: _answers(url), _DEADLINE)
    bootstrap.mark()
    yield bootstrap, url


def _until_applied(bootstrap: Measured, url: str, place: Path) -> float:
    """Waits until all of the log is applied, to which nothing comes any more; seconds since `bootstrap` was marked."""
    with closing(open_reader(place / "relay")) as reader:
        end = reader.bounds().end.commit_lsn
    return bootstrap.until(lambda: applied(url) >= end, _DEADLINE)


def _while_read(source: Source, place: Path) -> Usage:
    over = threading.Event()

    def read(url: str) -> None:
        while not over.is_set():
            with httpx.stream("GET", f"{url}/v1/snapshot?table=public.events", trust_env=False, timeout=60) as response:
                for _ in response.iter_raw():
                    if over.is_set():
                        return

    with open_bootstrap(source, place) as (bootstrap, url):
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        try:
            seconds = _until_applied(bootstrap, url, place)
        finally:
            over.set()
            reader.join()
        return bootstrap.stop(seconds)


def applied(url: str) -> Lsn:
    """The commit LSN that the bootstrap has applied."""
    return Lsn(parse_position(httpx.get(f"{url}/v1/tables", trust_env=False).json()["applied"]).commit_lsn)


def _consistent(url: str) -> bool:
    document = httpx.get(f"{url}/v1/tables", trust_env=False).json()
    return any(table["state"] == "consistent" for table in document.get("tables", ()))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
