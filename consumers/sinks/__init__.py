"""Sinks, found by name: those that come with Walbus, and those of other packages by entry point.

Another package offers a sink by an entry point in the group `walbus.sinks`, whose name is the word that goes into
`sink = "…"` and whose object is a `walbus.consumers.sinks.base.SinkType`; one that is a `SwappableSinkType` too can
be rebuilt beside itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from walbus.consumers.sinks.base import Sink, SinkPlace, SinkType
from walbus.consumers.sinks.copies import SinkCopies, SwappableSinkType
from walbus.consumers.sinks.taking_over import FencedSink, FencedSinkType
from walbus.errors import ConfigError, UsageError

GROUP = "walbus.sinks"


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    module: str
    name: str
    extra: str | None  #: of `pip install walbus[extra]`
    copies: str | None = None  #: `module.Class` of its `SinkCopies`


_OPENSEARCH = _BuiltIn("walbus.consumers.sinks.opensearch", "OpenSearchSink", None, "opensearch_copy.OpenSearchCopies")
_BUILT_IN = {
    "sqlite": _BuiltIn("walbus.consumers.sinks.sqlite", "SqliteSink", None, "sqlite_copy.SqliteCopies"),
    "postgres": _BuiltIn("walbus.consumers.sinks.postgres", "PostgresSink", None, "postgres_copy.PostgresCopies"),
    "stdout": _BuiltIn("walbus.consumers.sinks.stdout", "StdoutSink", None),
    "webhook": _BuiltIn("walbus.consumers.sinks.webhook", "WebhookSink", None),
    "tantivy": _BuiltIn("walbus.consumers.sinks.tantivy", "TantivySink", "search", "tantivy_copy.TantivyCopies"),
    "redis": _BuiltIn("walbus.consumers.sinks.redis", "RedisSink", "redis", "redis_copy.RedisCopies"),
    "kafka": _BuiltIn("walbus.consumers.sinks.kafka", "KafkaSink", "kafka", "kafka_copy.KafkaCopies"),
    "opensearch": _OPENSEARCH,
    "elasticsearch": _OPENSEARCH,
}

#: Sinks that members of a group can write.
_FENCED = ("postgres", "redis")

#: Why others cannot be written by members of a group.
_UNFENCED = {
    "sqlite": "is a file, which one process of one machine writes",
    "tantivy": "is an index in a folder, which one process of one machine writes",
    "stdout": "is the standard output of one process",
    "webhook": "is somebody else's server, and compares no tokens",
    "kafka": "has one writer, which knows the last row of every key",
    "opensearch": "has no transactions, and compares no tokens",
    "elasticsearch": "has no transactions, and compares no tokens",
}


def open_sink(kind: str, options: Mapping[str, Any], place: SinkPlace) -> Sink:
    """Opens the sink of a consumer.

    Args:
        kind: the word behind `sink =`.
        options: the sink's own keys.
        place: whose sink it is.

    Raises:
        ConfigError: there is no such sink, its extra is not installed, or an option is wrong.
        SinkUnavailable, SinkRefused: it cannot be opened.
    """
    return _find(kind, place).open(options, place)


def open_fenced_sink(kind: str, options: Mapping[str, Any], place: SinkPlace) -> FencedSink:
    """Opens the sink of a part that a member of a group holds; see `open_sink`, and `require_fenced`."""
    require_fenced(kind, options, place)
    return cast(FencedSink, open_sink(kind, options, place))


def require_fenced(kind: str, options: Mapping[str, Any], place: SinkPlace) -> None:
    """Sees to it that members of a group can have this sink's parts one after the other.

    Args:
        kind: the word behind `sink =`.
        options: the sink's own keys.
        place: whose sink it is.

    Raises:
        ConfigError: it could not tell a holder from the one before; or there is no such sink.
    """
    why = _UNFENCED.get(kind, "compares no tokens")
    if kind == "redis" and options.get("invalidate") is not None:
        why = "keeps, with invalidate, versions of keys for programs that know it by one name, and takes no turns"
    elif isinstance(_find(kind, place), FencedSinkType):
        return
    raise ConfigError(
        f"the sink {kind} {why}, so what a process writes that has lost its part would not be refused",
        where=f"key consumer.{place.consumer}.parts",
        mend="leave parts out and let one process write it, or give each process a part of its own for good: "
        f'partition = "i/n"; members of a group can write to {", ".join(_FENCED)}',
    )


def open_copies(kind: str, options: Mapping[str, Any], place: SinkPlace) -> SinkCopies:
    """A consumer's sink, and what `walbus rebuild` has beside it.

    Args:
        kind: the word behind `sink =`.
        options: the sink's own keys.
        place: whose sink it is.

    Raises:
        UsageError: such a sink cannot be rebuilt beside itself.
        ConfigError: there is no such sink, its extra is not installed, or an option is wrong.
    """
    built_in = _BUILT_IN.get(kind)
    found: object
    if built_in is not None and built_in.copies is not None:
        module, _, name = built_in.copies.rpartition(".")
        copies = replace(built_in, module=f"{__name__}.{module}", name=name)
        found = _load_built_in(kind, copies, f"key consumer.{place.consumer}.sink")
    else:
        found = _find(kind, place)
    if not isinstance(found, SwappableSinkType):
        able = ", ".join(name for name, one in _BUILT_IN.items() if one.copies is not None)
        raise UsageError(
            f"the sink {kind} cannot be rebuilt beside itself; {able} can",
            where=f"consumer {place.consumer}",
            mend=f"`walbus consumers reset {place.consumer} --to snapshot` has its rows read again in place; or let a "
            "consumer with another name and place fill a second one, and have its readers turn to that",
        )
    return found.copies(options, place)


def sink_names() -> list[str]:
    """Every sink that can be named here, installed extras or not."""
    return sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def _find(kind: str, place: SinkPlace) -> SinkType:
    where = f"key consumer.{place.consumer}.sink"
    built_in = _BUILT_IN.get(kind)
    if built_in is not None:
        return _load_built_in(kind, built_in, where)
    for entry in entry_points(group=GROUP, name=kind):
        return cast(SinkType, entry.load())
    raise ConfigError(f"there is no sink {kind!r}", where=where, mend=f"the sinks are {', '.join(sink_names())}")


def _load_built_in(kind: str, built_in: _BuiltIn, where: str) -> SinkType:
    try:
        module = import_module(built_in.module)
    except ModuleNotFoundError as error:
        if built_in.extra is None or (error.name or "").startswith("walbus"):
            raise
        raise ConfigError(
            f"the sink {kind!r} needs the package {error.name}, which is not installed",
            where=where,
            mend=f"pip install 'walbus[{built_in.extra}]'",
        ) from None
    return cast(SinkType, getattr(module, built_in.name))


__all__ = ["Sink", "SinkPlace", "open_copies", "open_fenced_sink", "open_sink", "require_fenced", "sink_names"]
