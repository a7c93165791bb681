"""A broker that lets each of its clients do what it was granted, and nothing else (StandardAuthorizer, SASL).

with guarded_kafka() as guarded:
    guarded.bootstrap                    where whoever asks is not asked who he is, and may do everything
    user = guarded.somebody([Grant("topic", "shop.", "Read", starts=True)])
    options = guarded.options(user)      of librdkafka, for `guarded.door`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from support.kafka_settings import give_settings
from support.maven_jars import JARS
from support.server_folder import server_folder
from support.waiting import wait_for
from walbus.demo.jars import check_java, fetched
from walbus.demo.kafka_server import JAVA, KAFKA, LEAST_JAVA, Cluster
from walbus.demo.postgres import free_port

_USERS = [f"u{number}" for number in range(100)]
_SECRET = "secret-of-"
_OPERATIONS = {
    "Alter": AclOperation.ALTER,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
}
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}


class Grant(NamedTuple):
    """An operation on a resource; `starts`: on all whose names start so."""

    kind: str
    name: str
    operation: str
    starts: bool = False

    def binding(self, user: str) -> AclBinding:
        pattern = ResourcePatternType.PREFIXED if self.starts else ResourcePatternType.LITERAL
        operation, principal = _OPERATIONS[self.operation], f"User:{user}"
        kind, allow = _KINDS[self.kind], AclPermissionType.ALLOW
        return AclBinding(kind, self.name, pattern, principal, "*", operation, allow)


class GuardedKafka:
    """See the module.

    Attributes:
        bootstrap: address that lets everybody do everything.
        door: address that asks who comes.
    """

    def __init__(self, bootstrap: str, door: str) -> None:
        self.bootstrap, self.door = bootstrap, door
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._users = iter(_USERS)

    def options(self, user: str, mechanism: str = "PLAIN") -> Mapping[str, str]:
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": _SECRET + user,
        }

    def somebody(self, grants: Iterable[Grant]) -> str:
        """Who has these, and nothing else."""
        user = next(self._users)
        bindings = {grant.binding(user) for grant in grants}
        for done in self.admin.create_acls(list(bindings)).values() if bindings else ():
            done.result()
        its = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{user}", None, AclOperation.ANY,
            AclPermissionType.ANY,
        )  # fmt: skip
        wait_for(lambda: set(self.admin.describe_acls(its).result()) == bindings, what="the broker knows its grants")
        return user

    def give_setting(self, topic: str, name: str, value: str) -> None:
        """Gives a topic a setting of its own."""
        give_settings(self.admin, topic, {name: value})

    def know_by_scram(self, user: str) -> None:
        """Has the user known by SCRAM-SHA-256 too."""
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        given = UserScramCredentialUpsertion(user, how, (_SECRET + user).encode())
        self.admin.alter_user_scram_credentials([given])[user].result()
        asked = {**self.options(user, "SCRAM-SHA-256"), "bootstrap.servers": self.door, "log_level": 0}

        def is_let_in() -> bool:
            return bool(AdminClient({**asked, "error_cb": lambda _: None}).list_topics(timeout=5).brokers)

        wait_for(is_let_in, what="the broker knows the user's secret", every=0.1)


@contextmanager
def guarded_kafka() -> Iterator[GuardedKafka]:
    """A cluster of one broker.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    check_java(LEAST_JAVA)
    door = f"127.0.0.1:{free_port()}"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    users = " ".join(f'user_{user}="{_SECRET}{user}"' for user in _USERS)
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DOOR:SASL_PLAINTEXT",
        "listener.name.door.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
        "listener.name.door.plain.sasl.jaas.config": f"{plain} {users};",
        "listener.name.door.scram-sha-256.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    with server_folder("kafka") as folder:
        cluster = Cluster(folder, fetched(KAFKA, JARS), JAVA, 1, settings)
        (broker,) = cluster.brokers
        _add_door(folder / "broker1" / "properties", door)
        try:
            broker.start()
            cluster.await_answer()
            yield GuardedKafka(cluster.bootstrap, door)
        finally:
            broker.kill()


def _add_door(properties: Path, door: str) -> None:
    """Another listener; of a setting that is there twice the last one counts."""
    lines = properties.read_text().splitlines()
    for name in ("listeners", "advertised.listeners"):
        (given,) = [line for line in lines if line.startswith(f"{name}=")]
        lines.append(f"{given},DOOR://{door}")
    properties.write_text("".join(f"{line}\n" for line in lines))
