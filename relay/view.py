"""A consistent picture of the log: the manifest's segments, cut at a durable end.

The writer has its view in memory; readers in other processes put theirs together from the files. Whoever reads
records works on a view and never asks where it came from.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from walbus.errors import DamagedRecord, LogError, LogMissing
from walbus.log import Bounds
from walbus.relay.control import ControlFile, Mark, control_path
from walbus.relay.fs import Files
from walbus.relay.manifest import Manifest, load_manifest

_ATTEMPTS = 100  #: looks at files that a writer is replacing; each takes some microseconds


class LogView(NamedTuple):
    """The log at one moment.

    Attributes:
        manifest: the segments; it may know one that the end has not reached yet.
        mark: the durable end.
    """

    manifest: Manifest
    mark: Mark

    def limit(self, index: int) -> int:
        """Up to which offset the segment at an index of `manifest.numbers` may be read."""
        number = self.manifest.numbers[index]
        if number == self.mark.segment:
            return self.mark.offset
        if number > self.mark.segment:
            return 0
        return self.manifest.sealed[index].length

    def bounds(self) -> Bounds:
        """What a log holds durably, for callers."""
        manifest, tip = self.manifest, self.mark.tip
        active = self.mark.offset if self.mark.segment == manifest.active.number else 0
        return Bounds(
            manifest.log_id, manifest.trimmed, tip.position, tip.end_lsn, tip.last_seq,
            manifest.sealed_bytes + active, tip.commit_time,
        )  # fmt: skip


def missing(folder: Path) -> LogMissing:
    """The error for a folder without a log."""
    return LogMissing("there is no log yet", where=str(folder), mend="start `walbus capture`, which makes it")


class ViewFiles:
    """A reader's views, put together from manifest and control file. Thread-safe.

    Args:
        folder: of the log.
        files: the file operations.

    Raises:
        LogMissing: there is no log in the folder.
        DamagedRecord: its manifest or its control file is damaged.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files
        self._lock = threading.Lock()
        self._control: ControlFile | None = None
        self._view: LogView | None = None
        self._manifest = self._load()
        try:
            self.view()
        except BaseException:
            self.close()
            raise

    def view(self) -> LogView:
        """The log now; one small read unless something but the end has changed.

        While a takeover is under way the view stands still.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                view = self._look()
                if view is not None:
                    self._view = view
                    break
            if self._view is None:
                raise self._no_end()
            return self._view

    def _no_end(self) -> LogError:
        """Why nobody knows where the log ends."""
        if self._control is None or self._control.state().superseded_by:
            return missing(self._folder)  # another writer is about to take over
        mend = "start `walbus capture`, which finds the end again"
        return DamagedRecord("the durable end cannot be read", where=f"{self.control_path}, offset 0", mend=mend)

    @property
    def control_path(self) -> Path:
        """The control file of the writer that the view is of."""
        return control_path(self._folder, self._manifest.writer_epoch)

    def close(self) -> None:
        """Closes the control file."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._control = None

    def _look(self) -> LogView | None:
        control = self._control = self._control or self._open_control()
        if control is None:
            self._manifest = self._load()
            return None
        state = control.state()
        if state.superseded_by:
            newer = self._load()
            if newer.writer_epoch > self._manifest.writer_epoch:
                control.close()
                self._control, self._manifest = None, newer
                return None
        mark = state.trusted
        if mark is None:
            return self._view
        if mark.generation > self._manifest.generation:
            self._manifest = self._load()
        if self._view is not None and self._view.mark == mark and self._view.manifest is self._manifest:
            return self._view
        return LogView(self._manifest, mark) if mark.segment <= self._manifest.active.number else None

    def _open_control(self) -> ControlFile | None:
        path = control_path(self._folder, self._manifest.writer_epoch)
        try:
            return ControlFile(self._files, self._files.open_for_reading(path))
        except FileNotFoundError:
            return None  # a newer writer has just removed it

    def _load(self) -> Manifest:
        manifest = load_manifest(self._folder)
        if manifest is None:
            raise missing(self._folder)
        return manifest
