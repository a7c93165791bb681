"""Events that tables must be seeded again, as the log has them, and what capture remembers of the catalog.

look_quickly(monkeypatch)                            # in a fixture
wait_remembered(folder, "typed")                     # the tables are known
database.execute(statement)
assert sentinel(database, folder, 1) == [("public.t", "rewritten")]
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from support.database import Database
from support.log_view import log_records, raw_changes
from support.waiting import wait_for
from walbus.capture import CATALOG_FILE
from walbus.lsn import parse_lsn
from walbus.records import Kind
from walbus.relay import open_reader


def look_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same looks at the catalog, ten times a second."""
    monkeypatch.setattr("walbus.capture.watch.PERIOD", 0.1)
    monkeypatch.setattr("walbus.capture.watch._SHARE", 1.0)
    monkeypatch.setattr("walbus.capture.loop.CHORE_SECONDS", 0.1)
    monkeypatch.setattr("walbus.capture.loop.PROGRESS_SECONDS", 0.05)


def reseeds(folder: Path) -> list[tuple[str, str]]:
    """(table, reason) of each event, in the log's order; each stands where the log has passed its LSN."""
    found = []
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader):
            if header.kind != Kind.SCHEMA:
                continue
            for change in raw_changes(header, record):
                detail = json.loads(change.after or b"{}")
                if "reseed" in detail:
                    assert header.commit_lsn >= parse_lsn(detail["reseed"]["lsn"])
                    assert header.last_ordinal == 0
                    assert detail["reseed"]["what"]
                    assert detail["reseed"]["snapshot"].count(":") == 2
                    found.append((f"{detail['namespace']}.{detail['name']}", detail["reseed"]["reason"]))
    return found


def remembered(folder: Path) -> str:
    """The file of what was told; empty as long as there is none."""
    path = folder / CATALOG_FILE
    return path.read_text() if path.exists() else ""


def told(folder: Path, count: int) -> list[tuple[str, str]]:
    """Waits for that many events, and for the memory to hold what they told; those events."""
    wait_for(lambda: len(reseeds(folder)) >= count, 60, what=f"{count} events are in the log")
    return reseeds(folder)[-count:]


def wait_remembered(folder: Path, text: str) -> None:
    """Waits until that file holds a text."""
    wait_for(lambda: text in remembered(folder), 60, what=f"{text} is remembered")


def sentinel(database: Database, folder: Path, number: int, before: int = 0) -> list[tuple[str, str]]:
    """Alters a table of its own, and waits until that is told: whatever was altered before has been looked at."""
    database.execute(f"ALTER TABLE sentinel ADD s{number} int DEFAULT 1")
    wait_remembered(folder, f'"s{number}"')
    return [event for event in reseeds(folder)[before:] if event[0] != "public.sentinel"]
