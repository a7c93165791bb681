"""The type zoo through the slot into the log: every value of every type, against what PostgreSQL prints of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import cores
from support.capturing import CaptureThread, capturing, file_log, source_of
from support.database import Database, fresh_database
from support.hostile import make_hostile
from support.table_topics import records_of_log, registry_reader
from support.zoo import VALUELESS, Zoo, build_zoo
from support.zoo_check import Rows, problems, types_of
from support.zoo_log import row_changes_in
from support.zoo_topics import TopicRead, differences, live
from support.zoo_values import Expected, Verbatim, identical
from walbus.config import SourceConfig
from walbus.demo.postgres import EmbeddedPostgres
from walbus.events import Change
from walbus.keys import decode_key
from walbus.records import Op
from walbus.status import read_status

pytestmark = pytest.mark.timeout(300)  # a dozen seconds, but many more on a busy machine

INTEGERS = {"smallint", "integer", "bigint", "oid"}


@dataclass
class Seen:
    """What the log has of one table, in order, and the JSON line of each change."""

    changes: list[Change] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    def of(self, op: Op) -> list[tuple[Change, bytes]]:
        """The changes of one kind."""
        return [(c, line) for c, line in zip(self.changes, self.lines, strict=True) if c.op is op]


@dataclass(frozen=True)
class Captured:
    """A zoo's whole life, by PostgreSQL's texts and by the log."""

    zoo: Zoo
    inserted: dict[str, Rows]
    updated: dict[str, Rows]
    log: dict[str, Seen]
    expected: Expected
    types: dict[str, dict[str, str]]
    folder: Path  # of the log


@pytest.fixture(scope="module", params=["pure", "native, streamed", "native, caught up"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How values come: by the core in Python; or by the one in C, in transactions that are streamed while they run, or
    in catch-up's steps under a database whose settings are all against us.

    By the one in C, unstreamed, they come in test_values_replay and test_values_random.
    """
    way: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("walbus.capture.service.new_core", cores.implementation(way.partition(",")[0]).new_core)
        yield way


@pytest.fixture(scope="module")
def cage(way: str, pg_server: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(pg_server) as database:
        if "streamed" in way:
            database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
        yield database


@pytest.fixture(scope="module")
def zoo(cage: Database) -> Zoo:
    return build_zoo(cage.connect())


@pytest.fixture
def deep_documents() -> Iterator[None]:
    """Lets Python's JSON parser read what PostgreSQL's does."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.fixture(scope="module")
def captured(way: str, zoo: Zoo, cage: Database, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("zoo") / "relay"
    tables: dict[str, Any] = {"tables": ("cage.*",)}
    if "caught up" in way:
        with capturing(cage.dsn, folder, **tables):
            pass  # the slot is made
        make_hostile(cage)
        inserted, updated = live(zoo)
        catch_up(source_of(cage.dsn, **tables, catch_up_step_bytes=1 << 20), folder)
    else:
        with capturing(cage.dsn, folder, **tables) as capture:
            with zoo.connection.transaction() if "streamed" in way else nullcontext():  # one, with many savepoints
                inserted, updated = live(zoo)
            capture.caught_up(150)
    streams = cage.value(
        "SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots WHERE slot_name = 'walbus'"
    )
    assert ("streamed" in way) == (streams > 0)
    log: dict[str, Seen] = {table: Seen() for table in inserted}
    for change, line in row_changes_in(folder):
        seen = log[change.table.removeprefix("cage.")]
        seen.changes.append(change)
        seen.lines.append(line)
    return Captured(zoo, inserted, updated, log, Expected(zoo.connection), types_of(zoo.connection), folder)


def catch_up(source: SourceConfig, folder: Path) -> None:
    """Captures a backlog in steps."""
    status = folder.parent / "capture.json"
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, status)
        capture.streaming(150)
        capture.caught_up(150)
        assert (read_status(status) or {})["walbus_capture_catch_up_steps_total"] > 1
        capture.stop()


@pytest.mark.usefixtures("deep_documents")
def test_every_value_of_every_type_is_in_the_log_as_postgresql_prints_it(captured: Captured) -> None:
    found, rows = [], 0
    for specimen in captured.zoo.specimens:
        table = specimen.table
        before, after, seen = captured.inserted[table], captured.updated[table], captured.log[table]
        assert len(before) >= (1 if specimen.valueless else 2), specimen
        assert [c.key for c, _ in seen.of(Op.INSERT)] == [{"id": number} for number in before]
        assert {c.key["id"] for c, _ in seen.of(Op.DELETE)} == {number for number in after if number % 2}
        places = {
            Op.INSERT: {"after": before},
            Op.UPDATE: {"after": after, "before": before},
            Op.DELETE: {"before": after},
        }
        for change, line in zip(seen.changes, seen.lines, strict=True):
            for place, source in places[change.op].items():
                found += problems(
                    captured.expected, captured.types[table], place, change, line, source[change.key["id"]]
                )
        rows += len(before)
    assert not found, "\n".join([f"{len(found)} problems", *found[:40]])
    assert rows > 3000


@pytest.mark.usefixtures("deep_documents")
def test_a_key_of_any_type_names_its_row_and_sorts_as_its_values_do(captured: Captured) -> None:
    found = []
    for table, specimen in captured.zoo.key_tables.items():
        seen, rows, kind = captured.log[table], list(captured.inserted[table].values()), specimen.type_name
        inserts, keys = seen.of(Op.INSERT), {}
        for (change, line), row in zip(inserts, rows, strict=True):
            found += problems(captured.expected, captured.types[table], "after", change, line, row)
            text, key = row["v"][0], change.raw.key
            assert key is not None and change.schema is not None
            keys[key] = text.encode() if kind not in INTEGERS else int(text)
            wanted = captured.expected.json(kind, text)
            verbatim = isinstance(wanted, Verbatim)
            key_line = json.loads(line)["key"]
            if not identical(list(decode_key(change.schema, key)), [captured.expected.python(kind, text)]):
                found.append(f"key of {kind} in Python: {text!r:.200}")
            if not (f'"key":{{"v":{wanted}}}'.encode() in line if verbatim else identical(key_line, {"v": wanted})):
                found.append(f"key of {kind} in JSON: {text!r:.200}")
        assert len(keys) == len(rows), f"two keys of {kind} are one"
        assert sorted(keys) == sorted(keys, key=keys.__getitem__), f"keys of {kind} are out of order"
        check_moves(seen, [change.raw.key for change, _ in inserts])
    assert not found, "\n".join([f"{len(found)} problems", *found[:40]])


@pytest.mark.parametrize("way", ["native, caught up"], indirect=True, scope="module")
def test_confluents_deserializer_reads_every_value_from_table_topics(captured: Captured, tmp_path: Path) -> None:
    """By schemas that a relay serves: each row as it was inserted, and what compaction would leave is the table."""
    with registry_reader(tmp_path, captured.folder) as read:
        reads = (
            TopicRead(record.topic, record.key, dict(record.headers)["walbus.op"], *read(record))
            for record in records_of_log(captured.folder)
        )
        found, rows = differences(reads, captured.zoo, captured.inserted, captured.updated)
    assert not found, "\n".join([f"{len(found)} problems", *found[:40]])
    assert rows > 5000


def check_moves(seen: Seen, keys: list[bytes | None]) -> None:
    """Updates that leave keys alone; the last row is deleted and the one before takes its key; all are deleted."""
    updates = [(change.raw.old_key, change.raw.key) for change, _ in seen.of(Op.UPDATE)]
    deletes = [change.raw.key for change, _ in seen.of(Op.DELETE)]
    assert updates[: len(keys)] == [(None, key) for key in keys]
    moved = [(keys[-2], keys[-1])] if len(keys) > 1 else []
    assert updates[len(keys) :] == moved
    assert deletes[0] == keys[-1]
    assert sorted(filter(None, deletes[1:])) == sorted(filter(None, [*keys[:-2], *keys[-1:]][: len(keys) - 1]))
    assert all(change.raw.before is None for change, _ in seen.of(Op.DELETE))


def test_types_that_take_no_text_are_those_that_are_known(zoo: Zoo) -> None:
    """Else a new version's type would count as one without values."""
    for specimen in zoo.specimens:
        if specimen.valueless and specimen.type_name != "xml":
            with pytest.raises((psycopg.errors.FeatureNotSupported, psycopg.errors.InternalError_)):
                zoo.connection.execute(f"SELECT ''::{specimen.type_name}")
    assert {name.removeprefix("ext.") for s in zoo.specimens if s.valueless for name in [s.type_name]} <= VALUELESS | {
        "xml"
    }
