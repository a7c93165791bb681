"""The page and the example know every key of the configuration, with its default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from walbus.config import (
    BootstrapConfig,
    ClientConfig,
    ConsumerConfig,
    KafkaConfig,
    LogConfig,
    RelayConfig,
    Settings,
    SourceConfig,
    load_settings,
)
from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.consumers.sinks.opensearch_options import OpenSearchOptions
from walbus.consumers.sinks.postgres import PostgresOptions
from walbus.consumers.sinks.redis_options import RedisOptions
from walbus.consumers.sinks.sqlite import SqliteOptions
from walbus.consumers.sinks.stdout import StdoutOptions
from walbus.consumers.sinks.tantivy_options import TantivyOptions
from walbus.consumers.sinks.webhook import WebhookOptions
from walbus.table_mapping import TableMapping

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text()
EXAMPLE = ROOT / "examples/walbus.toml"
SECTIONS: dict[str, type[BaseModel]] = {
    "[source]": SourceConfig,
    "[relay]": RelayConfig,
    "[relay.kafka]": KafkaConfig,
    "[bootstrap]": BootstrapConfig,
    "[client]": ClientConfig,
    "[consumer.NAME]": ConsumerConfig,
    '[consumer.NAME.table."SCHEMA.TABLE"]': TableMapping,
    "[log]": LogConfig,
}
SINKS: dict[str, type[BaseModel]] = {
    'sink = "sqlite"': SqliteOptions,
    'sink = "postgres"': PostgresOptions,
    'sink = "tantivy"': TantivyOptions,
    'sink = "redis"': RedisOptions,
    'sink = "opensearch"': OpenSearchOptions,
    'sink = "kafka"': KafkaOptions,
    'sink = "stdout"': StdoutOptions,
    'sink = "webhook"': WebhookOptions,
}


def keys() -> Iterator[tuple[str, str, FieldInfo]]:
    for section, model in (SECTIONS | SINKS).items():
        for name, field in model.model_fields.items():
            yield section, name, field


def rows_of(section: str) -> dict[str, str]:
    """The table of a section: key to default, as written."""
    text = PAGE.split(f"## `{section}`\n")[1].split("\n##")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))


@pytest.mark.parametrize(("section", "name", "field"), list(keys()), ids=lambda value: str(value)[:30])
def test_every_key_stands_on_the_page_with_its_default(section: str, name: str, field: FieldInfo) -> None:
    written = rows_of(section)[name]
    if field.is_required():
        assert written == "none, required"
    elif isinstance(field.default, (bool, int, float, str)):
        literal = str(field.default).lower() if isinstance(field.default, bool) else field.default
        assert written in {f'`"{literal}"`', f"`{literal}`", f"`{int(literal) if isinstance(literal, float) else ''}`"}


@pytest.mark.parametrize("section", [*SECTIONS, *SINKS])
def test_the_page_names_no_key_that_does_not_exist(section: str) -> None:
    assert set(rows_of(section)) == set((SECTIONS | SINKS)[section].model_fields)


def test_top_level_keys_and_sections_are_all_there() -> None:
    assert {section.strip("[]").split(".")[0] for section in SECTIONS} | {"data_dir"} == set(Settings.model_fields)


def test_the_example_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALBUS_SOURCE__DSN", raising=False)
    assert load_settings(EXAMPLE).consumer["replica"].sink == "sqlite"


def test_the_commented_lines_of_the_example_are_keys_too(tmp_path: Path) -> None:
    everything = re.sub(r"^# (?=[a-z_]+ = |\[)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    file = tmp_path / "walbus.toml"
    file.write_text(everything)
    document = tomllib.loads(everything)
    load_settings(file)
    for section, model in SECTIONS.items():
        if not section.startswith("[consumer."):
            found = reduce(lambda table, name: table[name], section.strip("[]").split("."), document)
            assert set(found) == set(model.model_fields)
