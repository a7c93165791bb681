"""The rows of a binary COPY: where each message begins, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.capture.copyrows import CopyRows
from walbus.errors import ProtocolError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


def row(lsn, data):
    return b"\0\2\0\0\0\x08" + lsn.to_bytes(8, "big") + len(data).to_bytes(4, "big") + data


def begun():
    rows = CopyRows()
    rows.data_at(HEADER)
    return rows


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.binary(max_size=60))))
def test_each_row_tells_where_its_data_begins(given_rows):
    rows = CopyRows()
    first = HEADER
    for lsn, data in given_rows:
        frame, first = first + row(lsn, data), b""
        assert frame[rows.data_at(frame) :] == data
    assert rows.data_at(first + TRAILER) == 0
    assert rows.ended


def test_the_header_may_come_alone_and_may_be_extended():
    extended = HEADER[:-4] + (5).to_bytes(4, "big") + b"12345"
    for header in (HEADER, extended):
        rows = CopyRows()
        assert rows.data_at(header) == 0
        frame = row(7, b"data")
        assert frame[rows.data_at(frame) :] == b"data"
        assert not rows.ended


@pytest.mark.parametrize(
    "first",
    [
        b"",
        HEADER[:-1],
        b"PGCOPY\n\xff\r\n\1" + bytes(8),
        HEADER[:11] + b"\0\1\0\0" + bytes(4),  # with OIDs
        HEADER[:-4] + b"\xff\xff\xff\xff",
        HEADER[:-4] + b"\0\0\0\5" + b"1234",
    ],
)
def test_another_header_is_refused(first):
    with pytest.raises(ProtocolError, match="header"):
        CopyRows().data_at(first)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\2",
        b"\xff\xff\xff",
        row(1, b"data")[:-1],
        row(1, b"data") + b"!",
        row(1, b"data") + row(2, b"more"),
        b"\0\3" + row(1, b"data")[2:],
        b"\0\2\0\0\0\4" + row(1, b"data")[6:],
        row(1, b"")[:-4] + b"\xff\xff\xff\xff",  # NULL
    ],
)
def test_what_is_no_row_is_refused(frame):
    with pytest.raises(ProtocolError, match="no row"):
        begun().data_at(frame)


def test_nothing_follows_the_trailer():
    rows = begun()
    rows.data_at(TRAILER)
    for frame in (TRAILER, row(1, b"data")):
        with pytest.raises(ProtocolError):
            rows.data_at(frame)
