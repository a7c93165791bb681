"""A stream that ends, however it ends, says so to whoever reads it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from walbus.consumers.record_stream import RecordStream
from walbus.errors import RelayUnavailable


class Answer(httpx.SyncByteStream):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield b""
        raise httpx.ReadError("it broke")

    def close(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [OSError("a descriptor is gone"), httpx.CloseError("it broke")])
def test_a_stream_whose_connection_cannot_be_closed_ends_all_the_same(error: Exception) -> None:
    response = httpx.Response(200, stream=Answer(error))
    stream = RecordStream(response, "http://relay")
    with pytest.raises(RelayUnavailable, match="stream broke"):
        while True:
            assert stream.records(10) == []
