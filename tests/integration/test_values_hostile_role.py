"""What a role or a database sets does not end capture. (That it changes no value: test_values_replay.)"""

from __future__ import annotations

from pathlib import Path

from support.capturing import captured, capturing
from support.database import Database


def test_a_transaction_timeout_does_not_end_the_decoding_of_a_long_transaction(
    database: Database, open_folder: Path
) -> None:
    """The walsender decodes inside a transaction of its own, which the timeout would end again and again."""
    database.needs(17, "transaction_timeout")
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    database.execute(f"ALTER DATABASE {database.name} SET transaction_timeout = '100ms'")
    with capturing(database.dsn, open_folder / "relay", streaming=False) as capture:
        database.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 60000) i")
        capture.caught_up(100)
    assert sum(len(t.changes) for t in captured(open_folder / "relay")) == 60000
