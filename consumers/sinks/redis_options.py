"""The keys of `[consumer.NAME]` with `sink = "redis"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, SecretStr, field_validator, model_validator
from redis.connection import parse_url

from walbus.consumers.sinks.base import SinkOptions, SinkPlace
from walbus.consumers.sinks.redis_keys import RowKeys, TableKeyTemplate, require_not_own
from walbus.consumers.sinks.redis_rows import Form, KeyTemplate, ValueTemplate
from walbus.consumers.tables import matching
from walbus.errors import ConfigError

Invalidation: TypeAlias = Literal["delete", "publish", "both"]


class RedisOptions(SinkOptions):
    """See the module."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    key: str = "{table}:{key}"  #: where a row lies
    keys: dict[str, str] = Field(default_factory=dict)  #: by table, where its rows lie instead
    format: Form = "hash"
    values: dict[str, str] = Field(default_factory=dict)  #: by table, the text of a row (`format = "string"`)
    ttl: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)  #: by table, seconds that a row stays
    invalidate: Invalidation | None = None  #: instead of rows: what is done with the keys that changed
    channel: str | None = None  #: where changed keys are published; walbus:NAME:changed without it
    pointer: str | None = None  #: the key that names the prefix of the rows, for `walbus rebuild`
    tombstone_seconds: int = Field(3600, ge=60)  #: how long a deleted row is remembered against late writers

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: SecretStr) -> SecretStr:
        try:
            parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]  # redis-py has no types there
        except ValueError:  # its text may quote a part of the password
            raise ValueError(
                "should be redis://USER:PASSWORD@HOST:PORT/DB (or rediss://, unix://), with the password's other signs "
                "than letters and digits written as %XX"
            ) from None
        return url

    @field_validator("key")
    @classmethod
    def _is_template(cls, key: str) -> str:
        KeyTemplate(key)
        require_not_own(key)
        return key

    @field_validator("keys")
    @classmethod
    def _are_key_templates(cls, keys: dict[str, str]) -> dict[str, str]:
        for template in keys.values():
            TableKeyTemplate(template)
        return keys

    @field_validator("values")
    @classmethod
    def _are_templates(cls, values: dict[str, str]) -> dict[str, str]:
        for template in values.values():
            ValueTemplate(template)
        return values

    @field_validator("pointer")
    @classmethod
    def _is_a_key_of_its_own(cls, pointer: str | None) -> str | None:
        if pointer is not None and (not pointer or pointer.startswith("walbus:")):
            raise ValueError("a pointer is a key of your own, such as orders:live; those at walbus: are the sinks'")
        return pointer

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.invalidate is not None and (self.format != "hash" or self.values or self.ttl or self.pointer):
            raise ValueError("with invalidate no rows are written: leave out format, values, ttl and pointer")
        if (self.format == "string") != bool(self.values):
            raise ValueError('values are the texts of rows with format = "string", which needs them')
        if self.channel is not None and self.invalidate not in ("publish", "both"):
            raise ValueError('a channel is for invalidate = "publish" or "both"')
        return self

    @classmethod
    def read(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """The options, checked.

        Raises:
            ConfigError: names the key.
        """
        read = super().read(options, place)
        for option, tables in (("keys", read.keys), ("values", read.values), ("ttl", read.ttl)):
            for table in tables:
                if "*" in table or "." not in table or not matching([table], place.tables):
                    where = f'key consumer.{place.consumer}.{option}."{table}"'
                    what = "this is none of the consumer's tables"
                    raise ConfigError(what, where=where, mend="write schema.table, of a table that is among its tables")
        keys, where = read._keys_apart(place), f"key consumer.{place.consumer}"
        named = [] if read.pointer is None else matching(keys.tables_of(read.pointer), place.tables)
        if named:
            what = f"a row of {named[0]} may lie under this key"
            raise ConfigError(what, where=f"{where}.pointer", mend="name another one")
        return read

    def _keys_apart(self, place: SinkPlace) -> RowKeys:
        where = f"key consumer.{place.consumer}.keys"
        mend = "let the keys of each table begin with something that those of no other begin with"
        try:
            keys = RowKeys(self.key, self.keys)
        except ValueError as error:
            raise ConfigError(str(error), where=where, mend=mend) from None
        named = [table for table in place.tables if "*" not in table]
        for table in self.keys:
            other = keys.alike(table, named)
            if other is not None:
                what = f"keys of this table and of {other} begin and end alike, and could be one key"
                raise ConfigError(what, where=f'{where}."{table}"', mend=mend)
        return keys
