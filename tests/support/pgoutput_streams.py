"""One stream of pgoutput messages, true or crafted, through everything between the frame and the log.

`outcomes_of` feeds messages to an intake, an assembler and one of the two cores, writes what they give into a log in
memory, and reads it back. What it says may depend on the messages alone: the fuzzers and the tests of damaged messages
compare the two cores by it. Whatever comes, the end is an outcome or an error that is raised here for the test to fail.

As a file a stream is each message behind its size in two bytes, so that random changes of a file damage few messages.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.captured_pgoutput import BUILTIN_TYPES
from support.memory_log import MemoryLog
from walbus.capture.assembly import Assembler
from walbus.capture.intake import Intake
from walbus.capture.plain_frames import PlainFrames
from walbus.capture.prepared import PreparedStore
from walbus.capture.repeats import Repeats
from walbus.capture.spool import Spool
from walbus.capture.spool_files import SpoolFiles
from walbus.capture.timelines import Timelines
from walbus.errors import ProtocolError, SourceGap, SourceReplaced, SourceUnavailable
from walbus.events import Change
from walbus.native import Implementation
from walbus.position import ORIGIN, Position
from walbus.records import Kind, body_of, check_record, iter_changes

_TYPES = BUILTIN_TYPES | {
    16: "bool", 17: "bytea", 20: "int8", 701: "float8", 1007: "_int4", 1082: "date", 1184: "timestamptz",
    2950: "uuid", 3802: "jsonb",
}  # fmt: skip

#: What a message may be refused with.
REFUSALS = (ProtocolError, SourceReplaced, SourceGap, SourceUnavailable)


class Outcome(NamedTuple):
    """What became of a stream.

    Attributes:
        error: type and text of what refused a message; None if all were taken.
        taken: number of the messages before that one.
        records: the log's records, checksums and seqs included.
        state: end, bound, transactions, changes and repeats of the assembler.
    """

    error: tuple[type, str] | None
    taken: int
    records: tuple[bytes, ...]
    state: tuple[Position, int, int, int, int]


_Feed = Callable[[Implementation, Assembler, Intake, Sequence[bytes]], Iterator[int]]


def outcomes_of(implementation: Implementation, messages: Sequence[bytes]) -> list[Outcome]:
    """What comes of the messages, one by one and as frames, until one is refused; any other error comes through."""
    return [_in_a_folder(implementation, messages, feed) for feed in (_one_by_one, _as_frames)]


def outcome_of(implementation: Implementation, messages: Sequence[bytes]) -> Outcome:
    """What comes of the messages, which must be the same in both ways of feeding them."""
    one_by_one, framed = outcomes_of(implementation, messages)
    assert one_by_one == framed, f"{implementation.name}: {one_by_one}, and as frames {framed}"
    return one_by_one


def _one_by_one(_: Implementation, __: Assembler, intake: Intake, messages: Sequence[bytes]) -> Iterator[int]:
    """Feeds the messages; gives the number of those that were taken, after each."""
    for number, message in enumerate(messages, 1):
        intake.feed(b"frame" + message, 5)
        yield number
        while intake.replaying:
            intake.replay(1 << 16)


def _as_frames(
    implementation: Implementation, assembler: Assembler, intake: Intake, messages: Sequence[bytes]
) -> Iterator[int]:
    """Hands frames to the core and to the spool as capture's loop does, and feeds what they leave."""
    frames = deque(b"w" + bytes(24) + message for message in messages)

    def next_frame(_: int) -> tuple[int, memoryview]:
        frame = frames.popleft() if frames else b""
        return len(frame), memoryview(frame)

    plain_frames = PlainFrames(assembler)
    while True:
        while intake.replaying:
            intake.replay(1 << 16)
        if intake.plain:
            try:
                left = plain_frames.drain(next_frame, [], 1 << 20).left
            except REFUSALS:
                yield len(messages) - len(frames) - 1  # those before the refused one
                raise
        elif (sink := intake.sink()) is not None:
            left = implementation.spool_rows(next_frame, [], 1 << 20, sink).left
        else:
            left = bytes(next_frame(1)[1])
        yield len(messages) - len(frames) - bool(left)
        if left:
            intake.feed(left, 25)
            yield len(messages) - len(frames)
        elif not frames and not intake.replaying:
            return


def _in_a_folder(implementation: Implementation, messages: Sequence[bytes], feed: _Feed) -> Outcome:
    folder = tempfile.mkdtemp(prefix="walbus-spool-", dir="/dev/shm")
    try:
        return _outcome(implementation, messages, SpoolFiles(Path(folder)), feed)
    finally:
        shutil.rmtree(folder)


def _outcome(implementation: Implementation, messages: Sequence[bytes], files: SpoolFiles, feed: _Feed) -> Outcome:
    log = MemoryLog()
    assembler = Assembler(
        core=implementation.new_core(),
        schemas=log.schemas,
        repeats=Repeats(log.find, end=ORIGIN),
        builtin_types=_TYPES,
        primary_key=lambda _, columns: frozenset(["id"]).intersection(columns),
        timelines=Timelines(1),
        near_xid=700,
    )
    spool, prepared = Spool(files, memory_bytes=1 << 12), PreparedStore(files, "log")
    intake = Intake(assembler, spool, prepared, replay_rows=implementation.replay_rows)
    error, taken = None, 0
    try:
        for taken in feed(implementation, assembler, intake, messages):  # noqa: B007  (the last one counts)
            pass
    except REFUSALS as refusal:
        error = (type(refusal), str(refusal))
        if isinstance(refusal, ProtocolError):
            assert refusal.where, f"an error that does not say where: {refusal}"
    log.write(assembler.take())
    log.sync()
    _read_back(log)
    state = (assembler.core.end, assembler.bound, assembler.transactions, assembler.changes, assembler.repeated)
    return Outcome(error, taken, tuple(log.durable), state)


def _read_back(log: MemoryLog) -> None:
    """Whatever got into the log can be read by a consumer."""
    for record in log.durable:
        header = check_record(record)
        for raw in iter_changes(body_of(record, header)):
            if header.kind == Kind.TRANSACTION:
                schema = log.schemas.get(raw.schema_id) if raw.schema_id else None
                change = Change(raw, schema, header.first, header.first_seq)
                assert (change.after_texts(), change.key, change.old_key, change.message) is not None


def pack_stream(messages: Iterable[bytes]) -> bytes:
    """A stream as a file; messages of more than 65,535 bytes are cut off there."""
    cut = [message[:0xFFFF] for message in messages]
    return b"".join(len(message).to_bytes(2, "big") + message for message in cut)


def unpack_stream(data: bytes) -> list[bytes]:
    """The messages of a file; the last one may be shorter than its size says."""
    messages, at = [], 0
    while len(data) - at > 2:
        size = int.from_bytes(data[at : at + 2], "big")
        messages.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return messages
