"""What a tantivy index holds of the sink itself, beside the rows: checkpoint, layouts, rows that lack a value."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from walbus.consumers.sinks.tantivy_index import LAYOUTS_ID, STATE_ID, IndexView, RowIndex
from walbus.errors import InvalidText, SinkRefused
from walbus.schema import TableSchema


class IndexState(NamedTuple):
    """State of an index as of one commit.

    Attributes:
        checkpoint: None: it never had one.
        lacking: documents that lack a value.
        carried: tables of a copy whose rows came from the live index.
        layouts: of its tables, by OID.
        log_generation: that the layouts' numbers belong to.
    """

    checkpoint: Checkpoint | None
    lacking: set[str]
    carried: set[str]
    layouts: dict[int, TableSchema]
    log_generation: int


def read_state(index: IndexView, folder: Path) -> IndexState:
    """What is committed.

    Args:
        index: it is read from.
        folder: it lies in.

    Raises:
        SinkRefused: the checkpoint is none.
        ValueError, MsgspecError: as reading documents does.
    """
    state, layouts = index.document(STATE_ID), index.document(LAYOUTS_ID)
    text = state.get("checkpoint")
    try:
        checkpoint = None if text is None else load_checkpoint(text)
    except InvalidText as error:
        raise SinkRefused(error.what, where=str(folder), mend=error.mend) from None
    known = (TableSchema.from_dict(document) for document in layouts.get("layouts", []))
    return IndexState(
        checkpoint,
        set(state.get("lacking", [])),
        set(state.get("carried", [])),
        {layout.oid: layout for layout in known},
        int(layouts.get("log_generation", 0)),
    )


def put_state(index: RowIndex, checkpoint: Checkpoint | None, lacking: Set[str], carried: Set[str]) -> None:
    """Replaces what `IndexState` has under these names; with the next commit."""
    text = None if checkpoint is None else dump_checkpoint(checkpoint)
    index.put_document(STATE_ID, {"checkpoint": text, "lacking": sorted(lacking), "carried": sorted(carried)})


def put_layouts(index: RowIndex, layouts: Mapping[int, TableSchema], log_generation: int) -> None:
    """As `put_state`."""
    known = [layout.to_dict() for layout in layouts.values()]
    index.put_document(LAYOUTS_ID, {"log_generation": log_generation, "layouts": known})


__all__ = ["IndexState", "put_layouts", "put_state", "read_state"]
