"""Rules about this machine: facts in, findings out. Pure."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from walbus.amounts import human_bytes, human_seconds
from walbus.capture.doctor import Finding, Mend
from walbus.capture.doctor.findings import advice, error, info, ok, shell, warning
from walbus.cli.doctor_access import CertificateFacts, TokensFacts, access_findings
from walbus.cli.doctor_mounts import Mount
from walbus.errors import WalbusError

_GIB = 1 << 30
#: Kinds of file systems that forget, that another machine keeps, and that go with a container.
_VOLATILE = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs")
_LAYERED = ("overlay", "aufs")
#: Seconds of a sync: slower than this delays commits; faster than this no disk was asked.
_SLOW, _TOO_FAST = 0.020, 0.000_02
_FEW_FILES, _MANY_FILES = 1024, 65_536


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder that must outlive a crash.

    Attributes:
        role: `log`, `spool` or `store` (of the bootstrap).
        exists: else the nearest folder above it was looked at.
        problem: why it cannot be used.
        free, total: bytes of its disk.
        syncs: seconds of each write with fdatasync that was measured.
    """

    role: str
    path: str
    exists: bool
    problem: str | None
    mount: Mount
    free: int
    total: int
    syncs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ConfigFileFacts:
    """The configuration's file: permission bits, and whether the DSN's password stands in it."""

    path: str
    mode: int
    has_password: bool


@dataclass(frozen=True, slots=True)
class ListenFacts:
    """Where a server is to listen; `problem`: why it cannot; `ours`: since that very room runs there already."""

    key: str
    listen: str
    problem: str | None
    mend: str
    ours: bool


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This machine.

    Attributes:
        open_files: soft and hard limit of this user's processes.
        core: as `walbus.native.core_in_use` says it.
        packages: versions by name.
        sinks: what is wrong with consumers' sinks.
        tokens, certificates: by which the servers, and those who reach them, know each other.
    """

    folders: tuple[FolderFacts, ...]
    segment_bytes: int
    open_files: tuple[int, int]
    core: str
    packages: Mapping[str, str]
    config_file: ConfigFileFacts | None
    listeners: tuple[ListenFacts, ...]
    sinks: tuple[WalbusError, ...]
    tokens: tuple[TokensFacts, ...] = ()
    certificates: tuple[CertificateFacts, ...] = ()


def machine_findings(facts: MachineFacts) -> Iterator[Finding]:
    """All of this module's."""
    for folder in facts.folders:
        yield from _folder(folder, facts.segment_bytes)
    yield from _open_files(facts.open_files)
    yield from _core(facts.core)
    yield from _config_file(facts.config_file)
    for listener in facts.listeners:
        yield from _listener(listener)
    yield from access_findings(facts.tokens, facts.certificates)
    for problem in facts.sinks:
        yield error(
            "sinks", problem.what, advice(problem.mend or "correct the configuration"), of=[problem.where or ""]
        )
    yield ok("packages", ", ".join(f"{name} {version}" for name, version in facts.packages.items()))


def log_findings(problem: WalbusError | None) -> Iterator[Finding]:
    """Whether the log that is there can be read; one that is missing is no problem."""
    if problem is not None:
        where = f" ({problem.where})" if problem.where else ""
        mends = [advice(problem.mend)] if problem.mend else []
        yield error("log-folder", f"the log cannot be read: {problem.what}{where}", *mends)


def _folder(folder: FolderFacts, segment_bytes: int) -> Iterator[Finding]:
    code = f"{folder.role}-folder"
    if folder.problem is not None:
        mend = advice("name a folder in data_dir that this user may write to")
        yield error(code, f"the {folder.role}'s folder cannot be used: {folder.problem}", mend, of=[folder.path])
        return
    yield ok(code, f"{folder.path}{'' if folder.exists else ', made at the start,'} can be written")
    if folder.role == "spool" and folder.free < _GIB:
        mend = advice("make room: a transaction in progress is as large as it likes")
        yield warning(code, f"{human_bytes(folder.free)} are free under the spool", mend, of=[folder.path])
    if folder.role == "store" and folder.free < _GIB:
        mend = advice("make room: the store holds every row, and needs half as much again while it is put in order")
        yield warning(code, f"{human_bytes(folder.free)} are free under the store", mend, of=[folder.path])
    if folder.role == "log":
        yield from _space(folder, segment_bytes)
        yield from _file_system(folder)
        yield from _speed(folder)


def _space(folder: FolderFacts, segment_bytes: int) -> Iterator[Finding]:
    found = f"{human_bytes(folder.free)} of {human_bytes(folder.total)} are free under the log"
    mend = advice("make room, or bound the log with relay.retention_bytes")
    if folder.free < 4 * segment_bytes:
        yield error("log-disk-space", found, mend, of=[folder.path])
    elif folder.free < 5 * _GIB or folder.free < folder.total * 0.05:
        yield warning("log-disk-space", found, mend, of=[folder.path])
    else:
        yield ok("log-disk-space", found)


def _file_system(folder: FolderFacts) -> Iterator[Finding]:
    kind, place = folder.mount.kind, f"the log lies on {folder.mount.kind} (mounted at {folder.mount.point})"
    move = advice("put data_dir on a local disk")
    if kind in _VOLATILE:
        found = f"{place}, which is gone after a restart of the machine, and the slot has let its changes go"
        yield error("log-file-system", found, move, of=[folder.path])
    elif kind in _REMOTE:
        found = f"{place}: locks and fdatasync depend on another machine"
        yield warning("log-file-system", found, move, of=[folder.path])
    elif kind in _LAYERED:
        mend = advice("mount a volume at data_dir")
        yield warning("log-file-system", f"{place}, which goes with the container", mend, of=[folder.path])
    else:
        yield ok("log-file-system", place)


def _speed(folder: FolderFacts) -> Iterator[Finding]:
    if not folder.syncs:
        return
    middle, worst = statistics.median(folder.syncs), max(folder.syncs)
    found = f"fdatasync under the log takes {human_seconds(middle)} (median of {len(folder.syncs)}"
    found += f", the slowest {human_seconds(worst)})"
    if middle > _SLOW:
        mend = advice("give relay.dir a disk with a write cache that survives power loss, or an SSD")
        yield warning("log-sync-speed", f"{found}: each commit waits for one", mend, of=[folder.path])
    elif middle < _TOO_FAST:
        yield info("log-sync-speed", f"{found}: so quick that no disk can have been asked", of=[folder.path])
    else:
        yield ok("log-sync-speed", found)


def _open_files(limits: tuple[int, int]) -> Iterator[Finding]:
    soft, hard = limits
    found = f"a process may open {soft:,} files" + (f", {hard:,} at most" if hard > soft else "")
    most = _MANY_FILES if hard < 0 else min(hard, _MANY_FILES)  # a negative one is no limit
    mends = (shell(f"ulimit -n {most}"), advice("or LimitNOFILE in the service's unit"))
    if 0 <= soft < _FEW_FILES:
        yield warning("open-files", found, *mends)
    else:
        yield ok("open-files", found)


def _core(core: str) -> Iterator[Finding]:
    if core == "native":
        yield ok("native-core", "the native core is in use")
        return
    found = f"the native core is not in use: {core}"
    yield info("native-core", found, shell("pip install --force-reinstall --no-binary walbus walbus"))


def _config_file(file: ConfigFileFacts | None) -> Iterator[Finding]:
    if file is None or not file.has_password:
        return
    if file.mode & 0o077:
        found = f"{file.path} holds the password of source.dsn, and others may read it (mode {file.mode:o})"
        yield warning("config-permissions", found, shell(f"chmod 600 {shlex.quote(file.path)}"), of=[file.path])
    else:
        yield ok("config-permissions", f"{file.path} is readable by its owner alone")


def _listener(listener: ListenFacts) -> Iterator[Finding]:
    if listener.problem is None:
        yield ok("listen-address", f"{listener.key} {listener.listen} is free")
    elif listener.ours:
        yield ok("listen-address", f"{listener.key} {listener.listen}: Walbus runs there")
    else:
        found = f"cannot listen on {listener.listen}: {listener.problem}"
        yield error("listen-address", found, Mend("advice", listener.mend), of=[listener.key])
