"""A relay in front of Kafka: the log's records on this machine's disk, from where they are served as any log is.

What lies in the folder is a cache with the same records, positions and seqs as the cluster has. It may be deleted while
the relay is down, and is filled anew from what the cluster holds; any number of relays can stand side by side. What was
committed to the cluster is what is copied, so nothing here has to be confirmed to anybody.

The last record that is here is read again, and must come as the same bytes: a folder of another log is refused.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import structlog

from walbus.config import RelayConfig
from walbus.errors import Directive, LogDiverged, LogFull, LogUnreachable, PositionTrimmed, WalbusError, directive_of
from walbus.records import Kind, read_header
from walbus.relay.copied_run import CopiedRun
from walbus.relay.engine import open_writer
from walbus.relay.fs import Files
from walbus.relay.kafka.cluster import ClusterSettings
from walbus.relay.kafka.cursor import KafkaCursor
from walbus.relay.kafka.engine import open_kafka_reader
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.lineage import BEGIN_ANEW, Lineage, write_lineage
from walbus.relay.manifest import load_manifest
from walbus.relay.overlap import durable_place
from walbus.relay.writer import FileLogWriter

_log = structlog.get_logger(__name__)

_READ_BYTES = 1 << 20
_SYNC_BYTES = 4 << 20  # a group of records is made durable at this size, or when nothing more has come
_WAIT_SECONDS = 0.5
_TRIM_SECONDS = 5.0
_LAYOUT_SECONDS = 2.0
_PAUSE_SECONDS = 1.0


class KafkaMirror:
    """One process's copying; `run` belongs to one thread.

    Args:
        folder: of the copy.
        config: of the relay.
        cluster: where the log is.
        stop: ends it.
        now: Unix seconds.
    """

    def __init__(
        self,
        folder: Path,
        config: RelayConfig,
        cluster: ClusterSettings,
        *,
        stop: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._config, self._cluster, self._stop, self._now = folder, config, cluster, stop, now
        self._trimmed = self._adopted = time.monotonic()
        self._last_reason: str | None = None

    def run(self) -> None:
        """Copies until `stop` is set; what is whole is durable then.

        Raises:
            LogDiverged: the folder is of another log.
            PositionTrimmed: the cluster no longer holds what comes next.
            LogError, OSError: a topic has settings that will not do, or the log here failed.
        """
        while not self._stop.is_set():
            try:
                with closing(open_kafka_reader(self._cluster)) as reader, closing(self._writer(reader)) as writer:
                    self._copy(reader, writer)
            except WalbusError as error:
                if directive_of(error) is not Directive.RETRY:
                    raise
                if str(error) != self._last_reason:
                    _log.warning("kafka_mirror_waits", reason=str(error))
                self._last_reason = str(error)
                self._stop.wait(_PAUSE_SECONDS)

    def _writer(self, reader: KafkaLogReader) -> FileLogWriter:
        view, config = reader.view(), self._config
        manifest = load_manifest(self._folder)
        if manifest is not None and manifest.log_id != view.log.log_id:
            what = f"the cluster has log {view.log.log_id}, and the folder is of log {manifest.log_id}"
            raise LogDiverged(what, where=str(self._folder), mend=BEGIN_ANEW)
        if manifest is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            source = f"kafka://{self._cluster.bootstrap}/{self._cluster.topic}"
            write_lineage(Files(), self._folder, Lineage(copy_of=source))
        return open_writer(
            self._folder,
            reader.source,
            segment_bytes=config.segment_bytes,
            retention_hours=config.retention_hours,
            retention_bytes=config.retention_bytes,
            new_log_id=lambda: view.log.log_id,
            base=view.base.tip,
        )

    def _copy(self, reader: KafkaLogReader, writer: FileLogWriter) -> None:
        self._adopt_layouts(reader, writer)
        base = reader.view().base.tip.position
        after, overlap = durable_place(writer, base)
        if after < base:
            what = f"the cluster no longer holds what comes after {after}"
            raise PositionTrimmed(what, where=f"trimmed up to {base}", mend=BEGIN_ANEW)
        _log.info("kafka_mirror_copies", topic=self._cluster.topic, after=str(after))
        with closing(reader.cursor(after)) as cursor:
            self._follow(reader, cursor, writer, deque(overlap))

    def _follow(
        self, reader: KafkaLogReader, cursor: KafkaCursor, writer: FileLogWriter, overlap: deque[bytes]
    ) -> None:
        gathered = 0
        while not self._stop.is_set():
            given = cursor.read(_READ_BYTES) if overlap else cursor.read_to_copy(_READ_BYTES)
            for records in given:
                if isinstance(records, CopiedRun):
                    self._patiently(partial(writer.append_copied_run, records), writer)
                    gathered += len(records.records)
                elif overlap:
                    self._compare(records, overlap.popleft())
                else:
                    self._append(reader, writer, records)
                    gathered += len(records)
            if gathered >= _SYNC_BYTES or (gathered and not given):
                self._patiently(writer.sync, writer)
                gathered, self._last_reason = 0, None
            if not given:
                reader.wait(cursor.done, _WAIT_SECONDS)
            self._do_chores(reader, writer)

    def _do_chores(self, reader: KafkaLogReader, writer: FileLogWriter) -> None:
        now = time.monotonic()
        if now - self._trimmed >= _TRIM_SECONDS:
            self._trimmed = now
            writer.trim(self._now())
        if now - self._adopted >= _LAYOUT_SECONDS:  # of a table without changes no record tells
            self._adopt_layouts(reader, writer)

    def _append(self, reader: KafkaLogReader, writer: FileLogWriter, record: bytes) -> None:
        header = read_header(record)
        if header.kind == Kind.SCHEMA:
            self._adopt_layouts(reader, writer)
        self._patiently(partial(writer.append_copy, header, record), writer)

    def _compare(self, theirs: bytes, ours: bytes) -> None:
        if theirs != ours:
            what = f"the record at {read_header(theirs).last} is not the one that is here"
            raise LogDiverged(what, where=str(self._folder), mend=BEGIN_ANEW)

    def _adopt_layouts(self, reader: KafkaLogReader, writer: FileLogWriter) -> None:
        self._adopted = time.monotonic()
        for schema in reader.schemas.all():
            self._patiently(partial(writer.adopt, schema), writer)

    def _patiently(self, action: Callable[[], object], writer: FileLogWriter) -> None:
        """Does it as soon as there is room on the disk."""
        said = False
        while True:
            try:
                action()
            except LogUnreachable:
                raise
            except LogFull as full:
                if not said:
                    _log.error("kafka_mirror_full", error=str(full), note="nothing is copied until there is room")
                said = True
                with suppress(LogFull):
                    writer.trim(self._now())
                if self._stop.wait(_PAUSE_SECONDS):
                    raise
            else:
                return
