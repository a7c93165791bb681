"""Compression of streams by negotiation (Accept-Encoding). Bytes in, bytes out.

Each block that is sent is compressed by itself and flushed: it can be read as soon as it arrives, nothing waits for
more, and no state is kept between blocks. So a stream costs no memory for its compression, and streams that share
their blocks share the compressed ones too.

    zstd    each block is a frame; a stream of frames is what RFC 8878 calls its content
    gzip    one member: a header, blocks of deflate that begin with an empty window, checksum and length at the end

Of what a client takes alike it gets gzip: several clients that offer zstd, httpx and some browsers among them, read no
more than one frame. One that weighs zstd higher, or names it alone, gets zstd. Server-sent events are for browsers, and
come as gzip only.
"""

from __future__ import annotations

import zlib
from typing import Final, Literal, Protocol

import zstandard

from walbus.relay.stream_query import Format

CodingName = Literal["identity", "zstd", "gzip"]

_ZSTD_LEVEL = 1
_GZIP_LEVEL = 1
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


class Coding(Protocol):
    """A stream's compression."""

    def block(self, data: bytes) -> bytes:
        """A block, which can be read once it has arrived; the same for every stream of this coding."""

    def began(self) -> bytes:
        """What stands before the first block."""

    def note(self, data: bytes) -> None:
        """Takes into account that this block, uncompressed, was sent."""

    def end(self) -> bytes:
        """What stands behind the last block."""


class Identity:
    """No compression."""

    def block(self, data: bytes) -> bytes:  # noqa: D102  (the interface says it)
        return data

    def began(self) -> bytes:  # noqa: D102
        return b""

    def note(self, data: bytes) -> None:  # noqa: D102
        del data

    def end(self) -> bytes:  # noqa: D102
        return b""


class Zstd(Identity):
    """A frame a block."""

    def block(self, data: bytes) -> bytes:  # noqa: D102
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)


class Gzip:
    """One member for all of the stream."""

    def __init__(self) -> None:
        self._checksum, self._length = 0, 0

    def block(self, data: bytes) -> bytes:  # noqa: D102
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        return deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)

    def began(self) -> bytes:  # noqa: D102
        return _GZIP_HEADER

    def note(self, data: bytes) -> None:  # noqa: D102
        self._checksum = zlib.crc32(data, self._checksum)
        self._length += len(data)

    def end(self) -> bytes:  # noqa: D102
        last = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
        return last + self._checksum.to_bytes(4, "little") + (self._length % (1 << 32)).to_bytes(4, "little")


_CODINGS: Final[dict[CodingName, type[Identity | Gzip]]] = {"identity": Identity, "zstd": Zstd, "gzip": Gzip}


def new_coding(name: CodingName) -> Coding:
    """The compression of a new stream."""
    return _CODINGS[name]()


def negotiate(accept_encoding: str, form: Format) -> CodingName:
    """The coding of a stream: the one that the client weighs most, gzip before zstd before none where it has no wish.

    A client that names none gets none. One that refuses all that there is gets none too.
    """
    weights = dict(_weighed(part) for part in accept_encoding.lower().split(",") if part.strip())
    offered: list[CodingName] = ["gzip"] if form == "sse" else ["gzip", "zstd"]
    wishes = [(weights.get(name, weights.get("*", 0.0)), name) for name in offered]
    best, name = max(wishes, key=lambda wish: wish[0])
    return name if best > 0 and best >= weights.get("identity", 0.0) else "identity"


def _weighed(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0
