"""What a sink is given of a model source: as the runner does, without one.

fill(sink, source)           the whole log, and the checkpoint behind it
fill(sink, source, done)     what is behind a position
"""

from __future__ import annotations

from support.model_source import ModelSource
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink
from walbus.events import Window, window_of
from walbus.position import ORIGIN, Position

MARKS = Marks(1, 1)


def windows(source: ModelSource, after: Position = ORIGIN) -> list[Window]:
    """What the log has behind a position."""
    return [window_of(h, r, source.layouts.__getitem__, after=after) for h, r in source.after(after)]


def following(source: ModelSource, marks: Marks = MARKS) -> Following:
    """The checkpoint of who has all of it."""
    return Following(source.log_id, marks, Point(source.end, source.last_seq))


def fill(sink: Sink, source: ModelSource, after: Position = ORIGIN, marks: Marks = MARKS) -> None:
    """Writes what the log has behind a position, and commits."""
    sink.write(windows(source, after), marks)
    sink.commit(following(source, marks))
