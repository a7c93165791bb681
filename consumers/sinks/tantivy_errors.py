"""What tantivy raises, as the sink's errors; and whether an index's files are as tantivy wrote them.

tantivy trusts its files: a flipped bit in a list of words gives other hits, and no error. Each file of a segment ends
with a JSON object that has the CRC-32 of all before it, the object's length, and a magic number.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from walbus.consumers.sinks.base import no_folder
from walbus.errors import SinkRefused, SinkUnavailable

_END = struct.Struct("<II")  # of a file: the length of what describes it, and the magic number
_MAGIC = 1337
_LONGEST_END = 50_000
_PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KILLED = "index writer was killed"  # which is all that tantivy tells of a thread that could not write its file
_ROOM = 32 << 20  # bytes that a thread writes at once, or more

#: What helps where files are damaged.
REFILL = "move the folder away and start the consumer, which fills a new index"


@contextmanager
def index_errors(path: Path, mend: str = REFILL) -> Iterator[None]:
    """Raises what tantivy raises of the index in a folder as SinkUnavailable or SinkRefused.

    Args:
        path: the folder.
        mend: what helps if its files are damaged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path) from None
        raise no_folder(error, path) from None
    except msgspec.MsgspecError:  # of one of the sink's own documents
        raise _damaged(path, mend) from None
    except ValueError as error:  # all that tantivy ever raises
        raise _told(str(error), path, mend) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which pyo3 exports nowhere
            raise
        raise _damaged(path, mend) from None


def _told(text: str, path: Path, mend: str) -> SinkRefused | SinkUnavailable:
    where = str(path)
    if "LockBusy" in text:
        return SinkUnavailable("another process writes this index", where=where)
    if "No space left" in text or (_KILLED in text and shutil.disk_usage(path).free < _ROOM):
        return _full(path)
    if "schema does not match" in text:
        return SinkRefused("the folder holds an index of another kind", where=where, mend="choose another path")
    if any(sign in text for sign in ("Data corrupted", "FileDoesNotExist", "InvalidData", "decompress")):
        return _damaged(path, mend)
    return SinkRefused(f"tantivy refuses ({text.partition(':')[0]})", where=where)


def require_undamaged(path: Path, checked: set[str]) -> None:
    """Reads the files of an index's segments, but for those that were read before.

    Args:
        path: the index's folder.
        checked: names of files, none of which ever changes; those that are read now are added.

    Raises:
        SinkRefused: one is not as tantivy wrote it; names it.
    """
    with index_errors(path):
        known = _segments(path / "meta.json")
        for file in sorted(path.iterdir()):
            if file.name.partition(".")[0] not in known or file.name in checked:
                continue
            try:
                whole = _is_whole(file)
            except FileNotFoundError:  # merged into another meanwhile
                continue
            if not whole:
                raise _damaged(file)
            checked.add(file.name)


def _segments(path: Path) -> set[str]:
    """What the files of an index's segments begin with, by the file that lists them."""
    try:
        segments = json.loads(path.read_bytes())["segments"]
        return {str(segment["segment_id"]).replace("-", "") for segment in segments}
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        raise _damaged(path) from None


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size
    if size < _END.size:
        return False
    with path.open("rb") as file:
        file.seek(size - _END.size)
        length, magic = _END.unpack(file.read(_END.size))
        end = size - _END.size - length
        if magic != _MAGIC or length > _LONGEST_END or end < 0:
            return False
        file.seek(end)
        try:
            expected = json.loads(file.read(length))["crc"]
        except (ValueError, KeyError, TypeError):
            return False
        file.seek(0)
        crc, left = 0, end
        while left and (piece := file.read(min(left, _PIECE))):
            crc, left = zlib.crc32(piece, crc), left - len(piece)
    return bool(crc == expected)


def _full(path: Path) -> SinkUnavailable:
    return SinkUnavailable("the disk under the index is full", where=str(path))


def _damaged(path: Path, mend: str = REFILL) -> SinkRefused:
    return SinkRefused("the index's files are damaged", where=str(path), mend=mend)


__all__ = ["REFILL", "index_errors", "require_undamaged"]
