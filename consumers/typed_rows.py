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
fields that are no `str`, as what the field says: numbers become a `Decimal` digit by digit. An `interval` becomes a
`timedelta`, and `inet` a class of `ipaddress`, where the field says so.

What does not fit is an error with table and column, never with a value. So is what msgspec would take to be something
else: a text for the base64 of `bytes`, and an integer for the `float` next to it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, get_type_hints

import msgspec
from msgspec import NODEFAULT, inspect

from walbus.errors import RowMismatch, UsageError
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import Op, RawChange
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
_Leaves: TypeAlias = frozenset[type[inspect.Type]]

_BYTES: _Leaves = frozenset((inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType))
_WHOLE_NUMBERS: _Leaves = frozenset((inspect.IntType, inspect.AnyType))


class _Field(NamedTuple):
    """One field of a class.

    Attributes:
        column: that it takes.
        required: whether it has no default.
        may_lack: whether its default says that nothing is known.
        type: as msgspec has it.
        annotation: as Python has it.
    """

    column: str
    required: bool
    may_lack: bool
    type: inspect.Type
    annotation: Any


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


@dataclass(frozen=True, init=False)
class TypedChange(Change):
    """A change whose rows are also objects."""

    _rows: TypedRows

    def __init__(
        self, raw: RawChange, schema: TableSchema | None, position: Position, seq: int, _rows: TypedRows
    ) -> None:
        super().__init__(raw, schema, position, seq)
        self.__dict__["_rows"] = _rows

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
        parsers = ((field.column, _parser_of(types[field.column], field)) for field in self._fields)
        self._parsers = {column: parse for column, parse in parsers if parse is not None}
        leaves = ((field.column, _leaves(field.type)) for field in self._fields if field.column not in self._parsers)
        self._doubtful = {column: found for column, found in leaves if found & _BYTES or inspect.FloatType in found}

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
        for column, leaves in self._doubtful.items():
            self._check_kept(column, leaves, values.get(column))
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

    def _check_kept(self, column: str, leaves: _Leaves, value: object) -> None:
        """That a value is not made another one where the field takes it."""
        if isinstance(value, list):
            for one in value:
                self._check_kept(column, leaves, one)
        elif isinstance(value, str) and leaves & _BYTES:
            mend = "let the field be a str, or let the column be a bytea"
            raise RowMismatch("a text is no bytes", where=self._at(column), mend=mend)
        elif type(value) is int and not leaves & _WHOLE_NUMBERS and not _fits_float(value):
            mend = "let the field be an int or a Decimal"
            raise RowMismatch("a float has not the digits of this integer", where=self._at(column), mend=mend)

    def _parsed(self, column: str, parse: _Parse, text: str) -> object:
        try:
            return parse(text)
        except msgspec.ValidationError as error:
            raise self._unfit(column, str(error)) from None
        except ValueError as error:
            what = str(error) if isinstance(error, _NoTimedelta) else "the column's value cannot be parsed"
            mend = "let the field be a str"
            raise RowMismatch(what, where=self._at(column), mend=mend) from None

    def _mismatch(self, text: str) -> RowMismatch:
        """The error for what msgspec says, of which only types are told: the rest may quote a value."""
        found = _PATH.search(text)
        path = found[1] if found else ""
        named = [field.column for field in self._fields if re.match(rf"{re.escape(field.column)}(?:[.\[]|\Z)", path)]
        return self._unfit(max(named, key=len, default=None), text)

    def _unfit(self, column: str | None, text: str) -> RowMismatch:
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
        annotations = (
            {field.name: field.type for field in msgspec.structs.fields(class_)}
            if isinstance(told, inspect.StructType)
            else get_type_hints(class_, include_extras=True)
        )
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
            annotations[field.name],
        )
        for field in told.fields
    )


def _leaves(type_: inspect.Type) -> _Leaves:
    """The types that single values of a field, and those of lists in it, may have."""
    match type_:
        case inspect.UnionType(types=parts) | inspect.TupleType(item_types=parts):
            return frozenset().union(*map(_leaves, parts))
        case inspect.CollectionType(item_type=item):
            return _leaves(item)
        case _:
            return frozenset((type(type_),))


def _fits_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def _parser_of(type_oid: int, field: _Field) -> _Parse | None:
    """What makes a text of the column the field's value; None where the text will do."""
    kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    if any(isinstance(kind, inspect.StrType | inspect.AnyType) for kind in kinds):
        return None
    if type_oid in (JSON, JSONB):
        return _json_parser(field.annotation)
    if type_oid == _INTERVAL and any(isinstance(kind, inspect.TimeDeltaType) for kind in kinds):
        return _parse_interval
    return None


def _json_parser(annotation: Any) -> _Parse:  # noqa: ANN401  # a type, or a union of some
    decoder = msgspec.json.Decoder(annotation, dec_hook=_hook)

    def parse(text: str) -> object:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            raise ValueError from None

    return parse


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
