"""What `walbus doctor` looks at on this machine: folders, their disks, ports, who is let in, the installation. I/O.

Nothing is made and nothing stays: a folder that does not exist yet is judged by the nearest one above it that does,
and the speed of its disk is measured on a temporary file without a name.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from walbus.cli.doctor_access import SOON, CertificateFacts, TokensFacts
from walbus.cli.doctor_mounts import Mount, mount_of
from walbus.cli.doctor_rules import ConfigFileFacts, FolderFacts, ListenFacts, MachineFacts
from walbus.config import ClientConfig, ServerConfig, Settings
from walbus.credentials import Credentials, credentials_of, new_client
from walbus.diagnostics import passwords_in
from walbus.errors import ConfigError
from walbus.native import core_in_use

if TYPE_CHECKING:
    from walbus.relay.tls import CertificateFiles

_PACKAGES = ("psycopg", "psycopg-binary", "fastavro", "zstandard", "google-crc32c", "rocksdict", "aiohttp", "httpx",
             "confluent-kafka", "avro")  # fmt: skip
_SYNCS, _BLOCK = 20, b"\0" * 4096
#: Seconds that the measuring of one disk may take.
_PATIENCE = 2.0
_MOUNTS = Path("/proc/self/mountinfo")
_TIMEOUT = 2.0


def read_machine(settings: Settings, file: Path | None) -> MachineFacts:
    """All of it.

    Args:
        settings: the configuration.
        file: where it was read from.
    """
    return MachineFacts(
        folders=_folders(
            {"log": settings.relay_dir, "spool": settings.spool_dir}
            | ({"store": settings.bootstrap_dir} if settings.bootstrap.enabled else {})
        ),
        segment_bytes=settings.relay.segment_bytes,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        core=core_in_use(),
        packages={name: found for name in ("walbus", *_PACKAGES) if (found := _version(name))},
        config_file=_config_file(settings, file),
        listeners=tuple(_listeners(settings)),
        tokens=tuple(_tokens(settings, time.time())),
        certificates=tuple(_certificates(settings, time.time())),
        sinks=tuple(_sink_problems(settings)),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _folders(folders: dict[str, Path]) -> tuple[FolderFacts, ...]:
    """Each folder; a disk that two share is measured once."""
    text = _MOUNTS.read_text() if _MOUNTS.exists() else ""
    measured: dict[int, tuple[float, ...]] = {}
    return tuple(_folder(role, path.absolute(), text, measured) for role, path in folders.items())


def _folder(role: str, path: Path, mounts: str, measured: dict[int, tuple[float, ...]]) -> FolderFacts:
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    problem = _problem(place)
    usage = shutil.disk_usage(place)
    device = place.stat().st_dev
    if problem is None and device not in measured:
        measured[device] = sync_times(place, time.perf_counter)
    return FolderFacts(
        role=role,
        path=str(path),
        exists=place == path,
        problem=problem,
        mount=mount_of(place.resolve().as_posix(), mounts) or Mount("unknown", "/", ""),
        free=usage.free,
        total=usage.total,
        syncs=measured.get(device, ()),
    )


def _problem(place: Path) -> str | None:
    if not place.is_dir():
        return f"{place} is not a folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"this user may not write to {place}"


def sync_times(folder: Path, clock: Callable[[], float]) -> tuple[float, ...]:
    """Seconds of each of some writes with fdatasync, as the log does them; empty where they fail."""
    times: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            begun = clock()
            while len(times) < _SYNCS and clock() - begun < _PATIENCE:
                start = clock()
                file.write(_BLOCK)
                os.fdatasync(file.fileno())
                times.append(clock() - start)
    except OSError:
        return ()
    return tuple(times)


def _config_file(settings: Settings, file: Path | None) -> ConfigFileFacts | None:
    if file is None:
        return None
    status = file.stat()
    in_file = any(password in file.read_text() for password in passwords_in(settings.source.dsn.get_secret_value()))
    return ConfigFileFacts(str(file), stat.S_IMODE(status.st_mode), in_file)


def _listeners(settings: Settings) -> Iterable[ListenFacts]:
    credentials, asked = credentials_of(settings.client), {"relay": "/v1/info", "bootstrap": "/v1/tables"}
    for room, server in _servers(settings).items():
        yield _listener(room, server, f"{server.own_url}{asked[room]}", credentials)


def _servers(settings: Settings) -> dict[str, ServerConfig]:
    """The servers that are to run, by section."""
    return {"relay": settings.relay} | ({"bootstrap": settings.bootstrap} if settings.bootstrap.enabled else {})


def _tokens(settings: Settings, now: float) -> Iterable[TokensFacts]:
    """Each file once, though both servers may name it."""
    files = {
        server.tokens_file: room
        for room, server in reversed(_servers(settings).items())
        if server.tokens_file is not None
    }
    for path, room in files.items():
        yield _tokens_of(path, f"{room}.tokens_file", now)


def _tokens_of(path: Path, key: str, now: float) -> TokensFacts:
    from walbus.relay.token_file import TokenFile  # noqa: PLC0415 - a command loads its own room alone

    try:
        tokens = TokenFile(path, key).tokens
        mode = stat.S_IMODE(path.stat().st_mode)
    except ConfigError as problem:
        return TokensFacts(str(path), problem)
    return TokensFacts(
        str(path),
        mode=mode,
        count=len(tokens),
        expired=tuple(token.name for token in tokens if token.expired(now)),
        expiring=tuple(token.name for token in tokens if token.expired(now + SOON) and not token.expired(now)),
    )


def _certificates(settings: Settings, now: float) -> Iterable[CertificateFacts]:
    from walbus.relay.tls import CertificateFiles  # noqa: PLC0415

    for room, server in _servers(settings).items():
        if server.tls_cert is not None and server.tls_key is not None:
            files = CertificateFiles(server.tls_cert, server.tls_key, server.tls_client_ca, room)
            yield _certificate(f"{room}.tls_cert", files.cert, files.key, partial(_end_of_servers, files), now)
    client, end = settings.client, partial(_end_of_clients, settings.client)
    if client.tls_cert is not None:
        yield _certificate("client.tls_cert", client.tls_cert, client.tls_key, end, now)
    elif client.ca_file is not None:
        yield _certificate("client.ca_file", client.ca_file, None, end, now)


def _end_of_servers(files: CertificateFiles) -> float:
    return files.load()[1]


def _end_of_clients(client: ClientConfig) -> float | None:
    """When it expires, Unix seconds; None where only authorities are named."""
    from walbus.relay.certificate_dates import valid_until  # noqa: PLC0415

    credentials_of(client).context()
    return None if client.tls_cert is None else valid_until(client.tls_cert.read_text())


def _certificate(
    key: str, path: Path, private: Path | None, end_of: Callable[[], float | None], now: float
) -> CertificateFacts:
    try:
        end = end_of()
        mode = 0 if private is None else stat.S_IMODE(private.stat().st_mode)
    except ConfigError as problem:
        return CertificateFacts(key, str(path), problem)
    left = None if end is None else end - now
    return CertificateFacts(key, str(path), None, left, "" if private is None else str(private), mode)


def _listener(room: str, server: ServerConfig, url: str, credentials: Credentials) -> ListenFacts:
    from walbus.relay.gate import listen_address  # noqa: PLC0415 - a command loads its own room alone

    key = f"{room}.listen"
    try:
        address = listen_address(server, room)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        socket.create_server((address.host, address.port), family=family).close()
    except ConfigError as error:
        return ListenFacts(key, server.listen, error.what, error.mend or "", ours=False)
    except OSError as error:
        ours = error.errno == errno.EADDRINUSE and _answers(url, credentials)
        mend = "stop what listens there, or name another port"
        return ListenFacts(key, server.listen, error.strerror or str(error), mend, ours=ours)
    return ListenFacts(key, server.listen, None, "", ours=False)


def _answers(url: str, credentials: Credentials) -> bool:
    """Whether a room of Walbus answers there."""
    try:
        with new_client(url, credentials, httpx.Timeout(_TIMEOUT)) as client:
            return isinstance(client.get(url).json(), dict)  # a refusal for want of a token is one of ours too
    except (httpx.HTTPError, ValueError, ConfigError):
        return False


def _sink_problems(settings: Settings) -> Sequence[ConfigError]:
    from walbus.cli.run import check_sinks  # noqa: PLC0415

    try:
        check_sinks(settings)
    except ConfigError as error:
        return [error]
    return []
