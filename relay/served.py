"""How far the log is served where standbys are required: not behind what all of them hold durably.

What only this machine holds could be lost with it, and a client that had seen it would be ahead of the log that takes
over. So the durable end that readers are shown is the last one of which every required standby has reported that it
holds it. The standbys themselves read up to the true end.

Ends are remembered as they go by; where none of those is low enough (a start, a standby that is far behind), the place
is looked up in the log.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from walbus.relay.control import Mark
from walbus.relay.cursor import FileCursor
from walbus.relay.fs import Files
from walbus.relay.index_loader import IndexLoader
from walbus.relay.segment import HEADER_SIZE, parse_segment_header, segment_path
from walbus.relay.tip import Tip
from walbus.relay.view import LogView, ViewFiles

_REMEMBERED = 1024  # ends that are not served yet; of more, every other one is forgotten
_LOOK_UP_SECONDS = 0.5  # between two looks into the log


class Holders(Protocol):
    """Who must hold what is served: the required standbys, or something else that follows the log. Thread-safe."""

    def hold(self, tip: Tip) -> bool:
        """Whether all of them hold everything up to a place."""

    def lowest(self) -> Tip | None:
        """What all of them hold; None if that is not known."""

    def look_again(self, end: Tip) -> None:
        """Another writer has opened the log, which ends here by now."""


class ServedViews:
    """Views whose end is what required standbys hold. Thread-safe.

    Args:
        folder: of the log.
        files: the file operations.
        views: up to the true end; closed with these.
        standbys: what they hold.
        monotonic: seconds that never step back.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        views: ViewFiles,
        standbys: Holders,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._files, self._views, self._standbys = folder, files, views, standbys
        self._monotonic = monotonic
        self._indexes = IndexLoader(folder, files)
        self._lock = threading.Lock()
        self._waiting: deque[Mark] = deque()  # ends that have been seen and are not served yet
        self._served: Mark | None = None
        self._looked_up = -_LOOK_UP_SECONDS
        self._writer_epoch = 0  # of the last view

    @property
    def control_path(self) -> Path:
        """The control file of the writer that the views are of."""
        return self._views.control_path

    def view(self) -> LogView:
        """The log now, up to what is served."""
        with self._lock:
            now = self._views.view()
            if now.manifest.writer_epoch != self._writer_epoch:
                self._begin(now)
            self._note(now.mark)
            moved = self._move()
            served = self._served
            if served is None or served.tip.position < now.manifest.trimmed:
                served = self._served = self._look_up(now)
            elif not moved and self._waiting and self._monotonic() - self._looked_up >= _LOOK_UP_SECONDS:
                served = self._served = max(served, self._look_up(now), key=lambda mark: (mark.segment, mark.offset))
            return LogView(now.manifest, served)

    def close(self) -> None:
        """Closes the control file."""
        self._views.close()

    def _begin(self, now: LogView) -> None:
        """A writer has opened the log, which may end before where it ended."""
        self._writer_epoch = now.manifest.writer_epoch
        self._standbys.look_again(now.mark.tip)
        self._waiting.clear()
        if self._served is not None and not _reaches(now, self._served):
            self._served = None

    def _note(self, mark: Mark) -> None:
        last = self._waiting[-1] if self._waiting else self._served
        if last is not None and (mark.segment, mark.offset) <= (last.segment, last.offset):
            return
        self._waiting.append(mark)
        if len(self._waiting) > _REMEMBERED:
            newest = self._waiting[-1]
            self._waiting = deque([*list(self._waiting)[:-1:2], newest])

    def _move(self) -> bool:
        """Serves what all standbys hold by now, of the ends that are remembered; whether there was one."""
        moved = False
        while self._waiting and self._standbys.hold(self._waiting[0].tip):
            self._served, moved = self._waiting.popleft(), True
        return moved

    def _look_up(self, now: LogView) -> Mark:
        """The place in the log up to which all standbys hold it."""
        self._looked_up = self._monotonic()
        held = self._standbys.lowest()
        trimmed = now.manifest.trimmed
        if held is None or held.position <= trimmed:
            number = now.manifest.numbers[0]
            return Mark(number, HEADER_SIZE, base_of(self._folder, self._files, now), 0, now.mark.generation)
        if held.position >= now.mark.tip.position:
            return now.mark
        cursor = FileCursor(self._folder, self._files, lambda: now, self._indexes)
        try:
            cursor.seek(held.position)
            number, offset = cursor.next_record
        finally:
            cursor.close()
        return Mark(number, offset, held, 0, now.mark.generation)


def _reaches(view: LogView, mark: Mark) -> bool:
    """Whether an end that was remembered is in the log still."""
    numbers = view.manifest.numbers
    return mark.segment in numbers and mark.offset <= view.limit(numbers.index(mark.segment))


def base_of(folder: Path, files: Files, view: LogView) -> Tip:
    """What is known before the first record that the log still holds.

    Raises:
        FileNotFoundError: the segment was dropped just now.
        DamagedRecord: its header is damaged.
    """
    number = view.manifest.numbers[0]
    path = segment_path(folder, number)
    fd = files.open_for_reading(path)
    try:
        header = parse_segment_header(files.pread(fd, HEADER_SIZE, 0), str(path))
    finally:
        files.close(fd)
    if number == view.manifest.active.number:
        return view.manifest.active.base._replace(last_seq=header.base_seq)
    return Tip(header.base, 0, header.base_seq, 0, 0)
