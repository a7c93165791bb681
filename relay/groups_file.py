"""Keeps groups over restarts of the relay: `groups.json` in the log's folder, replaced whole before anything is told.

    {"version": 2, "crc32c": N, "kept": {"token": 17, "groups": {"orders": {
        "parts": [[17, "a"], [0, null]], "members": {"a": [15.0, "name of its access token"]}}}}}

Leases are kept by their length: the clock that they run by ends with the machine, and each begins anew when the file is
read. `token` is the highest that was ever given, whatever became of its part and its group.

A log is made with such a file, so one that lacks it has lost it (a copy of another log never had one, and is asked only
once it took over). Of a lost or damaged file it is not known what members hold, and so nothing is given until the
longest lease that there may be is over (`Kept.blind`). Tokens grow all the same, since none is below the time of day. A
damaged file is put aside when the next one is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import msgspec
import structlog

from walbus.errors import DamagedRecord
from walbus.relay.fs import Files, replace_whole
from walbus.relay.group_leases import Group, Member, Part

_log = structlog.get_logger(__name__)

_MEND: Final = "nothing: members ask again, and get parts once all leases that there may be are over"

_FILE: Final = "groups.json"
_VERSION: Final = 2


class _StoredGroup(msgspec.Struct, frozen=True):
    parts: list[tuple[int, str | None]]
    members: dict[str, tuple[float, str]]


class _Stored(msgspec.Struct, frozen=True):
    token: int
    groups: dict[str, _StoredGroup]


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    crc32c: int
    kept: msgspec.Raw


class Kept(NamedTuple):
    """What a file had.

    Attributes:
        groups: by name; all leases are over until they are taken up.
        token: the highest that was ever given.
        blind: whether what it had is not known.
        damaged: whether there is a file, and it is to be put aside.
    """

    groups: dict[str, Group]
    token: int = 0
    blind: bool = False
    damaged: bool = False


def groups_path(folder: Path) -> Path:
    """The file in a log's folder."""
    return folder / _FILE


def pack_groups(groups: dict[str, Group], token: int) -> bytes:
    """The file's bytes; `token` is the highest that was ever given."""
    stored = {
        name: _StoredGroup(list(group.parts), {one: (member.lease, member.owner) for one, member in in_order(group)})
        for name, group in groups.items()
    }
    document = msgspec.json.encode(_Stored(token, stored))
    return msgspec.json.encode(_Envelope(_VERSION, google_crc32c.value(document), msgspec.Raw(document))) + b"\n"


def in_order(group: Group) -> list[tuple[str, Member]]:
    """Members, in the order in which they came."""
    return sorted(group.members.items(), key=lambda item: item[1].joined)


def parse_groups(data: bytes) -> Kept:
    """The inverse of `pack_groups`.

    Raises:
        DamagedRecord: the bytes are not a whole file of this version.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        document = bytes(envelope.kept)
        if envelope.version != _VERSION or google_crc32c.value(document) != envelope.crc32c:
            raise DamagedRecord("it is of another version, or its checksum is wrong")
        stored = msgspec.json.decode(document, type=_Stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedRecord("it is no such file, or cut short") from None
    return Kept({name: _group(one) for name, one in stored.groups.items()}, stored.token)


def begin_groups(folder: Path, files: Files) -> None:
    """Makes the file of a log that is made: nothing was ever given.

    Raises:
        LogFull: no room.
    """
    if not groups_path(folder).exists():
        replace_whole(files, groups_path(folder), pack_groups({}, 0))


def read_groups(path: Path) -> Kept:
    """What the file has.

    A damaged one stays where it is until the next is written, so that whoever reads it meanwhile waits as long.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return parse_groups(path.read_bytes())
    except FileNotFoundError:
        _log.warning("relay_groups_lost", file=str(path), why="it is not there", mend=_MEND)
        return Kept({}, blind=True)
    except DamagedRecord as error:
        _log.error("relay_groups_lost", file=str(path), why=error.what, aside=str(_aside(path)), mend=_MEND)
        return Kept({}, blind=True, damaged=True)


def write_groups(path: Path, files: Files, data: bytes, *, damaged: bool = False) -> None:
    """Replaces the file, durably.

    Args:
        path: of the file.
        files: the file operations.
        data: what it is to have, as `pack_groups` gives it.
        damaged: whether the one that is there is to be kept for people.

    Raises:
        OSError, LogFull: it cannot be written.
    """
    if damaged and path.exists():
        files.replace(path, _aside(path))
    replace_whole(files, path, data)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _group(stored: _StoredGroup) -> Group:
    members = {
        name: Member(lease, 0.0, joined, owner) for joined, (name, (lease, owner)) in enumerate(stored.members.items())
    }
    return Group(tuple(Part(*part) for part in stored.parts), members)
