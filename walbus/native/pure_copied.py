"""Rows of COPY to sorted entries in Python. Bytes in, bytes out; `walbus.native.copying` says what it does."""

from __future__ import annotations

from walbus.native.copy_text import encoded_line
from walbus.native.interface import CopyData
from walbus.schema import TableSchema
from walbus.values import row_encoder


class CopiedRows:
    """See `walbus.native.copying.CopiedRows`."""

    def __init__(self, schema: TableSchema) -> None:
        self._encoder = row_encoder(schema)
        self._width = len(schema.columns)
        self._rows: list[tuple[bytes, bytes]] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._rows)

    def drain(self, next_frame: CopyData, limit: int) -> tuple[int, int]:
        """See `walbus.native.copying.CopiedRows`."""
        size = taken = 0
        while taken < limit:
            size, frame = next_frame(1)
            if size <= 0:
                break
            key, row = encoded_line(self._encoder, bytes(frame), self._width)
            self._rows.append((key, row))
            self.size += len(key) + len(row)
            taken += size
        return size, taken

    def take(self, space: bytes, prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        """See `walbus.native.copying.CopiedRows`."""
        first = dict(reversed(self._rows))  # of equal keys the first one that came
        keys = sorted(first)
        self._rows, self.size = [], 0
        return [space + key for key in keys], [prefix + first[key] for key in keys]
