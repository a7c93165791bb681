"""A stream that ends, however it ends, says so to whoever reads it; one that nobody reads is not read ahead."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from support.model_source import ITEMS, ModelSource, insert
from support.waiting import wait_for
from walbus.consumers.record_stream import QUEUED_CHUNKS, HttpStream
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
    stream = HttpStream(response, "http://relay")
    with pytest.raises(RelayUnavailable, match="stream broke"):
        while True:
            assert stream.records(10) == []


class Endless(httpx.SyncByteStream):
    """One record after the other, each a chunk; `given` counts them."""

    def __init__(self) -> None:
        source = ModelSource()
        source.commit([insert(ITEMS, 1)])
        ((_, self._record),) = source.records
        self.given = 0

    def __iter__(self) -> Iterator[bytes]:
        for self.given in range(1, 20 * QUEUED_CHUNKS):
            yield self._record


def test_a_stream_that_nobody_reads_takes_no_more_than_its_queue_from_the_server() -> None:
    """The rest stays in the sockets, and then with the server: a slow consumer costs itself no memory."""
    answer = Endless()
    stream = HttpStream(httpx.Response(200, stream=answer), "http://relay")
    try:
        for taken in range(5):
            wait_for(lambda taken=taken: answer.given == QUEUED_CHUNKS + 1 + taken, 60, what="the queue is full")
            assert len(stream.records(60)) == 1
    finally:
        stream.close()
