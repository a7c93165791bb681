"""Each rule of the doctor, on facts alone: what is wrong is named, with the statement that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from support.doctor_cases import CASES, NO_KEY
from support.doctor_facts import (
    HEALTHY,
    LOG,
    NEW_START,
    PUBLICATION,
    REMEMBERED,
    SERVER,
    WANTED,
    history,
    server,
    settings,
    slot,
    state,
    table,
    tables,
)
from walbus.capture.doctor import Finding, Severity, diagnose, in_order, too_old
from walbus.capture.doctor.facts import Facts, Setting, Wanted
from walbus.capture.doctor.findings import ORDER, MendKind
from walbus.capture.doctor.known_bugs import KNOWN_BUGS
from walbus.capture.doctor.quoting import identifier, literal, set_setting
from walbus.capture.doctor.topics import TOPICS
from walbus.capture.timelines import Timelines
from walbus.errors import SourceUnavailable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/doctor.md").read_text()


def only(facts: Facts, code: str) -> Finding:
    """The worst finding of a code."""
    found = in_order(finding for finding in diagnose(facts) if finding.code == code)
    assert found, f"nothing about {code}"
    return found[0]


def texts(finding: Finding, kind: MendKind = "sql") -> list[str]:
    return [mend.text for mend in finding.mends if mend.kind == kind]


def test_a_healthy_source_has_nothing_but_ok() -> None:
    assert {finding.severity for finding in diagnose(HEALTHY)} == {Severity.OK}


@pytest.mark.parametrize("case", CASES)
def test_a_finding_names_what_is_wrong_and_the_exact_statement_that_mends_it(case: str) -> None:
    facts, code, severity, said, statements, fixed = CASES[case]
    finding = only(facts, code)
    assert (finding.severity, texts(finding)) == (severity, list(statements))
    assert said in finding.found
    assert {mend.safe for mend in finding.mends if mend.kind == "sql"} <= {fixed}
    assert finding.why


def test_a_failover_behind_the_logs_end_loses_nothing() -> None:
    assert only(history(Timelines(2, ((1, 2500),))), "same-source").severity is Severity.OK


ANOTHER_DATABASE = replace(LOG, source=replace(LOG.source, database="warehouse"), remembered=REMEMBERED)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(HEALTHY, publication=None, slot=None),
        tables(table(published=False, known=True)),
        replace(HEALTHY, publication=replace(PUBLICATION, oid=71)),
        state(confirmed_lsn=5000),
        replace(HEALTHY, server=replace(SERVER, settings=settings(wal_level="replica"))),
    ],
)
@pytest.mark.parametrize("other", ["database", "cluster"])
def test_another_source_is_said_first_and_what_would_compare_it_with_the_log_is_not(wrong: Facts, other: str) -> None:
    of_another = history(Timelines(1), system_identifier="9").history if other == "cluster" else wrong.history
    log = replace(ANOTHER_DATABASE, source=LOG.source) if other == "cluster" else ANOTHER_DATABASE
    findings = in_order(diagnose(replace(wrong, log=log, history=of_another)))
    assert findings[0].code == "same-source"
    assert not {finding.code for finding in findings} & {
        "publication",
        "table-taken-out",
        "table-not-published",
        "slot",
    }
    assert not any(mend.safe for finding in findings for mend in finding.mends)


def test_a_slot_that_the_log_was_not_made_from_is_not_compared_with_it() -> None:
    facts = replace(state(confirmed_lsn=5000), wanted=replace(WANTED, slot="other"))
    assert [finding.code for finding in in_order(diagnose(facts)) if finding.severity is Severity.ERROR] == [
        "same-source"
    ]


def test_a_slot_that_a_running_capture_moves_meanwhile_is_not_past_the_log() -> None:
    moved = state(confirmed_lsn=5000)
    later = replace(LOG, bounds_after=replace(LOG.bounds, end_lsn=5000))
    assert only(moved, "slot").severity is Severity.ERROR
    assert only(replace(moved, log=later), "slot").severity is Severity.OK
    assert only(replace(moved, log=later), "same-source").severity is Severity.OK


def test_a_session_under_the_name_that_the_dsn_gives_is_capture() -> None:
    facts = slot(reader=(77, "our-cdc"))
    named = replace(facts, connection=replace(facts.connection, application="our-cdc"))
    assert (only(facts, "slot-reader").severity, only(named, "slot-reader").severity) == (Severity.WARNING, Severity.OK)


def test_a_pooler_is_known_by_what_it_says() -> None:
    refused = SourceUnavailable("unsupported startup parameter: replication", mend="start the server")
    finding = only(replace(HEALTHY, stream_refused=refused), "replication-connection")
    assert "pooler" in finding.mends[0].text


def test_a_restart_that_is_due_is_said_instead_of_the_statement_again() -> None:
    waiting = settings() | {"wal_level": Setting("wal_level", "replica", None, "configuration file", True)}
    finding = only(server(settings=waiting), "wal-level")
    assert "waits for a restart" in finding.found
    assert [mend.text for mend in finding.mends] == ["restart PostgreSQL"]


def test_a_setting_of_the_command_line_is_mended_there() -> None:
    given = settings() | {"wal_level": Setting("wal_level", "replica", None, "command line")}
    [mend] = only(server(settings=given), "wal-level").mends
    assert (mend.kind, mend.safe) == ("advice", False)
    assert "command line" in mend.text


@pytest.mark.parametrize(
    ("managed", "said"), [("Amazon RDS", "rds.logical_replication"), ("Google Cloud SQL", "cloudsql.logical_decoding")]
)
def test_a_managed_server_is_mended_its_own_way(managed: str, said: str) -> None:
    facts = server(managed=managed, settings=settings(wal_level="replica"))
    assert said in only(facts, "wal-level").mends[0].text
    assert not any(mend.safe for mend in only(facts, "wal-level").mends)


def test_a_partitioned_table_with_a_bad_partition_is_not_published_by_fix() -> None:
    given = (
        table("orders"),
        table("events", partitioned=True),
        table("events_1", root="public.events", identified=False, identity="n"),
    )
    finding = only(replace(NEW_START, publication=None, tables=given), "publication")
    assert texts(finding) == ['CREATE PUBLICATION "walbus" FOR TABLE "public"."orders"']


@pytest.mark.parametrize(
    ("via_root", "read", "sent"),
    [(True, ("public.events", "public.events_1"), "public.events"), (False, ("public.events_1",), "public.events_1")],
)
def test_privileges_are_asked_of_tables_that_are_read_and_keys_of_those_under_whose_names_rows_are_sent(
    via_root: bool, read: tuple[str, ...], sent: str
) -> None:
    poor = {"readable": False, "row_security": True, "identity": "f", "primary_key": False}
    given = (table("events", partitioned=True, **poor), table("events_1", root="public.events", **poor))
    facts = tables(*given, publication=replace(PUBLICATION, via_root=via_root))
    assert only(facts, "select-privilege").subjects == only(facts, "row-security").subjects == read
    assert only(facts, "keyless").subjects == (sent,)


def test_where_neither_update_nor_delete_is_published_a_column_list_breaks_none() -> None:
    inserts = replace(PUBLICATION, operations=frozenset({"insert", "truncate"}))
    facts = tables(table(listed_columns=frozenset({"state"})), publication=inserts)
    assert "publication-identity" not in {finding.code for finding in diagnose(facts)}


@pytest.mark.parametrize("value", ["-1", "100"])
def test_the_limit_of_a_managed_server_is_set_where_the_service_keeps_it(value: str) -> None:
    finding = only(server(managed="Amazon RDS", settings=settings(max_slot_wal_keep_size=value)), "slot-wal-limit")
    assert [mend.kind for mend in finding.mends] == ["advice"]


def test_without_bootstrap_privileges_to_read_are_no_errors() -> None:
    facts = replace(tables(table(readable=False, row_security=True)), wanted=replace(WANTED, bootstrap=False))
    assert only(facts, "select-privilege").severity is Severity.INFO
    assert only(facts, "row-security").severity is Severity.INFO


def test_two_hundred_tables_without_a_key_are_one_finding() -> None:
    many = tuple(table(f"t{number}", published=False, **NO_KEY) for number in range(200))
    findings = [finding for finding in diagnose(tables(*many)) if finding.severity is not Severity.OK]
    assert [(finding.code, len(finding.subjects)) for finding in findings] == [("identity", 200)]


def test_steps_that_fix_runs_never_drop_or_change_a_table() -> None:
    findings = [finding for facts, *_ in CASES.values() for finding in diagnose(facts)]
    safe = {mend.text for finding in findings for mend in finding.mends if mend.safe}
    allowed = ("ALTER SYSTEM SET", "ALTER ROLE", "GRANT", "CREATE PUBLICATION", "ALTER PUBLICATION")
    assert safe
    assert all(text.startswith(allowed) for text in safe)
    assert not any(re.search(r"\bDROP\b|\bSET TABLE\b|SUPERUSER|BYPASSRLS", text) for text in safe)


@pytest.mark.parametrize("version", [140_000, 150_000, 160_000, 170_000, 180_000])
def test_the_first_release_of_every_major_version_has_known_bugs(version: int) -> None:
    finding = only(server(version=version), "server-version")
    assert finding.severity in {Severity.ERROR, Severity.WARNING}
    assert "https://www.postgresql.org/docs/release/" in finding.mends[0].text


@pytest.mark.parametrize(
    ("bad", "good"), [(140_017, 140_018), (150_012, 150_013), (160_008, 160_009), (170_004, 170_005)]
)
def test_lost_changes_beside_ddl_are_known_by_version(bad: int, good: int) -> None:
    def said(version: int) -> bool:
        return any("changes are lost" in finding.found for finding in diagnose(server(version=version)))

    assert (said(bad), said(good)) == (True, False)


def test_a_bug_of_a_feature_that_is_off_is_not_told() -> None:
    def hit(wanted: Wanted) -> bool:
        return any(bug.only == "two_phase" and bug.hits(18, 4, wanted) for bug in KNOWN_BUGS)

    assert (hit(WANTED), hit(replace(WANTED, two_phase=True))) == (False, True)


def test_versions_that_are_too_old_or_too_new_are_said() -> None:
    old = too_old(130_020)
    assert old is not None
    assert (old.severity, too_old(140_000)) == (Severity.ERROR, None)
    assert only(server(version=190_001), "server-version").severity is Severity.INFO


def test_every_topic_is_given_by_a_rule_and_every_code_is_a_topic() -> None:
    sources = [*(ROOT / "capture/doctor").glob("*.py"), *(ROOT / "walbus/cli").glob("doctor*.py")]
    text = "".join(file.read_text() for file in sources if file.name != "topics.py")
    used = {code for code in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text) if code in TOPICS}
    used |= {f"{role}-folder" for role in ("log", "spool", "store")}
    assert used == set(TOPICS)


def rows_of_the_page() -> list[tuple[str, list[str]]]:
    """Codes and severities of docs/doctor.md."""
    page = PAGE.split("## Findings")[1].split("## Known bugs")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
    return [(code, severities.split(", ")) for code, severities in rows]


def test_the_page_has_every_code_and_no_other() -> None:
    assert sorted(code for code, _ in rows_of_the_page()) == sorted(TOPICS)
    assert {severity for _, severities in rows_of_the_page() for severity in severities} == set(map(str, ORDER))


def test_the_page_says_the_severities_that_rules_give() -> None:
    written = dict(rows_of_the_page())
    for given in CASES.values():
        for finding in diagnose(given.facts):
            assert finding.severity.value in written[finding.code], finding


def test_the_page_links_the_release_that_mends_each_known_bug() -> None:
    mended = {f"{major}.{minor}" for bug in KNOWN_BUGS for major, minor in bug.mended.items()}
    assert set(re.findall(r"docs/release/([0-9.]+)/", PAGE)) == mended


@pytest.mark.parametrize(
    ("write", "given", "text"),
    [
        (identifier, 'a"b', '"a""b"'),
        (identifier, "select", '"select"'),
        (literal, "it's", "'it''s'"),
        (literal, "a\\b", "E'a\\\\b'"),
    ],
)
def test_names_and_texts_are_quoted(write: Callable[[str], str], given: str, text: str) -> None:
    assert write(given) == text


def test_only_a_setting_can_be_set() -> None:
    with pytest.raises(ValueError, match="not the name of a setting"):
        set_setting("wal_level = minimal; --", "x")
