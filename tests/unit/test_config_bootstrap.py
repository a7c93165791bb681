"""Where the bootstrap has its log from, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from walbus.config import Settings, load_settings
from walbus.config_problems import InvalidConfig

KAFKA: dict[str, Any] = {"engine": "kafka", "kafka": {"bootstrap_servers": ["a:1"]}}


def settings(relay: dict[str, Any], **bootstrap: Any) -> Settings:
    return Settings(source={"dsn": "postgresql://here"}, relay=relay, bootstrap=bootstrap)  # type: ignore[arg-type]


def test_a_bootstrap_reads_a_relays_files_or_the_cluster() -> None:
    assert settings({}).bootstrap.read_from == "relay"
    assert settings(KAFKA).bootstrap.read_from == "relay"
    assert settings(KAFKA, read_from="kafka").bootstrap.read_from == "kafka"
    assert settings(KAFKA, complete=["public.*"]).bootstrap.complete == ("public.*",)


def test_what_two_sections_have_to_do_with_each_other_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "walbus.toml"
    file.write_text('[source]\ndsn = "postgresql://here"\n[bootstrap]\nread_from = "kafka"\n')
    with pytest.raises(InvalidConfig) as told:
        load_settings(file)
    assert str(told.value) == (f'bootstrap.read_from = "kafka" needs engine = "kafka" in the section relay (at {file})')
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "postgresql://here")
    monkeypatch.setenv("WALBUS_BOOTSTRAP__READ_FROM", "kafka")
    with pytest.raises(InvalidConfig, match="at the environment"):
        load_settings(None)


@pytest.mark.parametrize(
    ("relay", "bootstrap", "why"),
    [
        ({}, {"read_from": "kafka"}, 'bootstrap.read_from = "kafka" needs engine = "kafka" in the section relay'),
        (KAFKA, {"read_from": "kafka", "complete": ["public.*"]}, "bootstrap.complete is served from the files"),
        (KAFKA, {"read_from": "topics"}, "relay"),
    ],
)
def test_what_cannot_be_is_refused(relay: dict[str, Any], bootstrap: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(relay, **bootstrap)
