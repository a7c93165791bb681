"""The compose file and the image name files that exist and a configuration that is valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from walbus.cli.run import check_sinks
from walbus.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_every_file_that_the_compose_file_mounts_exists() -> None:
    mounted = re.findall(r"^\s+- (\./[^:]+):", COMPOSE, re.MULTILINE)
    assert mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_the_containers_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=postgres dbname=shop user=postgres password=x")
    settings = load_settings(ROOT / "docs" / "compose" / "walbus.toml")
    check_sinks(settings)
    assert settings.relay.listen.endswith(":7070")
    assert settings.bootstrap.listen.endswith(":7071")


def test_the_image_is_healthy_when_the_relay_of_its_configuration_is_ready() -> None:
    check = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert check is not None
    assert "walbus ready -c $file" in check[1]
    command = re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert command is not None
    assert json.loads(command[1]) == ["run", "-c", re.findall(r"file=(\S+);", check[1])[0]]


def test_the_image_does_not_run_as_root() -> None:
    stage = DOCKERFILE.rpartition("FROM ")[2]
    assert re.findall(r"^USER (\w+)$", stage, re.MULTILINE) == ["walbus"]
