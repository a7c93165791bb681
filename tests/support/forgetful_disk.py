"""A file system that forgets what was not synced: files' bytes, and the names in folders, renames too.

    python forgetful_disk.py MOUNTPOINT SURVIVORS SEED

It lives in memory, as a FUSE mount. Before each operation that changes it the power could fail; for each such moment it
writes what would be found after that into folders below SURVIVORS, with the number of the moment in their names:

    NUMBER-forgets   the least: what was synced, and nothing else
    NUMBER-mixes     by chance (SEED) also a part of what was not: pages of files, new lengths, names new and old
    NUMBER-*.said    beside each: what the writer had said to have confirmed, which is the extended attribute
                     `user.confirmed` of the mount's root

Moments that differ in nothing from the last one are left out. As POSIX has it, syncing a file makes its bytes durable
and not its name; that takes a sync of its folder.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096


@dataclass(eq=False)
class File:
    """Bytes now, and those that are durable."""

    mode: int
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def found(self, dice: random.Random | None) -> bytes:
        if dice is None:
            return self.durable
        if dice.random() < 0.4:
            return dice.choice((self.durable, bytes(self.now)))
        size = dice.choice((len(self.durable), len(self.now)))
        pages = (
            dice.choice((self.durable, self.now))[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0, size, PAGE)
        )
        return b"".join(map(bytes, pages))[:size]


@dataclass(eq=False)
class Folder:
    """Names now, and those that are durable."""

    mode: int
    now: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)

    def found(self, dice: random.Random | None) -> dict[str, Node]:
        if dice is None:
            return self.durable
        names = {**self.durable, **self.now}
        chosen = {name: dice.choice((self.durable, self.now)).get(name) for name in names}
        return {name: node for name, node in chosen.items() if node is not None}


Node = File | Folder


class ForgetfulDisk:
    """The tree, and what would be left of it.

    Args:
        survivors: folder for what is left at each moment.
        seed: of the parts that are left by chance.
    """

    def __init__(self, survivors: Path, seed: str) -> None:
        self.root = Folder(stat.S_IFDIR | 0o755)
        self.confirmed = b""
        self._survivors, self._dice = survivors, random.Random(seed)
        self._moment = 0
        self._last: tuple[object, ...] = ()

    def folder_of(self, path: str) -> tuple[Folder, str]:
        *above, name = path.strip("/").split("/")
        node: Node = self.root
        for part in above:
            node = self._step(node, part)
        if not isinstance(node, Folder):
            raise OSError(errno.ENOTDIR, path)
        return node, name

    def find(self, path: str) -> Node:
        if path == "/":
            return self.root
        folder, name = self.folder_of(path)
        return self._step(folder, name)

    @staticmethod
    def _step(node: Node, name: str) -> Node:
        if not isinstance(node, Folder) or name not in node.now:
            raise OSError(errno.ENOENT, name)
        return node.now[name]

    def moment(self) -> None:
        """The power could fail now."""
        self._moment += 1
        least = (self.confirmed, *self._durable(self.root))
        if least != self._last:
            self._last = least
            self._leave("forgets", None)
        self._leave("mixes", self._dice)

    def _durable(self, folder: Folder) -> Iterator[object]:
        for name, node in sorted(folder.durable.items()):
            yield name
            yield node.durable if isinstance(node, File) else tuple(self._durable(node))

    def _leave(self, kind: str, dice: random.Random | None) -> None:
        place = self._survivors / f"{self._moment:05d}-{kind}"
        self._write(self.root, place, dice, {})
        place.with_name(f"{place.name}.said").write_bytes(self.confirmed)

    def _write(self, node: Node, path: Path, dice: random.Random | None, written: dict[Node, Path]) -> None:
        if isinstance(node, Folder):
            path.mkdir()
            for name, inner in node.found(dice).items():
                self._write(inner, path / name, dice, written)
        elif node in written:
            path.hardlink_to(written[node])
        elif stat.S_ISREG(node.mode):
            path.write_bytes(node.found(dice))
            written[node] = path


def operations(disk: ForgetfulDisk) -> Any:
    """The disk as FUSE asks for it."""
    import mfusepy

    class Operations(mfusepy.Operations):
        use_ns = True

        def __init__(self) -> None:
            self._open: dict[int, Node] = {}

        def _handle(self, node: Node) -> int:
            handle = max(self._open, default=0) + 1
            self._open[handle] = node
            return handle

        def getattr(self, path, fh=None):
            with told():
                node = disk.find(path)
            size = len(node.now) if isinstance(node, File) else 0
            now = time.time_ns()
            return {
                "st_mode": node.mode, "st_nlink": 1, "st_size": size, "st_uid": os.getuid(), "st_gid": os.getgid(),
                "st_mtime": now, "st_ctime": now, "st_atime": now,
            }  # fmt: skip

        def readdir(self, path, fh):
            with told():
                return [".", "..", *disk.find(path).now]

        def open(self, path, flags=0):
            with told():
                return self._handle(disk.find(path))

        opendir = open

        def release(self, path, fh):
            del self._open[fh]
            return 0

        releasedir = release

        def create(self, path, mode, fi=None):
            return self._handle(self._make(path, File(stat.S_IFREG | mode & 0o7777)))

        def mknod(self, path, mode, dev):
            self._make(path, File(mode))
            return 0

        def mkdir(self, path, mode):
            self._make(path, Folder(stat.S_IFDIR | mode & 0o7777))
            return 0

        def _make(self, path: str, node: Node) -> Node:
            with told():
                folder, name = disk.folder_of(path)
                if name in folder.now:
                    raise OSError(errno.EEXIST, path)
                disk.moment()
                folder.now[name] = node
            return node

        def read(self, path, size, offset, fh):
            return bytes(self._open[fh].now[offset : offset + size])

        def write(self, path, data, offset, fh):
            with told():
                disk.moment()
                now = self._open[fh].now
                now.extend(bytes(max(offset - len(now), 0)))
                now[offset : offset + len(data)] = data
            return len(data)

        def truncate(self, path, length, fh=None):
            with told():
                node = self._open[fh] if fh else disk.find(path)
                disk.moment()
                del node.now[length:]
                node.now.extend(bytes(length - len(node.now)))
            return 0

        def fsync(self, path, datasync, fh):
            with told():
                disk.moment()
                node = self._open[fh]
                node.durable = bytes(node.now)
            return 0

        def fsyncdir(self, path, datasync, fh):
            with told():
                disk.moment()
                folder = self._open[fh]
                folder.durable = dict(folder.now)
            return 0

        def link(self, target, source):
            with told():
                folder, name = disk.folder_of(target)
                if name in folder.now:
                    raise OSError(errno.EEXIST, target)
                disk.moment()
                folder.now[name] = disk.find(source)
            return 0

        def rename(self, old, new):
            with told():
                (folder, name), (target, target_name) = disk.folder_of(old), disk.folder_of(new)
                disk.moment()
                target.now[target_name] = folder.now.pop(name)
            return 0

        def unlink(self, path):
            with told():
                folder, name = disk.folder_of(path)
                disk.moment()
                del folder.now[name]
            return 0

        def rmdir(self, path):
            return self.unlink(path)

        def chmod(self, path, mode):
            return 0

        def chown(self, path, uid, gid):
            return 0

        def utimens(self, path, times=None):
            return 0

        def flush(self, path, fh):
            return 0

        def statfs(self, path):
            return {"f_bsize": PAGE, "f_frsize": PAGE, "f_blocks": 1 << 24, "f_bfree": 1 << 24, "f_bavail": 1 << 24}

        def setxattr(self, path, name, value, options, position=0):
            disk.confirmed = bytes(value)
            return 0

    @contextmanager
    def told() -> Iterator[None]:
        """Errors in FUSE's form."""
        try:
            yield
        except mfusepy.FuseOSError:
            raise
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno) from None

    return Operations()


def main(arguments: list[str]) -> None:
    mountpoint, survivors, seed = arguments
    import mfusepy

    run: Callable[..., object] = mfusepy.FUSE
    run(
        operations(ForgetfulDisk(Path(survivors), seed)), mountpoint, foreground=True, nothreads=True, direct_io=True,
        attr_timeout=0, entry_timeout=0, negative_timeout=0, fsname="forgetful",
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
