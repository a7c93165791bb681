"""Makes the corpus anew: short streams of every protocol, as real servers send them.

    python tests/fuzz/seeds.py [VERSION...]

One script of SQL, read from several slots with the options of each protocol: whole, streamed at once (every change by
itself, since 16), streamed at 64 kB, prepared. Run it by hand when a version or a kind of message is new.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import psycopg  # noqa: E402

from support.pgoutput_streams import pack_stream  # noqa: E402
from support.postgres_programs import SUPPORTED, programs_of  # noqa: E402
from walbus.demo.postgres import THROWAWAY_SETTINGS, EmbeddedPostgres  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"

_TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN stock AS int CHECK (VALUE > 0);
CREATE TABLE item (id int PRIMARY KEY, name varchar(20), price numeric(10, 2), m mood, s stock, note text,
                   at timestamptz, f float8, u uuid, a int[], b bytea, d date, ok bool, i bigint, j jsonb);
ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
CREATE TABLE whole (id int PRIMARY KEY, note text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE PUBLICATION p FOR ALL TABLES;
"""
_ROW = "'n', 1.50, 'sad', 3, NULL, '2026-01-02 03:04:05.6', 'NaN', gen_random_uuid(), ARRAY[1, NULL], '\\x00ff'"
_ITEM = f"INSERT INTO item SELECT k, {_ROW}, 'infinity', true, k, '[1, null]' FROM generate_series({{}}) k"
_SCRIPT = (
    f"BEGIN; {_ITEM.format('1, 3')}; UPDATE item SET note = repeat('x', 2100) WHERE id = 1; COMMIT",
    "UPDATE item SET price = 2 WHERE id = 1",
    "BEGIN; UPDATE item SET id = 9 WHERE id = 1; DELETE FROM item WHERE id = 9; COMMIT",
    "BEGIN; INSERT INTO whole VALUES (1, 'a'), (2, NULL); UPDATE whole SET note = 'b'; DELETE FROM whole; COMMIT",
    f"BEGIN; {_ITEM.format('10, 12')}; SAVEPOINT s; {_ITEM.format('20, 21')}; ROLLBACK TO s; SAVEPOINT t;"
    f" {_ITEM.format('30, 30')}; RELEASE t; COMMIT",
    f"BEGIN; {_ITEM.format('40, 41')}; ROLLBACK",
    "SELECT pg_logical_emit_message(true, 'p', 'inside'), pg_logical_emit_message(false, 'p', 'outside')",
    "BEGIN; ALTER TABLE whole ADD c int; INSERT INTO whole VALUES (5, 'x', 1); TRUNCATE item, whole CASCADE; COMMIT",
    "SELECT pg_replication_origin_create('elsewhere')",
    "SELECT pg_replication_origin_session_setup('elsewhere')",
    "BEGIN; INSERT INTO whole VALUES (6); COMMIT",
)
_PREPARED = (
    "BEGIN; INSERT INTO whole VALUES (7); PREPARE TRANSACTION 'g1'",
    "COMMIT PREPARED 'g1'",
    "BEGIN; INSERT INTO whole VALUES (8); PREPARE TRANSACTION 'g2'",
    "ROLLBACK PREPARED 'g2'",
)


def main(versions: list[str]) -> None:
    """Writes corpus/pgN-protocol-way for each version."""
    CORPUS.mkdir(exist_ok=True)
    for version in versions:
        folder = Path(tempfile.mkdtemp(prefix="walbus-seeds-"))
        folder.chmod(0o755)
        settings = {**THROWAWAY_SETTINGS, "max_prepared_transactions": "5", "logical_decoding_work_mem": "64kB"}
        server = EmbeddedPostgres(folder / "pg", bin_dir=programs_of(version), settings=settings)
        try:
            server.start()
            _write(server, int(version))
        finally:
            server.remove()


def _write(server: EmbeddedPostgres, version: int) -> None:
    slots = {"whole": (1, {}), "streamed": (2, {"streaming": "on"})}
    if version >= 15:
        slots["prepared"] = (3, {"streaming": "on", "two_phase": "on"})
    if version >= 16:
        slots["parallel"] = (4, {"streaming": "parallel", "two_phase": "on"})
    with server.connect() as session:
        session.execute(_TABLES)
        for slot, (_, options) in slots.items():
            two_phase = ", twophase => true" if "two_phase" in options else ""
            session.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput'{two_phase})".encode())
        for statement in _SCRIPT:
            session.execute(statement.encode())
    with server.connect() as session:
        for statement in _PREPARED:
            session.execute(statement.encode())
        if version >= 16:
            setting = "debug_logical_replication_streaming"
            session.execute(f"SET {setting} = 'immediate'".encode())
        for slot, (protocol, options) in slots.items():
            messages = _messages(session, slot, protocol, options)
            name = f"pg{version}-protocol{protocol}-{slot}"
            (CORPUS / name).write_bytes(pack_stream(messages))
            print(name, "".join(sorted({chr(message[0]) for message in messages})), len(messages))


def _messages(session: psycopg.Connection, slot: str, protocol: int, options: dict[str, str]) -> list[bytes]:
    given = {"proto_version": str(protocol), "publication_names": "p", "messages": "true", **options}
    pairs = ", ".join(f"'{name}', '{value}'" for name, value in given.items())
    query = f"SELECT data FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, {pairs})"
    return [data for (data,) in session.execute(query.encode(), binary=True).fetchall()]


if __name__ == "__main__":
    main(sys.argv[1:] or list(SUPPORTED))
