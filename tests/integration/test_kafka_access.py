"""On a cluster with ACLs each process does its work with what docs/kafka-log.md lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from support.guarded_kafka import GuardedKafka
from support.kafka_access import ROLES, Doors, grants_of
from walbus.capture.doctor import Severity
from walbus.cli.doctor_kafka import elsewhere
from walbus.config import KafkaConfig, RelayConfig, Settings, SourceConfig
from walbus.errors import LogError

pytestmark = pytest.mark.one_version


@pytest.fixture
def doors(guarded: GuardedKafka, tmp_path: Path) -> Doors:
    return Doors(guarded, tmp_path)


@pytest.mark.parametrize("role", ROLES)
def test_a_process_does_its_work_with_what_the_page_lists(
    role: str, doors: Doors, guarded: GuardedKafka, tmp_path: Path
) -> None:
    names = doors.prepared(role)
    patient = Doors(guarded, tmp_path, answer_seconds=60.0)
    patient.run(role, names, doors.admitted(grants_of(role, names)))


def test_who_is_known_by_scram_is_let_in_and_who_gives_a_wrong_password_is_told_so(doors: Doors) -> None:
    names = doors.prepared("relay")
    options = doors.admitted(grants_of("relay", names), "SCRAM-SHA-256")
    doors.run("relay", names, options)
    with pytest.raises(LogError, match=r"Authentication failed.*see that relay\.kafka\.options say who this is"):
        doors.run("relay", names, {**options, "sasl.password": "wrong"})


def test_a_capture_that_may_not_see_what_is_held_goes_on_and_says_what_it_lacks(doors: Doors) -> None:
    names = doors.prepared("capture")
    lacking = [grant for grant in grants_of("capture", names) if grant.name != f"{names.log}.bootstrap"]
    with capture_logs() as said, pytest.raises(AssertionError):  # it has trimmed nothing
        doors.run("capture", names, doors.admitted(lacking))
    (warning,) = (one for one in said if one["event"] == "log_hold_unreadable")
    assert f"grant Describe on the group {names.log}.bootstrap" in warning["error"]


def test_doctor_looks_at_the_cluster_with_what_capture_was_granted(guarded: GuardedKafka, doors: Doors) -> None:
    names = doors.prepared("relay")
    options = {name: SecretStr(value) for name, value in doors.admitted(grants_of("capture", names)).items()}
    kafka = KafkaConfig(bootstrap_servers=(guarded.door,), topic=names.log, options=options)
    source = SourceConfig(dsn=SecretStr("host=127.0.0.1 port=1 dbname=none"))
    found = list(elsewhere(Settings(source=source, relay=RelayConfig(engine="kafka", kafka=kafka))))
    assert {one.code for one in found} >= {"kafka-cluster", "kafka-topics", "kafka-writer", "kafka-hold"}
    assert {one.severity for one in found if one.code != "kafka-topic-names"} == {Severity.OK}
