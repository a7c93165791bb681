"""One stream of pgoutput messages, true or crafted, through everything between the frame and the log.

`outcome_of` feeds messages to an intake, an assembler and one of the two cores, writes what they give into a log in
memory, and reads it back. What it says may depend on the messages alone: the fuzzers and the tests of damaged messages
compare the two cores by it. Whatever comes, the end is an outcome or an error that is raised here for the test to fail.

As a file a stream is each message behind its size in two bytes, so that random changes of a file damage few messages.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from support.captured_pgoutput import BUILTIN_TYPES
from support.memory_log import MemoryLog
from walbus.capture.assembly import Assembler
from walbus.capture.intake import Intake
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


def outcome_of(implementation: Implementation, messages: Iterable[bytes]) -> Outcome:
    """Feeds the messages until one is refused; any other error comes through."""
    folder = tempfile.mkdtemp(prefix="walbus-spool-", dir="/dev/shm")
    try:
        return _outcome(implementation, messages, SpoolFiles(Path(folder)))
    finally:
        shutil.rmtree(folder)


def _outcome(implementation: Implementation, messages: Iterable[bytes], files: SpoolFiles) -> Outcome:
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
        for message in messages:
            intake.feed(b"frame" + message, 5)
            while intake.replaying:
                intake.replay(1 << 16)
            taken += 1
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
