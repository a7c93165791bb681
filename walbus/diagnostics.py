"""What the processes say about themselves: structured log lines on stderr, without secrets.

Code logs events with fields: `log.info("slot created", slot=name)`. On a terminal they become coloured lines for
people; elsewhere logfmt or JSON, one line each. Lines of libraries (the standard `logging`) go the same way.

Every line passes `Redactor`, so that a secret that slips into a field, an exception's text or a library's message
is starred: the literal secrets of this process's configuration, anything under a key that names a secret, whatever has
the form of a token of ours, and passwords inside URLs and connection strings. Row values are the callers' duty: they
are never logged.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO
from urllib.parse import unquote

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from walbus.config import LogConfig

STARS = "**********"

_SECRET_KEY = re.compile(r"(?:^|_)(?:dsn|passw(?:or)?d|secret|token|authorization)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):([^\s@]+)@")
_TOKEN = re.compile(r"\bwbt_[A-Za-z0-9_-]{16,}")
_IN_CONNINFO = re.compile(
    r"\b(password|passwd|passfile|sslpassword)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE
)


class Redactor:
    """Stars secrets in text and in fields.

    Args:
        secrets: literal texts that must never appear; those shorter than four characters are not searched for, since
            they would star half of everything.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        literal = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, literal))) if literal else None

    def text(self, text: str) -> str:
        """The text with its secrets starred."""
        if self._literal is not None:
            text = self._literal.sub(STARS, text)
        text = _TOKEN.sub(STARS, text)
        text = _IN_URL.sub(rf"\1:{STARS}@", text)
        return _IN_CONNINFO.sub(rf"\1\2{STARS}", text)

    def value(self, key: str, value: object) -> object:
        """A field's value with its secrets starred; numbers, booleans and None cannot hold any."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if _SECRET_KEY.search(key):
            return STARS
        if isinstance(value, Mapping):
            return {str(name): self.value(str(name), inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value("", inner) for inner in value]
        return self.text(str(value))

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """As a structlog processor."""
        return {key: self.value(key, value) for key, value in event.items()}


def passwords_in(connection: str) -> list[str]:
    """The passwords inside a URL (as written and decoded) or a libpq connection string, quoting removed."""
    found = [match[2] for match in _IN_URL.finditer(connection)]
    found += [match[3].strip("'") for match in _IN_CONNINFO.finditer(connection)]
    return list(dict.fromkeys([*found, *map(unquote, found)]))


def configure_logging(
    config: LogConfig, *, room: str, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Sets up structlog and `logging` for this process; called once, before the first event.

    Args:
        config: level and format.
        room: name of this process, a field of every line.
        secrets: texts that must never appear.
        stream: where lines go; stderr if None.
    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    chosen = resolved_format(config, stream)
    shared: list[Processor] = [
        _room_field(room, chosen),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        Redactor(secrets),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(chosen, stream)],
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))  # libraries speak only when something is wrong
    logging.getLogger("walbus").setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _room_field(room: str, chosen: str) -> Processor:
    """Adds the process's name, which on a terminal the supervisor's prefix already tells."""

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return event if chosen == "human" else {"room": room, **event}

    return add


def resolved_format(config: LogConfig, stream: TextIO) -> str:
    """The format that `auto` stands for on this stream."""
    if config.format != "auto":
        return config.format
    return "human" if stream.isatty() else "logfmt"


def _renderer(chosen: str, stream: TextIO) -> Processor:
    if chosen == "json":
        return structlog.processors.JSONRenderer()
    if chosen == "logfmt":
        return structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "room", "event"], drop_missing=True, bool_as_flag=False
        )
    return structlog.dev.ConsoleRenderer(pad_event_to=0, colors=stream.isatty() or bool(os.environ.get("FORCE_COLOR")))
