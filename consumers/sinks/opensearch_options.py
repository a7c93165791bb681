"""The keys of `[consumer.NAME]` with `sink = "opensearch"` or `"elasticsearch"`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import structlog
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from walbus.consumers.sinks.base import SinkOptions, SinkPlace
from walbus.consumers.sinks.opensearch_documents import IndexTemplate, Mapped
from walbus.consumers.sinks.opensearch_server import Access
from walbus.consumers.sinks.opensearch_table_index import IndexChoice
from walbus.credentials import is_loopback
from walbus.errors import ConfigError

_log = structlog.get_logger(__name__)

_OURS = ("index.gc_deletes", "index.translog.durability")


class OpenSearchOptions(SinkOptions):
    """See the module."""

    url: SecretStr = SecretStr("http://127.0.0.1:9200")
    user: str | None = None
    password: SecretStr | None = None
    api_key: SecretStr | None = None  #: of Elasticsearch, as it gives it, instead of user and password
    ca_file: Path | None = None  #: PEM; whom to believe instead of the system's authorities
    index: str = "{table}"  #: the alias of each table's index
    state_index: str = "walbus-consumers"  #: has the checkpoints of all consumers
    commit_seconds: float = Field(0.2, gt=0, le=60)  #: how long a change may wait for others
    refresh: Literal["interval", "commit"] = "interval"  #: when what was written is found: by the index's settings
    settings: dict[str, Any] = Field(default_factory=dict)  #: of the indices that are made
    fields: dict[str, dict[str, Mapped]] = Field(default_factory=dict)  #: by table and column: its mapping
    routing: dict[str, str] = Field(default_factory=dict)  #: by table: a column of the key
    connections: int = Field(4, ge=1, le=16)  #: bulks at the same time
    request_seconds: float = Field(30, gt=0, le=600)
    tombstone_seconds: int = Field(3600, ge=60, validate_default=True)  #: how long a deleted document is remembered

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: SecretStr) -> SecretStr:
        try:
            address = httpx.URL(url.get_secret_value())
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in {"http", "https"} or not address.host:  # its text may hold the password
            raise ValueError("should be http://HOST:PORT or https://HOST:PORT")
        return url

    @field_validator("index")
    @classmethod
    def _is_template(cls, index: str) -> str:
        IndexTemplate(index)
        return index

    @field_validator("settings")
    @classmethod
    def _leaves_ours(cls, settings: dict[str, Any]) -> dict[str, Any]:
        flat = dict(_flat(settings))
        named = {name if name.startswith("index.") else f"index.{name}": value for name, value in flat.items()}
        for name in _OURS:
            if name in named:
                raise ValueError(f"{name} is the sink's own")
        return named

    @field_validator("tombstone_seconds")
    @classmethod
    def _outlives_requests(cls, seconds: int, told: ValidationInfo) -> int:
        if seconds < 2 * told.data.get("request_seconds", 0):
            raise ValueError("should be at least twice request_seconds: a deleted row must outlive every late write")
        return seconds

    def choice(self) -> IndexChoice:
        """How indices are made."""
        template = IndexTemplate(self.index)
        return IndexChoice(template, self.settings, self.fields, self.routing, self.tombstone_seconds, self.state_index)

    def access(self, place: SinkPlace) -> Access:
        """How the server is reached.

        Raises:
            ConfigError: the file of authorities is not there.
        """
        url = httpx.URL(self.url.get_secret_value())
        user = self.user or url.username
        password = self.password.get_secret_value() if self.password else url.password
        bare = str(url.copy_with(username=None, password=None)).rstrip("/")
        if (user or self.api_key) and url.scheme == "http" and not is_loopback(bare):
            _log.warning("the password travels in the clear", url=bare, mend="write https://, if the server speaks TLS")
        if self.ca_file is not None and not self.ca_file.is_file():
            where = f"{self.ca_file}, key consumer.{place.consumer}.ca_file"
            raise ConfigError("there is no such file", where=where, mend="name a PEM file of certificates")
        return Access(
            url=bare,
            login=(user, password) if user else None,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            ca_file=self.ca_file,
            seconds=self.request_seconds,
            connections=self.connections,
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
