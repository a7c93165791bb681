"""One pgoutput message of a change as changes of the log. Pure.

- An update's key comes from the new row. Where the key changed, pgoutput sends the old key too, which becomes
  `old_key`; in such a key-only tuple `n` means "not sent". Under REPLICA IDENTITY FULL it sends the whole old row.
- A column whose TOASTed value did not change is not sent. It is taken from the old row where that has it, else its
  bit is set in the change's `unchanged` bitmap. It is never taken for NULL.
- A truncate of several tables is a change of each.
"""

from __future__ import annotations

from typing import TypeAlias

from walbus.capture.messages import Delete, Insert, LogicalMessage, Truncate, Update
from walbus.capture.rows import pack_row
from walbus.capture.tables import Tables
from walbus.errors import ProtocolError
from walbus.native.interface import Core
from walbus.records import ChangeFlag, Op, pack_change

ChangeMessage: TypeAlias = Insert | Update | Delete | Truncate | LogicalMessage


def put_changes(message: ChangeMessage, tables: Tables, core: Core) -> None:
    """Adds the changes that a message makes, each with its table's bit.

    Args:
        message: of the open transaction.
        tables: of the connection; tells a layout before the first row that needs it.
        core: its `next_delta` is asked behind what `tables` tells.

    Raises:
        ProtocolError: a row does not fit its table, or lacks what it must have.
    """
    if isinstance(message, Insert):
        table = tables.fitting(message.oid, message.new)
        core.add(pack_row(table, Op.INSERT, core.next_delta(), new=message.new), table.bit)
    elif isinstance(message, Update):
        _update(message, tables, core)
    elif isinstance(message, Delete):
        _delete(message, tables, core)
    elif isinstance(message, Truncate):
        _truncate(message, tables, core)
    else:
        core.add(_message(message, core.next_delta()))


def _update(update: Update, tables: Tables, core: Core) -> None:
    old = update.old_key or update.old
    rows = (update.new,) if old is None else (update.new, old)
    table = tables.fitting(update.oid, *rows)
    change = pack_row(table, Op.UPDATE, core.next_delta(), new=update.new, key=update.old_key, old=update.old)
    core.add(change, table.bit)


def _delete(delete: Delete, tables: Tables, core: Core) -> None:
    old = delete.old_key or delete.old
    if old is None:
        raise ProtocolError("a delete without its old row")
    table = tables.fitting(delete.oid, old)
    core.add(pack_row(table, Op.DELETE, core.next_delta(), key=delete.old_key, old=delete.old), table.bit)


def _truncate(truncate: Truncate, tables: Tables, core: Core) -> None:
    flags = truncate.cascade * ChangeFlag.CASCADE | truncate.restart_identity * ChangeFlag.RESTART_IDENTITY
    for table in [tables.get(oid) for oid in truncate.oids]:
        delta = core.next_delta()
        change = pack_change(
            Op.TRUNCATE,
            table=table.schema.oid,
            schema_id=table.schema.id,
            seq_delta=delta,
            ordinal_delta=delta,
            flags=flags,
        )
        core.add(change, table.bit)


def _message(message: LogicalMessage, delta: int) -> bytes:
    flags = ChangeFlag.TRANSACTIONAL if message.transactional else 0
    return pack_change(
        Op.MESSAGE, seq_delta=delta, ordinal_delta=delta, flags=flags, key=message.prefix, after=message.content
    )
