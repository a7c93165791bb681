"""What PostgreSQL's refusals mean, by code and function; no sentence decides where there is a code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import psycopg
import pytest

from walbus.capture.refusals import Refusal, connect_refusal, meaning, rows_skipped
from walbus.errors import (
    Directive,
    SlotInUse,
    SourceError,
    SourceGap,
    SourceMisconfigured,
    SourceUnavailable,
    directive_of,
)

pytestmark = pytest.mark.one_version


@pytest.mark.parametrize(
    ("state", "function", "kind"),
    [
        ("55006", "ReplicationSlotAcquire", SlotInUse),
        ("42501", "CheckSlotPermissions", SourceMisconfigured),
        ("53400", "ReplicationSlotCreate", SourceMisconfigured),
        ("58P01", "WalSndSegmentOpen", SourceGap),
        ("58P01", "internal_load_library", SourceError),
        ("42704", "get_publication_oid", SourceGap),
        ("42704", "ReplicationSlotAcquire", SourceUnavailable),
        ("55000", "CreateDecodingContext", SourceUnavailable),
        ("57P01", "ProcessInterrupts", SourceUnavailable),
        ("53300", "InitProcess", SourceUnavailable),
        (None, None, SourceUnavailable),
        ("XX000", "elog_finish", SourceError),
    ],
)
@pytest.mark.parametrize("text", ["Replikations-Slot »walbus« …", "publication slot replication", ""])
def test_a_code_means_the_same_in_every_language(state, function, kind, text):
    assert type(meaning(Refusal(state, text, function), "streaming")) is kind


def test_what_means_nothing_known_stops():
    error = meaning(Refusal("XX000", "what nobody foresaw"), "streaming")
    assert directive_of(error) is Directive.STOP
    assert "SQLSTATE XX000" in (error.where or "")


@dataclass
class Notice:
    """As much of psycopg's Diagnostic as is looked at."""

    sqlstate: str | None
    source_function: str | None
    message_primary: str | None = "Publikation »walbus« wurde übersprungen"


@pytest.mark.parametrize(
    ("sqlstate", "function", "gap"),
    [
        ("55000", "LoadPublications", True),
        ("55000", "a function of a later version", True),
        ("55000", "StandbySlotsHaveCaughtup", False),
        ("01000", "LoadPublications", False),
        (None, None, False),
    ],
)
def test_a_warning_that_rows_are_skipped_is_known_by_its_code(sqlstate, function, gap):
    found = rows_skipped(cast(Any, Notice(sqlstate, function)), "streaming")
    assert isinstance(found, SourceGap) is gap


@pytest.mark.parametrize(
    ("text", "kind", "mend"),
    [
        ("FATAL:  kein pg_hba.conf-Eintrag für Host »::1«", SourceMisconfigured, "pg_hba.conf"),
        ('FATAL:  password authentication failed for user "walbus"', SourceMisconfigured, "user and password"),
        ("FATAL:  Anzahl angeforderter Standby-Verbindungen überschreitet max_wal_senders", SourceUnavailable, "raise"),
        ("FATAL:  sorry, too many clients already", SourceUnavailable, "max_connections"),
        ("FATAL:  Datenbank »nix« existiert nicht", SourceUnavailable, "start the server, or correct source.dsn"),
        ("Connection refused", SourceUnavailable, "start the server"),
    ],
)
def test_a_connection_that_was_refused_is_told_with_its_mend(text, kind, mend):
    error = connect_refusal(psycopg.OperationalError(f"connection failed: {text}"), "db:5432, database shop")
    assert type(error) is kind
    assert mend in (error.mend or "")
