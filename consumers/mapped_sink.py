"""A sink behind a mapping: windows are mapped on their way, all else passes.

The sink cannot tell one mapping from another: the layouts that it sees keep the numbers of the source's. So what a sink
was filled under is remembered beside it, in the consumer's folder, and another mapping is refused until the consumer
begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.mapping import Mapper, RowFunction, TableMapper
from walbus.consumers.sinks import Sink, SinkPlace
from walbus.consumers.sinks.base import no_folder
from walbus.consumers.sinks.layer import SinkLayer
from walbus.consumers.tables import matching
from walbus.errors import ConfigError, SinkRefused
from walbus.events import Window
from walbus.table_mapping import TableMapping

_NAME = "mapping.json"


class MappedSink(SinkLayer[Sink]):
    """See `walbus.consumers.sinks.base.Sink`; errors of the mapping are those of `Mapper.window`.

    Args:
        sink: where mapped windows go.
        mapper: what is made of them.
        remembered: under which mapping the sink was filled.
    """

    def __init__(self, sink: Sink, mapper: Mapper, remembered: RememberedMapping) -> None:
        super().__init__(sink)
        self._mapper, self._remembered = mapper, remembered

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`; refuses a sink that was filled under another mapping."""
        checkpoint = self._sink.checkpoint()
        self._remembered.check(begun=checkpoint is not None)
        return checkpoint

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        self._sink.write([self._mapper.window(window) for window in windows], marks)


class RememberedMapping:
    """The mapping that a sink was filled under, in a file of the consumer's folder; no file is no mapping.

    Args:
        folder: the consumer's.
        mappings: those of the configuration, by table.
        consumer: its name, for errors.
    """

    def __init__(self, folder: Path, mappings: Mapping[str, TableMapping], consumer: str) -> None:
        self._path = folder / _NAME
        self._mappings = {name: mapping.model_dump() for name, mapping in sorted(mappings.items())}
        self._text = json.dumps(self._mappings, indent=1, sort_keys=True)
        self._consumer = consumer

    def check(self, *, begun: bool) -> None:
        """Compares with what is remembered of a sink that has begun, and remembers what one begins with.

        Raises:
            SinkRefused: the sink was filled under another mapping, or the folder cannot be written.
        """
        try:
            before = self._path.read_text() if self._path.exists() else "{}"
            if before == self._text:
                return
            if begun:
                raise SinkRefused(
                    "the sink was filled under another mapping",
                    where=f"key consumer.{self._consumer}.table, and {self._path}",
                    mend="let a consumer with another name and another place of its sink begin with this one",
                )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(self._text)
            fresh.replace(self._path)
        except OSError as error:
            raise no_folder(error, self._path.parent) from None


def load_mapper(mappings: Mapping[str, TableMapping], place: SinkPlace) -> Mapper:
    """The mapper of a consumer, with the functions that it names.

    Raises:
        ConfigError: a table is none of the consumer's, or a function cannot be imported.
    """
    mappers = {}
    for table, mapping in mappings.items():
        where = f'key consumer.{place.consumer}.table."{table}"'
        if "*" in table or not matching([table], place.tables):
            what = "this is none of the consumer's tables"
            raise ConfigError(what, where=where, mend="write schema.table, of a table that is among its tables")
        function = None if mapping.function is None else load_function(mapping.function, f"{where}.function")
        mappers[table] = TableMapper(mapping, where, function)
    return Mapper(mappers)


def load_function(name: str, where: str) -> RowFunction:
    """The function that `module:function` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:
        what = f"the function {name} cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(what, where=where, mend="put its module's folder on PYTHONPATH") from None
    if not callable(found):
        raise ConfigError(f"{name} is no function", where=where, mend="name one as module:function")
    return cast(RowFunction, found)
