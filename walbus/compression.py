"""The compressed form of a record's body: one zstd frame that says how large the body is. Bytes in, bytes out.

A body is compressed where that saves something: not a small one, which zstd makes no smaller, and not one above
`MAX_BODY_SIZE`, so that whoever reads a log or a stream never has to make room for more than that, whatever the frame
claims. The size is read from the frame's header and judged before anything is allocated.
"""

from __future__ import annotations

from typing import Final

from walbus.errors import DamagedRecord

#: Bytes of the largest body that may be compressed; a frame that claims more is damage.
MAX_BODY_SIZE: Final = 16 << 20
#: Bytes of the smallest body that is worth it.
MIN_BODY_SIZE: Final = 1 << 10


class Compressor:
    """Compresses bodies. Not thread-safe.

    Args:
        level: of zstd, 1 to 19.
    """

    def __init__(self, level: int) -> None:
        import zstandard  # noqa: PLC0415  (only logs that hold compressed records need it)

        self._compress = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True).compress

    def compress(self, body: bytes) -> bytes | None:
        """The frame; None where the body is better left as it is."""
        if not MIN_BODY_SIZE <= len(body) <= MAX_BODY_SIZE:
            return None
        frame: bytes = self._compress(body)
        return frame if len(frame) < len(body) else None


def claimed_size(frame: bytes) -> int:
    """How large the body is that a frame holds, by its header.

    Raises:
        DamagedRecord: the bytes are no frame that says its size, or it is larger than a body may be.
    """
    import zstandard  # noqa: PLC0415

    try:
        size: int = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise DamagedRecord("a compressed body is damaged") from error
    if not 0 < size <= MAX_BODY_SIZE:
        claim = "no size" if size <= 0 else f"{size} bytes"
        raise DamagedRecord(f"a compressed body claims {claim}; at most {MAX_BODY_SIZE} bytes are allowed")
    return size


def decompress(frame: bytes) -> bytes:
    """The body that a frame holds.

    Raises:
        DamagedRecord: the bytes are not exactly one frame that says its size, or it is larger than a body may be.
    """
    import zstandard  # noqa: PLC0415

    size = claimed_size(frame)
    try:
        body: bytes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedRecord("a compressed body is damaged") from error
    if len(body) != size:
        raise DamagedRecord("a compressed body is not as large as it claims")
    return body
