"""The keys of a consumer with `sink = "tantivy"`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from walbus.consumers.sinks.base import SinkOptions, SinkPlace


class TantivyOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "tantivy"`."""

    path: Path | None = None  #: the index's folder; default: `index` in the consumer's folder
    commit_seconds: float = Field(0.2, gt=0, le=60)  #: how long a change may wait to become visible
    heap_mb: int = Field(64, ge=16, le=4096)  #: memory of tantivy's writer

    @property
    def heap_bytes(self) -> int:
        """The same in bytes."""
        return self.heap_mb << 20


def path_of(options: TantivyOptions, place: SinkPlace) -> Path:
    """What readers of the index open."""
    return options.path or place.folder / "index"


__all__ = ["TantivyOptions", "path_of"]
