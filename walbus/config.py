"""The configuration: one TOML file, overridden by the environment, checked before anything starts.

`WALBUS_SOURCE__DSN` overrides `dsn` of `[source]`, two underscores for each step down. An unknown key is an error in
either place, never ignored; so is a variable whose name has two underscores and names no key. Variables of one word
(`WALBUS_DEBUG`, and those that container platforms make for a service called walbus) are not configuration and are
left alone. An empty variable counts as not set. Lists are written `a,b` or as JSON.

Every problem is found in one go: `InvalidConfig.problems` has one error a key, each with the value (never a secret's)
and a mend. Secrets are `SecretStr`: they print as stars wherever they go. `docs/configuration.md` lists every key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from walbus.compatibility import Level
from walbus.config_bootstrap import check_bootstrap
from walbus.config_consumers import check_reading, with_registry
from walbus.config_problems import InvalidConfig, problems_of, stray_variables
from walbus.config_registry import SchemaRegistryConfig
from walbus.errors import ConfigError
from walbus.table_mapping import TableMapping

_STRICT = ConfigDict(extra="forbid", frozen=True)
_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z._-]*[0-9A-Za-z.])?\Z|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\Z")
_NAME = r"^[a-z0-9_]{1,63}$"


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host stands in brackets, `[::1]:7070`.

    Raises:
        ValueError: the text has another form, or the port is not 0 to 65535.
    """
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("should be HOST:PORT, as in 127.0.0.1:7070")
    return host, int(port)


def _checked_host(host: str) -> str:
    if not _HOST.match(host):
        raise ValueError("should be a host's name or address without a port, as in cdc.example.com")
    return host


def _checked_listen(listen: str) -> str:
    parse_listen(listen)
    return listen


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("should be a URL, as in http://127.0.0.1:7070")
    return url.rstrip("/")


def _listed(value: object) -> object:
    """A list from the environment arrives as one string."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip("[]").replace('"', "").split(",") if part.strip()]


def checked_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns:
        raise ValueError("should name at least one table")
    for pattern in patterns:
        namespace, dot, name = pattern.partition(".")
        if not (dot and namespace and name) or any("*" in part and part != "*" for part in (namespace, name)):
            raise ValueError(f"{pattern!r} should be schema.table or schema.*")
        if namespace == "*" and name != "*":
            raise ValueError(f"{pattern!r} should name its schema")
    return patterns


def _checked_or_none(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return checked_patterns(patterns) if patterns else patterns


def _checked_source_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in checked_patterns(patterns):
        if pattern.startswith("*"):
            raise ValueError(f"{pattern!r} should name its schema, as in public.*")
    return patterns


Listen = Annotated[str, AfterValidator(_checked_listen)]
Url = Annotated[str, AfterValidator(_checked_url)]
Urls = Annotated[tuple[Annotated[str, AfterValidator(_checked_url)], ...], NoDecode, BeforeValidator(_listed)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_checked_host)], ...], NoDecode, BeforeValidator(_listed)]
RelayName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
TopicPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Patterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(checked_patterns)]
AnyPatterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_checked_or_none)]
SourcePatterns = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_checked_source_patterns)
]
ConsumerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class SourceConfig(BaseModel):
    """`[source]`: the database."""

    model_config = _STRICT

    dsn: SecretStr  #: not required beside `relay.upstream`, and empty then
    slot: str = Field("walbus", pattern=_NAME)
    publication: str = Field("walbus", pattern=_NAME)
    tables: SourcePatterns = ("public.*",)  #: `schema.table` or `schema.*`
    streaming: bool = True  #: take in-progress transactions as they run, into a spool, instead of at their commit
    two_phase: bool = False  #: take prepared transactions at PREPARE (15 and newer; a slot cannot be turned back)
    failover: bool = True  #: from PostgreSQL 17 on, a new slot is copied to standbys that synchronize slots
    catch_up: bool = True  #: read a large backlog in steps, faster than the walsender sends it
    catch_up_step_bytes: int = Field(128 << 20, ge=1 << 20)  #: WAL of the first step; steps grow

    @property
    def known(self) -> bool:
        """Whether there is a database to reach; a relay that copies another one's log needs none."""
        return bool(self.dsn.get_secret_value())


class ServerConfig(BaseModel):
    """What `[relay]` and `[bootstrap]` say about their HTTP servers alike."""

    model_config = _STRICT

    listen: Listen
    url: Url | None = None  #: where the others reach it; default: http or https, and `listen`
    insecure: bool = False  #: allows an address that is not loopback without tokens and TLS
    tokens_file: Path | None = None  #: who may read what; without it everybody who reaches the address may
    tls_cert: Path | None = None  #: PEM, the server's own certificate first
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  #: PEM; clients must show a certificate of one of these
    allowed_hosts: Hosts = ()  #: without tokens: names in a request's Host that are answered, beside the loopback's
    max_connections: int = Field(4096, ge=1)
    max_connections_per_address: int = Field(2048, ge=1)

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @property
    def own_url(self) -> str:
        """Where to reach the server from this machine."""
        return self.url or local_url(self.listen, scheme="http" if self.tls_cert is None else "https")


class KafkaConfig(BaseModel):
    """`[relay.kafka]`: where the log lives with `engine = "kafka"`."""

    model_config = _STRICT

    #: `HOST:PORT` of brokers; the others are learned from them
    bootstrap_servers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    #: of the log; default: `walbus.` and the slot
    topic: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,200}$")
    replication_factor: int | None = Field(None, ge=1)  #: of topics that are made; default: 3, or all brokers
    max_message_bytes: int = Field(1 << 20, ge=64 << 10)  #: of topics that are made
    transaction_seconds: float = Field(60.0, ge=10.0, le=900.0)  #: after which an abandoned transaction is aborted
    options: dict[str, SecretStr] = Field(default_factory=dict)  #: of librdkafka, as `"security.protocol" = "SASL_SSL"`


class RelayConfig(ServerConfig):
    """`[relay]`: the log and its server."""

    engine: Literal["file", "kafka"] = "file"
    kafka: KafkaConfig = KafkaConfig()
    dir: Path | None = None  #: default: `relay` in `data_dir`
    listen: Listen = "127.0.0.1:7070"
    segment_bytes: int = Field(64 << 20, ge=64 << 10)
    retention_hours: float = Field(168.0, gt=0)
    retention_bytes: int | None = Field(None, ge=64 << 10)  #: default: by age alone
    forget_consumers_hours: float = Field(720.0, gt=0)  #: a consumer that was not seen for so long is known no longer
    compression: Literal["none", "zstd"] = "none"  #: of records that are written from now on
    compression_level: int = Field(3, ge=1, le=19)
    upstream: Urls = ()  #: relays to copy the log from, instead of capture's writing it; tried in this order
    topic_prefix: TopicPrefix = "walbus"  #: what names of table topics, and so subjects of schemas, begin with
    schema_registry: SchemaRegistryConfig | None = None  #: default: the relay is the registry of its table topics
    schema_compatibility: Level = "NONE"  #: what the relay's schema registry checks by where it is asked
    name: RelayName = "relay"  #: what this relay is called by those that it copies from
    required_standbys: Annotated[tuple[RelayName, ...], NoDecode, BeforeValidator(_listed)] = ()  #: their `name`s

    @model_validator(mode="after")
    def _kafka_is_whole(self) -> Self:
        if self.engine != "kafka":
            return self
        if not self.kafka.bootstrap_servers:
            raise ValueError('engine = "kafka" needs bootstrap_servers in the section relay.kafka')
        if self.upstream:
            raise ValueError('engine = "kafka" reads the log from the cluster: take upstream out')
        if self.required_standbys:
            raise ValueError('engine = "kafka" has its copies on the brokers: take required_standbys out')
        return self


class BootstrapConfig(ServerConfig):
    """`[bootstrap]`: the latest row of every key."""

    enabled: bool = True  #: whether `walbus run` starts it, and the relay sends late consumers to it
    dir: Path | None = None  #: default: `bootstrap` in `data_dir`
    listen: Listen = "127.0.0.1:7071"
    read_from: Literal["relay", "kafka"] = "relay"  #: `kafka`: the cluster of `[relay.kafka]`, instead of `relay.dir`
    workers: int = Field(2, ge=1, le=64)
    chunk_seconds: float = Field(1.0, gt=0, le=60)  #: how long a seeding chunk's transaction is to last
    chunk_rows: int = Field(1_000_000, ge=1)  #: rows that it has at most
    max_rows_per_second: float | None = Field(None, gt=0)  #: throttle of seeding, all workers together
    #: no chunk begins while more sessions of others than this run a statement at the source; default: no limit
    max_active_sessions: int | None = Field(None, ge=0)
    tombstone_hours: float = Field(168.0, gt=0, le=87_600)  #: for how long what was deleted can be told in a delta
    tombstone_limit: int = Field(10_000_000, ge=0)  #: how many tombstones are kept at most, over all tables
    complete: AnyPatterns = ()  #: tables of which changes can be had with the whole row before and behind them


class ConsumerConfig(BaseModel):
    """`[consumer.NAME]`: one consumer; keys beyond these are the sink's own, and checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    sink: str
    tables: Patterns = ("*.*",)
    start: Literal["snapshot", "earliest", "latest"] = "snapshot"  #: where a consumer without checkpoint begins
    partition: str | None = None  #: `i/n`: of n parts of all keys the part i, from 0; each is a consumer of its own
    parts: int | None = Field(None, ge=1, le=1024)  #: members of a group share n parts of all keys, by leases
    lease_seconds: float = Field(15.0, ge=3.0, le=60.0)  #: with parts: those of a member that is gone wait so long
    on_error: Literal["stop", "skip", "dead-letter"] = "stop"  #: what becomes of a row that the sink refuses
    on_error_attempts: int = Field(3, ge=1)  #: how often it is tried before it is skipped or parked
    delta_above: int = Field(100_000, ge=0)  #: changes behind from which a delta is weighed against the log; 0: never
    relay: Urls = ()  #: relays to read from, whichever answers; default: that of `[relay]`
    read_from: Literal["relay", "kafka"] = "relay"  #: `kafka`: the cluster of `[relay.kafka]`, without a relay
    rows_from: Literal["bootstrap", "topics"] = "bootstrap"  #: `topics`: those of `relay.topic_prefix` on that cluster
    relay_token: SecretStr | None = None  #: what it shows to the servers; default: the token of `[client]`
    table: dict[str, TableMapping] = Field(default_factory=dict)  #: what the sink gets of tables, by `schema.table`

    @property
    def options(self) -> dict[str, Any]:
        """The sink's own keys."""
        return dict(self.model_extra or {})


class ClientConfig(BaseModel):
    """`[client]`: how consumers and commands reach the relay and the bootstrap server."""

    model_config = _STRICT

    token: SecretStr | None = None  #: as `walbus token new` printed it
    ca_file: Path | None = None  #: PEM; whom to believe about a server's name, instead of the system's authorities
    tls_cert: Path | None = None  #: what to show to a server that asks (`tls_client_ca`), with its key
    tls_key: Path | None = None


class LogConfig(BaseModel):
    """`[log]`: what the processes say about themselves (not the relay's log of changes)."""

    model_config = _STRICT

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "logfmt", "json"] = "auto"  #: auto: human on a terminal, logfmt elsewhere


class Settings(BaseSettings):
    """All of `walbus.toml`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="WALBUS_", env_nested_delimiter="__", env_ignore_empty=True
    )

    data_dir: Path = Path("walbus-data")
    source: SourceConfig
    relay: RelayConfig = RelayConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    client: ClientConfig = ClientConfig()
    consumer: dict[ConsumerName, ConsumerConfig] = Field(default_factory=dict)
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_copy_needs_no_source(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was given
        relay, source = values.get("relay"), values.get("source", {})
        if isinstance(relay, Mapping) and relay.get("upstream") and isinstance(source, Mapping):
            return {**values, "source": {"dsn": "", **source}}
        return values

    @model_validator(mode="after")
    def _readers_fit_the_log(self) -> Self:
        check_bootstrap(self.bootstrap, self.relay)
        for name, consumer in self.consumer.items():
            check_reading(name, consumer, self.relay)
            self.consumer[name] = with_registry(consumer, self.relay)
        return self

    @property
    def kafka_topic(self) -> str:
        """Topic of the log."""
        return self.relay.kafka.topic or f"walbus.{self.source.slot}"

    @property
    def relay_dir(self) -> Path:
        """Folder of the log."""
        return self.relay.dir or self.data_dir / "relay"

    @property
    def bootstrap_dir(self) -> Path:
        """Folder of the bootstrap store."""
        return self.bootstrap.dir or self.data_dir / "bootstrap"

    @property
    def requests_dir(self) -> Path:
        """Folder where `walbus snapshot` asks the bootstrap for tables."""
        return self.data_dir / "requests"

    @property
    def verify_dir(self) -> Path:
        """Folder where `walbus verify` asks the bootstrap for comparisons."""
        return self.data_dir / "verify"

    @property
    def spool_dir(self) -> Path:
        """Folder of capture's spool: transactions that have not committed yet."""
        return self.data_dir / "spool"

    @property
    def status_dir(self) -> Path:
        """Folder of the status files: `capture.json`, `bootstrap.json`, `consumer-NAME.json`."""
        return self.data_dir / "status"

    @property
    def holds_dir(self) -> Path:
        """Folder of the retention holds, which the log's writer reads."""
        return self.relay_dir / "holds"

    @property
    def differences_dir(self) -> Path:
        """Folder of the net differences that the bootstrap hands to capture."""
        return self.relay_dir / "differences"

    @property
    def relay_url(self) -> str:
        """Where to reach the relay from here."""
        return self.relay.own_url

    @property
    def bootstrap_url(self) -> str | None:
        """Where to reach the bootstrap server from here; None when it is switched off."""
        if not self.bootstrap.enabled:
            return None
        return self.bootstrap.own_url

    def consumer_dir(self, name: str) -> Path:
        """Folder for a consumer's own files (checkpoint, default place of embedded sinks)."""
        return self.data_dir / "consumers" / name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file (whose content arrives as init settings)."""
        return env_settings, init_settings


def local_url(listen: str, *, scheme: str = "http") -> str:
    """The URL that reaches a server on this machine: one that listens on all addresses answers on loopback."""
    host, port = parse_listen(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def load_settings(path: Path | None) -> Settings:
    """Reads and checks the file and the environment; without a file, the environment alone.

    Raises:
        InvalidConfig: keys are unknown, missing or wrong; names each.
        ConfigError: the file is missing or not TOML.
    """
    document = {} if path is None else _read_toml(path)
    strays = stray_variables(os.environ, Settings)
    try:
        settings = Settings(**document)
    except ValidationError as error:
        raise InvalidConfig([*strays, *problems_of(error, Settings, path, os.environ)]) from None
    except SettingsError as error:
        raise ConfigError(f"a variable does not parse: {error}", mend="write lists as a,b") from None
    if strays:
        raise InvalidConfig(strays)
    return settings


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        what = f"cannot read the configuration: {error.strerror}"
        raise ConfigError(what, where=str(path), mend="name the file with -c FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", where=str(path), mend="mend the line that it names") from None


__all__ = [
    "BootstrapConfig",
    "ClientConfig",
    "ConsumerConfig",
    "KafkaConfig",
    "LogConfig",
    "RelayConfig",
    "SchemaRegistryConfig",
    "ServerConfig",
    "Settings",
    "SourceConfig",
    "load_settings",
    "local_url",
    "parse_listen",
]
