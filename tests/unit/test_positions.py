"""Positions and LSNs as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.errors import InvalidText
from walbus.lsn import format_lsn, parse_lsn
from walbus.position import ORIGIN, Position, parse_position

LSNS = st.integers(0, 2**64 - 1)
POSITIONS = st.builds(Position, st.integers(0, 2**32 - 1), LSNS, st.integers(0, 2**32 - 1))


@given(LSNS)
def test_an_lsn_reads_back(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn
    assert parse_lsn(format_lsn(lsn).lower()) == lsn


def test_an_lsn_is_written_as_postgresql_writes_it() -> None:
    assert format_lsn(0x16B374D848) == "16/B374D848"
    assert format_lsn(0) == "0/0"


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "16/B374D848 ", "16/G", "123456789/0", "0/123456789", "0/0\n"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(InvalidText, match="is not an LSN"):
        parse_lsn(text)


@given(POSITIONS)
def test_a_position_reads_back(position: Position) -> None:
    assert parse_position(str(position)) == position


@given(POSITIONS, POSITIONS)
def test_positions_are_ordered_by_epoch_then_commit_then_ordinal(one: Position, other: Position) -> None:
    assert (one < other) == (tuple(one) < tuple(other))
    assert one >= ORIGIN


@pytest.mark.parametrize(
    "text", ["", "1", "1:0/0", "1:0/0:", "-1:0/0:0", "1:0/0:1 ", "\u0661:0/0:0", "1:0/0:12345678901"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidText, match=r"write it as in 1:16/B374D848:4"):
        parse_position(text)
