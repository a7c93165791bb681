"""Messages that protocols 2 to 4 add: every field, and every way of being malformed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from walbus.capture.messages import POSTGRES_EPOCH, decode
from walbus.capture.streamed import (
    BeginPrepare,
    CommitPrepared,
    Prepare,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    begin_bytes,
    commit_bytes,
    decode_streamed,
    split_xid,
)
from walbus.errors import ProtocolError

T = POSTGRES_EPOCH + 5

MESSAGES = [
    (made.stream_start(700, first=True), StreamStart(700, True)),
    (made.stream_start(700, first=False), StreamStart(700, False)),
    (made.stream_stop(), StreamStop()),
    (made.stream_commit(700, 1000, 1048, T), StreamCommit(700, 1000, 1048, T)),
    (made.stream_abort(700, 701), StreamAbort(700, 701, None, None)),
    (made.stream_abort(700, 701, (900, T)), StreamAbort(700, 701, 900, T)),
    (made.begin_prepare(700, "g", 1000, T), BeginPrepare(1000, 1048, T, 700, b"g")),
    (made.prepare(700, "g", 1000, T), Prepare(1000, 1048, T, 700, b"g")),
    (made.stream_prepare(700, "g", 1000, T), StreamPrepare(1000, 1048, T, 700, b"g")),
    (made.commit_prepared(700, "ä b", 1000, T), CommitPrepared(1000, 1048, T, 700, "ä b".encode())),
    (
        made.rollback_prepared(700, "", 1000),
        RollbackPrepared(1000, POSTGRES_EPOCH, POSTGRES_EPOCH, 700, b""),
    ),
]


@pytest.mark.parametrize(("data", "expected"), MESSAGES, ids=lambda value: type(value).__name__)
def test_every_message_is_decoded_at_any_offset(data, expected):
    assert decode_streamed(data) == expected
    assert decode_streamed(b"frame" + data, 5) == expected


@pytest.mark.parametrize("data", [data for data, _ in MESSAGES], ids=lambda data: chr(data[0]))
def test_a_message_cut_anywhere_or_with_more_behind_it_is_refused_with_kind_and_offset(data):
    kind = chr(data[0])
    whole = {9} if kind == "A" else set()  # an abort without LSN and time is whole
    for end in set(range(1, len(data))) - whole:
        with pytest.raises(ProtocolError) as caught:
            decode_streamed(b"xx" + data[:end], 2)
        assert caught.value.where == f"message {kind!r}, offset {end}"
    end = max(whole | {len(data)}) if len(data) not in whole else 25
    with pytest.raises(ProtocolError, match=rf"left over.*message '{kind}', offset {end}"):
        decode_streamed(data + b"\0" * 17)


@pytest.mark.parametrize("data", [data for data, message in MESSAGES if hasattr(message, "xid")])
def test_transaction_zero_is_refused(data):
    at = data.index((700).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="transaction 0"):
        decode_streamed(data[:at] + b"\0\0\0\0" + data[at + 4 :])


def test_subtransaction_zero_is_refused():
    with pytest.raises(ProtocolError, match="transaction 0"):
        decode_streamed(made.stream_abort(700, 0))


@pytest.mark.parametrize(("kind", "at"), [("c", 5), ("P", 1), ("p", 1), ("K", 1), ("r", 1)])
def test_unknown_flags_are_refused(kind, at):
    data = next(data for data, _ in MESSAGES if data[:1] == kind.encode())
    with pytest.raises(ProtocolError, match=f"flags 2 are unknown.*message '{kind}', offset {at}"):
        decode_streamed(data[:at] + b"\2" + data[at + 1 :])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    for sample in (data, b"S" + data, b"A" + data, b"c" + data, b"r" + data, b"b" + data, b"K" + data):
        try:
            decode_streamed(sample)
        except ProtocolError as error:
            assert error.where


def test_the_xid_of_a_message_in_a_block_is_split_off():
    plain = made.insert(5000, "1", None)
    assert split_xid(b"frame" + made.in_block(701, plain), 5) == (701, plain)
    for end in range(1, 5):
        with pytest.raises(ProtocolError, match=f"message 'I', offset {end}"):
            split_xid(made.in_block(701, plain)[:end])


def test_begin_and_commit_are_written_as_protocol_1_has_them():
    assert begin_bytes(1000, T, 700) == made.begin(1000, 700, T)
    assert commit_bytes(1000, 1048, T) == made.commit(1000, 1048, T)
    assert decode(begin_bytes(1000, T, 700)).commit_lsn == 1000
