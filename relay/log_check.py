"""Checks a whole log: manifest, control file, layouts, holds, and every byte of every segment and index.

It reads only, takes no lock, and works beside a live writer: it looks at the log as it was when it began, and never
past the durable end of that moment. A segment that retention drops meanwhile is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from walbus.errors import DamagedRecord, InvalidText
from walbus.position import parse_position
from walbus.relay.fs import Files
from walbus.relay.retention import holds_folder
from walbus.relay.schemas import SchemaFiles, schema_ids, schema_path
from walbus.relay.segment import HEADER_SIZE, segment_path
from walbus.relay.segment_check import Finding, SegmentCheck
from walbus.relay.view import LogView, ViewFiles
from walbus.status import read_status


class LogCheck:
    """One check.

    Args:
        folder: of the log.
        files: the file operations.

    Raises:
        LogMissing: there is no log in the folder.
        DamagedRecord: the manifest cannot be read, so there is nothing to check by.
    """

    def __init__(self, folder: Path, files: Files | None = None) -> None:
        self._folder, self._files = folder, files or Files()
        self._views = ViewFiles(folder, self._files)
        self._view = self._views.view()
        self.records = 0  #: good ones so far
        self.segments = 0  #: checked so far
        self.trimmed = 0  #: segments that retention dropped meanwhile

    @property
    def view(self) -> LogView:
        """The log when the check began."""
        return self._view

    @property
    def bytes(self) -> int:
        """How many will be read."""
        return sum(self._view.limit(at) for at in range(len(self._view.manifest.numbers)))

    def findings(self, progress: Callable[[int], None]) -> Iterator[Finding]:
        """Everything that is not as it has to be, in the order in which it is found.

        Args:
            progress: told the bytes that were read since it was told last.
        """
        known = set[int]()
        for schema_id in schema_ids(self._folder):
            known.add(schema_id)
            yield from self._schema_findings(schema_id)
        yield from self._hold_findings()
        for at in range(len(self._view.manifest.numbers)):
            if self._view.limit(at) >= HEADER_SIZE:
                yield from self._segment_findings(at, known, progress)

    def close(self) -> None:
        """Frees files."""
        self._views.close()

    def _schema_findings(self, schema_id: int) -> Iterator[Finding]:
        path = str(schema_path(self._folder, schema_id))
        try:
            schema = SchemaFiles(self._folder).get(schema_id)
        except DamagedRecord as error:
            yield Finding(error.what, path)
        else:
            if schema.id != schema_id:
                yield Finding(f"the file holds layout {schema.id}", path)

    def _hold_findings(self) -> Iterator[Finding]:
        for path in sorted(holds_folder(self._folder).glob("*.json")):
            try:
                parse_position(str((read_status(path) or {}).get("last_done")))
            except InvalidText:
                if path.exists():
                    yield Finding("the hold cannot be read, and so keeps everything", str(path))

    def _segment_findings(self, at: int, schemas: set[int], progress: Callable[[int], None]) -> Iterator[Finding]:
        check = SegmentCheck(self._folder, self._files, self._view, at, schemas)
        number = self._view.manifest.numbers[at]
        try:
            yield from check.findings(progress)
        except FileNotFoundError:
            if number in self._views.view().manifest.numbers:
                yield Finding("a segment's file is missing", str(segment_path(self._folder, number)), number)
            else:
                self.trimmed += 1
            return
        self.segments += 1
        self.records += check.records
        if number == self._view.mark.segment and check.tip is not None:
            yield from self._mark_findings(check)

    def _mark_findings(self, check: SegmentCheck) -> Iterator[Finding]:
        """Whether the durable end is what the records before it say."""
        mark, tip = self._view.mark, check.tip
        assert tip is not None  # noqa: S101  (the caller's condition)
        layout = tip.announced_schema
        if mark.segment != self._view.manifest.active.number:  # the writer rolled between the two files that were read,
            layout = max(layout, mark.tip.announced_schema)  # and of a sealed segment nobody says what came before it
        for what, said, found in (
            ("position", mark.tip.position, tip.position),
            ("end_lsn", mark.tip.end_lsn, tip.end_lsn),
            ("commit time", mark.tip.commit_time, tip.commit_time),
            ("largest commit time", mark.max_time, check.max_time),
            ("announced layout", mark.tip.announced_schema, layout),
        ):
            if said != found:
                yield self._control_finding(f"the durable end says {what} {said}, and the records before it {found}")
        if mark.tip.last_seq < tip.last_seq:
            yield self._control_finding(
                f"the durable end says seq {mark.tip.last_seq}, and a record has {tip.last_seq}"
            )

    def _control_finding(self, what: str) -> Finding:
        return Finding(what, str(self._views.control_path))
