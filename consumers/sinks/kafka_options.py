"""The keys of `[consumer.NAME]` with `sink = "kafka"`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from walbus.config_registry import SchemaRegistryConfig
from walbus.consumers.sinks.base import SinkOptions
from walbus.errors import ConfigError
from walbus.topics.names import checked_prefix

#: Bytes that a batch takes beside a record's key, value and headers.
HEADROOM = 1024
_LEAST_MESSAGE = 16 << 10
_MOST_MESSAGE = 1 << 30


class KafkaOptions(SinkOptions):
    """See the module."""

    bootstrap_servers: str = Field(min_length=1)  #: `HOST:PORT,…` of brokers
    prefix: str = "walbus"  #: what names of topics begin with; as `relay.topic_prefix`, so that the relay's ids fit
    partitions: int = Field(6, ge=1, le=10_000)  #: of each table's topic that is made
    replication: int | None = Field(None, ge=1, le=100)  #: copies of each; None: as many as there are brokers, up to 3
    max_message_bytes: int = Field(1 << 20, ge=_LEAST_MESSAGE, le=_MOST_MESSAGE)  #: of a record, and of a batch
    transaction_seconds: float = Field(300, ge=10, le=86_400)  #: after which the cluster gives up one that goes on
    answer_seconds: float = Field(30, ge=1, le=600)  #: how long an answer of the cluster is waited for
    commit_seconds: float = Field(0.02, ge=0, le=60)  #: how long a change may wait for others
    format: Literal["rows", "debezium"] = "rows"  #: of the values
    database: str = Field(
        "", validate_default=True
    )  #: with `debezium`: what envelopes say that the source's database is called
    #: where schemas are registered; by default that of `[relay]`, and none where the relay is the registry
    schema_registry: SchemaRegistryConfig | None = None
    options: dict[str, SecretStr] = Field(default_factory=dict)  #: of librdkafka

    @field_validator("database")
    @classmethod
    def _is_told(cls, database: str, info: ValidationInfo) -> str:
        if (info.data.get("format") == "debezium") is not bool(database):
            raise ValueError('it is the database\'s name in envelopes: given with format = "debezium", and else not')
        return database

    @field_validator("prefix")
    @classmethod
    def _is_prefix(cls, prefix: str) -> str:
        try:
            return checked_prefix(prefix)
        except ConfigError as error:
            raise ValueError(f"{error.what}: {error.mend}") from None
