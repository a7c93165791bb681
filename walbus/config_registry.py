"""The section of a schema registry in `walbus.toml`; a part of `walbus.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class SchemaRegistryConfig(BaseModel):
    """`[relay.schema_registry]`: one in the form of Confluent's, where the relay is not to be it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^\s@]+$")  #: with the path of its interface, if it has one
    user: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None  #: a bearer token, instead of user and password
    ca_file: Path | None = None  #: PEM; whom to believe about the registry's name, instead of the system's authorities
    tls_cert: Path | None = None  #: what to show to a registry that asks, with its key
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _one_kind_of_secret(self) -> Self:
        if self.token is not None and self.user is not None:
            raise ValueError("a registry is shown a token, or user and password: take one of them out")
        return self
