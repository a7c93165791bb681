"""What the configuration takes, and what it says about what it does not take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from walbus.config import Settings, load_settings, local_url, parse_listen
from walbus.config_problems import InvalidConfig
from walbus.errors import ConfigError

DSN = '[source]\ndsn = "postgresql://app:hunter22@db/shop"\n'


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("WALBUS_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "walbus.toml"


def problems(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load_settings(file)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def loaded(file: Path, text: str) -> Settings:
    file.write_text(text)
    return load_settings(file)


def test_a_dsn_is_all_that_must_be_given(file: Path) -> None:
    settings = loaded(file, DSN)
    assert settings.source.tables == ("public.*",)
    assert (settings.relay_url, settings.bootstrap_url) == ("http://127.0.0.1:7070", "http://127.0.0.1:7071")


def test_the_dsn_prints_as_stars(file: Path) -> None:
    assert "hunter22" not in repr(loaded(file, DSN))


def test_the_environment_goes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=elsewhere")
    monkeypatch.setenv("WALBUS_SOURCE__TABLES", "public.a, public.b")
    monkeypatch.setenv("WALBUS_CONSUMER__CACHE__URL", "redis://there")
    settings = loaded(file, DSN + '[consumer.cache]\nsink = "redis"\ntables = ["public.a"]\nurl = "redis://here"\n')
    assert settings.source.dsn.get_secret_value() == "host=elsewhere"
    assert settings.source.tables == ("public.a", "public.b")
    assert settings.consumer["cache"].options == {"url": "redis://there"}


def test_a_list_in_the_environment_may_be_json(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_SOURCE__TABLES", '["public.a", "app.*"]')
    assert loaded(file, DSN).source.tables == ("public.a", "app.*")


def test_the_environment_alone_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=db")
    assert load_settings(None).source.dsn.get_secret_value() == "host=db"


def test_an_empty_variable_is_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_RELAY__RETENTION_BYTES", "")
    assert loaded(file, DSN).relay.retention_bytes is None


def test_every_problem_is_told_in_one_go(file: Path) -> None:
    found = problems(file, '[source]\ntables = ["orders"]\n[relay]\nlisten = "here"\nsegment_bytes = 1\n[bootstap]\n')
    assert len(found) == 5
    assert [any(key in line for line in found) for key in ("source.dsn", "relay.listen", "bootstap")] == [True] * 3


def test_an_unknown_key_is_named_with_the_one_that_was_meant(file: Path) -> None:
    (line,) = problems(file, DSN + "[relay]\nretention_hour = 3\n")
    assert line == f"unknown key (at {file}, key relay.retention_hour); did you mean retention_hours?"


def test_a_missing_dsn_says_where_to_write_it(file: Path) -> None:
    (line,) = problems(file, "")
    assert "WALBUS_SOURCE__DSN" in line


def test_a_relay_that_copies_another_one_needs_no_dsn(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = '[relay]\nupstream = ["http://10.0.0.1:7070"]\n'
    settings = loaded(file, upstream)
    assert not settings.source.known
    assert loaded(file, "[source]\nslot = 's'\n" + upstream).source.slot == "s"
    assert loaded(file, DSN + upstream).source.known
    monkeypatch.setenv("WALBUS_RELAY__UPSTREAM", "http://10.0.0.1:7070")
    assert not load_settings(None).source.known
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=db")
    assert load_settings(None).source.known


def test_a_missing_dsn_beside_an_empty_upstream_is_missed(file: Path) -> None:
    (line,) = problems(file, "[relay]\nupstream = []\n")
    assert "source" in line
    assert "WALBUS_SOURCE__DSN" in line


def test_a_wrong_value_is_shown_with_its_mend(file: Path) -> None:
    (line,) = problems(file, DSN + '[bootstrap]\nworkers = "two"\n')
    assert "'two'" in line
    assert "bootstrap.workers" in line
    assert "write a whole number" in line


@pytest.mark.parametrize("host", ["cdc.example.com:7070", "http://cdc", "", "a b", "*", "-x", "[::1]"])
def test_an_allowed_host_is_a_name_without_a_port(file: Path, host: str) -> None:
    (line,) = problems(file, DSN + f'[relay]\nallowed_hosts = ["cdc.internal", "fd00::7", "{host}"]\n')
    assert "relay.allowed_hosts" in line
    assert "without a port" in line


def test_a_secret_is_never_shown_in_a_problem(file: Path) -> None:
    found = problems(file, 'source = "postgresql://app:hunter22@db/shop"\n')
    assert "hunter22" not in "".join(found)


def test_an_unknown_key_of_the_environment_is_named_as_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALBUS_RELAY__LISTENS", "127.0.0.1:1")
    (line,) = problems(file, DSN)
    assert "environment variable WALBUS_RELAY__LISTENS" in line
    assert "did you mean listen?" in line


def test_an_unknown_section_of_the_environment_is_not_ignored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_SORUCE__DSN", "host=db")
    (line,) = problems(file, DSN)
    assert "did you mean WALBUS_SOURCE__…?" in line


def test_variables_of_one_word_are_no_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_PORT", "tcp://10.0.0.1:7070")  # what Kubernetes makes for a service called walbus
    monkeypatch.setenv("WALBUS_DEBUG", "1")
    loaded(file, DSN)


@pytest.mark.parametrize("pattern", ["orders", "public.", ".orders", "public.o*", "*.orders", "*.*", ""])
def test_a_source_table_must_name_schema_and_table(file: Path, pattern: str) -> None:
    (line,) = problems(file, f'[source]\ndsn = "x"\ntables = ["{pattern}"]\n')
    assert "source.tables" in line


@pytest.mark.parametrize("name", ["Cache", "a b", "../x", "", "-a", "a" * 64])
def test_a_consumer_needs_a_name_that_can_be_a_file(file: Path, name: str) -> None:
    assert "cannot be the name of a consumer" in problems(file, f'{DSN}[consumer."{name}"]\nsink = "redis"\n')[0]


def test_a_file_that_is_not_toml_is_named_with_the_line(file: Path) -> None:
    file.write_text("[source\n")
    with pytest.raises(ConfigError, match=r"not TOML.*line 1"):
        load_settings(file)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*-c FILE"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("listen", "expected"), [("127.0.0.1:7070", ("127.0.0.1", 7070)), ("[::1]:0", ("::1", 0)), ("db:1", ("db", 1))]
)
def test_an_address_is_host_and_port(listen: str, expected: tuple[str, int]) -> None:
    assert parse_listen(listen) == expected


@pytest.mark.parametrize("listen", ["7070", ":7070", "host:", "host:x", "host:65536", "host:-1", "host:٣"])
def test_anything_else_is_no_address(listen: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_listen(listen)


def test_a_server_on_all_addresses_is_reached_on_loopback() -> None:
    assert local_url("0.0.0.0:7070") == "http://127.0.0.1:7070"
    assert local_url("[::]:7070") == "http://[::1]:7070"


def test_a_bootstrap_that_is_off_has_no_url(file: Path) -> None:
    assert loaded(file, DSN + "[bootstrap]\nenabled = false\n").bootstrap_url is None
