"""Rows from PostgreSQL's text to Avro: capture's hot loop.

The functions of a layout's columns are looked up once. A row is then one list comprehension and one join; only a
row that holds a value outside the native range goes the slow way, column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from walbus.errors import ProtocolError
from walbus.schema import Column, TableSchema
from walbus.values.avro_bytes import NULL, native_string, text_string
from walbus.values.from_text import OUTSIDE, from_string
from walbus.values.key_codec import part_encoder
from walbus.values.layouts import PerLayout
from walbus.values.types import NATIVE
from walbus.values.utf8 import legible

_Encode = Callable[[bytes], bytes]


class RowEncoder:
    """Encodes the rows of one layout. Has no state of its own; safe in threads."""

    def __init__(self, schema: TableSchema) -> None:
        self._table = schema.table
        self._width = len(schema.columns)
        self._native = [_native(column) for column in schema.columns]
        self._otherwise = [_otherwise(column) for column in schema.columns]
        self._key = [(i, part_encoder(schema.columns[i].type_oid)) for i in schema.key_indexes]

    def encode(self, texts: Sequence[bytes | None]) -> bytes:
        """One row in the layout's Avro form.

        Args:
            texts: canonical text of each column, as pgoutput and COPY give it; None is NULL or "not sent".

        Raises:
            ProtocolError: there are more or fewer texts than columns.
        """
        if len(texts) != self._width:
            raise ProtocolError(f"a row has {len(texts)} columns instead of {self._width}", where=self._table)
        try:
            return b"".join([NULL if text is None else f(text) for f, text in zip(self._native, texts, strict=True)])
        except OUTSIDE:
            return self._encode_slowly(texts)

    def _encode_slowly(self, texts: Sequence[bytes | None]) -> bytes:
        return b"".join([NULL if text is None else self.value(index, text) for index, text in enumerate(texts)])

    def value(self, index: int, text: bytes) -> bytes:
        """One value as `encode` has it among the others of its row.

        Args:
            index: of its column.
            text: canonical text.
        """
        try:
            return self._native[index](text)
        except OUTSIDE:
            return self._otherwise[index](text)

    def key(self, texts: Sequence[bytes | None]) -> bytes | None:
        """The memcomparable key of a row (`walbus.keys`); None when the table has no key.

        Raises:
            ProtocolError: a key column is NULL or was not sent.
        """
        if not self._key:
            return None
        parts = []
        for index, encode in self._key:
            text = texts[index]
            if text is None:
                raise ProtocolError("a key column is NULL or was not sent", where=f"{self._table}, column {index + 1}")
            parts.append(encode(text))
        return b"".join(parts)


def _native(column: Column) -> _Encode:
    native = NATIVE.get(column.type_oid)
    return from_string if native is None else native.encode


def _otherwise(column: Column) -> _Encode:
    native = NATIVE.get(column.type_oid)
    branch = native_string if native is None or native.text_like else text_string
    return lambda text: branch(legible(text))


#: The encoder of a layout; the same one for every call with an equal layout.
row_encoder = PerLayout(RowEncoder)
