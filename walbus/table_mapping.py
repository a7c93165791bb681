"""`[consumer.NAME.table."public.orders"]`: what a consumer's sink gets of a table instead of its rows as they are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

Constant = StrictBool | StrictInt | StrictFloat | StrictStr
FieldType = Literal[
    "bool", "bytea", "date", "float8", "int4", "int8", "json", "jsonb", "numeric", "text", "timestamp", "timestamptz",
    "uuid",
]  # fmt: skip


class TableMapping(BaseModel):
    """What is made of one table's rows; all names but those in `columns` and of `rename` are the new ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = ()  #: those that the sink gets, in this order; default: all
    rename: dict[str, str] = Field(default_factory=dict)  #: new names of columns
    constants: dict[str, Constant] = Field(default_factory=dict)  #: columns that have the same value in every row
    id: tuple[str, ...] = ()  #: columns that identify a row, in this order: the table's key, and constants
    function: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")  #: `module:function` for the rest
    fields: dict[str, FieldType] = Field(default_factory=dict)  #: types of the columns that the function adds

    @model_validator(mode="after")
    def _fields_need_a_function(self) -> TableMapping:
        if self.fields and self.function is None:
            raise ValueError("fields are columns that a function sets, and there is no function")
        if self.columns and (unknown := [name for name in self.rename if name not in self.columns]):
            raise ValueError(f"rename names {unknown[0]!r}, which is not among columns")
        return self
