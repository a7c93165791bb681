# Types of the native core; `walbus.native.interface` says what they do.

from collections.abc import Callable

from walbus.native import copying, folding, interface, pushing, reading, serving

INTERFACE: int
Core: Callable[[], interface.Core]
RecordFilter: reading.NewFilter
RowReader: reading.NewRowReader
ConvertedRows: reading.NewConvertedRows
RowColumns: reading.NewRowColumns
read_changes: reading.ReadChanges
read_transactions: reading.ReadTransactions
CopiedRows: copying.NewCopiedRows
Fold: folding.NewFold
pack_pages: folding.PackPages
in_key_order: folding.InKeyOrder
pack_rows: serving.PackRows
pack_versions: serving.PackVersions
take_places: serving.TakePlaces

PUSHES: bool
push_records: pushing.PushRecords

spool_rows: interface.SpoolRows
replay_rows: interface.ReplayRows

def seal(records: bytes, base: int) -> bytes: ...
def good_records(data: bytes | bytearray | memoryview) -> tuple[int, int]: ...
def tally_changes(records: bytes, counts: dict[int, tuple[int, int]]) -> None: ...
def crc32c_both_ways(data: bytes) -> tuple[int, int]: ...
