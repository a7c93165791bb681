"""What the collectors of copied rows do, whichever of the two is in use. Pure.

Seeding reads rows by the million with `COPY … TO STDOUT`, in the text format: a value's text is what its type's output
function gives, the same that pgoutput sends, so a row that was copied and a row that was streamed are the same bytes.
A `CopiedRows` takes the frames that libpq gives (a frame is a row), encodes key and row, and gives them back in the
order of their keys, as the store of the bootstrap has them.
"""

from __future__ import annotations

from typing import Protocol

from walbus.native.interface import CopyData
from walbus.schema import TableSchema


class CopiedRows(Protocol):
    """Rows of one layout that were copied and not taken yet. Not thread-safe.

    Attributes:
        size: bytes of their keys and rows.
    """

    @property
    def size(self) -> int:
        """Bytes of their keys and rows."""

    def __len__(self) -> int:
        """How many there are."""

    def drain(self, next_frame: CopyData, limit: int) -> tuple[int, int]:
        """Takes frames until none is there, or about `limit` bytes were taken.

        Args:
            next_frame: libpq's; asked for one frame after the other, with 1.
            limit: bytes of frames, above 0.

        Returns:
            The size that was told last (above 0 there may be more, at 0 none is there, below 0 the COPY is over), and
            the bytes of the frames that were taken.

        Raises:
            ProtocolError: a frame is not one row of the layout, or its key is NULL; rows before it are kept.
        """

    def take(self, space: bytes, prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        """All rows in bytewise order of their keys; begins anew. Of equal keys the first one that came is given.

        Args:
            space: stands before each key.
            prefix: stands before each row.

        Returns:
            The keys, and for each its row.
        """


class NewCopiedRows(Protocol):
    """Makes one."""

    def __call__(self, schema: TableSchema) -> CopiedRows:
        """For rows of a layout that has a key."""
