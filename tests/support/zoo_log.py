"""The rows of a log as consumers see them: as changes, and as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from support.log_view import log_records
from walbus.events import Change, window_of
from walbus.jsonlines import LineRenderer
from walbus.position import ORIGIN, Position
from walbus.records import Op
from walbus.relay import open_reader

_ROW_OPS = (Op.INSERT, Op.UPDATE, Op.DELETE)
_ROW_LINES = tuple(f'{{"op":"{op.name.lower()}"'.encode() for op in _ROW_OPS)


def row_changes_in(folder: Path, after: Position = ORIGIN) -> Iterator[tuple[Change, bytes]]:
    """Every change of a row in a log behind a position ("last done"), in order, with its JSON line."""
    with closing(open_reader(folder)) as reader:
        renderer = LineRenderer(reader.schemas.get, after=after)
        for header, record in log_records(reader, after):
            window = window_of(header, record, reader.schemas.get, after=after)
            lines = [line for line in renderer.render(header, record).split(b"\n") if line.startswith(_ROW_LINES)]
            yield from zip([change for change in window if change.op in _ROW_OPS], lines, strict=True)
