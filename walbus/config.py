"""The configuration: one TOML file, overridden by the environment, checked before anything starts.

`WALBUS_SOURCE__DSN` overrides `dsn` of `[source]`. An unknown key is an error, never ignored. Secrets are
`SecretStr`: they print as stars wherever they go.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from walbus.errors import ConfigError

_STRICT = ConfigDict(extra="forbid", frozen=True)
_NAME = r"^[a-z0-9_]{1,63}$"


class SourceConfig(BaseModel):
    """`[source]`: the database."""

    model_config = _STRICT

    dsn: SecretStr
    slot: str = Field("walbus", pattern=_NAME)
    publication: str = Field("walbus", pattern=_NAME)
    tables: tuple[str, ...] = ("public.*",)  #: `schema.table` or `schema.*`


class RelayConfig(BaseModel):
    """`[relay]`: the log and its server."""

    model_config = _STRICT

    engine: Literal["file"] = "file"
    dir: Path | None = None  #: default: `relay` in `data_dir`
    listen: str = "127.0.0.1:7070"
    insecure: bool = False  #: allows an address that is not loopback without token and TLS
    segment_bytes: int = Field(64 << 20, ge=64 << 10)
    retention_hours: float = Field(168.0, gt=0)
    retention_bytes: int | None = Field(None, ge=64 << 10)  #: default: by age alone


class BootstrapConfig(BaseModel):
    """`[bootstrap]`: the latest row of every key."""

    model_config = _STRICT

    dir: Path | None = None  #: default: `bootstrap` in `data_dir`
    listen: str = "127.0.0.1:7071"
    insecure: bool = False
    workers: int = Field(2, ge=1, le=64)
    chunk_rows: int = Field(20_000, ge=1)  #: rows aimed at in a seeding chunk
    max_rows_per_second: float | None = Field(None, gt=0)  #: throttle of seeding, all workers together


class ConsumerConfig(BaseModel):
    """`[consumer.NAME]`: one consumer; keys beyond these are the sink's own, and checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    sink: str
    tables: tuple[str, ...] = ("*.*",)
    start: Literal["snapshot", "earliest", "latest"] = "snapshot"  #: where a consumer without checkpoint begins

    @property
    def options(self) -> dict[str, Any]:
        """The sink's own keys."""
        return dict(self.model_extra or {})


class Settings(BaseSettings):
    """All of `walbus.toml`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="WALBUS_", env_nested_delimiter="__"
    )

    data_dir: Path = Path("walbus-data")
    source: SourceConfig
    relay: RelayConfig = RelayConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    consumer: dict[str, ConsumerConfig] = Field(default_factory=dict)

    @property
    def relay_dir(self) -> Path:
        """Folder of the log."""
        return self.relay.dir or self.data_dir / "relay"

    @property
    def bootstrap_dir(self) -> Path:
        """Folder of the bootstrap store."""
        return self.bootstrap.dir or self.data_dir / "bootstrap"

    @property
    def status_dir(self) -> Path:
        """Folder of the status files: `capture.json`, `bootstrap.json`, `consumer-NAME.json`."""
        return self.data_dir / "status"

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


def load_settings(path: Path) -> Settings:
    """Reads and checks the file and the environment.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown, missing or wrong; names the key.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", mend="name the file with -c FILE") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    try:
        return Settings(**document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(first["msg"], where=f"{path}, key {key}") from None


__all__ = [
    "BootstrapConfig",
    "ConsumerConfig",
    "RelayConfig",
    "Settings",
    "SourceConfig",
    "load_settings",
]
