"""Walbus: change data capture for PostgreSQL with an ordered, durable, replayable log.

Rooms, in the direction of the data:

    capture     PostgreSQL's WAL through one logical slot, into the relay log
    relay       the log, and the HTTP server that streams it
    bootstrap   the latest row of every key, for consumers that come late
    consumers   the client library and the sinks

This package holds the vocabulary that the rooms share, and the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walbus.consumers import AsyncCallbacks as AsyncCallbacks
    from walbus.consumers import Callbacks as Callbacks
    from walbus.consumers import ChangesRefused as ChangesRefused
    from walbus.consumers import Failures as Failures
    from walbus.consumers import aconnect as aconnect
    from walbus.consumers import connect as connect

__version__ = "0.1.0"
__all__ = ["AsyncCallbacks", "Callbacks", "ChangesRefused", "Failures", "__version__", "aconnect", "connect"]

if not TYPE_CHECKING:  # type checkers see the import above, and therefore a misspelt name

    def __getattr__(name: str) -> object:
        if name in __all__:  # lazy, so that the vocabulary never pulls a room in
            return getattr(import_module("walbus.consumers"), name)
        raise AttributeError(f"module 'walbus' has no attribute {name!r}")
