"""Keeps groups over restarts of the relay: `groups.json` in the log's folder, replaced whole before anything is told.

    {"version": 1, "crc32c": N, "groups": {"orders": {"parts": [[17, "a"], [0, null]], "members": {"a": 15.0}}}}

Leases are kept by their length: the clock that they run by ends with the machine, and each begins anew when the file is
read. A damaged file is put aside. Tokens grow all the same, since none is below the time of day; what members hold is
not known, and so nothing is given until the longest lease that there may be is over (`Kept.blind`).
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

_VERSION: Final = 1


class _Stored(msgspec.Struct, frozen=True):
    parts: list[tuple[int, str | None]]
    members: dict[str, float]


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    crc32c: int
    groups: msgspec.Raw


class Kept(NamedTuple):
    """What a file had.

    Attributes:
        groups: by name; all leases are over until they are taken up.
        blind: whether what it had is not known.
    """

    groups: dict[str, Group]
    blind: bool = False


def pack_groups(groups: dict[str, Group]) -> bytes:
    """The file's bytes."""
    stored = {
        name: _Stored(list(group.parts), {one: member.lease for one, member in in_order(group)})
        for name, group in groups.items()
    }
    document = msgspec.json.encode(stored)
    return msgspec.json.encode(_Envelope(_VERSION, google_crc32c.value(document), msgspec.Raw(document))) + b"\n"


def in_order(group: Group) -> list[tuple[str, Member]]:
    """Members, in the order in which they came."""
    return sorted(group.members.items(), key=lambda item: item[1].joined)


def parse_groups(data: bytes) -> dict[str, Group]:
    """The inverse of `pack_groups`.

    Raises:
        DamagedRecord: the bytes are not a whole file of this version.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        document = bytes(envelope.groups)
        if envelope.version != _VERSION or google_crc32c.value(document) != envelope.crc32c:
            raise DamagedRecord("it is of another version, or its checksum is wrong")
        stored = msgspec.json.decode(document, type=dict[str, _Stored])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedRecord("it is no such file, or cut short") from None
    return {name: _group(one) for name, one in stored.items()}


def read_groups(path: Path) -> Kept:
    """What the file has; nothing if there is none.

    A damaged one stays where it is until the next is written, so that whoever reads it meanwhile waits as long.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return Kept(parse_groups(path.read_bytes()))
    except FileNotFoundError:
        return Kept({})
    except DamagedRecord as error:
        mend = "nothing: members ask again, and get parts once all leases that there may be are over"
        _log.error("relay_groups_lost", file=str(path), why=error.what, aside=str(_aside(path)), mend=mend)
        return Kept({}, blind=True)


def write_groups(path: Path, files: Files, groups: dict[str, Group], *, damaged: bool = False) -> None:
    """Replaces the file, durably.

    Args:
        path: of the file.
        files: the file operations.
        groups: what it is to have.
        damaged: whether the one that is there is to be kept for people.

    Raises:
        OSError, LogFull: it cannot be written.
    """
    if damaged and path.exists():
        files.replace(path, _aside(path))
    replace_whole(files, path, pack_groups(groups))


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _group(stored: _Stored) -> Group:
    members = {name: Member(lease, 0.0, joined) for joined, (name, lease) in enumerate(stored.members.items())}
    return Group(tuple(Part(*part) for part in stored.parts), members)
