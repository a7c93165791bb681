"""The compose file and the image name files that exist and a configuration that is valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from walbus.cli.run import check_sinks
from walbus.config import load_settings
from walbus.relay.kafka.topics import rules

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


def brokers() -> dict[str, dict[str, object]]:
    """The services of the profile `kafka`, by name."""
    services = yaml.safe_load(COMPOSE)["services"]
    return {name: service for name, service in services.items() if service.get("profiles") == ["kafka"]}


def test_the_composes_brokers_have_what_the_logs_topics_need() -> None:
    assert len(brokers()) == 3
    for broker in brokers().values():
        settings = broker["environment"]
        for rule in rules(compacted=False, replicas=3, largest=1 << 20):
            name = "KAFKA_" + rule.name.replace(".", "_").upper()
            if name in settings:
                assert rule.holds(settings[name]), rule
        needed = {rule.name: rule.value for rule in rules(compacted=True, replicas=3, largest=1 << 20)}
        assert settings["KAFKA_MIN_INSYNC_REPLICAS"] == needed["min.insync.replicas"]
        assert settings["KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"] == needed["min.insync.replicas"]
        assert settings["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
        copies = ("DEFAULT", "OFFSETS_TOPIC", "TRANSACTION_STATE_LOG")
        assert {settings[f"KAFKA_{which}_REPLICATION_FACTOR"] for which in copies} == {"3"}


def test_the_composes_brokers_know_each_other_and_walbus_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    told = services["walbus"]["environment"]
    voters = ",".join(f"{broker['environment']['KAFKA_NODE_ID']}@{name}:9093" for name, broker in brokers().items())
    for name, broker in brokers().items():
        assert broker["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        assert broker["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{name}:9092"
        assert broker["volumes"] == [f"{name}:{broker['environment']['KAFKA_LOG_DIRS']}"]
    assert len({broker["environment"]["CLUSTER_ID"] for broker in brokers().values()}) == 1
    assert told["WALBUS_RELAY__ENGINE"] == "${WALBUS_ENGINE:-file}"
    monkeypatch.setenv("WALBUS_RELAY__ENGINE", "kafka")
    monkeypatch.setenv("WALBUS_RELAY__KAFKA__BOOTSTRAP_SERVERS", told["WALBUS_RELAY__KAFKA__BOOTSTRAP_SERVERS"])
    monkeypatch.setenv("WALBUS_SOURCE__DSN", "host=postgres dbname=shop user=postgres password=x")
    settings = load_settings(ROOT / "docs" / "compose" / "walbus.toml")
    assert settings.relay.kafka.bootstrap_servers == tuple(f"{name}:9092" for name in brokers())


def test_the_image_can_reach_kafka() -> None:
    assert re.search(r"\$wheel\[[^]]*\bkafka\b", DOCKERFILE)
