"""Where a log comes from: whether it is a copy of another relay's, and how often copies of it took over.

A log is written by capture, and copied by relays that follow it. When a copy takes over (`walbus promote`), the *term*
of the log rises by one, and the position at which that happened is kept. Both travel to whoever copies the log from
then on. By them

- a relay that comes back from the dead is told from the one that took over: the higher term is the log;
- a copy knows whether what it holds is still the log's: what lies behind the position of a taking over, and was copied
  under an earlier term, is not.

One small file in the log's folder, replaced whole. A log without it is in its first term, and no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from walbus.errors import DamagedRecord, InvalidText
from walbus.position import ORIGIN, Position, parse_position
from walbus.relay.fs import Files, replace_whole

BEGIN_ANEW: Final = "if that is meant, move this relay's folder away: it begins a new copy then"


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the file says.

    Attributes:
        term: 1 for a log that no copy has taken over; each taking over adds one.
        began: where this term began ("last done" of the copy that took over); ORIGIN in the first one.
        copy_of: address of the relay that was copied last; None of a log that capture writes.
    """

    term: int = 1
    began: Position = ORIGIN
    copy_of: str | None = None


class _Document(msgspec.Struct, frozen=True):
    term: int
    began: str
    copy_of: str | None


def lineage_path(folder: Path) -> Path:
    """The file, in a log's folder."""
    return folder / "lineage.json"


def read_lineage(folder: Path) -> Lineage:
    """What is known of a log's origin.

    Raises:
        DamagedRecord: the file is damaged.
    """
    path = lineage_path(folder)
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
        return Lineage(document.term, parse_position(document.began), document.copy_of)
    except FileNotFoundError:
        return Lineage()
    except (msgspec.DecodeError, InvalidText) as error:
        raise DamagedRecord("the log's lineage cannot be read", where=str(path), mend="restore the file") from error


def write_lineage(files: Files, folder: Path, lineage: Lineage) -> None:
    """Replaces the file, durably.

    Raises:
        LogFull: no room; the old one stands.
    """
    document = _Document(lineage.term, str(lineage.began), lineage.copy_of)
    replace_whole(files, lineage_path(folder), msgspec.json.encode(document) + b"\n")
