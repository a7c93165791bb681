"""Gives the indexes of segments, and builds one again from its segment when the file is missing or damaged.

Those of segments as the configuration has them are read whole, and kept. That of a segment that a huge transaction
filled stays in its file (`walbus.relay.index_search`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path

import structlog

from walbus.errors import LogFull
from walbus.relay.fs import Files, read_whole, replace_whole
from walbus.relay.index import Places, SegmentIndex, pack_index_header, parse_index
from walbus.relay.index_search import StoredIndex, stored_entries
from walbus.relay.scan import TailScanner
from walbus.relay.segment import HEADER_SIZE, index_path, parse_segment_header, segment_path
from walbus.relay.tip import Tip
from walbus.relay.view import LogView

_log = structlog.get_logger(__name__)

_KEPT = 64
_BLOCK = 1 << 20


class IndexLoader:
    """Gives segments' indexes, and keeps those of sealed segments and those that it had to build. Thread-safe.

    Args:
        folder: of the log.
        files: the file operations.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, SegmentIndex] = OrderedDict()

    def __call__(self, view: LogView, at: int) -> Places:
        """The index of the segment at an index of the manifest's numbers."""
        number = view.manifest.numbers[at]
        with self._lock:
            kept = self._kept.get(number)
            if kept is not None:
                self._kept.move_to_end(number)
                return kept
        sealed = at < len(view.manifest.sealed)
        return self._stored(view, at, sealed=sealed) or self._whole(view, at, sealed=sealed)

    def _stored(self, view: LogView, at: int, *, sealed: bool) -> StoredIndex | None:
        number = view.manifest.numbers[at]
        path = index_path(self._folder, number)
        entries = stored_entries(self._files, path, number, sealed=sealed)
        if entries is None:
            return None
        rebuilt = partial(self._rebuilt, view, at) if sealed else None
        return StoredIndex(self._files, path, entries, view.limit(at), rebuilt)

    def _whole(self, view: LogView, at: int, *, sealed: bool) -> SegmentIndex:
        number = view.manifest.numbers[at]
        loaded = self._load(number, sealed=sealed)
        if loaded is None:
            return self._rebuilt(view, at)
        return self._cut(view, at, loaded, keep=number < view.mark.segment)

    def _rebuilt(self, view: LogView, at: int) -> SegmentIndex:
        return self._cut(view, at, self._rebuild(view, at), keep=True)

    def _cut(self, view: LogView, at: int, index: SegmentIndex, *, keep: bool) -> SegmentIndex:
        index.cut(max(view.limit(at), HEADER_SIZE))
        if keep:  # one that the view cuts may be needed whole later
            self._keep(view.manifest.numbers[at], index)
        return index

    def _keep(self, number: int, index: SegmentIndex) -> None:
        with self._lock:
            self._kept[number] = index
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def _load(self, number: int, *, sealed: bool) -> SegmentIndex | None:
        try:
            data = read_whole(self._files, index_path(self._folder, number))
        except OSError:
            return None
        return parse_index(data, number, sealed=sealed)

    def _rebuild(self, view: LogView, at: int) -> SegmentIndex:
        number = view.manifest.numbers[at]
        path = index_path(self._folder, number)
        index = build_index(self._files, segment_path(self._folder, number), view.limit(at))
        _log.warning("log_index_rebuilt", file=str(path), entries=len(index))
        if at < len(view.manifest.sealed):
            self._store(path, number, index)
        return index

    def _store(self, path: Path, number: int, index: SegmentIndex) -> None:
        """Only saves the next reader the work, so a folder that cannot be written to is no error."""
        try:
            replace_whole(self._files, path, pack_index_header(number, 0, len(index)) + index.pack_entries(0))
        except (OSError, LogFull) as error:
            _log.warning("log_index_not_stored", file=str(path), error=str(error))


def build_index(files: Files, path: Path, limit: int) -> SegmentIndex:
    """The index of a segment's records up to an offset.

    It ends before a damaged record; whoever reads that far is told.

    Raises:
        OSError: the segment cannot be read.
        DamagedRecord: the file's header is damaged.
    """
    index = SegmentIndex()
    fd = files.open_for_reading(path)
    try:
        head = parse_segment_header(files.pread(fd, HEADER_SIZE, 0), str(path))
        scanner = TailScanner(Tip(head.base, 0, head.base_seq, 0, 0), HEADER_SIZE)
        before, seq, time, at = head.base, head.base_seq, 0, HEADER_SIZE
        while at < limit and scanner.problem is None:
            block = files.pread(fd, min(max(_BLOCK, scanner.wanted), limit - at), at)
            if not block:
                break
            at += len(block)
            for offset, header in scanner.feed(block):
                if index.wants(offset):
                    index.add(offset, before, seq, time)
                before, seq, time = header.last, header.last_seq, max(time, header.commit_time)
    finally:
        files.close(fd)
    return index
