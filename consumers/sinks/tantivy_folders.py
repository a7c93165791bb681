"""Where the generations of an index lie, which of them is live, and who may say so.

    index                  a link to the live one: what readers open
    index~1, index~2, …    generations, in the order in which they were begun: below the live one is what it replaced,
                           above it a copy that is not live yet
    index~swap.lock        held for a swap, and by the live one's writer while it commits
    index~rebuild.lock     held by the one process that has to do with copies

tantivy goes on by path in a folder that it has open: its merges end up in whatever is called so by then. So a folder
never takes another one's name. tantivy resolves a link when it opens it, and a link is replaced by one rename.

Locks are the kernel's (`flock`), as tantivy's own are, and end with their process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from walbus.consumers.checkpoint_store import sync_folder
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.errors import SinkRefused, SinkUnavailable

_BUSY_SECONDS = 5.0  # longer than a rebuild holds the live one's writer
_LOOK_SECONDS = 0.02
_DROPPED = "~dropped"
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_MOST_LINKS = 40
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class IndexFolders:
    """The folders of one index. Methods raise OSError as the file system does, if they do not say otherwise.

    Args:
        path: what readers open. A link of the user's own is followed.
        stopping: whether who waits for a lock is to give up.
    """

    def __init__(self, path: Path, stopping: Callable[[], bool]) -> None:
        self.path = _followed(path)
        self._stopping = stopping

    @property
    def live(self) -> Path | None:
        """The folder that readers get: `path` itself where it is no link; None: there is none."""
        number = self._live_number()
        folder = self._folder(number) if number else self.path
        return folder if folder.is_dir() else None

    @property
    def replaced(self) -> list[Path]:
        """What live ones have replaced."""
        live = self._live_number()
        return [self._folder(number) for number in self._numbers() if number < live]

    @property
    def copies(self) -> list[Path]:
        """What is not live yet."""
        live = self._live_number()
        return [self._folder(number) for number in self._numbers() if 0 < live < number]

    def begun(self) -> Path:
        """The live folder, made when missing; `path` itself where the file system has no links.

        Raises:
            SinkUnavailable: another process holds the lock.
            SinkRefused: there is a folder of something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.alone():
            live = self.live
            if live is not None:
                _require_no_strangers(live)
                sync_folder(self.path.parent)  # a swap may not be durable yet, and its checkpoint is told on
                return live
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, "it is a file", str(self.path))
            folder = self._next()
            folder.mkdir(exist_ok=True)
            try:
                self.point_to(folder)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                folder.rmdir()
                self.path.mkdir()
                return self.path
            return folder

    def make_link(self) -> Path:
        """Gives the folder at `path` a number, and puts a link to it into its place, at once; under `alone`.

        Nobody may have it open for writing, but for the caller, who must not write by that name any more.
        """
        if self.path.is_symlink():
            raise OSError(errno.EINVAL, "somebody has put a link there", str(self.path))
        folder = self._next()
        if folder.is_symlink():  # of somebody who was killed here
            folder.unlink()
        elif folder.exists():  # it is empty
            folder.rmdir()
        folder.symlink_to(folder.name)  # what it says once the two have changed places
        try:
            _exchange(folder, self.path)
        except OSError:
            folder.unlink()
            raise
        sync_folder(self.path.parent)
        return folder

    def beside(self) -> Path:
        """The folder of the copy, made when missing."""
        folder = max(self.copies, key=self._number_of, default=None) or self._next()
        folder.mkdir(exist_ok=True)
        return folder

    def point_to(self, folder: Path) -> None:
        """Has a folder be the live one, durably; under `alone`."""
        link = self._named("link")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(self.path)
        sync_folder(self.path.parent)

    def drop(self, folders: Iterable[Path]) -> None:
        """Deletes folders that nobody reads any more, and what is left of those whose deletion was broken off.

        Somebody may write them yet: under their names nothing comes back.

        Raises:
            SinkRefused: it cannot be done; names the file.
        """
        try:
            self._delete_dropped()
            for folder in folders:
                folder.rename(folder.with_name(folder.name + _DROPPED))
            self._delete_dropped()
        except OSError as error:
            where = str(error.filename or self.path)
            what = f"what is wanted no more cannot be deleted: {error.strerror}"
            raise SinkRefused(what, where=where, mend="let this user delete it, and repeat the command") from None

    # Who may write

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else commits to the live one, or has another one be live.

        Raises:
            SinkUnavailable: another process holds the lock, and goes on to.
        """
        end = time.monotonic() + _BUSY_SECONDS
        while (lock := _locked(self._named("swap.lock"))) is None:
            if self._stopping() or time.monotonic() >= end:
                raise SinkUnavailable("another process commits to this index, or swaps it", where=str(self.path))
            time.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            os.close(lock)

    @contextmanager
    def while_live(self, folder: Path) -> Iterator[None]:
        """A folder is the live one, and stays that; raises as `alone` and `require_live`."""
        with self.alone():
            self.require_live(folder)
            yield

    def require_live(self, folder: Path) -> None:
        """Sees to it that a folder is the live one.

        Raises:
            SinkSwapped: another one is.
            SinkRefused: none is.
        """
        live = self.live
        if live is None:
            mend = "put it back, or start the consumer anew, which fills a new index"
            raise SinkRefused("the index is not where it was", where=str(self.path), mend=mend)
        if live != folder:
            raise SinkSwapped("a rebuilt copy has taken the index's place", where=str(self.path))

    def one_rebuild(self) -> int:
        """Locks the copies for this process; the descriptor that ends it when it is closed.

        Raises:
            SinkRefused: another process has them.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(self._named("rebuild.lock"))
        if lock is None:
            mend = "wait for its end, or stop it: the copy is gone on with then"
            raise SinkRefused("another `walbus rebuild` has to do with this index", where=str(self.path), mend=mend)
        return lock

    # Names

    def _named(self, word: str) -> Path:
        return self.path.with_name(f"{self.path.name}~{word}")

    def _folder(self, number: int) -> Path:
        return self._named(str(number))

    def _number_of(self, folder: Path) -> int:
        return _number(folder.name, self.path.name)

    def _live_number(self) -> int:
        """That the link names; 0: there is no link."""
        try:
            return _number(str(self.path.readlink()), self.path.name)
        except OSError:
            return 0

    def _numbers(self) -> list[int]:
        return sorted(number for folder in self._beside() if (number := self._number_of(folder)))

    def _beside(self) -> list[Path]:
        """Folders whose names begin with that of the index."""
        begin = f"{self.path.name}~"
        with os.scandir(self.path.parent) as entries:
            found = [one for one in entries if one.name.startswith(begin)]
            return [Path(one.path) for one in found if one.is_dir(follow_symlinks=False)]

    def _delete_dropped(self) -> None:
        for folder in self._beside():
            if folder.name.endswith(_DROPPED):
                shutil.rmtree(folder)

    def _next(self) -> Path:
        """Where the next one goes: behind the highest number, unless that was left empty."""
        highest = max(self._live_number(), *self._numbers(), 0)
        if highest and highest != self._live_number() and not any(self._folder(highest).iterdir()):
            return self._folder(highest)
        return self._folder(highest + 1)


def _number(folder: str, name: str) -> int:
    """Of a folder that is called so, in an index of this name; 0: it is none of its generations."""
    match = re.fullmatch(re.escape(name) + "~([1-9][0-9]*)", folder)
    return int(match[1]) if match else 0


def _require_no_strangers(folder: Path) -> None:
    """Files that begin with a dot are tantivy's too, and are there before an index is one."""
    names = {one.name for one in folder.iterdir()}
    if "meta.json" not in names and any(not name.startswith(".") for name in names):
        mend = "name another path, of a folder that is empty or not there"
        raise SinkRefused("the folder has files of somebody else, and no index", where=str(folder), mend=mend)


def _followed(path: Path) -> Path:
    """Where a user's own links lead to; a link of the sink's is not followed."""
    asked = path
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            break
        target = path.readlink()
        if _number(str(target), path.name):
            break
        path = path.parent / target
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(asked))
    if path != asked and not path.is_symlink() and not path.exists():
        raise FileNotFoundError(errno.ENOENT, "a link leads to nothing", str(asked))
    return path


def _locked(path: Path) -> int | None:
    """A descriptor with the lock of a file, which is made when missing; None: somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _exchange(one: Path, other: Path) -> None:
    """Has two names change places at once, which only some systems and file systems can."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


__all__ = ["IndexFolders"]
