"""Arrow record batches as data frames of pandas and Polars, without a copy where those take the memory as it is.

pandas gets columns of Arrow's types (`pandas.ArrowDtype`): in its own, an int8 with a NULL is a float, and loses
digits.
Both are extras: `walbus[pandas]`, `walbus[polars]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from walbus.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_TABLE = b"walbus.table"


class PandasFrame(NamedTuple):
    """The changes of one layout of a table, with the columns of `walbus.consumers.arrow`."""

    table: str
    frame: pd.DataFrame


class PolarsFrame(NamedTuple):
    """The changes of one layout of a table, with the columns of `walbus.consumers.arrow`."""

    table: str
    frame: pl.DataFrame


def pandas_frames(batches: Iterable[pa.RecordBatch]) -> list[PandasFrame]:
    """Batches as data frames of pandas.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas as pd  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise _not_installed("pandas") from None
    return [PandasFrame(_table_of(batch), batch.to_pandas(types_mapper=pd.ArrowDtype)) for batch in batches]


def polars_frames(batches: Iterable[pa.RecordBatch]) -> list[PolarsFrame]:
    """Batches as data frames of Polars; in versions that have no maps, `_walbus_texts` is lists of `key` and `value`.

    Raises:
        UsageError: Polars is not installed.
    """
    try:
        import polars as pl  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise _not_installed("polars") from None
    frames: list[PolarsFrame] = []
    for batch in batches:
        frame: Any = pl.from_arrow(batch)
        frames.append(PolarsFrame(_table_of(batch), frame))
    return frames


def _table_of(batch: pa.RecordBatch) -> str:
    table: bytes = batch.schema.metadata[_TABLE]
    return table.decode()


def _not_installed(name: str) -> UsageError:
    return UsageError(f"{name} is not installed", mend=f"pip install 'walbus[{name}]'")
