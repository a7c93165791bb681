"""A copy that somebody drops while a rebuild fills it: what takes the live sink's place is whole all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.database import Database
from support.model_source import ModelSource
from support.rebuild_rig import config_for, filled, rebuilt
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import postgres_under_test
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.rebuilding import discard
from walbus.consumers.sinks.postgres_copy import PostgresCopy
from walbus.errors import SinkUnavailable

pytestmark = pytest.mark.one_version


def test_a_copy_that_somebody_dropped_is_furnished_anew(
    relay: ScriptedRelay,
    source: ModelSource,
    target_database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tables were filled again, and had no index of those that had been made on the copy before."""
    postgres = postgres_under_test(tmp_path, target_database.dsn)
    filled(relay, postgres, source)
    target_database.execute("CREATE INDEX by_name ON items (name)")
    hold, breaks = PostgresCopy.hold, [SinkUnavailable("PostgreSQL went away")]

    def dropping(copy: PostgresCopy) -> Checkpoint | None:
        if breaks:
            assert discard("test", config_for(postgres), postgres.place.folder)
            raise breaks.pop()
        return hold(copy)

    monkeypatch.setattr(PostgresCopy, "hold", dropping)
    rebuilt(relay, postgres)
    assert not breaks
    made = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public' AND indexname = 'by_name'"
    assert target_database.value(made) == 1
    assert postgres.rows() == source.rows()
