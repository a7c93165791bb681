"""Whatever is misconfigured, the operator gets one line that names the mend, and the right exit code."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.database import Database, fresh_database
from support.walbus_command import Ended, walbus, write_config
from walbus.demo.postgres import EmbeddedPostgres, free_port

pytestmark = pytest.mark.one_version

SECRET = "hunter22-canary"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration; `config(source={...}, relay={...})` gives its path."""

    def write(**sections: dict[str, object]) -> str:
        servers = {"relay": {"listen": f"127.0.0.1:{free_port()}"}, "bootstrap": {"listen": f"127.0.0.1:{free_port()}"}}
        return str(write_config(tmp_path / "walbus.toml", servers | sections, tmp_path / "data"))

    return write


def refused(*arguments: str, code: int) -> str:
    """The one line of a command that is refused."""
    ended: Ended = walbus(*arguments)
    assert ended.code == code, ended.stderr
    assert SECRET not in ended.stderr
    return ended.one_line()


@pytest.mark.parametrize("command", [["run"], ["capture"], ["status"], ["tail"], ["consume", "cache"]])
def test_an_unknown_key_is_named_by_every_command(config: Callable[..., str], command: list[str]) -> None:
    path = config(source={"dsn": f"postgresql://u:{SECRET}@h/d", "slots": "a"})
    line = refused(*command, "-c", path, code=2)
    assert line == f"unknown key (at {path}, key source.slots); did you mean slot?"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "none.toml" in refused("run", "-c", str(tmp_path / "none.toml"), code=2)


def test_without_a_file_the_default_is_named(tmp_path: Path) -> None:
    ended = walbus("run", cwd=tmp_path)
    assert ended.code == 2
    assert ended.one_line().endswith("(at walbus.toml); name the file with -c FILE")


def test_an_unknown_command_or_option_is_usage() -> None:
    assert refused("captur", code=2)
    assert refused("tail", "--form", "json", code=2)
    assert refused("consume", code=2)


def test_an_unknown_consumer_is_named_with_the_one_that_was_meant(config: Callable[..., str]) -> None:
    path = config(source={"dsn": "host=x"}, **{"consumer.cache": {"sink": "sqlite"}})
    assert "did you mean cache?" in refused("consume", "cach", "-c", path, code=2)


@pytest.mark.parametrize("command", [["consume", "cache"], ["run"]])
def test_an_unknown_sink_is_named(config: Callable[..., str], database: Database, command: list[str]) -> None:
    path = config(source={"dsn": database.dsn}, **{"consumer.cache": {"sink": "sqlight"}})
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert "sqlight" in refused(*command, "-c", path, code=2)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("command", ["run", "relay"])
@pytest.mark.parametrize("room", ["relay", "bootstrap"])
def test_a_port_in_use_is_named_before_a_slot_is_made(
    config: Callable[..., str], database: Database, command: str, room: str
) -> None:
    if command == "relay":
        command = room
    with taken_port() as port:
        path = config(source={"dsn": database.dsn}, **{room: {"listen": f"127.0.0.1:{port}"}})
        line = refused(command, "-c", path, code=2)
    assert f"127.0.0.1:{port}" in line
    assert f"key {room}.listen" in line
    slots = database.value("SELECT count(*) FROM pg_replication_slots WHERE database = %s", [database.name])
    assert slots == 0


@pytest.mark.parametrize("command", ["run", "relay"])
def test_a_public_address_without_token_and_tls_is_refused(config: Callable[..., str], command: str) -> None:
    path = config(source={"dsn": "host=x"}, relay={"listen": "0.0.0.0:7070"})
    assert "relay.insecure = true" in refused(command, "-c", path, code=2)


@pytest.mark.parametrize("command", ["run", "capture"])
def test_a_source_that_does_not_answer_ends_a_first_start(config: Callable[..., str], command: str) -> None:
    port = free_port()
    path = config(source={"dsn": f"postgresql://app:{SECRET}@127.0.0.1:{port}/shop"})
    line = refused(command, "-c", path, code=1)
    assert str(port) in line
    assert ";" in line


def test_a_dsn_that_does_not_parse_is_a_configuration_error(config: Callable[..., str]) -> None:
    assert "source.dsn" in refused("capture", "-c", config(source={"dsn": "not a dsn"}), code=2)


def test_a_database_that_does_not_exist_is_named(config: Callable[..., str], database: Database) -> None:
    path = config(source={"dsn": database.dsn.replace(database.name, "nowhere")})
    line = refused("capture", "-c", path, code=1)
    assert "nowhere" in line
    assert "source.dsn" in line


@pytest.mark.parametrize("command", ["run", "capture"])
def test_a_missing_table_is_named(config: Callable[..., str], database: Database, command: str) -> None:
    path = config(source={"dsn": database.dsn, "tables": ["public.nope"]})
    line = refused(command, "-c", path, code=1)
    assert "public.nope" in line
    assert ";" in line


def test_a_missing_privilege_is_named_with_the_grant(config: Callable[..., str], database: Database) -> None:
    role = f"poor_{database.name}"
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    try:
        dsn = f"host=127.0.0.1 port={database.server.port} dbname={database.name} user={role} password={SECRET}"
        line = refused("capture", "-c", config(source={"dsn": dsn}), code=1)
    finally:
        database.execute(f"DROP ROLE {role}")
    assert "REPLICATION" in line


@pytest.mark.parametrize("command", ["run", "capture"])
def test_wal_level_replica_is_named_with_the_setting(
    config: Callable[..., str], own_pg_server: Callable[..., EmbeddedPostgres], command: str
) -> None:
    server = own_pg_server(wal_level="replica")
    with fresh_database(server) as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        line = refused(command, "-c", config(source={"dsn": database.dsn}), code=1)
    assert "wal_level" in line
    assert "logical" in line


def test_a_tail_of_nothing_says_how_to_start_it() -> None:
    assert "walbus relay" in refused("tail", "--url", f"http://127.0.0.1:{free_port()}", code=1)


def test_a_tail_checks_its_bounds_and_tables() -> None:
    assert "--from" in refused("tail", "--from", "yesterday", code=2)
    assert "public.orders" in refused("tail", "orders", code=2)
