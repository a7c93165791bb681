"""docs/outbox.md: its example runs as it stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import psycopg
import pytest

from support.single_rooms import SingleRooms

pytestmark = pytest.mark.one_version

PAGE = Path(__file__).parents[2] / "docs" / "outbox.md"


class EnoughError(Exception):
    """Ends the example's loop."""


def examples():
    """The statements and the program."""
    sql, program = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE.read_text(), re.MULTILINE)
    return textwrap.dedent(sql), textwrap.dedent(program)


def test_a_message_of_a_transaction_reaches_whoever_reads_the_outbox(database, open_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sql, program = examples()
    published = []

    def publish(prefix, content, seq):
        published.append((prefix, content.decode(), seq > 0))
        raise EnoughError

    create, transaction = sql.split("BEGIN;")
    database.execute(create)
    with SingleRooms(open_folder, database.dsn, {}, bootstrap={"enabled": False}) as system:
        system.start()
        system.wait_until_streaming()
        with psycopg.connect(database.dsn, autocommit=True) as session:
            session.execute("BEGIN;" + transaction)
        with pytest.raises(EnoughError):
            exec(program.replace("http://127.0.0.1:7070", system.relay_url), {"publish": publish})
    assert published == [("outbox.orders", '{"event": "placed", "order": 1}', True)]
