"""`walbus run`: every room and every consumer of the file, each as its own process."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

import typer

from walbus.cli.children import Launch, Output, ProcessGroup
from walbus.cli.options import ConfigFile, chosen_file, require_source, start_room
from walbus.cli.supervisor import Child, Supervisor
from walbus.config import ServerConfig, Settings
from walbus.diagnostics import resolved_format
from walbus.errors import ConfigError

#: What stops first; the data flows the other way.
_CONSUMERS, _BOOTSTRAP, _RELAY, _CAPTURE = range(4)


def command(context: typer.Context, config: ConfigFile = None) -> int:
    """Run all rooms, one process each: restart what dies, stop in order on SIGTERM or Ctrl-C."""
    settings = start_room(context, config, "run")
    if settings.bootstrap.enabled:
        require_source(settings, "bootstrap, unless bootstrap.enabled = false,")
    check_addresses(settings)
    check_sinks(settings)
    children = children_of(settings, chosen_file(config))
    chosen = resolved_format(settings.log, sys.stderr)
    group = ProcessGroup(
        Supervisor(children, random.random),
        Output(sys.stderr, [child.name for child in children], json_lines=chosen == "json"),
        Launch(_environment(chosen)),
        settings.status_dir / "supervisor.json",
    )
    return group.run()


def check_addresses(settings: Settings) -> None:
    """Makes sure that the servers can listen, before capture makes a slot that would stay behind.

    Raises:
        ConfigError: an address is not allowed, not of this machine, or in use, or tokens or a certificate are unusable.
    """
    from walbus.relay.gate import gate_of  # noqa: PLC0415 - a command loads its own room alone

    servers: list[tuple[str, ServerConfig]] = [("relay", settings.relay)]
    if settings.bootstrap.enabled:
        servers.append(("bootstrap", settings.bootstrap))
    for room, server in servers:
        address = gate_of(server, room).address
        try:
            socket.create_server((address.host, address.port), family=_family(address.host)).close()
        except OSError as error:
            what = f"cannot listen on {server.listen}: {error.strerror}"
            raise ConfigError(
                what, where=f"key {address.key}", mend="stop what listens there, or name another port"
            ) from None


def check_sinks(settings: Settings) -> None:
    """Makes sure that every consumer names a sink that exists; its other keys are the sink's to check.

    Raises:
        ConfigError: one does not.
    """
    from walbus.consumers.sinks import sink_names  # noqa: PLC0415 - a command loads its own room alone

    known = sink_names()
    for name, consumer in settings.consumer.items():
        if consumer.sink not in known:
            what = f"there is no sink {consumer.sink!r}"
            mend = f"the sinks are {', '.join(known)}"
            raise ConfigError(what, where=f"key consumer.{name}.sink", mend=mend)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def children_of(settings: Settings, file: Path | None) -> list[Child]:
    """The processes of a configuration, in the order of the data."""
    config = () if file is None else ("-c", str(file))
    rooms = [Child("relay", ("relay", *config), _RELAY)]
    if not settings.relay.upstream:  # else the relay copies its log, and capture runs elsewhere
        rooms.insert(0, Child("capture", ("capture", *config), _CAPTURE))
    if settings.bootstrap.enabled:
        rooms.append(Child("bootstrap", ("bootstrap", *config), _BOOTSTRAP, essential=False))
    return rooms + [
        Child(f"consumer-{name}", ("consume", name, *config), _CONSUMERS, essential=False) for name in settings.consumer
    ]


def _environment(log_format: str) -> dict[str, str]:
    """The children's: they write to a pipe, but what they write is for our stderr."""
    environment = {**os.environ, "WALBUS_LOG__FORMAT": log_format}
    if sys.stderr.isatty():
        environment["FORCE_COLOR"] = "1"
    return environment
