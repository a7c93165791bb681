"""An intake on a log in memory and a spool in a folder, fed with messages of tests.

rig = Rig(tmp_path)
rig.records(*block(700, (700, LAYOUT), (701, row(1))), made.stream_commit(700, 1000))     # the log's records
keys(rig)                                                                                 # inserted keys, in order
"""

from __future__ import annotations

from pathlib import Path

from support import pgoutput_bytes as made
from support.memory_log import MemoryLog
from walbus.capture.assembly import Assembler
from walbus.capture.intake import Intake
from walbus.capture.prepared import PreparedStore
from walbus.capture.repeats import Repeats
from walbus.capture.spool import Spool
from walbus.capture.spool_files import SpoolFiles
from walbus.capture.timelines import Timelines
from walbus.log import append_to
from walbus.native import new_core, replay_rows
from walbus.records import Kind, Op, body_of, iter_changes, read_header
from walbus.values import row_texts

T, U = 5000, 5001
TYPES = {23: "int4", 25: "text"}
COLUMNS = [("id", 23, 1), ("a", 25, 0)]
LAYOUT = made.relation(T, "public.t", COLUMNS)
OTHER = made.relation(U, "public.u", COLUMNS)


class Files(SpoolFiles):
    """Files on a disk that may be full."""

    full = False

    def _pwrite(self, fd, data, offset):
        if self.full:
            super()._pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return super()._pwrite(fd, data, offset)


class Rig:
    """An intake on a log in memory and a spool in a folder."""

    def __init__(self, folder, log=None, *, memory_bytes=1 << 20):
        self.log = log or MemoryLog()
        self.files = Files(Path(folder))
        bounds = self.log.bounds()
        self.assembler = Assembler(
            core=new_core(),
            schemas=self.log.schemas,
            repeats=Repeats(self.log.find, end=bounds.end),
            builtin_types=TYPES,
            primary_key=lambda oid, columns: frozenset({"id"}),
            timelines=Timelines(1),
            near_xid=700,
            bound=bounds.end_lsn,
        )
        spool = Spool(self.files, durable=True, memory_bytes=memory_bytes)
        self.intake = Intake(self.assembler, spool, PreparedStore(self.files, "log"), replay_rows=replay_rows)

    def feed(self, *messages, budget=1 << 30):
        for message in messages:
            self.intake.feed(b"frame" + message, 5)
            while self.intake.replaying:
                self.intake.replay(budget)
                self.append()
        self.append()

    def append(self):
        for complete in self.assembler.take():
            append_to(self.log, complete)

    def sync(self):
        self.append()
        bounds = self.log.sync()
        self.intake.durable(bounds.end_lsn)
        return bounds

    def reconnect(self):
        bounds = self.sync()
        self.assembler.reconnected(Timelines(1), 700, end=bounds.end, bound=bounds.end_lsn)
        self.intake.reconnected()

    def records(self, *messages, budget=1 << 30):
        self.feed(*messages, budget=budget)
        self.sync()
        return self.log.durable

    def names(self, suffix):
        return self.files.names(suffix)


def block(xid, *messages, first=True):
    """A block; messages are of protocol 1 with their own xid, or bytes as they are."""
    inside = [made.in_block(*m) if isinstance(m, tuple) else m for m in messages]
    return [made.stream_start(xid, first=first), *inside, made.stream_stop()]


def whole(lsn, *messages, xid=700):
    return [made.begin(lsn, xid), *messages, made.commit(lsn)]


def row(key, text="x"):
    return made.insert(T, str(key), text)


def changes(records):
    pairs = [(read_header(record), record) for record in records]
    return [c for h, r in pairs if h.kind == Kind.TRANSACTION for c in iter_changes(body_of(r, h))]


def keys(rig):
    found = changes(rig.log.durable)
    return [row_texts(rig.log.schemas.get(c.schema_id), c.after)[0] for c in found if c.op == Op.INSERT]
