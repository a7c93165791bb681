"""Rows as objects of a class: dataclasses and msgspec structs, filled by column name. No I/O.

    @dataclass
    class Order:
        id: int
        total: Decimal
        placed_at: datetime
        note: str | None | msgspec.UnsetType = msgspec.UNSET

A field takes the column of its name (a struct's `rename` counts); columns without a field are left out. A field with
a default may lack its column. A column that is there and was not sent is another matter: its value is not known, so
that only a field whose default is `msgspec.UNSET` may go without it. Columns of `json` and `jsonb` are parsed for
fields that are no `str`, an `interval` becomes a `timedelta`, and `inet` a class of `ipaddress`, where the field says
so.

What does not fit is an error with table and column, never with a value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import NODEFAULT, inspect

from walbus.errors import RowMismatch, UsageError
from walbus.events import Change, Window
from walbus.records import Op
from walbus.relay.table_filter import pattern_matches, split_pattern
from walbus.schema import TableSchema
from walbus.values.types import JSON, JSONB

#: One class for all tables, or one for each, by pattern; the first that matches counts.
Into: TypeAlias = type | Mapping[str, type]

_INTERVAL = 1186
_NEW_ROWS = (Op.INSERT, Op.UPDATE)
_OLD_ROWS = (Op.UPDATE, Op.DELETE)
_PATH = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
_ADDRESSES = (
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
    ipaddress.IPv4Interface, ipaddress.IPv6Interface,
)  # fmt: skip
_DAYS = re.compile(r"([+-]?\d+) days?(?: |\Z)")
_TIME = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?\Z")

_Parse: TypeAlias = Callable[[str], Any]


class _Field(NamedTuple):
    """One field of a class.

    Attributes:
        column: that it takes.
        required: whether it has no default.
        may_lack: whether its default says that nothing is known.
        type: as msgspec has it.
    """

    column: str
    required: bool
    may_lack: bool
    type: inspect.Type


class TypedRows:
    """Makes rows of classes.

    Raises:
        UsageError: one of them is neither a dataclass nor a msgspec struct.
    """

    def __init__(self, into: Into) -> None:
        chosen = into if isinstance(into, Mapping) else {"*.*": into}
        self._classes = [(split_pattern(pattern), class_, _fields_of(class_)) for pattern, class_ in chosen.items()]
        self._layouts: dict[int, _Layout] = {}

    def typed(self, change: Change) -> Change:
        """The change with its rows as objects, which are made when they are looked at."""
        return TypedChange(change.raw, change.schema, change.position, change.seq, self)

    def row(self, change: Change, row: Mapping[str, Any] | None, unsent: frozenset[str]) -> object | None:
        """One row of a change, of which some columns were not sent.

        Raises:
            RowMismatch: it does not fit the class; says table and column.
            UsageError: there is no class for the table.
        """
        if row is None or change.schema is None:
            return None
        layout = self._layouts.get(change.schema.id)
        if layout is None or layout.schema is not change.schema:
            layout = self._layouts[change.schema.id] = self._layout(change.schema)
        return layout.row(row, unsent)

    def _layout(self, schema: TableSchema) -> _Layout:
        for pattern, class_, fields in self._classes:
            if pattern_matches(pattern, schema.namespace, schema.name):
                return _Layout(schema, class_, fields)
        mend = "name the table, or a pattern for it, in into"
        raise UsageError("there is no class for this table's rows", where=schema.table, mend=mend)


@dataclass(frozen=True)
class TypedChange(Change):
    """A change whose rows are also objects."""

    _rows: TypedRows

    @cached_property
    def row(self) -> Any:  # noqa: ANN401  # of the class that was given
        """The new row; None where there is none (a delete, a truncate)."""
        if self.raw.op not in _NEW_ROWS:
            return None
        return self._rows.row(self, self.after, self.unchanged | self.left_out)

    @cached_property
    def old_row(self) -> Any:  # noqa: ANN401
        """The old row, where it came: with REPLICA IDENTITY FULL, or `complete=True`."""
        if self.raw.op not in _OLD_ROWS:
            return None
        return self._rows.row(self, self.before, self.left_out)


def typed_window(window: Window, rows: TypedRows) -> Window:
    """A window whose changes have rows as objects."""
    return replace(window, changes=[rows.typed(change) for change in window.changes])


class _Layout:
    """Rows of one layout as objects of one class."""

    def __init__(self, schema: TableSchema, class_: type, fields: tuple[_Field, ...]) -> None:
        self.schema = schema
        self._class = class_
        types = {column.name: column.type_oid for column in schema.columns}
        self._fields = [field for field in fields if field.column in types]
        self._missing = next((field.column for field in fields if field.required and field.column not in types), None)
        parsers = ((field.column, _parser_of(types[field.column], field.type)) for field in self._fields)
        self._parsers = {column: parse for column, parse in parsers if parse is not None}

    def row(self, row: Mapping[str, Any], unsent: frozenset[str]) -> object:
        if self._missing is not None:
            mend = f"give the field of {self._class.__name__} a default, or rename it to a column that is there"
            raise RowMismatch("the table has no such column", where=self._at(self._missing), mend=mend)
        if unsent:
            self._check_sent(unsent)
        values = {field.column: row[field.column] for field in self._fields if field.column in row}
        for column, parse in self._parsers.items():
            if isinstance(values.get(column), str):
                values[column] = self._parsed(column, parse, values[column])
        try:
            return msgspec.convert(values, self._class, dec_hook=_hook)
        except msgspec.ValidationError as error:
            raise self._mismatch(str(error)) from None

    def _check_sent(self, unsent: frozenset[str]) -> None:
        for field in self._fields:
            if field.column in unsent and not field.may_lack:
                raise RowMismatch(
                    "the column's value did not come with this change",
                    where=self._at(field.column),
                    mend="subscribe with complete=True and the column among columns, or let the field's default be "
                    "msgspec.UNSET, as in `str | msgspec.UnsetType = msgspec.UNSET`",
                )

    def _parsed(self, column: str, parse: _Parse, text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            what = str(error) if isinstance(error, _NoTimedelta) else "the column's value cannot be parsed"
            mend = "let the field be a str"
            raise RowMismatch(what, where=self._at(column), mend=mend) from None

    def _mismatch(self, text: str) -> RowMismatch:
        """The error for what msgspec says, of which only types are told: the rest may quote a value."""
        found = _PATH.search(text)
        path = found[1] if found else ""
        named = [field.column for field in self._fields if re.match(rf"{re.escape(field.column)}(?:[.\[]|\Z)", path)]
        column = max(named, key=len, default=None)
        told = _PATH.sub("", text)
        what = (
            f"the column does not fit: {told[0].lower()}{told[1:]}" if _TYPES.match(told) else "the column does not fit"
        )
        mend = f"mend the field's type in {self._class.__name__}"
        return RowMismatch(what, where=self._at(column) if column else self.schema.table, mend=mend)

    def _at(self, column: str) -> str:
        return f"{self.schema.table}.{column}"


_TYPES = re.compile(r"Expected `[^`]*`, got `[^`]*`\Z")


class _NoTimedelta(ValueError):  # noqa: N818  # its text is safe to tell
    """An interval whose length is not fixed."""


def _fields_of(class_: type) -> tuple[_Field, ...]:
    try:
        told = inspect.type_info(class_)
        msgspec.json.Decoder(class_)  # refuses unions that cannot be told from each other
    except (TypeError, NameError) as error:  # a type that msgspec has no notion of, or a name that cannot be looked up
        raise UsageError(f"its fields cannot be read: {error}", where=f"into {class_!r}") from None
    if not isinstance(told, inspect.StructType | inspect.DataclassType):
        raise UsageError(
            "this is no class for rows", where=f"into {class_!r}", mend="give a dataclass or a msgspec.Struct"
        )
    return tuple(
        _Field(
            field.encode_name,
            field.required,
            not field.required and field.default is NODEFAULT and field.default_factory is NODEFAULT,
            field.type,
        )
        for field in told.fields
    )


def _parser_of(type_oid: int, type_: inspect.Type) -> _Parse | None:
    """What makes a text of the column the field's value; None where the text will do."""
    kinds = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    if any(isinstance(kind, inspect.StrType | inspect.AnyType) for kind in kinds):
        return None
    if type_oid in (JSON, JSONB):
        return _parse_json
    if type_oid == _INTERVAL and any(isinstance(kind, inspect.TimeDeltaType) for kind in kinds):
        return _parse_interval
    return None


def _parse_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise ValueError from None


def _parse_interval(text: str) -> timedelta:
    """An interval of days and hours as PostgreSQL prints it, such as `-1 days +02:03:04.5`."""
    days, rest = 0, text
    if found := _DAYS.match(rest):
        days, rest = int(found[1]), rest[found.end() :] or "00:00:00"
    time = _TIME.match(rest)
    if time is None:
        raise _NoTimedelta("an interval with months or years is no timedelta")
    sign, hours, minutes, seconds, fraction = time.groups()
    micros = int((fraction or "0").ljust(6, "0"))
    length = timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=micros)
    try:
        return timedelta(days=days) + (-length if sign == "-" else length)
    except OverflowError:
        raise _NoTimedelta("an interval beyond what a timedelta holds") from None


def _hook(class_: type, value: object) -> object:
    """For classes that msgspec does not know."""
    if class_ in _ADDRESSES:
        return class_(value)
    raise NotImplementedError  # so msgspec is told that there is no way to make one
