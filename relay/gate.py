"""What stands between the network and a server's routes, as configured: address, tokens, TLS and bounds.

An address that others can reach needs tokens and TLS, or `insecure = true`, which is said loudly at every start. On the
loopback, where neither is needed, a server without tokens answers to its own names only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from walbus.config import ServerConfig, parse_listen
from walbus.errors import ConfigError
from walbus.relay.access import Access
from walbus.relay.audit import Audit
from walbus.relay.bounds import Bounds
from walbus.relay.host_names import HostNames, is_loopback_address
from walbus.relay.tls import CertificateFiles, ServerTls
from walbus.relay.token_file import TokenFile

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens.

    Attributes:
        host: name or address, without brackets.
        port: 0 lets the system choose.
        key: the configuration's key, for errors.
    """

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether nobody outside of this machine can reach it."""
        return self.host == "localhost" or is_loopback_address(self.host)


def listen_address(config: ServerConfig, room: str) -> ListenAddress:
    """Reads and judges where a server is to listen.

    Args:
        config: the server's section.
        room: the section's name.

    Raises:
        ConfigError: others can reach it, there are no tokens or no TLS, and `insecure` is false.
    """
    host, port = parse_listen(config.listen)
    address = ListenAddress(host, port, f"{room}.listen")
    lacking = _lacking(config)
    if lacking and not config.insecure and not address.loopback:
        raise ConfigError(
            f"{config.listen} can be reached by others, without {' and '.join(lacking)}",
            where=f"key {address.key}",
            mend=f"listen on 127.0.0.1, or set {_keys(config, room)}, or {room}.insecure = true",
        )
    return address


def _lacking(config: ServerConfig) -> list[str]:
    return ["tokens"] * (config.tokens_file is None) + ["TLS"] * (config.tls_cert is None)


def _keys(config: ServerConfig, room: str) -> str:
    tokens = [f"{room}.tokens_file"] * (config.tokens_file is None)
    return " and ".join(tokens + [f"{room}.tls_cert and {room}.tls_key"] * (config.tls_cert is None))


@dataclass(frozen=True, slots=True)
class Gate:
    """All of it for one server.

    Attributes:
        address: where it listens.
        access: who may do what.
        tls: None: plain text.
        audit: what was turned away.
        bounds: how much a client may take.
    """

    address: ListenAddress
    access: Access
    tls: ServerTls | None
    audit: Audit
    bounds: Bounds

    def read(self) -> None:
        """Reads files that have changed; to be called about each second, on a thread that may take its time."""
        self.access.read()
        if self.tls is not None:
            self.tls.refresh()

    def refresh(self) -> None:
        """Lets what was read count for what is under way; to be called behind each `read`, on the event loop."""
        self.access.refresh()
        self.audit.flush(time.monotonic())


def gate_of(config: ServerConfig, room: str) -> Gate:
    """Reads what a section names.

    Raises:
        ConfigError: the address is not allowed, or a file cannot be used.
    """
    address = listen_address(config, room)
    audit = Audit()
    tokens = TokenFile(config.tokens_file, f"{room}.tokens_file") if config.tokens_file is not None else None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = ServerTls(CertificateFiles(config.tls_cert, config.tls_key, config.tls_client_ca, room), time.time)
    else:
        tls = None
    if not address.loopback and _lacking(config):
        _log.warning(
            "INSECURE: whoever reaches this address can read every row",
            address=str(address),
            without=" and ".join(_lacking(config)),
            mend=f"set {_keys(config, room)}",
        )
    bounds = Bounds(connections=config.max_connections, connections_per_address=config.max_connections_per_address)
    named = tokens is None and (address.loopback or config.allowed_hosts)
    names = _names(config, address) if named else None
    access = Access(tokens, audit, names=names, wall=time.time, monotonic=time.monotonic)
    return Gate(address, access, tls, audit, bounds)


def _names(config: ServerConfig, address: ListenAddress) -> HostNames:
    """What a server is asked by, beside the names of the loopback."""
    url = urlsplit(config.url or "").hostname
    return HostNames((address.host, *config.allowed_hosts, *([url] if url else [])))
