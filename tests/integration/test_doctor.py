"""`walbus doctor` on real servers: what it prints can be pasted, and --fix makes a fresh server ready."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.database import Database, fresh_database
from support.waiting import wait_for
from support.walbus_command import Ended, Running, walbus, write_config
from walbus.capture import identify
from walbus.config import SourceConfig
from walbus.demo.postgres import EmbeddedPostgres, free_port
from walbus.errors import SourceMisconfigured

SECRET = "hunter22-canary"
#: What depends on the machine that the tests run on.
OF_THIS_MACHINE = {"log-disk-space", "log-file-system", "log-sync-speed", "open-files", "native-core", "clock"}
#: What a server as PostgreSQL ships it may well be told, and what its age brings along.
ADVICE = {"slot-wal-limit", "monitoring-privilege", "later-tables", "server-version"}

EVERYTHING_WRONG = """
    CREATE TABLE orders (id int PRIMARY KEY, state text);
    CREATE TABLE "Odd ""n'ame" (id int);
    CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
    CREATE TABLE unkeyed (id int NOT NULL, state text); CREATE UNIQUE INDEX gone ON unkeyed (id);
    ALTER TABLE unkeyed REPLICA IDENTITY USING INDEX gone; DROP INDEX gone;
    CREATE TABLE whole (id int PRIMARY KEY); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE computed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE UNLOGGED TABLE cache (id int PRIMARY KEY);
    CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (9);
    ALTER TABLE events_1 REPLICA IDENTITY NOTHING;
    CREATE SEQUENCE numbers; SELECT lo_create(0);"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration that nobody else can read; gives its path."""

    def write(dsn: str, **source: object) -> str:
        servers = {"relay": {"listen": f"127.0.0.1:{free_port()}"}, "bootstrap": {"listen": f"127.0.0.1:{free_port()}"}}
        path = write_config(tmp_path / "walbus.toml", {"source": {"dsn": dsn, **source}, **servers}, tmp_path / "data")
        path.chmod(0o600)
        return str(path)

    return write


@pytest.fixture
def fresh_server(own_pg_server: Callable[..., EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """A server as initdb makes it: no setting but where it listens."""
    server = own_pg_server()
    server.stop()
    server.settings.clear()
    server.settings["listen_addresses"] = "127.0.0.1"
    server.start()
    yield server


def as_role(server: EmbeddedPostgres, name: str) -> str:
    return f"postgresql://{name}:{SECRET}@127.0.0.1:{server.port}/postgres"


def examined(path: str, *options: str, **variables: str) -> tuple[Ended, dict[str, Any]]:
    ended = walbus("doctor", "--json", "-c", path, *options, **variables)
    assert SECRET not in ended.stdout + ended.stderr
    return ended, json.loads(ended.stdout)


def wrong(report: dict[str, Any]) -> set[str]:
    """Codes of errors and warnings that are not this machine's."""
    bad = {finding["code"] for finding in report["findings"] if finding["severity"] in {"error", "warning"}}
    return bad - OF_THIS_MACHINE - {"server-version", "server-durability"}  # the tests' own server does not sync


def statements(report: dict[str, Any]) -> list[str]:
    """The SQL of all findings, but what ends other people's work."""
    mends = [mend for finding in report["findings"] for mend in finding["mends"] if mend["kind"] == "sql"]
    return [mend["text"] for mend in mends if not mend["text"].startswith(("SELECT pg_terminate", "SELECT pg_drop"))]


def test_a_fresh_server_is_made_ready_by_fix(
    fresh_server: EmbeddedPostgres, config: Callable[..., str], tmp_path: Path
) -> None:
    with fresh_server.connect() as admin:
        admin.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE lines (id int PRIMARY KEY)")
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'")
    path = config(as_role(fresh_server, "app"))

    ended, report = examined(path)
    assert ended.code == report["exit_code"] == 3
    assert wrong(report) == {"wal-level", "replication-privilege", "select-privilege", "publication"}

    ended, report = examined(path, "--fix", WALBUS_ADMIN_DSN=fresh_server.dsn())
    assert [step["failed"] for step in report["fixed"]] == [None] * 4
    assert wrong(report) == {"wal-level"}
    [level] = [finding for finding in report["findings"] if finding["code"] == "wal-level"]
    assert "waits for a restart" in level["found"]

    fresh_server.restart()
    ended, report = examined(path)
    assert (wrong(report), ended.code) == (set(), report["exit_code"])
    assert {f["code"] for f in report["findings"] if f["severity"] == "info"} <= ADVICE | OF_THIS_MACHINE | {"slot"}

    system = Running("run", "-c", path, log=tmp_path / "log")
    try:
        wait_for(lambda: "streaming" in status(path), 60, what="capture streams")
        with fresh_server.connect() as admin:
            admin.execute("INSERT INTO orders VALUES (1)")
        wait_for(lambda: '"walbus_capture_changes_total": 1' in status(path), 60, what="the row is captured")
        running = examined(path)[1]
        assert wrong(running) == set()
        assert {"slot-reader", "same-source"} <= {f["code"] for f in running["findings"] if f["severity"] == "ok"}
    finally:
        assert system.stop() == 0


def status(path: str) -> str:
    return walbus("status", "--json", "-c", path).stdout


def test_fix_again_finds_nothing_to_do(fresh_server: EmbeddedPostgres, config: Callable[..., str]) -> None:
    with fresh_server.connect() as admin:
        admin.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    path = config(fresh_server.dsn())
    assert len(examined(path, "--fix")[1]["fixed"]) == 2
    assert examined(path, "--fix")[1]["fixed"] == []


def test_every_statement_that_is_printed_can_be_pasted_and_mends(
    database: Database, config: Callable[..., str]
) -> None:
    database.execute(EVERYTHING_WRONG)
    role = f"app_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{SECRET}'")
    try:
        dsn = f"postgresql://{role}:{SECRET}@127.0.0.1:{database.server.port}/{database.name}"
        path = config(dsn)
        report = examined(path)[1]
        identities = [finding for finding in report["findings"] if finding["code"] == "identity"]
        tables = {table for finding in identities for table in finding["subjects"]}
        names = ["late", "events_1", "nothing", "unkeyed", "Odd \"n'ame"]
        assert tables == {f"public.{name}" for name in names}
        assert {"unlogged-table", "generated-columns", "sequences", "large-objects", "identity-full"} <= {
            finding["code"] for finding in report["findings"]
        }
        for _ in range(2):  # the publication is made first, and completed when the tables have identities
            for statement in statements(examined(path)[1]):
                if not statement.startswith("ALTER SYSTEM"):
                    database.execute(statement)
        assert wrong(examined(path)[1]) == {"keyless"}
        for table in ("nothing", "late", "events", '"Odd ""n\'ame"', "unkeyed"):
            database.execute(f"UPDATE {table} SET id = id")
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("table", ["nothing", "late", "unkeyed", "events_1", '"Odd ""n\'ame"'])
def test_the_update_that_it_names_fails_indeed(database: Database, config: Callable[..., str], table: str) -> None:
    database.execute(EVERYTHING_WRONG)
    database.execute(f"INSERT INTO {'events' if table == 'events_1' else table} VALUES (1)")
    database.execute("CREATE PUBLICATION walbus FOR ALL TABLES")
    [identity] = [f for f in examined(config(database.dsn))[1]["findings"] if f["code"] == "identity"]
    assert identity["severity"] == "error"
    assert "public." + table.strip('"').replace('""', '"') in identity["subjects"]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute(f"UPDATE {table} SET id = id")


def test_a_unique_index_that_can_be_the_identity_is_proposed_and_one_that_cannot_is_not(
    database: Database, config: Callable[..., str]
) -> None:
    """FULL would do, but leaves the table without a key, and so without snapshots."""
    database.execute("""
        CREATE TABLE one (id int NOT NULL, more int); CREATE UNIQUE INDEX "its 'own'" ON one (id) INCLUDE (more);
        CREATE TABLE narrower (a int NOT NULL, b int NOT NULL, UNIQUE (a, b), c int NOT NULL UNIQUE);
        CREATE TABLE kept (id int NOT NULL UNIQUE); ALTER TABLE kept REPLICA IDENTITY FULL;
        CREATE TABLE nullable (id int UNIQUE);
        CREATE TABLE part (id int NOT NULL); CREATE UNIQUE INDEX ON part (id) WHERE id > 0;
        CREATE TABLE computed (id int NOT NULL); CREATE UNIQUE INDEX ON computed (abs(id));
        CREATE TABLE late (id int NOT NULL UNIQUE DEFERRABLE)""")
    path = config(database.dsn)
    proposed = [text for text in statements(examined(path)[1]) if "REPLICA IDENTITY" in text]
    indexed = [text for text in proposed if "USING INDEX" in text]
    assert sorted(indexed) == [
        'ALTER TABLE "public"."kept" REPLICA IDENTITY USING INDEX "kept_id_key"',
        'ALTER TABLE "public"."narrower" REPLICA IDENTITY USING INDEX "narrower_c_key"',
        """ALTER TABLE "public"."one" REPLICA IDENTITY USING INDEX "its 'own'\"""",
    ]
    assert len(proposed) == 3 + 4
    database.execute("; ".join(indexed))
    [identity] = [finding for finding in examined(path)[1]["findings"] if finding["code"] == "identity"]
    assert identity["subjects"] == ["public.computed", "public.late", "public.nullable", "public.part"]


def test_a_partition_that_would_fail_keeps_its_root_out_of_what_fix_publishes(
    database: Database, config: Callable[..., str]
) -> None:
    database.execute(EVERYTHING_WRONG)
    report = examined(config(database.dsn), "--fix")[1]
    published = database.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = 'walbus' ORDER BY 1")
    assert [row[0] for row in published] == ["computed", "orders", "whole"]
    assert "identity" in wrong(report)
    database.execute("UPDATE nothing SET id = id; UPDATE events SET id = id")


def test_another_database_than_the_logs_is_said_first_and_fix_leaves_it_alone(
    database: Database, config: Callable[..., str], tmp_path: Path
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    room = Running("capture", "-c", config(database.dsn), log=tmp_path / "log")
    try:
        wait_for(lambda: "capture.streaming" in room.log(), 60, what="capture streams")
    finally:
        assert room.stop() == 0
    with fresh_database(database.server) as other:
        other.execute("CREATE TABLE t (id int PRIMARY KEY)")
        ended, report = examined(config(other.dsn), "--fix")
        assert (ended.code, report["fixed"]) == (3, [])
        assert report["findings"][0]["code"] == "same-source"
        assert wrong(report) == {"same-source"}
        assert other.value("SELECT count(*) FROM pg_publication") == 0


def test_a_slot_that_is_gone_while_the_log_needs_it_is_not_made_again(
    database: Database, config: Callable[..., str], tmp_path: Path
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    path = config(database.dsn)
    room = Running("capture", "-c", path, log=tmp_path / "log")
    try:
        wait_for(lambda: "capture.streaming" in room.log(), 60, what="capture streams")
    finally:
        assert room.stop() == 0
    database.drop_slot("walbus")
    database.execute("DROP PUBLICATION walbus")
    ended, report = examined(path, "--fix")
    assert (ended.code, report["fixed"]) == (3, [])
    assert {"slot", "publication"} <= wrong(report)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("postgres:", "postgres:wrong"), "password authentication failed"),
        (("/test_", "/nowhere_"), "does not exist"),
    ],
)
def test_a_refused_connection_is_told_with_its_mend_and_this_machine_all_the_same(
    database: Database, config: Callable[..., str], change: tuple[str, str], said: str
) -> None:
    ended, report = examined(config(database.dsn.replace(*change)))
    assert ended.code == report["exit_code"] == 1
    assert report["source"]["reached"] is False
    first = report["findings"][0]
    assert (first["code"], first["severity"]) == ("connection", "error")
    assert said in first["found"]
    assert first["mends"]
    assert "log-folder" in {finding["code"] for finding in report["findings"]}


def test_a_role_with_few_privileges_is_told_what_it_may_not_see(database: Database, config: Callable[..., str]) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    role = f"poor_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    try:
        dsn = f"postgresql://{role}:{SECRET}@127.0.0.1:{database.server.port}/{database.name}"
        ended, report = examined(config(dsn), "--fix")
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert ended.code == 3
    assert all(step["failed"] for step in report["fixed"])
    assert {"replication-privilege", "select-privilege", "publication"} <= wrong(report)
    assert "monitoring-privilege" in {finding["code"] for finding in report["findings"]}


@pytest.fixture
def app(database: Database) -> Iterator[str]:
    """A role that may replicate and owns nothing yet."""
    name = f"app_{database.name}"
    database.execute(f"CREATE ROLE {name} LOGIN REPLICATION PASSWORD '{SECRET}'")
    yield name
    database.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; DROP ROLE {name}")


def as_app(database: Database, name: str) -> str:
    return f"postgresql://{name}:{SECRET}@127.0.0.1:{database.server.port}/{database.name}"


def test_row_level_security_that_does_not_bind_the_tables_owner_is_no_finding(
    database: Database, config: Callable[..., str], app: str
) -> None:
    database.execute(f"CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO {app}")
    database.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    path = config(as_app(database, app))
    assert "row-security" not in {finding["code"] for finding in examined(path)[1]["findings"]}
    database.execute("ALTER TABLE t FORCE ROW LEVEL SECURITY")
    [finding] = [finding for finding in examined(path)[1]["findings"] if finding["code"] == "row-security"]
    assert finding["subjects"] == ["public.t"]


def test_a_role_that_replicates_as_a_member_like_those_of_rds_does_not_lack_the_attribute(
    database: Database, config: Callable[..., str], app: str
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(f"ALTER ROLE {app} NOREPLICATION; CREATE ROLE rds_replication; GRANT rds_replication TO {app}")
    try:
        found = {f["code"]: f["severity"] for f in examined(config(as_app(database, app)))[1]["findings"]}
    finally:
        database.execute("DROP ROLE rds_replication")
    assert found["replication-privilege"] == "ok"
    assert found["replication-connection"] == "error"  # since this server is not Amazon's


def test_partitions_of_a_table_that_is_named_are_meant_with_it(database: Database, config: Callable[..., str]) -> None:
    database.execute(
        'CREATE TABLE "e.v" (id int PRIMARY KEY) PARTITION BY RANGE (id);'
        'CREATE TABLE sub PARTITION OF "e.v" FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (id);'
        "CREATE TABLE leaf PARTITION OF sub FOR VALUES FROM (0) TO (9);"
        "CREATE TABLE stray (id int PRIMARY KEY);"
        'CREATE PUBLICATION walbus FOR TABLE "e.v", stray'
    )
    path = config(database.dsn, tables=["public.e.v"])
    [others] = [f for f in examined(path)[1]["findings"] if f["code"] == "publication-others"]
    assert others["subjects"] == ["public.stray"]


@pytest.mark.one_version
def test_a_capture_that_is_refused_says_the_statement_with_its_names_quoted(database: Database) -> None:
    database.execute(f'CREATE ROLE "odd""role" LOGIN PASSWORD \'{SECRET}\'')
    try:
        dsn = f"postgresql://odd%22role:{SECRET}@127.0.0.1:{database.server.port}/{database.name}"
        with pytest.raises(SourceMisconfigured) as refused:
            identify(SourceConfig(dsn=dsn, tables=("public.*",)))
        assert refused.value.mend is not None
        database.execute(refused.value.mend.removeprefix("run "))
        with pytest.raises(SourceMisconfigured, match="may not create a publication") as refused:
            identify(SourceConfig(dsn=dsn, tables=("public.*",)))
        assert refused.value.mend is not None
        database.execute(refused.value.mend.removeprefix("run ").split(", or ")[0])
        assert identify(SourceConfig(dsn=dsn, tables=("public.*",))).database == database.name
    finally:
        database.execute('DROP OWNED BY "odd""role"; DROP ROLE "odd""role"')


def test_an_administrator_of_another_database_is_refused(database: Database, config: Callable[..., str]) -> None:
    ended = walbus("doctor", "-c", config(database.dsn), "--fix", "--admin", database.server.dsn())
    assert ended.code == 2
    assert "--admin" in ended.one_line()


def test_an_administrator_who_cannot_connect_is_named_as_such(database: Database, config: Callable[..., str]) -> None:
    nobody = f"postgresql://nobody:{SECRET}@127.0.0.1:{database.server.port}/{database.name}"
    ended = walbus("doctor", "-c", config(database.dsn), "--fix", WALBUS_ADMIN_DSN=nobody)
    assert ended.code == 2
    assert "option --admin" in ended.one_line()
    assert SECRET not in ended.stderr


def test_a_configuration_that_is_wrong_is_usage(config: Callable[..., str], database: Database) -> None:
    assert "did you mean slot?" in walbus("doctor", "-c", config(database.dsn, slots="a")).one_line()


def test_what_people_read_has_each_statement_on_a_line_of_its_own(
    database: Database, config: Callable[..., str]
) -> None:
    database.execute(EVERYTHING_WRONG)
    ended = walbus("doctor", "-c", config(database.dsn))
    assert ended.code == 3
    lines = [line.split("   --")[0].strip().removeprefix("sql").strip() for line in ended.stdout.splitlines()]
    assert 'ALTER TABLE "public"."nothing" REPLICA IDENTITY DEFAULT;' in lines
    assert "\x1b" not in ended.stdout
    assert database.dsn.split(":")[2].split("@")[0] not in ended.stdout


@pytest.mark.one_version
def test_two_thousand_tables_are_looked_at_in_seconds(database: Database, config: Callable[..., str]) -> None:
    database.execute(
        "DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i); END LOOP; END $$"
    )
    path = config(database.dsn)
    begun = processor_seconds(database.server)
    report = examined(path)[1]
    [identity] = [finding for finding in report["findings"] if finding["code"] == "identity"]
    assert len(identity["subjects"]) == 2000
    assert processor_seconds(database.server) - begun < 20


def processor_seconds(server: EmbeddedPostgres) -> float:
    """What ended children have computed: ours, and the server's sessions."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[13]) + int(fields[14])  # cutime and cstime
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")
