"""What the doctor says of a cluster and a registry, on facts alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from walbus.capture.doctor import Finding, Severity
from walbus.cli.doctor_kafka_rules import KafkaFacts, kafka_findings, registry_findings
from walbus.errors import ConfigError, LogError, LogUnreachable, SinkRefused
from walbus.relay.kafka.held_offset import Held
from walbus.relay.kafka.topics import TopicState, rules

ERROR, WARNING, OK = Severity.ERROR, Severity.WARNING, Severity.OK
PAGE = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
NAMES = ("log", "log.large", "log.meta")


def topic(name: str, replicas: int = 3, **changes: object) -> TopicState:
    made = rules(compacted=name == NAMES[-1], replicas=replicas, largest=1 << 20)
    healthy = TopicState(name, 1, replicas, replicas, {rule.name: rule.value for rule in made})
    return healthy._replace(**changes)  # type: ignore[arg-type]


HEALTHY = KafkaFacts("k1:9092,k2:9092", 3, NAMES, tuple(map(topic, NAMES)), ("walbus-a-1-2 at a",), 60.0, 900.0, -0.1)


def with_log(**changes: object) -> KafkaFacts:
    return replace(HEALTHY, topics=(topic("log", **changes), *HEALTHY.topics[1:]))  # type: ignore[arg-type]


def setting(name: str, value: str) -> KafkaFacts:
    return with_log(settings={**topic("log").settings, name: value})


def told(facts: KafkaFacts) -> list[Finding]:
    return [finding for finding in kafka_findings(facts) if finding.severity is not OK]


@pytest.mark.parametrize(
    "facts",
    [HEALTHY, replace(HEALTHY, topics=(), writers=(), ahead=None), replace(HEALTHY, most_seconds=None),
     replace(HEALTHY, hold=Held(7, "1:0/10:2"), holders=("walbus-b-1-2 at b",)),
     replace(HEALTHY, brokers=1, topics=tuple(topic(name, 1) for name in NAMES))],
)  # fmt: skip
def test_a_healthy_cluster_has_nothing_but_ok(facts: KafkaFacts) -> None:
    assert told(facts) == []
    assert all(finding.found for finding in kafka_findings(facts))


@pytest.mark.parametrize(
    ("facts", "code", "severity", "said", "mend"),
    [
        (setting("retention.ms", "604800000"), "kafka-topics", ERROR, "relay.retention_hours", "retention.ms=-1"),
        (setting("cleanup.policy", "compact"), "kafka-topics", ERROR, "drop changes", "--entity-name log "),
        (setting("min.insync.replicas", "1"), "kafka-topics", ERROR, "2 of its 3 brokers", "min.insync.replicas=2"),
        (setting("max.message.bytes", "1000"), "kafka-topics", ERROR, "blocks", "max.message.bytes="),
        (with_log(partitions=3), "kafka-topics", ERROR, "3 partitions", "relay.kafka.topic"),
        (with_log(in_sync=1), "kafka-copies", ERROR, "1 of 3 copies", "start"),
        (with_log(in_sync=2), "kafka-copies", WARNING, "2 of 3 copies", "start"),
        (with_log(replicas=1), "kafka-copies", WARNING, "1 of 3 brokers", "add copies"),
        (replace(HEALTHY, most_seconds=30.0), "kafka-transactions", ERROR, "30 s", "transaction_seconds = 30"),
        (
            replace(HEALTHY, hold=Held(7, "1:0/10:2"), group="log.bootstrap"),
            "kafka-hold", WARNING, "behind 1:0/10:2 is held for a bootstrap that does not run", "gone for good",
        ),
        (
            replace(HEALTHY, hold=LogError("it is not told", where="k1:9092", mend="grant it")),
            "kafka-hold", ERROR, "not told", "grant it",
        ),
        (replace(HEALTHY, ahead=4.0), "kafka-clock", WARNING, "ahead", "NTP"),
        (
            replace(HEALTHY, taken=ConfigError("the topic of table a.b would be log", mend="give another")),
            "kafka-topic-names", ERROR, "a.b", "give",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_finding_with_its_mend(
    facts: KafkaFacts, code: str, severity: Severity, said: str, mend: str
) -> None:
    (found,) = told(facts)
    assert (found.code, found.severity) == (code, severity)
    assert said in found.found and mend in found.mends[0].text


def test_who_holds_the_log_is_said_and_how_to_let_go_of_it() -> None:
    held = replace(HEALTHY, hold=Held(7, "1:0/10:2"), group="log.bootstrap")
    (by,) = (one for one in kafka_findings(replace(held, holders=("walbus-b-1-2 at b",))) if one.code == "kafka-hold")
    assert by.found == "walbus-b-1-2 at b holds what comes behind 1:0/10:2"
    (nobody,) = told(held)
    assert nobody.mends[1].text.endswith("--bootstrap-server k1:9092,k2:9092 --delete --group log.bootstrap")


def test_a_cluster_and_a_registry_that_cannot_be_asked_are_errors() -> None:
    (cluster,) = kafka_findings(LogUnreachable("it does not answer", where="k1:9092", mend="see that it runs"))
    (registry,) = registry_findings(
        "http://r", SinkRefused("it lets nobody in (401)", where="http://r", mend="set token")
    )
    assert [(one.code, one.severity) for one in (cluster, registry)] == [
        ("kafka-cluster", ERROR),
        ("schema-registry", ERROR),
    ]
    assert "k1:9092" in cluster.found and registry.mends[0].text == "set token"
    assert [one.severity for one in registry_findings("http://r", None)] == [OK]


def test_the_page_says_the_severities_that_these_rules_give() -> None:
    section = PAGE.split("### Kafka")[1].split("###")[0]
    written = {
        code: set(given.split(", ")) for code, given in re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", section, re.M)
    }
    assert written["kafka-copies"] == {"error", "warning", "ok"}
    assert written["kafka-hold"] == {"error", "warning", "ok"}
    assert written["kafka-clock"] == {"warning", "ok"}
    assert {code for code in written if written[code] == {"error", "ok"}} == {
        "kafka-cluster", "kafka-topics", "kafka-transactions", "kafka-topic-names", "schema-registry",
    }  # fmt: skip
