"""Options that commands share, and what each command does with them first.

`-c FILE` names the configuration. Without it, `./walbus.toml` is read; where that file does not exist and the
environment names the source (`WALBUS_SOURCE__DSN`), or the relay to copy from (`WALBUS_RELAY__UPSTREAM`), the
environment alone is the configuration, as in a container.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from walbus.cli.failures import reporter_of
from walbus.config import Settings, load_settings
from walbus.diagnostics import Redactor, configure_logging, passwords_in
from walbus.errors import ConfigError

DEFAULT_FILE = Path("walbus.toml")
_ENOUGH = ("WALBUS_SOURCE__DSN", "WALBUS_RELAY__UPSTREAM")  # either makes the environment a configuration

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", metavar="FILE", help="The configuration; default ./walbus.toml.", show_default=False
    ),
]


def chosen_file(given: Path | None) -> Path | None:
    """The configuration's file; None for the environment alone."""
    if given is not None:
        return given
    if not DEFAULT_FILE.exists() and any(os.environ.get(variable) for variable in _ENOUGH):
        return None
    return DEFAULT_FILE


def load(context: typer.Context, given: Path | None) -> Settings:
    """The settings; from here on their secrets are starred in every error.

    Raises:
        ConfigError: as `load_settings`.
    """
    settings = load_settings(chosen_file(given))
    reporter_of(context).redactor = Redactor(secrets_of(settings))
    return settings


def require_source(settings: Settings, who: str) -> None:
    """Makes sure that there is a source to reach, which a relay that copies another one's log may do without.

    Args:
        settings: the configuration.
        who: what reads the source, for the error.

    Raises:
        ConfigError: the source is not named.
    """
    if not settings.source.known:
        mend = 'write dsn = "postgresql://…" under [source], or set WALBUS_SOURCE__DSN'
        raise ConfigError(f"missing key: {who} reads the source", where="key source.dsn", mend=mend)


def start_room(context: typer.Context, given: Path | None, room: str) -> Settings:
    """The settings, with the process's log set up for a room.

    Raises:
        ConfigError: as `load_settings`, or the data folder cannot be made.
    """
    settings = load(context, given)
    configure_logging(settings.log, room=room, secrets=secrets_of(settings))
    _make_folder(settings.status_dir)
    return settings


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the folder: {error.strerror}"
        raise ConfigError(what, where=f"{folder}, key data_dir", mend="name one that this user may write") from None


def secrets_of(settings: Settings) -> list[str]:
    """Literal texts of the configuration that must never be printed."""
    dsn = settings.source.dsn.get_secret_value()
    options = [str(value) for consumer in settings.consumer.values() for value in consumer.options.values()]
    hooks = [one.options for one in settings.consumer.values() if one.sink == "webhook"]
    own = [dict(registry) for one in settings.consumer.values() if (registry := one.options.get("schema_registry"))]
    registry, kafka = settings.relay.schema_registry, settings.relay.kafka.options
    tokens = [settings.client.token, *(consumer.relay_token for consumer in settings.consumer.values())]
    tokens += [] if registry is None else [registry.token, registry.password]
    tokens += [value for key, value in kafka.items() if "password" in key or "secret" in key]
    return [
        *(secret for text in (dsn, *options) for secret in passwords_in(text)),
        *(token.get_secret_value() for token in tokens if token is not None),
        *(str(hook[key]) for hook in hooks for key in ("secret", "old_secret") if key in hook),
        *(str(value) for hook in hooks for value in dict(hook.get("headers", {})).values()),
        *(str(one[key]) for one in own for key in ("password", "token") if isinstance(one.get(key), str)),
    ]
