"""The loops that decide the speed, in C where it was built, and in Python always.

    interface   what a core of capture does; read it first
    reading     what the cores of those who read a log do: filter records, read rows
    pure        the core of capture in Python
    pure_filter the filter in Python; the reader of rows in Python is `walbus.values.avro_rows`
    pure_columns  rows as columns in Python
    pure_changes  a record's changes in Python, pure_transactions windows of whole transactions
    pure_converted  rows as other systems want their values, in Python
    pure_scan, pure_tally  records checked, and counted by table, in Python
    pushing     what sends records from a file to a peer; in Python that is `walbus.relay.file_push`
    copying     what a collector of copied rows does; pure_copied, copy_text in Python
    folding     what the cores of the bootstrap do; pure_fold is it in Python
    serving     what the cores of those who read its store do; pure_serving is it in Python
    _core       all of it in C, one small optional extension:
      buffer.pxi  bytes in memory, CRC32C
      values.pxi  text to Avro; times.pxi has dates and times
      rows.pxi    tuples to changes
      places.pxi  positions and transaction ids compared
      packing.pxi small transactions to runs
      scanning.pxi  records framed and checked where they lie
      pushing.pxi records checked and sent
      blocks.pxi  rows of streamed transactions into their spool, and out of it
      avro.pxi    rows walked column by column
      filter.pxi  records filtered
      changes.pxi a record's changes to Python objects
      transactions.pxi  whole transactions to windows
      reader.pxi  rows to Python values
      converted.pxi  rows to other systems' values
      columns.pxi rows to columns in Arrow's layout
      tally.pxi   changes counted by table
      copied.pxi  rows of COPY to sorted entries
      fold.pxi    changes folded into entries
      serving.pxi entries packed as changes, the change index walked

`WALBUS_PURE=1` forces Python. Which one is in use changes no byte of the log; `core_in_use` tells (`walbus doctor`). In
a working tree `pip install -e .` builds the extension.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from walbus import records
from walbus.native import (
    pure,
    pure_changes,
    pure_columns,
    pure_converted,
    pure_copied,
    pure_filter,
    pure_fold,
    pure_scan,
    pure_serving,
    pure_tally,
    pure_transactions,
)
from walbus.native.copying import NewCopiedRows
from walbus.native.folding import InKeyOrder, NewFold, PackPages
from walbus.native.interface import INTERFACE, Core, ReplayRows, SpoolRows
from walbus.native.pushing import PushRecords
from walbus.native.reading import (
    NewConvertedRows,
    NewFilter,
    NewRowColumns,
    NewRowReader,
    ReadChanges,
    ReadTransactions,
)
from walbus.native.serving import PackRows, PackVersions, TakePlaces
from walbus.values.avro_rows import AvroRows

#: The variable that forces Python.
FORCE_PURE = "WALBUS_PURE"


class Implementation(NamedTuple):
    """One of the two: a factory of cores, and its functions; `name` says which and why."""

    name: str
    new_core: Callable[[], Core]
    seal: Callable[[bytes, int], bytes]
    spool_rows: SpoolRows
    replay_rows: ReplayRows
    good_records: Callable[[bytes | bytearray | memoryview], tuple[int, int]]
    push_records: PushRecords | None
    new_filter: NewFilter
    read_changes: ReadChanges
    read_transactions: ReadTransactions
    new_row_reader: NewRowReader
    new_converted_rows: NewConvertedRows
    new_row_columns: NewRowColumns
    tally_changes: Callable[[bytes, dict[int, tuple[int, int]]], None]
    new_copied_rows: NewCopiedRows
    new_fold: NewFold
    pack_pages: PackPages
    in_key_order: InKeyOrder
    pack_rows: PackRows
    pack_versions: PackVersions
    take_places: TakePlaces


def pure_implementation(why: str) -> Implementation:
    """The one in Python."""
    return Implementation(
        f"pure ({why})",
        pure.Core,
        records.seal,
        pure.spool_rows,
        pure.replay_rows,
        pure_scan.good_records,
        None,
        pure_filter.RecordFilter,
        pure_changes.read_changes,
        pure_transactions.read_transactions,
        AvroRows,
        pure_converted.ConvertedRows,
        pure_columns.RowColumns,
        pure_tally.tally_changes,
        pure_copied.CopiedRows,
        pure_fold.Fold,
        pure_fold.pack_pages,
        pure_fold.in_key_order,
        pure_serving.pack_rows,
        pure_serving.pack_versions,
        pure_serving.take_places,
    )


def native_implementation() -> Implementation:
    """The one in C.

    Raises:
        ImportError: it was not built, or cannot be loaded.
    """
    import walbus.native._core as core  # noqa: PLC0415  (it may be missing)

    if core.INTERFACE != INTERFACE:
        raise ImportError("it was built from other sources; build it again")
    return Implementation(
        "native",
        core.Core,
        core.seal,
        core.spool_rows,
        core.replay_rows,
        core.good_records,
        core.push_records if core.PUSHES else None,
        core.RecordFilter,
        core.read_changes,
        core.read_transactions,
        core.RowReader,
        core.ConvertedRows,
        core.RowColumns,
        core.tally_changes,
        core.CopiedRows,
        core.Fold,
        core.pack_pages,
        core.in_key_order,
        core.pack_rows,
        core.pack_versions,
        core.take_places,
    )


def _chosen() -> Implementation:
    if os.environ.get(FORCE_PURE, "0") not in {"", "0"}:
        return pure_implementation(f"{FORCE_PURE}={os.environ[FORCE_PURE]}")
    try:
        return native_implementation()
    except ModuleNotFoundError:
        return pure_implementation("extension not built")
    except ImportError as error:
        return pure_implementation(f"extension cannot be loaded: {error}")


_IN_USE = _chosen()

#: Makes the core of one stream.
new_core = _IN_USE.new_core

#: Gives a run's records their seqs and checksums; see `walbus.records.seal`.
seal = _IN_USE.seal

#: Rows of streamed transactions into their spool, and out of it.
spool_rows, replay_rows = _IN_USE.spool_rows, _IN_USE.replay_rows

#: Records framed and checked where they lie; see `walbus.native.pure_scan`.
good_records = _IN_USE.good_records

#: Sends checked records from a file; None where only Python can. See `walbus.native.pushing`.
push_records = _IN_USE.push_records

#: Makes the filter of one stream; see `walbus.native.reading`.
new_filter = _IN_USE.new_filter

#: Gives a record's changes; see there.
read_changes = _IN_USE.read_changes

#: Gives the windows of whole transactions; see there.
read_transactions = _IN_USE.read_transactions

#: Makes the reader of a layout's rows; see there.
new_row_reader = _IN_USE.new_row_reader

#: Makes what gives rows as other systems want their values; see there.
new_converted_rows = _IN_USE.new_converted_rows

#: Makes what collects rows as columns; see there.
new_row_columns = _IN_USE.new_row_columns

#: Adds records to the counts of changes and bytes by table; see `walbus.native.pure_tally`.
tally_changes = _IN_USE.tally_changes

#: Makes what collects a chunk's rows; see `walbus.native.copying`.
new_copied_rows = _IN_USE.new_copied_rows

#: Makes the fold of one batch; see `walbus.native.folding`.
new_fold = _IN_USE.new_fold

#: Lists entries by seq, and sorts them; see there.
pack_pages, in_key_order = _IN_USE.pack_pages, _IN_USE.in_key_order

#: Packs entries as a snapshot's changes, or a delta's, and walks the change index; see `walbus.native.serving`.
pack_rows, pack_versions, take_places = _IN_USE.pack_rows, _IN_USE.pack_versions, _IN_USE.take_places


def core_in_use() -> str:
    """Which core is in use, and why: `native`, `pure (WALBUS_PURE=1)`, `pure (extension not built)`, or another."""
    return _IN_USE.name


__all__ = [
    "Core",
    "core_in_use",
    "good_records",
    "in_key_order",
    "new_converted_rows",
    "new_copied_rows",
    "new_core",
    "new_filter",
    "new_fold",
    "new_row_columns",
    "new_row_reader",
    "pack_pages",
    "pack_rows",
    "pack_versions",
    "push_records",
    "read_changes",
    "read_transactions",
    "replay_rows",
    "seal",
    "spool_rows",
    "take_places",
    "tally_changes",
]
