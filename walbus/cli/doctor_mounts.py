"""Which file system a path lies on, from the text of /proc/self/mountinfo. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: `kind` as the kernel calls it (`ext4`), where it is mounted, and from what."""

    kind: str
    point: str
    source: str


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that holds an absolute path; the last one that covers it, as later mounts hide earlier ones."""
    place = PurePosixPath(path)
    covering = [mount for line in mountinfo.splitlines() if (mount := _parsed(line)) and _covers(mount.point, place)]
    longest = max((len(PurePosixPath(mount.point).parts) for mount in covering), default=0)
    return next((m for m in reversed(covering) if len(PurePosixPath(m.point).parts) == longest), None)


def _covers(point: str, path: PurePosixPath) -> bool:
    return path.is_relative_to(point)


def _parsed(line: str) -> Mount | None:
    """A line has some optional fields before a lone hyphen; type and source stand behind it."""
    before, hyphen, behind = line.partition(" - ")
    fields, rest = before.split(), behind.split()
    if not hyphen or len(fields) < 5 or len(rest) < 2:
        return None
    return Mount(rest[0], _unescaped(fields[4]), _unescaped(rest[1]))


def _unescaped(text: str) -> str:
    """Blanks and the like are octal there."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
