"""A delta against replaying the log: a reader that slept while a few keys of a large table changed very often.

All rooms run. A table of `rows` rows is seeded; a reader's place is noted; then a hundredth of its keys are updated a
hundred times each, in transactions of a thousand. From that place the client library reads to the present twice over:
through the log, which has every update, and through a delta, which has each key once (with all that it takes to
choose: what the relay says is left, the list of tables, the count). The clock starts before the first connection, and
stops at the first moment at which nothing is left to read. Every change's version is looked at, and no value.

Both ways must end with the same versions of the same keys.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import httpx
import psycopg

import walbus
from report import Report
from rooms import Rooms, open_rooms
from source import Source, open_server
from walbus.consumers import Checkpoint, MemoryCheckpointStore, Subscription
from walbus.position import parse_position
from walbus.records import Kind

_TABLE = "public.events"
_TIMES = 100
_KEYS_A_TRANSACTION = 1_000
_DEADLINE = 1_800.0
_STEP = 29  # between hot keys, so that they lie all over the table


def run(rows: int, rounds: int) -> Report:
    """Measures a table of `rows` rows, of which one in a hundred is hot."""
    hot = max(rows // 100, 1)
    report = Report(
        "bootstrap-delta",
        "A delta against the log",
        ("read through", "changes", "seconds", "changes/s"),
        notes=[
            f"{hot:,} of {rows:,} rows updated {_TIMES} times each. Medians over the rounds; both read by the client "
            "library in Python, without a sink."
        ],
    )
    with open_server() as (server, folder):
        source = Source(server, "delta")
        source.many_transactions(rows, 10_000)
        with open_rooms(source, folder / "rooms", start="latest") as rooms:
            _measure(rooms, source, hot, rounds, report)
    return report


def _measure(rooms: Rooms, source: Source, hot: int, rounds: int, report: Report) -> None:
    rooms.wait(lambda: _is_seeded(rooms), _DEADLINE)
    begin = _place(rooms, source)
    _heat(source, hot)
    lsn = source.insert_lsn()
    rooms.wait(lambda: _applied(rooms) >= lsn and _at_rest(rooms, lsn), _DEADLINE)
    taken: dict[str, list[float]] = {"the log": [], "a delta": []}
    counts: dict[str, int] = {}
    for _ in range(rounds):
        versions = []
        for name, above in (("the log", None), ("a delta", 1)):
            seconds, count, seen = _read(rooms, begin, above)
            taken[name].append(seconds)
            counts[name] = count
            versions.append(seen)
        if versions[0] != versions[1] or len(versions[1]) != hot:
            raise RuntimeError("the delta and the log do not end with the same versions of the same keys")
    seconds_of = {name: statistics.median(values) for name, values in taken.items()}
    for name, seconds in seconds_of.items():
        report.row(name, f"{counts[name]:,}", f"{seconds:.3f}", f"{counts[name] / seconds:,.0f}")
    report.ratio("delta/replay", seconds_of["the log"] / seconds_of["a delta"])


def _heat(source: Source, hot: int) -> None:
    """Updates the hot keys, each as often as the others."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        for number in range(_TIMES):
            for first in range(0, hot, _KEYS_A_TRANSACTION):
                last = min(first + _KEYS_A_TRANSACTION, hot) - 1
                connection.execute(
                    "UPDATE events SET account = %s"
                    " WHERE id IN (SELECT 1 + g * %s FROM generate_series(%s::int, %s) g)",
                    (number, _STEP, first, last),
                )


def _place(rooms: Rooms, source: Source) -> Checkpoint:
    """Where a reader is that has everything up to now; the table's horizon lies before it."""
    store = MemoryCheckpointStore()
    with walbus.connect(rooms.relay_url) as bus:
        subscription = bus.subscribe(_TABLE, name="place", start="latest", checkpoints=store)
        rooms.wait(lambda: subscription.next(0.1) is None and subscription.phase == "online", _DEADLINE)
        source.execute("UPDATE events SET account = -1 WHERE id = 1")
        rooms.wait(lambda: _commits_a_row(subscription), _DEADLINE)
    found = store.load()
    if found is None:
        raise RuntimeError("the reader has no place")
    return found


def _commits_a_row(subscription: Subscription) -> bool:
    delivery = subscription.next(0.1)
    if delivery is None or not any(change.key for change in delivery):
        return False
    delivery.commit()
    return True


def _read(rooms: Rooms, begin: Checkpoint, above: int | None) -> tuple[float, int, dict[bytes | None, int]]:
    """Seconds from a place to the present, changes that came, and the version of each key in the end."""
    store = MemoryCheckpointStore()
    store.save(begin)
    versions: dict[bytes | None, int] = {}
    count = 0
    target = _end(rooms)
    started = time.perf_counter()
    with walbus.connect(rooms.relay_url) as bus:
        subscription = bus.subscribe(_TABLE, name="reader", checkpoints=store, delta_above=above)
        while True:
            delivery = subscription.next(10)
            if delivery is None:
                raise RuntimeError("nothing comes")
            for change in delivery:
                if change.raw.key is not None:
                    versions[change.raw.key] = change.seq
                    count += 1
            if delivery.kind in (Kind.TRANSACTION, Kind.DELTA) and max(versions.values(), default=0) >= target:
                return time.perf_counter() - started, count, versions


def _end(rooms: Rooms) -> int:
    last: int = httpx.get(f"{rooms.relay_url}/v1/info", trust_env=False).json()["last_seq"]
    return last


def _tables(rooms: Rooms) -> dict[str, object]:
    document: dict[str, object] = httpx.get(f"{rooms.bootstrap_url}/v1/tables", trust_env=False).json()
    return document


def _is_seeded(rooms: Rooms) -> bool:
    try:
        tables = _tables(rooms).get("tables", [])
    except httpx.HTTPError:
        return False
    return isinstance(tables, Sequence) and [(t["table"], t["state"]) for t in tables] == [(_TABLE, "consistent")]


def _at_rest(rooms: Rooms, lsn: int) -> bool:
    """Whether the consumer that belongs to the rooms takes no time any more."""
    return parse_position(str(rooms.status("consumer-cache")["last_done"])).commit_lsn >= lsn


def _applied(rooms: Rooms) -> int:
    return parse_position(str(_tables(rooms)["applied"])).commit_lsn


__all__ = ["run"]
