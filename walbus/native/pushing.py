"""What pushing records from a file to a peer is, whichever of the two does it. Pure.

`walbus.relay.file_push` does it in Python, and says why it is done so; `pushing.pxi` is its twin in C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from walbus.position import Position

if TYPE_CHECKING:
    import socket

#: Bytes that are read at a time and sent as one chunk: few enough to be in the processor's cache until they are gone.
STEP_BYTES = 256 << 10
#: Bytes of a block, which is a step, or one record that is larger.
BLOCK_BYTES = 512 << 10


class Furthest(NamedTuple):
    """Up to where records may be pushed.

    Attributes:
        position: that no record ends behind.
        seq: that no record ends behind.
    """

    position: Position
    seq: int


#: Up to any record.
ANYWHERE = Furthest(Position((1 << 32) - 1, (1 << 64) - 1, (1 << 32) - 1), (1 << 64) - 1)


class Stretch(NamedTuple):
    """Where records lie that were not checked.

    Attributes:
        file: a descriptor.
        begin: offset at which a record begins.
        limit: offset up to which records are durable.
        furthest: up to where they may be pushed.
    """

    file: int
    begin: int
    limit: int
    furthest: Furthest


class Left(NamedTuple):
    """What a peer has not taken of a chunk.

    Attributes:
        head: bytes before the file's.
        offset: where the rest of the file's part begins; it ends where what was pushed ends.
        tail: bytes behind the file's.
    """

    head: bytes
    offset: int
    tail: bytes


class PushedRecords(NamedTuple):
    """What became of records.

    Attributes:
        end: offset behind the last one that was checked, and sent or left.
        last: header of that record; empty if there is none.
        left: of the last chunk; None if the peer took all of it.
        more: whether it was only time that was short.
    """

    end: int
    last: bytes
    left: Left | None
    more: bool


class PushRecords(Protocol):
    """Sends checked records as chunks of HTTP, one block after the other."""

    def __call__(
        self,
        stretch: Stretch,
        connection: socket.socket | None,
        scratch: memoryview,
        seconds: float,
        patience: float,
    ) -> PushedRecords:
        """Goes on until the peer is full, time is up, or what comes next cannot be pushed.

        That is a record that is damaged, not whole, larger than a block, or in the same block as one behind `furthest`.

        Args:
            stretch: where the records lie.
            connection: does not block; None: a block is checked, and all of its chunk is left.
            scratch: `BLOCK_BYTES` to work in; what is sent from here is what was checked.
            seconds: after which no further block is begun.
            patience: seconds that a full peer is waited for, all in all.

        Raises:
            OSError: the file cannot be read.
            ConnectionError: the peer left.
        """
