"""A consumer that stands still is nobody's trouble: not capture's, not the slot's, not the other consumers' (fault 18).

One of two consumers is stopped (SIGSTOP) with its stream open, while more is written than all buffers between it and
the log hold, and more than the relay retains. When it goes on, it finds the way to the present by itself: through a
delta, which has each key that changed once, or, where its table was seeded again meanwhile, through a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compare import assert_sinks_equal
from support.database import Database
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker, standing_still
from walbus.lsn import parse_lsn
from walbus.position import parse_position

pytestmark = pytest.mark.one_version

SEGMENT, RETAINED = 1 << 20, 4 << 20
#: More than sockets, the consumer's queue and the relay hold together.
WRITTEN = 40 << 20
ROUNDS = 10
#: Rows of one round.
ROWS = WRITTEN // ROUNDS // 8000
#: WAL that a slot which keeps pace may hold back at the moment of a look.
PACE = 2 << 20


@pytest.fixture
def system(database: Database, open_folder: Path) -> Iterator[WholeSystem]:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    database.execute("ALTER TABLE items ALTER note SET STORAGE EXTERNAL")
    make_marker(database)
    consumers = {"cache": {"sink": "sqlite"}, "still": {"sink": "sqlite"}}
    relay = {"segment_bytes": SEGMENT, "retention_bytes": RETAINED}
    with WholeSystem(
        open_folder, database.dsn, consumers, source={"slot": f"s_{database.name}"}, relay=relay
    ) as running:
        running.start()
        running.wait_until_streaming()
        running.wait_until_at_rest(database)
        yield running


@pytest.mark.parametrize("seeded_again", [False, True], ids=["delta", "snapshot"])
def test_a_stopped_consumer_delays_nobody_and_holds_back_no_wal(
    database: Database, system: WholeSystem, seeded_again: bool
) -> None:
    slot = f"s_{database.name}"
    with standing_still(system, "consumer-still"):
        stood_at = system.status("consumer-still")["last_done"]
        for number in range(ROUNDS):
            write(database, number)
            lsn = database.insert_lsn()
            wait_for(lambda lsn=lsn: database.confirmed_lsn(slot) >= lsn, 60, what="the slot is confirmed")
            wait_for(lambda lsn=lsn: arrived(system, "consumer-cache", lsn - PACE), 60, what="the other one follows")
            if seeded_again and number == ROUNDS // 2:
                database.execute("ALTER TABLE items ADD size int DEFAULT 7")
        assert retained_wal(database, slot) < PACE
        assert system.children()["capture"]["restarts"] == 0
        wait_for(lambda: parse_position(system.info()["trimmed"]) > parse_position(stood_at), 60, what="it is trimmed")
        wait_for(lambda: system.info()["bytes"] < RETAINED + SEGMENT, 60, what="the log keeps its bound")
        assert system.status("consumer-still")["last_done"] == stood_at
    wait_for(lambda: converged(system, database), 120, what="both sinks are the source", every=1)
    assert {name: child["restarts"] for name, child in system.children().items()} == dict.fromkeys(
        ["capture", "relay", "bootstrap", "consumer-cache", "consumer-still"], 0
    )
    status, keys = system.status("consumer-still"), ROUNDS * ROWS + 1
    assert database.value("SELECT count(*) FROM items") < keys * 0.9, "many were deleted meanwhile"
    if seeded_again:
        assert status["snapshot_rows"] > keys / 2, "it came by way of a snapshot"
    else:
        assert status["snapshot_rows"] <= 1, "the marker, at the start"
        assert keys / 2 < status["delta_changes"] <= keys, "each key that changed, once"
    assert system.stop() == 0


def write(database: Database, number: int) -> None:
    """A tenth of what is written: rows in transactions of their own, then deletes of some of them."""
    first = number * ROWS
    note = "repeat(md5((n + %s)::text), 250)"  # 8000 bytes that are stored as they are
    database.execute(
        f"INSERT INTO items (id, note) SELECT n, {note} FROM generate_series(%s::int, %s) n",
        [number, first, first + ROWS - 1],
    )
    database.execute("DELETE FROM items WHERE id % 7 = 3")


def converged(system: WholeSystem, database: Database) -> bool:
    """What a statement changed without events comes some time behind it."""
    system.wait_until_at_rest(database)
    folder = system.data_dir / "consumers"
    for name in ("cache", "still"):
        assert_sinks_equal(database.dsn, cache=folder / name / f"{name}.sqlite")
    return True


def arrived(system: WholeSystem, room: str, lsn: int) -> bool:
    return parse_position(system.status(room)["last_done"]).commit_lsn >= lsn


def retained_wal(database: Database, slot: str) -> int:
    """Bytes of WAL from where the slot would begin to decode again to the end, behind two checkpoints."""

    def restart_lsn() -> int:
        return parse_lsn(database.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s", [slot]))

    end = database.insert_lsn()

    def moved() -> bool:
        database.execute("CHECKPOINT")  # writes down which transactions run, from where decoding can begin
        return restart_lsn() >= end

    wait_for(moved, 60, what="the slot lets WAL go", every=0.2)
    return database.insert_lsn() - restart_lsn()
