"""`walbus doctor` on a log on Kafka: a real broker, whose topics are damaged, and a registry."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from support.apicurio_server import ApicurioServer
from support.database import Database
from support.waiting import wait_for
from walbus.capture import identify
from walbus.capture.doctor import Finding, Severity
from walbus.cli.doctor_examination import examined
from walbus.cli.kafka import open_log
from walbus.config import KafkaConfig, RelayConfig, SchemaRegistryConfig, Settings, SourceConfig
from walbus.demo.postgres import free_port

pytestmark = pytest.mark.one_version


@pytest.fixture
def settings(kafka: str, database: Database, tmp_path: Path) -> Callable[..., Settings]:
    topic = f"doctor-{secrets.token_hex(4)}"

    def made(servers: str = kafka, **relay: object) -> Settings:
        cluster = KafkaConfig(bootstrap_servers=tuple(servers.split(",")), topic=topic)
        listen = f"127.0.0.1:{free_port()}"
        return Settings(
            data_dir=tmp_path,
            source=SourceConfig(dsn=database.dsn),
            relay=RelayConfig(engine="kafka", kafka=cluster, listen=listen, **relay),  # type: ignore[arg-type]
        )

    return made


def findings(settings: Settings) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for one in examined(settings, None, fix=False, admin=None).findings:
        found.setdefault(one.code, []).append(one)
    return found


def worst(found: list[Finding]) -> Severity:
    return min((one.severity for one in found), key=list(Severity).index)


def test_a_cluster_is_looked_at_before_and_behind_the_first_start(
    settings: Callable[..., Settings], database: Database
):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = settings()
    before = findings(given)
    assert "1 broker " in before["kafka-cluster"][0].found
    assert all("is made at the start" in one.found for one in before["kafka-topics"])
    assert before["kafka-writer"][0].found == "nobody writes it"
    with closing(open_log(given, identify(given.source))):
        during = findings(given)
        assert during["kafka-writer"][0].found.startswith("walbus-")
    codes = {code for code in during if code.startswith("kafka-")}
    parts = ("cluster", "topics", "copies", "transactions", "writer", "hold", "clock", "topic-names")
    assert codes == {f"kafka-{part}" for part in parts}
    assert {worst(during[code]) for code in codes} == {Severity.OK}


def test_a_setting_that_was_changed_is_found_with_the_command_that_mends_it(
    settings: Callable[..., Settings], database: Database, kafka: str
):
    given = settings()
    open_log(given, identify(given.source)).close()
    entry = ConfigEntry("retention.ms", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, given.kafka_topic, incremental_configs=[entry])
    client = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    for done in client.incremental_alter_configs([resource]).values():
        done.result()

    def is_found() -> bool:
        found = [one for one in findings(given)["kafka-topics"] if one.severity is Severity.ERROR]
        return (
            bool(found) and f"--entity-name {given.kafka_topic} --add-config retention.ms=-1" in found[0].mends[0].text
        )

    wait_for(is_found, 60, what="the setting to be seen")


def test_what_is_away_is_named(settings: Callable[..., Settings], apicurio: ApicurioServer):
    nowhere = f"127.0.0.1:{free_port()}"
    found = findings(settings(nowhere, schema_registry=SchemaRegistryConfig(url=f"http://{nowhere}")))
    assert worst(found["kafka-cluster"]) is worst(found["schema-registry"]) is Severity.ERROR
    assert nowhere in found["kafka-cluster"][0].found and nowhere in found["schema-registry"][0].found
    there = findings(settings(schema_registry=SchemaRegistryConfig(url=apicurio.url)))
    assert worst(there["schema-registry"]) is Severity.OK
