"""Which processes `walbus run` starts, from which file, and how their lines come out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from walbus.cli.children import Output
from walbus.cli.options import DEFAULT_FILE, chosen_file, secrets_of
from walbus.cli.run import check_sinks, children_of
from walbus.config import BootstrapConfig, ConsumerConfig, Settings, SourceConfig
from walbus.errors import ConfigError

SOURCE = SourceConfig(dsn=SecretStr("postgresql://app:hunter22@db/shop"))


def settings(**fields: object) -> Settings:
    return Settings(source=SOURCE, **fields)


def test_every_room_and_consumer_is_a_process() -> None:
    consumers = {"cache": ConsumerConfig(sink="redis"), "search": ConsumerConfig(sink="tantivy")}
    children = children_of(settings(consumer=consumers), Path("my.toml"))
    assert [child.name for child in children] == [
        "capture", "relay", "bootstrap", "consumer-cache", "consumer-search"
    ]  # fmt: skip
    assert children[3].arguments == ("consume", "cache", "-c", "my.toml")
    assert [child.stage for child in children] == [3, 2, 1, 0, 0]


def test_a_bootstrap_that_is_switched_off_is_not_started() -> None:
    children = children_of(settings(bootstrap=BootstrapConfig(enabled=False)), Path("my.toml"))
    assert [child.name for child in children] == ["capture", "relay"]


def test_a_configuration_of_the_environment_needs_no_file() -> None:
    assert children_of(settings(), None)[0].arguments == ("capture",)


def test_a_sink_that_does_not_exist_is_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"'redsi'.*key consumer.cache.sink.*redis"):
        check_sinks(settings(consumer={"cache": ConsumerConfig(sink="redsi")}))


def test_the_default_file_is_wanted_unless_the_environment_names_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WALBUS_SOURCE__DSN", raising=False)
    assert chosen_file(None) == DEFAULT_FILE
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=db")
    assert chosen_file(None) is None
    monkeypatch.delenv("WALBUS_SOURCE__DSN")
    monkeypatch.setenv("WALBUS_RELAY__UPSTREAM", "http://10.0.0.1:7070")
    assert chosen_file(None) is None
    DEFAULT_FILE.touch()
    assert chosen_file(None) == DEFAULT_FILE
    assert chosen_file(Path("other.toml")) == Path("other.toml")


def test_passwords_of_source_and_sinks_are_secrets() -> None:
    cache = ConsumerConfig(sink="redis", url="redis://:canary-2@cache:6379")
    assert set(secrets_of(settings(consumer={"cache": cache}))) >= {"hunter22", "canary-2"}
    hook = {"sink": "webhook", "secret": "whsec_a", "old_secret": "whsec_b", "headers": {"authorization": "Bearer c"}}
    assert set(secrets_of(settings(consumer={"hook": hook}))) >= {"whsec_a", "whsec_b", "Bearer c"}
    registry = {"url": "http://registry", "user": "walbus", "password": "canary-3"}
    kafka = {"options": {"sasl.password": "canary-4", "security.protocol": "SASL_SSL"}}
    found = set(secrets_of(settings(relay={"schema_registry": registry, "kafka": kafka})))
    assert found >= {"canary-3", "canary-4"} and "SASL_SSL" not in found
    topics = {"sink": "kafka", "schema_registry": {"url": "http://registry", "token": "canary-5"}}
    assert "canary-5" in secrets_of(settings(consumer={"topics": topics}))


def test_a_line_is_prefixed_with_its_room() -> None:
    stream = io.StringIO()
    output = Output(stream, ["capture", "relay"], json_lines=False)
    output.line("relay", "event=listening")
    assert stream.getvalue() == "relay   | event=listening\n"


def test_json_lines_stay_one_object_each() -> None:
    stream = io.StringIO()
    output = Output(stream, ["relay"], json_lines=True)
    output.line("relay", '{"room": "relay", "event": "listening"}')
    output.line("relay", "Fatal Python error")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first == {"room": "relay", "event": "listening"}
    assert second == {"room": "relay", "event": "Fatal Python error"}
